"""One background thread for one job at a time, so that Slicer's panel never freezes.

Pure Python: no Qt, no MRML. A job computes with numpy, SimpleITK and onnxruntime and returns a
value; what it reports is delivered by `pump`, which the main thread calls, so that callbacks may
touch the scene and the panel. Whatever happens, a job ends in exactly one call of `ended`.
"""

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import Cancelled, CancelToken

# What a job gets: a function to call with a fraction 0..1 and the step's name, and the user's wish.
Job = Callable[[Callable[[float, str], None], CancelToken], Any]
TELLING_FRACTION = 0.1  # before that, time says nothing about the time left


@dataclass(frozen=True)
class Progress:
    """How far a job is: fraction 0..1, the step's name, seconds left or None where unknown."""

    fraction: float
    step: str
    seconds_left: float | None


@dataclass(frozen=True)
class Outcome:
    """How a job ended: with a value, or with an error (Cancelled where the user wanted it)."""

    value: Any = None
    error: BaseException | None = None

    @property
    def cancelled(self) -> bool:
        """Whether there is no value because the user cancelled."""
        return isinstance(self.error, Cancelled)


class Worker:
    """Runs jobs in a thread; every method is for the main thread.

    Cancelling ends a job at once for whoever waits for it. Its thread ends when the job next asks
    for the user's wish; until then the next job's thread waits, so that never two compute. A job
    that writes files is started as one that cannot be cancelled: it ends when it has written them.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._thread: threading.Thread | None = None
        self._cancel, self._cancellable = threading.Event(), True
        self._reports: queue.SimpleQueue[Progress | Outcome] = queue.SimpleQueue()
        self._progressed: Callable[[Progress], None] | None = None
        self._ended: Callable[[Outcome], None] | None = None

    @property
    def busy(self) -> bool:
        """Whether a job has been started and its end not yet been delivered."""
        return self._ended is not None

    @property
    def cancellable(self) -> bool:
        """Whether `cancel` ends the job that was started last."""
        return self._cancellable

    @property
    def resting(self) -> bool:
        """Whether no thread is at work, not even one whose job was cancelled."""
        return not self.busy and (self._thread is None or not self._thread.is_alive())

    def start(
        self,
        job: Job,
        ended: Callable[[Outcome], None],
        progressed: Callable[[Progress], None] | None = None,
        cancellable: bool = True,
    ) -> None:
        """Start a job. Raises RuntimeError while another one is at work."""
        if self.busy:
            raise RuntimeError("A job is at work already.")
        self._cancel, self._reports = threading.Event(), queue.SimpleQueue()
        self._cancellable = cancellable
        self._progressed, self._ended = progressed, ended
        # Not a daemon: an interpreter that leaves while onnxruntime computes would abort.
        self._thread = threading.Thread(
            target=self._work,
            args=(job, self._reports, self._cancel, self._thread),
            name="LiverFibrosisStaging",
        )
        self._thread.start()

    def pump(self) -> None:
        """Deliver what the job has reported since the last call: progress, and its end."""
        latest = outcome = None
        while not self._reports.empty():
            report = self._reports.get()
            if isinstance(report, Outcome):
                outcome = report
            else:
                latest = report
        if self.busy and self._cancel.is_set():  # a value that comes now is not wanted any more
            outcome = Outcome(error=Cancelled("Cancelled."))
        if outcome is not None:
            self._finish(outcome)
        elif latest is not None and self._progressed is not None:
            self._progressed(latest)

    def cancel(self) -> None:
        """End the job as cancelled, where it can be; `pump` delivers that."""
        if self._cancellable:
            self._cancel.set()

    def stop(self) -> None:
        """End the job, now as cancelled or when it is done, and wait until its thread is over."""
        self.cancel()
        self.pump()
        if self._thread is not None:
            self._thread.join()
            self.pump()

    @staticmethod
    def let_go(values: list[Any]) -> None:
        """Empty a list of large values in a thread: to free gigabytes takes a tenth of a second."""
        threading.Thread(target=values.clear).start()

    def _finish(self, outcome: Outcome) -> None:
        ended, self._ended, self._progressed = self._ended, None, None
        self._reports = queue.SimpleQueue()
        ended(outcome)

    def _work(
        self,
        job: Job,
        reports: queue.SimpleQueue,
        cancel: threading.Event,
        before: threading.Thread | None,
    ) -> None:
        if before is not None:
            before.join()
        begun = self._clock()

        def progress(fraction: float, step: str) -> None:
            left = None
            if fraction >= TELLING_FRACTION:
                left = (self._clock() - begun) * (1 - fraction) / fraction
            reports.put(Progress(fraction, step, left))

        try:
            reports.put(Outcome(value=job(progress, cancel)))
        except BaseException as error:  # the main thread tells the user, whatever it is
            reports.put(Outcome(error=error))
