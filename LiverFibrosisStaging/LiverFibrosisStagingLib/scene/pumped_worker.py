"""The panel's worker: a Worker that Slicer's event loop lets run.

Slicer's event loop keeps Python's lock while it is idle, so a thread of Python starves (measured in
Slicer 5.10: 5 steps in 3 s). A timer whose slot sleeps gives it the lock: every 10 ms for 5 ms, so
that the panel stays fluent and the worker gets half of the time, and all of it inside numpy,
SimpleITK and onnxruntime, which need no lock.
"""

import time
from collections.abc import Callable

import qt

from .worker import Job, Outcome, Progress, Worker

PUMP_MS, YIELD_SECONDS = 10, 0.005


class PumpedWorker(Worker):
    """A Worker that pumps itself, with a timer that runs only while a thread does."""

    def __init__(self) -> None:
        super().__init__()
        self._timer = qt.QTimer()
        self._timer.setInterval(PUMP_MS)
        self._timer.connect("timeout()", self.pump)

    def start(
        self,
        job: Job,
        ended: Callable[[Outcome], None],
        progressed: Callable[[Progress], None] | None = None,
        cancellable: bool = True,
    ) -> None:
        """Start a job, as Worker does, and the timer."""
        super().start(job, ended, progressed, cancellable)
        self._timer.start()

    def pump(self) -> None:
        """Deliver what the job reports, then let its thread run."""
        super().pump()
        if self.resting:
            self._timer.stop()
        else:
            time.sleep(YIELD_SECONDS)

    def stop(self) -> None:
        """End the job, as Worker does, and the timer."""
        super().stop()
        self._timer.stop()
