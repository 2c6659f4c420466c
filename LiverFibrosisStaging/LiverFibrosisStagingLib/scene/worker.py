"""A background thread for one job at a time, so that Slicer's panel stays responsive.

Pure Python: no Qt, no MRML. A job computes with numpy, SimpleITK and onnxruntime and returns a
value. Its reports are delivered by `pump`, which the main thread calls, so callbacks may use the
scene and the panel. Each job ends in exactly one call of `ended`.
"""

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from ..errors import Cancelled, CancelToken

# A job gets a progress function (a fraction 0..1, and a step's name, which a colon and details may
# follow) and a cancel token.
Job = Callable[[Callable[[float, str], None], CancelToken], Any]
ESTIMATE_FROM = 0.1  # fraction before which no time left is estimated


@dataclass(frozen=True)
class Progress:
    """Progress of a job: fraction 0..1, the step's name, seconds left or None where unknown."""

    fraction: float
    step: str
    seconds_left: float | None


@dataclass(frozen=True)
class Outcome:
    """How a job ended: with a value, or with an error (Cancelled where the user cancelled it).

    seconds: by step, in their order.
    """

    value: Any = None
    error: BaseException | None = None
    seconds: dict[str, float] = field(default_factory=dict, compare=False)

    @property
    def cancelled(self) -> bool:
        """Whether there is no value because the user cancelled."""
        return isinstance(self.error, Cancelled)


class Worker:
    """Runs jobs in a thread; all methods are for the main thread.

    A cancelled job ends at once for the caller. Its thread ends when the job next checks the cancel
    token; until then the next job's thread waits, so only one computes at a time. A job that writes
    files ends for the caller with its thread: cancelled too late, it has written them.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._thread: threading.Thread | None = None
        self._cancel, self._writes = threading.Event(), False
        self._reports: queue.SimpleQueue[Progress | Outcome] = queue.SimpleQueue()
        self._starts: list[tuple[float, str]] = []  # time and name of each step that began
        self._progressed: Callable[[Progress], None] | None = None
        self._ended: Callable[[Outcome], None] | None = None

    @property
    def busy(self) -> bool:
        """Whether a job was started and its end has not been delivered yet."""
        return self._ended is not None

    @property
    def idle(self) -> bool:
        """Whether no thread is running, not even that of a cancelled job."""
        return not self.busy and (self._thread is None or not self._thread.is_alive())

    def start(
        self,
        job: Job,
        ended: Callable[[Outcome], None],
        progressed: Callable[[Progress], None] | None = None,
        writes: bool = False,
    ) -> None:
        """Start a job; writes: whether it writes files. Raises RuntimeError while another one is
        running.
        """
        if self.busy:
            raise RuntimeError("A job is already running.")
        self._cancel, self._reports = threading.Event(), queue.SimpleQueue()
        self._writes, self._starts = writes, []
        self._progressed, self._ended = progressed, ended
        # Not a daemon: an interpreter that exits while onnxruntime computes would abort.
        self._thread = threading.Thread(
            target=self._work,
            args=(job, self._reports, self._starts, self._cancel, self._thread),
            name="LiverFibrosisStaging",
        )
        self._thread.start()

    def pump(self) -> None:
        """Deliver the job's reports since the last call: the latest progress, or its end."""
        latest = outcome = None
        while not self._reports.empty():
            report = self._reports.get()
            if isinstance(report, Outcome):
                outcome = report
            else:
                latest = report
        if self.busy and self._cancel.is_set() and not self._writes:  # a late value is not used
            outcome = Outcome(error=Cancelled("Cancelled."))
        if outcome is not None:
            self._finish(outcome)
        elif latest is not None and self._progressed is not None:
            self._progressed(latest)

    def cancel(self) -> None:
        """Ask the job to end; `pump` delivers its end.

        One that writes files may still end with its value.
        """
        self._cancel.set()

    def stop(self) -> None:
        """Cancel the job, or let it finish if it writes files, and wait for its thread."""
        if not self._writes:
            self.cancel()
        self.pump()
        if self._thread is not None:
            self._thread.join()
            self.pump()

    @staticmethod
    def let_go(values: list[Any]) -> None:
        """Empty a list of large values in a thread: freeing gigabytes takes a tenth of a second."""
        threading.Thread(target=values.clear).start()

    def _finish(self, outcome: Outcome) -> None:
        ended, self._ended, self._progressed = self._ended, None, None
        self._reports = queue.SimpleQueue()
        seconds: dict[str, float] = {}
        for (since, step), (until, _) in pairwise([*self._starts, (self._clock(), "")]):
            if step:
                seconds[step] = seconds.get(step, 0.0) + until - since
        ended(replace(outcome, seconds=seconds))

    def _work(
        self,
        job: Job,
        reports: queue.SimpleQueue,
        starts: list[tuple[float, str]],
        cancel: threading.Event,
        before: threading.Thread | None,
    ) -> None:
        if before is not None:
            before.join()
        begun = self._clock()

        def progress(fraction: float, step: str) -> None:
            now, left = self._clock(), None
            if fraction >= ESTIMATE_FROM:
                left = (now - begun) * (1 - fraction) / fraction
            starts.append((now, step.partition(":")[0]))
            reports.put(Progress(fraction, step, left))

        try:
            outcome = Outcome(value=job(progress, cancel))
        except BaseException as error:  # shown to the user by the main thread
            outcome = Outcome(error=error)
        starts.append((self._clock(), ""))
        reports.put(outcome)
