"""Batches in Slicer: a folder of CTs, or CTs of the scene, staged into one table node.

Computing is done in a thread and everything else on the main thread, as for the panel's jobs: nodes
are read when their turn comes, and rows are added to the table when their case is finished. One
batch runs at a time.
"""

import queue
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

from ..batch.table import DONE, FAILED, done_row, failed_row
from ..errors import Cancelled, StagingError
from ..privacy import looks_like_person_name
from . import jobs
from .batch_status import BatchStatus
from .batch_table import put_table
from .mrml import scene_inputs
from .pumped_worker import PumpedWorker
from .run_log import RunLog
from .scene_nodes import find_part
from .scene_results import show_result
from .suggestions import cts, suggested_parts, suggested_segmentation
from .worker import Job, Outcome, Progress

EVENTS_SECONDS = 0.005  # between two times that `wait` processes events
# Of slicer.app: the first also while `wait` processes events, the second also without a window.
QUITTING = ("lastWindowClosed()", "aboutToQuit()")

_running: "Batch | None" = None


def running() -> "Batch | None":
    """The batch that is running, or None."""
    return _running


def check_none_runs() -> None:
    """Raises StagingError while a batch is running."""
    if _running is not None:
        raise StagingError("A batch is running; wait until it ends, or cancel it.")


def stop() -> None:
    """Cancel the batch, if one is running, and wait for its thread to end."""
    _worker().stop()


@cache
def _worker() -> PumpedWorker:
    """One for all batches: the thread of a cancelled one ends before the next one's computes."""
    return PumpedWorker()


class Batch(ABC):
    """A batch that runs in the background, and then its outcome.

    rows: the finished cases, as in results.csv. cancelled: whether it was cancelled. error: why it
    could not be run to its end, or None; a case that cannot be staged is a row, not an error.
    """

    def __init__(
        self,
        name: str,
        progress: Callable[[float, str], None] | None,
        finished: Callable[["Batch"], None] | None,
    ) -> None:
        self.rows: list[dict[str, Any]] = []
        self.cancelled, self.error = False, None
        self._name, self._progress, self._finished = name, progress, finished
        self._table: Any = None
        self._status: BatchStatus | None = None
        self._begun, self._count = 0.0, 0  # of all cases, once it is known

    @property
    def isRunning(self) -> bool:
        """Whether the batch has not ended yet."""
        return _running is self

    @property
    def tableNode(self) -> Any:
        """The table node with the rows; None before the first one, and where it was removed."""
        in_scene = self._table is not None and self._table.GetScene() is slicer.mrmlScene
        return self._table if in_scene else None

    def cancel(self) -> None:
        """End the batch after the current step; finished cases are kept."""
        if self.isRunning:
            _worker().cancel()

    def wait(self) -> Any:
        """Process Slicer's events until the batch has ended; returns the table node, after
        cancelling that of the finished cases, or None if there are none. Raises `error`.
        """
        try:
            while self.isRunning:
                slicer.app.processEvents()
                time.sleep(EVENTS_SECONDS)  # gives Python's lock to the worker's thread
        except BaseException:  # such as Ctrl+C
            stop()
            raise
        if self.error is not None:
            raise self.error
        return self.tableNode

    def start(self) -> None:
        """Begin. Raises StagingError while another batch is running."""
        global _running
        check_none_runs()
        _running, self._begun = self, time.monotonic()
        self._status = BatchStatus(self.cancel)
        for signal in QUITTING:
            slicer.app.connect(signal, stop)
        self._begin()

    @abstractmethod
    def _begin(self) -> None:
        """Start the first job."""

    def _add(self, rows: Sequence[dict[str, Any]]) -> None:
        if rows:
            self.rows.extend(rows)
            self._table = put_table(self.tableNode, self._name, self.rows)

    def _report(self, fraction: float, step: str) -> None:
        left = None
        if self.rows and fraction > 0:
            left = (time.monotonic() - self._begun) * (1 - fraction) / fraction
        self._status.show(fraction, step, left, self._counts())
        if self._progress is not None:
            self._progress(fraction, step)

    def _counts(self) -> str:
        by_status = Counter(row["status"] for row in self.rows)
        counts = _("{done} staged and {failed} failed").format(
            done=by_status[DONE], failed=by_status[FAILED]
        )
        return counts + (_(" of {count}").format(count=self._count) if self._count else "")

    def _end(self, error: BaseException | None) -> None:
        global _running
        _running = None
        self.cancelled = isinstance(error, Cancelled)
        self.error = None if self.cancelled else error
        for signal in QUITTING:
            slicer.app.disconnect(signal, stop)
        how = "done" if error is None else type(error).__name__  # its text may name a file
        RunLog().add(f"Batch: {how}, {self._counts()}", time.monotonic() - self._begun)
        ended = _("cancelled, {counts}") if self.cancelled else "{counts}"
        sentence = str(self.error) if self.error else ended.format(counts=self._counts())
        self._status.close(f"{self._name}: {sentence}")
        self._status = None  # so that its widgets are never freed by another thread
        if self._finished is not None:
            self._finished(self)


class FolderBatch(Batch):
    """Stages a folder or a list of CTs (`stage_folder`), without the scene."""

    def __init__(
        self,
        source: str | Path,
        output: str | Path,
        options: Mapping[str, Any],
        notify: Callable[[str], None] | None = None,
        **callbacks: Any,
    ) -> None:
        if options.get("workers", 1) != 1:
            raise StagingError(
                f"workers={options['workers']}: in Slicer, a batch runs in one process; for "
                "several, use `PythonSlicer -m LiverFibrosisStagingLib batch` in a terminal."
            )
        cohort = Path(source).absolute().stem
        known = cohort and not looks_like_person_name(cohort)
        super().__init__(f"{cohort if known else 'Cohort'} fibrosis staging", **callbacks)
        self._reports: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._new: list[dict[str, Any]] = []  # rows that are not in the table yet

        def later(function: Callable[..., None]) -> Callable[..., None]:
            return lambda *values: self._reports.put(partial(function, *values))

        told = None if notify is None else later(notify)
        self._job = jobs.folder_job(source, output, later(self._case_finished), told, options)

    def _begin(self) -> None:
        _worker().start(self._job, self._ended, self._progressed)

    def _case_finished(self, row: dict[str, Any], done: int, count: int) -> None:
        self._new.append(row)
        self._count = count

    def _progressed(self, progress: Progress) -> None:
        self._deliver()
        self._report(progress.fraction, progress.step)

    def _deliver(self) -> None:
        """Call on the main thread what the worker's thread has reported."""
        while not self._reports.empty():
            self._reports.get()()
        self._add(self._new)
        self._new.clear()

    def _ended(self, outcome: Outcome) -> None:
        error = outcome.error
        try:
            self._deliver()
            if error is None:  # in the order of results.csv
                self.rows.clear()
                self._add(outcome.value)
        except Exception as failure:  # of a callback, or the scene
            error = failure
        self._end(error)


class NodesBatch(Batch):
    """Stages CTs of the scene.

    volume_nodes: None for all CTs of the scene. segmentation_nodes: one for each, with None for the
    automatic segmentation; or None for those that were drawn on the CTs. show: show each result.
    """

    def __init__(
        self,
        volume_nodes: Sequence[Any] | None,
        segmentation_nodes: Sequence[Any] | None,
        show: bool,
        model: Any,
        explain: str,
        any_phase: bool,
        **callbacks: Any,
    ) -> None:
        volumes = cts() if volume_nodes is None else [*volume_nodes]
        if not volumes:
            raise StagingError("There is no CT to stage; load CTs.")
        if segmentation_nodes is None:
            segmentations = [suggested_segmentation(volume) for volume in volumes]
        else:
            segmentations = [*segmentation_nodes]
        if len(segmentations) != len(volumes):
            raise StagingError(
                f"There are {len(volumes)} CTs and {len(segmentations)} segmentations; one for "
                "each CT is needed, or None."
            )
        super().__init__(f"Fibrosis staging of {len(volumes)} CTs", **callbacks)
        self._count = len(volumes)
        self._waiting = deque(zip(_names(volumes), map(_id, volumes), map(_id, segmentations)))
        self._show, self._explain, self._any_phase = show, explain, any_phase
        self._model = model
        self._tag: int | None = None  # of the observer of the scene

    def _begin(self) -> None:
        scene = slicer.mrmlScene
        self._tag = scene.AddObserver(scene.StartCloseEvent, lambda caller, event: stop())
        _worker().start(jobs.model_job(self._model, self._explain), self._ready)

    def _end(self, error: BaseException | None) -> None:
        slicer.mrmlScene.RemoveObserver(self._tag)
        super()._end(error)

    def _ready(self, outcome: Outcome) -> None:
        if outcome.error is not None:
            self._end(outcome.error)
            return
        self._model = outcome.value
        self._next()

    def _next(self) -> None:
        """Start the next case; those that cannot be read are failed rows."""
        while self._waiting:
            name, volume_id, segmentation_id = self._waiting.popleft()
            try:
                job = self._job(volume_id, segmentation_id)
            except Exception as error:  # the other cases are still staged
                self._add([failed_row(name, "", self._model, _reason(error))])
                continue
            ended = partial(self._case_ended, name, volume_id)
            _worker().start(job, ended, partial(self._progressed, name))
            return
        self._end(None)

    def _job(self, volume_id: str, segmentation_id: str | None) -> Job:
        volume = _node(volume_id, "CT")
        segmentation = None if segmentation_id is None else _node(segmentation_id, "segmentation")
        organs = segmentation or find_part(volume, "organs")
        inputs = scene_inputs(volume, organs, parts_node=suggested_parts(volume, organs))
        return jobs.case_job(inputs, self._model, self._explain, self._any_phase, self._show)

    def _progressed(self, name: str, progress: Progress) -> None:
        begun = self._count - len(self._waiting) - 1
        self._report((begun + progress.fraction) / self._count, f"{name}: {progress.step}")

    def _case_ended(self, name: str, volume_id: str, outcome: Outcome) -> None:
        if outcome.cancelled:
            self._end(outcome.error)
            return
        self._add([self._row(name, volume_id, outcome)])
        self._next()

    def _row(self, name: str, volume_id: str, outcome: Outcome) -> dict[str, Any]:
        try:
            if outcome.error is not None:
                raise outcome.error
            columns, showable = outcome.value
            volume = slicer.mrmlScene.GetNodeByID(volume_id)
            if showable is not None and volume is not None:
                show_result(showable, volume)
            return done_row(name, "", self._model, columns)
        except Exception as error:  # the other cases are still staged
            return failed_row(name, "", self._model, _reason(error))


def _names(nodes: Sequence[Any]) -> list[str]:
    """The names of nodes; later ones with the same name get a number."""
    names, counts = [], Counter()
    for name in (node.GetName() for node in nodes):
        counts[name] += 1
        names.append(name if counts[name] == 1 else f"{name} ({counts[name]})")
    return names


def _reason(error: Exception) -> str:
    """Why a case failed. The text of an unexpected error may quote what is in a file."""
    return str(error) if isinstance(error, StagingError) else f"Unexpected {type(error).__name__}."


def _id(node: Any) -> str | None:
    return None if node is None else node.GetID()


def _node(node_id: str, what: str) -> Any:
    node = slicer.mrmlScene.GetNodeByID(node_id)
    if node is None:
        raise StagingError(f"The {what} was removed from the scene before its turn.")
    return node
