"""Checks of the CTs and masks before training, and outlines of livers that have no mask.

Every CT is read and checked as by the library's `stage`. Where a case has no liver mask, the
shipped V-Net outlines the organs, once, so that training and staging use the same mask. A case
that would be refused is excluded with the reason; nothing is trained before this is known.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import SimpleITK as sitk

from cases.acquisition import acquisition_of
from cases.manifest import Case, Inclusion, ManifestError
from common.files import unfinished, write_text
from common.parallel import in_processes
from common.resume import digest, digest_of_voxels
from common.tables import write_csv
from LiverFibrosisStagingLib import __version__
from LiverFibrosisStagingLib.errors import StagingError, WrongPhase
from LiverFibrosisStagingLib.imaging.checks import check_copies, check_ct, check_organs
from LiverFibrosisStagingLib.imaging.dicom_files import DESCRIPTION, SERIES_NUMBER
from LiverFibrosisStagingLib.imaging.input_checks import concerns, input_checks, refuse
from LiverFibrosisStagingLib.imaging.masks import organ_masks, read_organ
from LiverFibrosisStagingLib.imaging.organs import LIVER_LABEL, write_labels
from LiverFibrosisStagingLib.imaging.reading import notes, read_ct, source_files
from LiverFibrosisStagingLib.imaging.segmentation import (
    segment_checked,
    segmentation_warnings,
    shipped_network,
)
from LiverFibrosisStagingLib.privacy import Names, technical_tags
from LiverFibrosisStagingLib.resources import default_model_path
from LiverFibrosisStagingLib.stages import RESEARCH_USE

SCHEMA = 2
GIVEN, AUTOMATIC = "given", "automatic"
# Columns of tables/series.csv after name and line, and keys of a record's `series`.
SERIES = (
    "kind",
    "series",
    "description",
    "scanner",
    "kernel",
    "thickness_mm",
    "slices",
    "spacing_mm",
    "phase",
    "liver",
    "spleen",
    "notes",
)


class Patch(NamedTuple):
    """Slices of the network's patch, and their distance along the body in mm (`check_copies`)."""

    slices: int
    step: float


class Checked(NamedTuple):
    """The cases that can be used, with their masks; `records`: what was found, by case name."""

    inclusion: Inclusion
    records: dict[str, dict[str, Any]]

    def digests(self, case: Case) -> frozenset[str]:
        """As `resume.digests`, of a case that can be used, whose CT is not read again."""
        return frozenset({digest(case.ct), self.records[case.name]["voxels"]})


def check_inputs(
    inclusion: Inclusion,
    folder: Path,
    patch: Patch | None = None,
    any_phase: bool = False,
    workers: int = -1,
) -> Checked:
    """Read and check the included cases; outline the organs where the liver mask is missing.

    Writes `folder`/checked/<case>.json and, for automatic masks, `folder`/masks/<case>.nii.gz (1
    liver, 2 spleen). A case is not checked or outlined again if both exist, from files of the same
    content, with the same network, options and version. patch: of a network whose input is padded
    with copies of the first and last slice. any_phase: also accept another phase than the
    portal-venous one. workers: processes, -1 for one per core.

    In the result, the refused cases are excluded; the others have the properties of the
    acquisition that are missing in the manifest, from DICOM.
    """
    network = digest(default_model_path("VNet.onnx"))
    inputs = {
        case.name: {
            "schema": SCHEMA,
            "software": __version__,
            "files": case.content(),
            "patch": patch and list(patch),
            "any_phase": any_phase,
            "network": None if case.liver else network,
        }
        for case in inclusion.included
    }
    records = {case.name: _read(case, folder, inputs[case.name]) for case in inclusion.included}
    todo = [case for case in inclusion.included if records[case.name] is None]
    if todo:
        (folder / "checked").mkdir(parents=True, exist_ok=True)
        work = [(case, folder, inputs[case.name]) for case in todo]
        checked = in_processes(_check_one, work, "Checking", "CT", workers)
        records |= {case.name: found for case, found in zip(todo, checked, strict=True)}
    usable, excluded = [], list(inclusion.excluded)
    for case in inclusion.included:
        record = records[case.name]
        if record["refused"]:
            excluded.append((case, record["refused"]["kind"]))
        else:
            usable.append(_completed(case, record, folder))
    return Checked(Inclusion(usable, excluded), records)


def refusals(checked: Checked) -> list[tuple[Case, str]]:
    """The excluded cases with a sentence each; for refused ones, what was found."""
    return [
        (case, record["refused"]["reason"] if (record := checked.records.get(case.name)) else why)
        for case, why in checked.inclusion.excluded
    ]


def check_some(checked: Checked, path: Path) -> None:
    """Raise ManifestError, with the reasons, if no case of the manifest `path` can be used."""
    if not checked.inclusion.included:
        why = [f"line {case.line}: left out: {reason}" for case, reason in refusals(checked)]
        raise ManifestError(path, ["No case can be used.", *why])


def write_tables(checked: Checked, folder: Path) -> None:
    """Write series.csv, concerns.csv and refused.csv to `folder`/tables; no paths, no names."""
    everyone = [*checked.inclusion.included, *(case for case, _ in checked.inclusion.excluded)]
    found = [(c, checked.records[c.name]) for c in everyone if c.name in checked.records]
    found.sort(key=lambda pair: pair[0].line)
    series = [[c.name, c.line, *(r["series"].get(k, "") for k in SERIES)] for c, r in found]
    worries = [[c.name, c.line, text] for c, r in found for text in r["concerns"]]
    refused = [[c.name, c.line, r["refused"]["reason"]] for c, r in found if r["refused"]]
    tables = folder / "tables"
    tables.mkdir(parents=True, exist_ok=True)
    write_csv(tables / "series.csv", [["case", "line", *SERIES], *series])
    write_csv(tables / "concerns.csv", [["case", "line", "concern"], *worries])
    write_csv(tables / "refused.csv", [["case", "line", "reason"], *refused])


def _check_one(case: Case, folder: Path, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Check one case; writes its record and returns it."""
    names = Names(case.ct, case.liver, case.spleen)
    record: dict[str, Any] = {"research_use": RESEARCH_USE, **inputs}
    record |= {"refused": None, "series": {}, "concerns": [], "outline": None, "voxels": None}
    kind = "the CT cannot be read"
    try:
        ct = read_ct(case.ct)
        record["voxels"] = digest_of_voxels(ct)
        record["series"] = _series(case, ct)
        record["series"]["notes"] = " ".join(map(names.removed, notes(ct)))
        kind = "not a CT that can be staged"
        check_ct(ct, "The CT")
        if inputs["patch"] is not None:
            check_copies(ct, "The CT", *inputs["patch"])
        kind = "the V-Net finds no liver"
        liver, spleen = case.liver, case.spleen
        said: list[str] = []
        if case.liver is None:
            organs = segment_checked(ct, "The CT", shipped_network(1))
            _outline(case, folder).parent.mkdir(exist_ok=True)
            with unfinished(_outline(case, folder)) as partial:
                write_labels(organs.labels, partial)
            record["outline"] = digest(_outline(case, folder))
            own = organs.volumes_ml if spleen is None else {"liver": organs.volumes_ml["liver"]}
            said += segmentation_warnings(own)
            liver, spleen = organs.liver, organs.spleen if spleen is None else spleen
            if case.spleen is None:
                record["series"]["spleen"] = AUTOMATIC if organs.spleen is not None else "not found"
        kind = "the masks cannot be used"
        liver, spleen = (_image(mask) for mask in (liver, spleen))
        liver, spleen, about = organ_masks(ct, liver, spleen)
        if case.spleen is None and case.liver is not None and spleen is not None:
            record["series"]["spleen"] = GIVEN  # in one label image with the liver
        check_organs(ct, liver, spleen, "The CT")
        kind = "only a part of the liver in the CT"
        phase, checks = input_checks(ct, liver, spleen)
        record["series"]["phase"] = phase
        record["concerns"] = [names.removed(text) for text in (*said, *about, *concerns(checks))]
        refuse(checks, "The CT", strict=False, any_phase=inputs["any_phase"])
    except WrongPhase as refusal:
        record["refused"] = {"kind": "another contrast phase", "reason": str(refusal)}
    except StagingError as refusal:
        record["refused"] = {"kind": kind, "reason": str(refusal)}
    if record["refused"]:
        record["refused"]["reason"] = names.removed(record["refused"]["reason"])
    text = json.dumps(record, indent=1)
    write_text(folder / "checked" / f"{case.name}.json", text + "\n")
    return record


def _image(mask: sitk.Image | Path | None) -> sitk.Image | None:
    return read_organ(mask) if isinstance(mask, Path) else mask


def _series(case: Case, ct: sitk.Image) -> dict[str, str | float]:
    """What was read, without names; DICOM's properties of the chosen series where it has them."""
    found: dict[str, str | float] = {"kind": _kind(case.ct)}
    files = source_files(ct)
    if files:
        found["kind"] = "DICOM"
        tags = technical_tags(files[0], (SERIES_NUMBER, DESCRIPTION))
        acquisition = acquisition_of(files[0])
        values = {
            "series": tags.get(SERIES_NUMBER),
            "description": tags.get(DESCRIPTION),
            "kernel": acquisition.kernel,
            "scanner": acquisition.scanner,
            "thickness_mm": acquisition.thickness,
        }
        found |= {key: value for key, value in values.items() if value}
    found["slices"] = ct.GetSize()[2]
    found["spacing_mm"] = " x ".join(f"{step:.4g}" for step in ct.GetSpacing())
    found["liver"] = GIVEN if case.liver else AUTOMATIC
    found["spleen"] = GIVEN if case.spleen else "none"
    return found


def _kind(path: Path) -> str:
    suffix = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    return {"nii": "NIfTI", "hdr": "NIfTI", "img": "NIfTI", "nrrd": "NRRD", "nhdr": "NRRD"}.get(
        suffix, "MetaImage"
    )


def _outline(case: Case, folder: Path) -> Path:
    return folder / "masks" / f"{case.name}.nii.gz"


def _read(case: Case, folder: Path, inputs: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record of an earlier check of the same inputs, if there is one with its masks."""
    try:
        record = json.loads((folder / "checked" / f"{case.name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(record, dict) or not inputs.items() <= record.items():
        return None
    outline = _outline(case, folder)
    if record["outline"] is None:
        return record
    return record if outline.is_file() and digest(outline) == record["outline"] else None


def _completed(case: Case, record: Mapping[str, Any], folder: Path) -> Case:
    """The case with automatic masks, and with the acquisition's properties from DICOM."""
    series = record["series"]
    found = replace(
        case,
        scanner=case.scanner or series.get("scanner"),
        kernel=case.kernel or series.get("kernel"),
        thickness=case.thickness or series.get("thickness_mm"),
    )
    if case.liver is not None:
        return found
    # With a spleen of its own, the automatic one must not be used.
    outline = _outline(case, folder)
    liver = outline if case.spleen is None else Path(f"{outline}:{LIVER_LABEL}")
    return replace(found, liver=liver, outlined=True)
