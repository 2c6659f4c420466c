"""A cohort at once: one result folder for each case, and one table of all."""

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .dicom_files import dicom_folders
from .errors import CancelToken, StagingError
from .model import StagingModel, default_model_path
from .result import check_writable, one_line
from .stages import GROUPS, RESEARCH_USE, STAGES, explained_stages
from .staging import stage

TABLE = "results.csv"
IMAGES = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")
REGIONS = ("liver", "liver_surface", "liver_core", "spleen", "rest")
COLUMNS = (
    "case",
    "status",
    "reason",
    "stage",
    *STAGES,
    *GROUPS,
    "agreeing",
    "explained",
    *(f"{region}_{what}" for region in REGIONS for what in ("mean", "share")),
    "warnings",
    "model",
    "notice",
)


@dataclass(frozen=True)
class Case:
    """One line of work: name of its result folder, its CT, its masks (None: to be made)."""

    name: str
    ct: Path
    liver: str | Path | None
    spleen: str | Path | None


def stage_folder(
    source: str | Path,
    output: str | Path,
    model: StagingModel | str | Path | None = None,
    explain: str = "predicted",
    progress: Callable[[float, str], None] | None = None,
    cancel: CancelToken | None = None,
) -> list[dict[str, Any]]:
    """Stage every case of a folder or a CSV list; returns the rows of `output`/results.csv.

    source: a folder (see `find_cases` for how masks are found) or a CSV with the columns ct, liver
    and, where wanted, spleen and case; relative paths start at the CSV's folder. A case that cannot
    be staged is a row with status "failed" and its reason. A case that this model has already
    staged for the same explanation is not staged again; the table is written after every case.

    Raises StagingError where the source holds no case or the output cannot be written, and
    Cancelled when cancelled: what is finished stays.
    """
    explained_stages(explain, 0)
    source, output = Path(source), Path(output)
    cases = read_list(source) if source.suffix.lower() == ".csv" else find_cases(source, output)
    check_writable(output)
    if not isinstance(model, StagingModel):
        model = StagingModel.load(default_model_path() if model is None else model)
    rows: list[dict[str, Any]] = []
    for number, case in enumerate(cases):

        def within(fraction: float, step: str, number: int = number, name: str = case.name) -> None:
            if progress is not None:
                progress((number + fraction) / len(cases), f"{name}: {step}")

        rows.append(_row(case, output, model, explain, within, cancel))
        _write_table(rows, output / TABLE)
    return rows


def find_cases(folder: Path, leave_out: Path | None = None) -> list[Case]:
    """Cases in a folder and its subfolders, by name.

    A case is an image file (NIfTI, NRRD, MHA) that is no mask, or a folder that holds DICOM files.
    Beside NAME.nii.gz or NAME_ct.nii.gz, the masks are NAME_liver and NAME_spleen, or NAME_seg with
    1 liver and 2 spleen; in a folder with one CT they may also be called liver, spleen, or begin
    with seg. Where a file is called ct or NAME_ct, other images of that folder are no CTs, and nor
    are images in a DICOM folder; its masks lie in it, or beside it under its name. `leave_out`: a
    folder of results that is not searched. Raises StagingError where there is no case.
    """
    if not folder.is_dir():
        raise StagingError(f"There is no folder {folder}: give a folder of CTs or a CSV list.")
    series = dicom_folders(folder)
    passed_over = series if leave_out is None else [*series, leave_out.absolute()]
    places = [
        place
        for place in (folder, *(p for p in folder.rglob("*") if p.is_dir()))
        if not any(place.absolute().is_relative_to(other.absolute()) for other in passed_over)
    ]
    found = [case for place in places for case in _cases_of_images(place, folder)]
    found += [_case_of_dicom(place, folder) for place in series]
    if not found:
        raise StagingError(
            f"The folder {folder} holds no CT: neither image files ({', '.join(IMAGES)}) nor DICOM."
        )
    cases: dict[str, Case] = {}
    for case in sorted(found, key=lambda case: (case.name, case.ct)):
        name, count = case.name, 1
        while name in cases:  # a.nii.gz beside a.nrrd
            count += 1
            name = f"{case.name}-{count}"
        cases[name] = replace(case, name=name)
    return list(cases.values())


def read_list(path: Path) -> list[Case]:
    """Cases of a CSV list with the columns ct, liver and, where wanted, spleen and case."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise StagingError(f"Cannot read the list {path}: {error}.") from None
    if not lines or "ct" not in lines[0]:
        raise StagingError(f"The list {path} needs a header with the column ct, and a line a case.")
    cases: dict[str, Case] = {}
    for number, line in enumerate(lines, start=2):
        if not (line.get("ct") or "").strip():
            raise StagingError(f"The list {path} names no CT in line {number}.")
        ct, liver, spleen = (
            path.parent / line[key].strip() if (line.get(key) or "").strip() else None
            for key in ("ct", "liver", "spleen")
        )
        name = (line.get("case") or "").strip() or _stem(ct) or ct.name
        if name in cases or Path(name).is_absolute() or ".." in Path(name).parts:
            raise StagingError(f"The list {path} has the case name {name!r} twice, or not usable.")
        cases[name] = Case(name, ct, liver, spleen)
    return list(cases.values())


def _cases_of_images(place: Path, root: Path) -> list[Case]:
    images = _images(place)
    named = [stem for stem in images if stem == "ct" or stem.endswith("_ct")]
    cts = named or [stem for stem in images if not _is_mask(stem)]
    cases = []
    for stem in cts:
        own = stem.removesuffix("_ct")
        masks = _masks(images, own + "_")
        if len(cts) == 1:
            masks = {**_masks(images, ""), **masks}
        name = place if len(cts) == 1 and place != root else place / own
        liver, spleen = masks.get("liver", masks.get("seg")), masks.get("spleen")
        cases.append(Case(name.relative_to(root).as_posix(), images[stem], liver, spleen))
    return cases


def _case_of_dicom(place: Path, root: Path) -> Case:
    masks = {
        **_masks(_images(place.parent), place.name.lower() + "_"),
        **_masks(_images(place), ""),
    }
    name = place.name if place == root else place.relative_to(root).as_posix()
    return Case(name, place, masks.get("liver", masks.get("seg")), masks.get("spleen"))


def _images(place: Path) -> dict[str, Path]:
    """Image files of one folder by their name without extension, in lower case."""
    stems = {path: _stem(path) for path in sorted(place.iterdir()) if path.is_file()}
    return {stem: path for path, stem in stems.items() if stem is not None}


def _stem(path: Path) -> str | None:
    name = path.name.lower()
    ending = next((ending for ending in IMAGES if name.endswith(ending)), None)
    # Slicer calls a segmentation NAME.seg.nrrd.
    return None if ending is None else name.removesuffix(ending).replace(".", "_")


def _masks(images: dict[str, Path], prefix: str) -> dict[str, Path]:
    masks = {o: images[prefix + o] for o in ("liver", "spleen", "seg") if prefix + o in images}
    any_seg = next((path for stem, path in images.items() if stem.startswith("seg")), None)
    if not prefix and any_seg is not None:
        masks.setdefault("seg", any_seg)
    return masks


def _is_mask(stem: str) -> bool:
    return stem.startswith("seg") or stem.split("_")[-1] in ("liver", "spleen", "seg")


def _row(
    case: Case,
    output: Path,
    model: StagingModel,
    explain: str,
    progress: Callable[[float, str], None],
    cancel: CancelToken | None,
) -> dict[str, Any]:
    row: dict[str, Any] = {"case": case.name, "notice": RESEARCH_USE, "model": model.card.name}
    folder = output / case.name
    try:
        summary = _finished(folder, model, explain)
        if summary is None:
            result = stage(case.ct, case.liver, case.spleen, model, explain, progress, cancel)
            result.save(folder)
            progress(1.0, one_line(result))
            summary = result.summary()
    except StagingError as refusal:
        return {**row, "status": "failed", "reason": str(refusal)}
    return {**row, "status": "done", **_columns(summary)}


def _finished(folder: Path, model: StagingModel, explain: str) -> dict[str, Any] | None:
    """What an earlier run wrote, if this model wrote it for the same explanation."""
    try:
        summary = json.loads((folder / "staging.json").read_text(encoding="utf-8"))
        explained = summary["location_map"]["explained"]
        wanted = summary["stage"] if explain == "predicted" else explain
        same = summary["model"]["sha256"] == model.sha256 and explained == wanted
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return summary if same else None


def _columns(summary: dict[str, Any]) -> dict[str, Any]:
    measurements = {
        f"{region}_{what}": round(values[what], 6)
        for region, values in summary["measurements"].items()
        for what in ("mean", "share")
    }
    return {
        "stage": summary["stage"],
        **{name: round(p, 6) for name, p in summary["probabilities"].items()},
        **{name: round(p, 6) for name, p in summary["scores"].items()},
        "agreeing": _agreeing(summary),
        "explained": summary["location_map"]["explained"],
        **measurements,
        "warnings": " ".join(summary["warnings"]),
    }


def _agreeing(summary: dict[str, Any]) -> float | str:
    """Share of an ensemble's networks that find the stage the most probable."""
    found = summary.get("ensemble")
    return "" if found is None else round(found["agreeing"] / found["members"], 6)


def _write_table(rows: list[dict[str, Any]], path: Path) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, COLUMNS, restval="")
            table.writeheader()
            table.writerows(rows)
        partial.replace(path)
    except OSError as error:
        raise StagingError(f"Cannot write the table {path}: {error.strerror}.") from None
