"""The panel's worker: a Worker that runs in spite of Slicer's event loop.

Slicer's event loop holds Python's global lock while it is idle, so a Python thread hardly runs
(measured in Slicer 5.10: 5 steps in 3 s). A timer whose slot sleeps releases the lock: for 5 ms
every 10 ms, so the panel stays responsive and the worker gets half of the time, and all of the time
inside numpy, SimpleITK and onnxruntime, which release the lock themselves.
"""

import time
from typing import Any

import qt

from .worker import Worker

PUMP_MS, YIELD_SECONDS = 10, 0.005


class PumpedWorker(Worker):
    """A Worker that is pumped by a timer, which runs only while a thread does."""

    def __init__(self) -> None:
        super().__init__()
        self._timer = qt.QTimer()
        self._timer.setInterval(PUMP_MS)
        self._timer.connect("timeout()", self.pump)

    def start(self, *arguments: Any, **options: Any) -> None:
        """Start a job, as Worker does, and the timer."""
        super().start(*arguments, **options)
        self._timer.start()

    def pump(self) -> None:
        """Deliver the job's reports, then let its thread run."""
        super().pump()
        if self.idle:
            self._timer.stop()
        else:
            time.sleep(YIELD_SECONDS)

    def stop(self) -> None:
        """End the job, and the timer."""
        super().stop()
        self._timer.stop()
