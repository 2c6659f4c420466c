"""Pauses of the panel's main thread, for the benchmarks of the panel."""

import faulthandler
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from PySide6.QtCore import QTimer
from slicer_host import wait_until


def longest_gap(panel: Any, click: Callable[[], None], where: float) -> tuple[float, float, float]:
    """Longest time between two ticks during an action, longest computing time of the main thread
    between two ticks, and duration of the action; seconds.
    """
    ticks, timer = [], QTimer()

    def tick() -> None:
        ticks.append((time.monotonic(), time.thread_time()))
        if where:
            faulthandler.dump_traceback_later(where)

    timer.timeout.connect(tick)
    timer.start(5)
    wait(0.1)
    begun = time.monotonic()
    QTimer.singleShot(0, click)
    wait(0.1)
    wait_until(lambda: not panel.ui.progressWidget.visible, 900)
    took = time.monotonic() - begun
    wait(0.5)  # memory is freed; the last tick comes after the result
    faulthandler.cancel_dump_traceback_later()
    timer.stop()
    gap, computing = np.diff(ticks, axis=0).max(axis=0)
    return float(gap), float(computing), took


def wait(seconds: float) -> None:
    """Run Qt's event loop."""
    end = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() > end)
