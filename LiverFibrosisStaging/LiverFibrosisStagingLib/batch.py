"""A cohort at once: one result folder for each case, and one table of all."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from .cases import Case, find_cases, read_list
from .errors import Cancelled, CancelToken, StagingError
from .files import check_writable, write_table
from .fingerprint import fingerprint
from .imaging.segmentation import shipped
from .model import StagingModel
from .privacy import Names
from .report.summary import REGION_NAMES
from .resources import default_model_path
from .result import FILES, SCHEMA, one_line
from .stages import GROUPS, RESEARCH_USE, STAGES, explained_stages
from .staging import software, stage

TABLE = "results.csv"
COLUMNS = (
    "case",
    "status",
    "reason",
    "stage",
    *STAGES,
    *GROUPS,
    "agreeing",
    "explained",
    *(f"{region}_{what}" for region in REGION_NAMES for what in ("mean", "share")),
    "warnings",
    "model",
    "notice",
)


def stage_folder(
    source: str | Path,
    output: str | Path,
    model: StagingModel | str | Path | None = None,
    explain: str = "predicted",
    progress: Callable[[float, str], None] | None = None,
    cancel: CancelToken | None = None,
    pseudonyms: bool = False,
    tell: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """Stage every case of a folder or a CSV list; returns the rows of `output`/results.csv.

    source: a folder (see `find_cases` for how masks are found) or a CSV with the columns ct, liver
    and, where wanted, spleen and case; relative paths start at the CSV's folder. A case that cannot
    be staged, for whatever reason, is a row with status "failed" and its reason. A case whose
    result is already there, from the same files, model, options and software
    (`fingerprint.fingerprint`), is not staged again; the table is written after every case.

    Nothing that is written, the rows included, names a patient, file or folder of the inputs.
    pseudonyms: give every case a pseudonym, not only those whose names read like a person's
    (`find_cases`). tell: called with sentences for the screen, which do name them: which case has
    which pseudonym, and why a case failed.

    Raises StagingError where the source holds no case or the output cannot be written, and
    Cancelled when cancelled: what is finished stays.
    """
    explained_stages(explain, 0)
    source, output = Path(source), Path(output)
    if source.suffix.lower() == ".csv":
        cases = read_list(source, pseudonyms)
    else:
        cases = find_cases(source, output, pseudonyms)
    check_writable(output)
    if not isinstance(model, StagingModel):
        model = StagingModel.load(default_model_path() if model is None else model)
    say = (lambda _: None) if tell is None else tell
    for case in cases:
        if case.pseudonym:
            say(f"{case.name} is {case.ct}.")
    rows: list[dict[str, Any]] = []
    for number, case in enumerate(cases):

        def within(fraction: float, step: str, number: int = number, name: str = case.name) -> None:
            if progress is not None:
                progress((number + fraction) / len(cases), f"{name}: {step}")

        rows.append(_row(case, output, model, explain, within, cancel, say))
        try:
            write_table(output / TABLE, COLUMNS, rows)
        except StagingError as refusal:  # open in a spreadsheet, perhaps not until the end
            if len(rows) == len(cases):
                raise
            say(str(refusal))
    return rows


def _row(
    case: Case,
    output: Path,
    model: StagingModel,
    explain: str,
    progress: Callable[[float, str], None],
    cancel: CancelToken | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    row: dict[str, Any] = {"case": case.name, "notice": RESEARCH_USE, "model": model.card.name}
    try:
        return {**row, "status": "done", **_staged(case, output, model, explain, progress, cancel)}
    except Cancelled:
        raise
    except Exception as error:  # one case is never the end of the others
        reason, written = _reason(error)
        say(f"{case.name}: {reason}")
        files = {output / case.name: "the result folder", model.path: "the model"}
        names = Names(case.ct, case.liver, case.spleen, files)
        return {**row, "status": "failed", "reason": names.removed(written)}


def _reason(error: Exception) -> tuple[str, str]:
    """Why a case failed, in a sentence for the screen and one for the table."""
    if isinstance(error, StagingError):
        return str(error), str(error)
    if isinstance(error, MemoryError):
        return ("Not enough memory for this CT.",) * 2
    kind = f"Unexpected {type(error).__name__}"
    # What it says may quote the file's header, in which names stand.
    return f"{kind}: {' '.join(str(error).split())}", f"{kind}: the file may be damaged."


def _staged(
    case: Case,
    output: Path,
    model: StagingModel,
    explain: str,
    progress: Callable[[float, str], None],
    cancel: CancelToken | None,
) -> dict[str, Any]:
    """The columns of a case that is staged, now or by an earlier run."""
    folder = output / case.name
    inputs = fingerprint(
        case.ct,
        case.liver,
        case.spleen,
        schema=SCHEMA,
        software=software(),
        model=model.sha256,
        segmentation=None if case.liver else shipped(model.threads).sha256,
        explain=explain,
    )
    columns = _finished(folder, inputs)
    if columns is None:
        result = stage(case.ct, case.liver, case.spleen, model, explain, progress, cancel)
        result = replace(result, provenance={**result.provenance, "fingerprint": inputs})
        result.save(folder)
        progress(1.0, one_line(result))
        columns = _columns(result.summary())
    return columns


def _finished(folder: Path, inputs: str) -> dict[str, Any] | None:
    """The columns of what an earlier run wrote, where that is whole and of the same inputs."""
    try:
        summary = json.loads((folder / FILES[-1]).read_text(encoding="utf-8"))
        whole = all((folder / name).is_file() for name in FILES)
        same = summary["schema"] == SCHEMA and summary["fingerprint"] == inputs
        return _columns(summary) if whole and same else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


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
