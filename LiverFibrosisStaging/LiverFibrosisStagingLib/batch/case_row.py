"""One case of a cohort: staged, or found finished, as a row of the table."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import Cancelled, CancelToken, DiskFull, StagingError, check_cancel
from ..fingerprint import fingerprint
from ..imaging.segmentation import shipped_network
from ..model import StagingModel
from ..privacy import Names
from ..report.documents import REPORT_FILES
from ..result import FILES, SCHEMA, one_line
from ..staging import software, stage
from .cohort import Case
from .table import columns_of, done_row, failed_row

Row = dict[str, Any]
Progress = Callable[[float, str], None]
Notify = Callable[[str], None]


@dataclass(frozen=True)
class CaseTask:
    """Stages a case, or finds its finished result; returns its row, also if it cannot be staged.

    output: the cohort's results. load: returns the model, the same each time. options: of `stage`.
    reports: as for `stage_folder`. If `load` can be sent to another process, so can the task.
    Raises Cancelled, DiskFull, and StagingError if there is no model.
    """

    output: Path
    load: Callable[[], StagingModel]
    options: dict[str, Any]
    reports: bool

    def __call__(
        self, case: Case, progress: Progress, cancel: CancelToken | None, notify: Notify
    ) -> Row:
        """progress, cancel: as for `stage`. notify: as for `stage_folder`."""
        model = self.load()
        started = time.perf_counter()
        try:
            columns = self._columns(case, model, progress, cancel)
            return done_row(case.name, case.chosen, model, columns)
        except (Cancelled, DiskFull):
            raise
        except Exception as error:  # the other cases are still staged
            files = {self.output / case.name: "the result folder", model.path: "the model"}
            reason, written = why_failed(error, case, files)
            notify(f"{case.name}: {reason}")
            seconds = round(time.perf_counter() - started, 3)
            return {**failed_row(case.name, case.chosen, model, written), "seconds": seconds}

    def _columns(
        self, case: Case, model: StagingModel, progress: Progress, cancel: CancelToken | None
    ) -> Row:
        """The columns of a case, staged now or in an earlier run."""
        folder = self.output / case.name
        check_cancel(cancel)
        inputs = self._fingerprint(case, model)
        columns = _finished(folder, inputs, self.reports)
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
                **self.options,
            )
            if self._fingerprint(case, model) != inputs:
                raise StagingError(
                    "The files were changed while the case was staged; it must be staged again."
                )
            result = replace(result, provenance={**result.provenance, "fingerprint": inputs})
            result.save(folder, self.reports, cancel=cancel)
            progress(1.0, one_line(result))
            columns = columns_of(result.summary())
        return columns

    def _fingerprint(self, case: Case, model: StagingModel) -> str:
        network = None if case.liver else shipped_network(model.threads, model.device)
        return fingerprint(
            case.source,
            case.liver,
            case.spleen,
            case.segments,
            body=None if case.body is None else asdict(case.body),
            schema=SCHEMA,
            software=software(),
            model=model.sha256,
            device=model.device,
            segmentation=network and network.sha256,
            **self.options,
        )


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
