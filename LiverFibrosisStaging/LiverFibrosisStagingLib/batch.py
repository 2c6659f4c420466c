"""Staging of a cohort: one result folder per case, and one table of all cases."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from .cases import Case, read_cases
from .errors import Cancelled, CancelToken, StagingError
from .files import check_writable, write_table
from .fingerprint import fingerprint
from .imaging.input_checks import PASS
from .imaging.segmentation import shipped_network
from .model import StagingModel
from .privacy import Names
from .report.documents import REPORT_FILES
from .report.summary import REGION_NAMES, SURFACE_MM
from .resources import default_model_path
from .result import FILES, SCHEMA, one_line
from .signs.measure import UNITS
from .stages import GROUPS, RESEARCH_USE, STAGES, explained_stages
from .staging import check_surface, software, stage

TABLE = "results.csv"
COLUMNS = (
    "case",
    "status",
    "reason",
    "stage",
    "supported",
    "reasons",
    *STAGES,
    *GROUPS,
    "agreeing",
    "explained",
    *(f"{region}_{what}" for region in REGION_NAMES for what in ("mean", "share")),
    "surface_to_core",
    "outside_share",
    "pattern",
    *UNITS,
    "agreement",
    "phase",
    "checks",
    "warnings",
    "model",
    "trained_on",
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
    notify: Callable[[str], None] | None = None,
    surface_mm: float = SURFACE_MM,
    reports: bool = False,
    strict: bool = False,
    any_phase: bool = False,
) -> list[dict[str, Any]]:
    """Stage every case of a folder or a CSV list; returns the rows of `output`/results.csv.

    source: a folder (see `find_cases` for how masks are found) or a CSV file with the columns ct
    and, optionally, liver, spleen, case, segments, height_cm and weight_kg; relative paths start at
    the file's folder. A case that cannot be staged, for whatever reason, is a row with status
    "failed" and the reason. A case with an existing result from the same files, model, options and
    software (`fingerprint.fingerprint`) is not staged again. The table is written after each case.

    No output, including the rows, contains names of patients, or of the inputs' files and folders.
    pseudonyms: give every case a pseudonym, not only those whose names may be those of persons
    (`find_cases`). notify: called with messages for the screen, which can contain such names: the
    case of each pseudonym, and why a case failed. surface_mm, strict, any_phase: as for `stage`.
    reports: write a report for each case, as `StagingResult.save` does; a finished case without one
    is staged again.

    Raises StagingError if the source contains no case or the output cannot be written, and
    Cancelled; finished cases are kept.
    """
    explained_stages(explain, 0)
    check_surface(surface_mm)
    source, output = Path(source), Path(output)
    cases = read_cases(source, output, pseudonyms)
    check_writable(output)
    if not isinstance(model, StagingModel):
        model = StagingModel.load(default_model_path() if model is None else model)
    notify = (lambda _: None) if notify is None else notify
    for case in cases:
        if case.pseudonym:
            notify(f"{case.name} is {case.ct}.")
    options = {
        "explain": explain,
        "surface_mm": float(surface_mm),
        "strict": strict,
        "any_phase": any_phase,
    }
    rows: list[dict[str, Any]] = []
    for number, case in enumerate(cases):

        def within(fraction: float, step: str, number: int = number, name: str = case.name) -> None:
            if progress is not None:
                progress((number + fraction) / len(cases), f"{name}: {step}")

        rows.append(_row(case, output, model, options, within, cancel, notify, reports))
        try:
            write_table(output / TABLE, COLUMNS, rows)
        except StagingError as refusal:  # may be open in a spreadsheet; retried after the next case
            if len(rows) == len(cases):
                raise
            notify(str(refusal))
    return rows


def _row(
    case: Case,
    output: Path,
    model: StagingModel,
    options: dict[str, Any],
    progress: Callable[[float, str], None],
    cancel: CancelToken | None,
    notify: Callable[[str], None],
    reports: bool,
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "case": case.name,
        "model": model.card.name,
        "trained_on": model.card.trained_on,
        "notice": RESEARCH_USE,
    }
    try:
        columns = _staged(case, output, model, options, progress, cancel, reports)
        return {**row, "status": "done", **columns}
    except Cancelled:
        raise
    except Exception as error:  # the other cases are still staged
        files = {output / case.name: "the result folder", model.path: "the model"}
        reason, written = why_failed(error, case, files)
        notify(f"{case.name}: {reason}")
        return {**row, "status": "failed", "reason": written}


def why_failed(error: Exception, case: Case, files: dict[Path, str]) -> tuple[str, str]:
    """Why a case failed: a sentence for the screen, and one without names for a table.

    files: as for `privacy.Names`, besides the case's own.
    """
    kind = f"Unexpected {type(error).__name__}"
    if isinstance(error, StagingError):
        shown = written = str(error)
    elif isinstance(error, MemoryError):
        shown = written = "Not enough memory for this CT."
    else:  # the error's text may quote the file's header, which can contain names
        shown, written = (
            f"{kind}: {' '.join(str(error).split())}",
            f"{kind}: the file may be damaged.",
        )
    if case.segments is not None:
        files = {**files, case.segments: "the segments"}
    return shown, Names(case.ct, case.liver, case.spleen, files).removed(written)


def _staged(
    case: Case,
    output: Path,
    model: StagingModel,
    options: dict[str, Any],
    progress: Callable[[float, str], None],
    cancel: CancelToken | None,
    reports: bool,
) -> dict[str, Any]:
    """The columns of a case, staged now or in an earlier run."""
    folder = output / case.name
    inputs = fingerprint(
        case.ct,
        case.liver,
        case.spleen,
        case.segments,
        body=None if case.body is None else asdict(case.body),
        schema=SCHEMA,
        software=software(),
        model=model.sha256,
        segmentation=None if case.liver else shipped_network(model.threads).sha256,
        **options,
    )
    columns = _finished(folder, inputs, reports)
    if columns is None:
        result = stage(
            case.ct,
            case.liver,
            case.spleen,
            model,
            progress=progress,
            cancel=cancel,
            segments=case.segments,
            body=case.body,
            **options,
        )
        result = replace(result, provenance={**result.provenance, "fingerprint": inputs})
        result.save(folder, reports)
        progress(1.0, one_line(result))
        columns = _columns(result.summary())
    return columns


def _finished(folder: Path, inputs: str, reports: bool) -> dict[str, Any] | None:
    """The columns of an earlier result, if it is complete and from the same inputs."""
    try:
        summary = json.loads((folder / FILES[-1]).read_text(encoding="utf-8"))
        wanted = (*FILES, *([REPORT_FILES[-1]] if reports else []))
        complete = all((folder / name).is_file() for name in wanted)
        same = summary["schema"] == SCHEMA and summary["fingerprint"] == inputs
        return _columns(summary) if complete and same else None
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
        "supported": summary["supported"],
        "reasons": " ".join(summary["reasons"]),
        **{name: round(p, 6) for name, p in summary["probabilities"].items()},
        **{name: round(p, 6) for name, p in summary["scores"].items()},
        "agreeing": _agreeing(summary),
        "explained": summary["location_map"]["explained"],
        **measurements,
        "surface_to_core": _rounded(summary["location_map"]["surface_to_core"]),
        "outside_share": _rounded(summary["location_map"]["outside_share"]),
        "pattern": summary["location_map"]["pattern"]["name"],
        **{key: _rounded(value) for key, value in summary["signs"].items()},
        "agreement": summary["agreement"]["sentence"],
        "phase": summary["phase"],
        "checks": " ".join(
            f"{check['key']}: {check['outcome']}."
            for check in summary["checks"]
            if check["outcome"] != PASS
        ),
        "warnings": " ".join(summary["warnings"]),
    }


def _rounded(value: float | None) -> float | str:
    return "" if value is None else round(value, 6)


def _agreeing(summary: dict[str, Any]) -> float | str:
    """Share of an ensemble's networks that predict the stage."""
    found = summary.get("ensemble")
    return "" if found is None else round(found["agreeing"] / found["members"], 6)
