"""One case of a cohort: staged, or found finished, as a row of the table."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..errors import Cancelled, CancelToken, StagingError
from ..fingerprint import fingerprint
from ..imaging.segmentation import shipped_network
from ..model import StagingModel
from ..privacy import Names
from ..report.documents import REPORT_FILES
from ..result import FILES, SCHEMA, one_line
from ..staging import software, stage
from .cohort import Case
from .table import DONE, FAILED, columns_of, columns_of_any


def case_row(
    case: Case,
    output: Path,
    model: StagingModel,
    options: dict[str, Any],
    progress: Callable[[float, str], None],
    cancel: CancelToken | None,
    notify: Callable[[str], None],
    reports: bool,
) -> dict[str, Any]:
    """Stage a case, or find its finished result; returns its row, also if it cannot be staged.

    options: of `stage`. notify, reports: as for `stage_folder`. Raises Cancelled.
    """
    row = columns_of_any(case.name, case.chosen, model)
    try:
        columns = _staged(case, output, model, options, progress, cancel, reports)
        return {**row, "status": DONE, **columns}
    except Cancelled:
        raise
    except Exception as error:  # the other cases are still staged
        files = {output / case.name: "the result folder", model.path: "the model"}
        reason, written = why_failed(error, case, files)
        notify(f"{case.name}: {reason}")
        return {**row, "status": FAILED, "reason": written}


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
    return shown, Names(case.source, case.liver, case.spleen, files).removed(written)


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
        case.source,
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
            case.source,
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
        columns = columns_of(result.summary())
    return columns


def _finished(folder: Path, inputs: str, reports: bool) -> dict[str, Any] | None:
    """The columns of an earlier result, if it is complete and from the same inputs."""
    try:
        summary = json.loads((folder / FILES[-1]).read_text(encoding="utf-8"))
        wanted = (*FILES, *([REPORT_FILES[-1]] if reports else []))
        complete = all((folder / name).is_file() for name in wanted)
        same = summary["schema"] == SCHEMA and summary["fingerprint"] == inputs
        return columns_of(summary) if complete and same else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
