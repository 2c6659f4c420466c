"""Staging of a cohort: one result folder per case, and one table of all cases."""

import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import CancelToken, DiskFull, StagingError
from ..files import check_writable, remove_partial, write_table
from ..model import StagingModel
from ..report.summary import SURFACE_MM
from ..resources import default_model_path
from ..stages import RESEARCH_USE, explained_stages
from ..staging import check_surface, software
from .case_row import CaseTask, Notify, Progress, Row
from .cases import read_cohort
from .cluster import on_cluster
from .cohort import LEFT_OUT, LEFT_OUT_COLUMNS, Case, LeftOut
from .log import batch_log
from .table import DONE, failed_row
from .table_files import check_parquet, write_results, write_table_csv
from .worker import worker_model
from .workers import DIED, Runner, Task, in_processes, in_this_process

TABLE_SECONDS = 5.0  # at least, between two tables
TABLE_SHARE = 20.0  # as many times the time that writing one takes
Finished = Callable[[Row, int, int], None]


def stage_folder(
    source: str | Path,
    output: str | Path,
    model: StagingModel | str | Path | None = None,
    explain: str = "predicted",
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
    pseudonyms: bool = False,
    notify: Notify | None = None,
    surface_mm: float = SURFACE_MM,
    reports: bool = False,
    strict: bool = False,
    any_phase: bool = False,
    parquet: bool = False,
    workers: int = 1,
    scheduler: Any = None,
    finished: Finished | None = None,
) -> list[Row]:
    """Stage every case of a cohort; returns the rows of `output`/results.csv.

    source: a folder, a list (CSV or Parquet), a DICOMDIR or a pattern with wildcards, as for
    `cases.read_cohort`. What is in it and is not staged, such as the other series of a DICOM study,
    stands in `output`/left_out.csv with the reason. A case that cannot be staged, for whatever
    reason, is a row with status "failed" and the reason. A case with an existing result from the
    same files, model, options and software (`fingerprint.fingerprint`) is not staged again, so that
    the same call resumes a batch that was killed. The table is written every few seconds and at the
    end.

    workers: how many processes stage cases, each with its share of the cores; with 1, this one.
    scheduler: instead, a Dask scheduler's address, client or cluster, whose workers see the same
    paths (`cluster.on_cluster`). A case whose process ends, for want of memory for instance, is
    tried once more, alone, and is then failed.

    No output, including the rows, contains names of patients, or of the inputs' files and folders.
    pseudonyms: give every case a pseudonym, not only those whose names may be those of persons
    (`find_cases`). notify: called with messages for the screen, which can contain such names: the
    case of each pseudonym, and why a case failed. finished: called with each row when its case is
    finished, the number of finished cases and of all. progress: called with a fraction 0..1 and the
    step; with several workers, after each case. surface_mm, strict, any_phase: as for `stage`.
    reports: write a report for each case, as `StagingResult.save` does; a finished case without one
    is staged again. parquet: write the table as results.parquet too, which needs pyarrow.

    At the end, columns.csv, which explains the table's columns, and summary.html are written.

    Raises StagingError if the source contains no case, another batch is writing to the output, or
    the output cannot be written (DiskFull), and Cancelled; finished cases are kept.
    """
    explained_stages(explain, 0)
    check_surface(surface_mm)
    if parquet:
        check_parquet()
    _check_workers(workers, scheduler)
    source, output = Path(source), Path(output)
    notify = (lambda _: None) if notify is None else notify
    progress = (lambda *_: None) if progress is None else progress
    cohort = read_cohort(source, output, pseudonyms)
    check_writable(output)
    if not isinstance(model, StagingModel):
        model = StagingModel.load(default_model_path() if model is None else model)
    for case in cohort.cases:
        if case.pseudonym:
            notify(f"{case.name} is {case.ct}.")
    options = {
        "explain": explain,
        "surface_mm": float(surface_mm),
        "strict": strict,
        "any_phase": any_phase,
    }
    if scheduler is not None:
        runner: Runner = on_cluster(scheduler)
    else:
        workers = min(workers, len(cohort.cases))
        runner = in_this_process if workers == 1 else in_processes(workers)
    here = runner is in_this_process
    load = partial(worker_model, model.path.absolute(), model.sha256, model.device)
    task = CaseTask(output.absolute(), (lambda: model) if here else load, options, reports)
    versions = ", ".join(f"{name} {version}" for name, version in software().items())
    about = {"software": versions, "model sha256": model.sha256, "device": model.device}
    settings = {**about, **options}
    batch = Batch(cohort.cases, output, model, settings, parquet, cohort.left_out)
    return batch.run(task, runner, progress, cancel, notify, finished)


def _check_workers(workers: int, scheduler: Any) -> None:
    if workers < 1 or (workers > 1 and scheduler is not None):
        raise StagingError(
            f"{workers} workers{'' if scheduler is None else ' and a scheduler'} were given; "
            "needed are one or more workers, or a scheduler, which has its own."
        )


@dataclass(frozen=True)
class Batch:
    """Cases whose results go to one folder. settings: what they depend on, for the log.

    parquet: as for `stage_folder`.
    """

    cases: Sequence[Case]
    output: Path
    model: StagingModel
    settings: dict[str, Any]
    parquet: bool = False
    left_out: Sequence[LeftOut] = ()

    def run(
        self,
        task: Task,
        runner: Runner,
        progress: Progress,
        cancel: CancelToken | None,
        notify: Notify,
        finished: Finished | None = None,
    ) -> list[Row]:
        """The rows of all cases, in their order; see `stage_folder`."""
        total = len(self.cases)
        rows: dict[int, Row] = {}
        with batch_log(self.output, notify) as log:
            remove_partial(self.output)
            card = self.model.card
            about = {"model": card.name, "trained on": card.trained_on}
            log.begin(total, {**about, **self.settings, "notice": RESEARCH_USE})
            self._write_left_out(notify)
            table = _Table(self.output, notify)
            found = runner(task, self.cases, self.output, progress, cancel, notify)
            try:
                with closing(found):  # no process goes on after an error here
                    for index, row in found:
                        if row is None:
                            case = self.cases[index]
                            row = failed_row(case.name, case.chosen, self.model, DIED)
                            notify(f"{row['case']}: {DIED}")
                        rows[index] = row
                        log.case(row, len(rows), total)
                        if len(rows) < total:
                            table.update(rows)
                        if finished is not None:
                            finished(row, len(rows), total)
            except BaseException as error:
                # What is refused below is so for the same reason, which the user is told.
                with suppress(StagingError):
                    table.write(rows)
                    log.line(f"Batch ended early after {len(rows)} cases: {type(error).__name__}")
                raise
            ordered = [rows[index] for index in range(total)]
            write_results(self.output, ordered, self.parquet)
            done = sum(row["status"] == DONE for row in ordered)
            log.line(f"Batch ended: {done} of {total} cases staged")
        return ordered

    def _write_left_out(self, notify: Notify) -> None:
        write_table(self.output / LEFT_OUT, LEFT_OUT_COLUMNS, [each.row for each in self.left_out])
        if self.left_out:
            notify(f"{len(self.left_out)} left out; the reasons are in {self.output / LEFT_OUT}.")


class _Table:
    """The table of the rows so far, written now and then: as a whole, so not after each case."""

    def __init__(self, output: Path, notify: Notify) -> None:
        self._output, self._notify = output, notify
        self._due = time.monotonic() + TABLE_SECONDS

    def update(self, rows: dict[int, Row]) -> None:
        """Write the table if it is due. Raises DiskFull."""
        started = time.monotonic()
        if started < self._due:
            return
        try:
            self.write(rows)
        except DiskFull:
            raise
        except StagingError as refusal:  # may be open in a spreadsheet; retried later
            self._notify(str(refusal))
        now = time.monotonic()
        self._due = now + max(TABLE_SECONDS, TABLE_SHARE * (now - started))

    def write(self, rows: dict[int, Row]) -> None:
        """Write the table, in the order of the cases. Raises StagingError."""
        write_table_csv(self._output, [rows[index] for index in sorted(rows)])
