"""How long the panel does not answer, and how long the user waits for it to be cancelled.

    python Testing/benchmarks/panel_gaps.py [--runs 5]

The running panel on the sample CT, over qt_host. A gap is the time between two ticks of a 5 ms
timer on the main thread. Each run prints the longest from the click on Stage to the shown result,
the same without a segmentation, whose organs then are put into the scene too, and the time from the
click on Cancel to a panel that is free. The machine should be idle.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / folder) for folder in ("LiverFibrosisStaging", "Testing")]

import slicer_host  # noqa: E402


def longest_gap(work: Callable[[], None]) -> float:
    """Longest time (ms) between two ticks while `work` goes on, which lets Qt's loop run."""
    from PySide6.QtCore import QTimer

    ticks, timer = [], QTimer()
    timer.timeout.connect(lambda: ticks.append(time.monotonic()))
    timer.start(5)
    work()
    end = time.monotonic() + 0.1  # the last tick comes after the result
    slicer_host.wait_until(lambda: time.monotonic() > end)
    return 1000 * float(np.diff(ticks).max())


def stage(panel: Any) -> None:
    """Click on Stage from within Qt's loop, as a user does, and wait for the result."""
    from PySide6.QtCore import QTimer

    QTimer.singleShot(100, panel.ui.stageButton._object.click)
    slicer_host.wait_until(lambda: panel.ui.progressWidget.visible)
    slicer_host.wait_until(lambda: not panel.ui.progressWidget.visible)


def cancelling(panel: Any) -> float:
    """Time (ms) from the click on Cancel, while the network runs, to a free panel."""
    panel.ui.stageButton.click()
    slicer_host.wait_until(lambda: panel.ui.progressBar.value >= 400)
    clicked = time.monotonic()
    panel.ui.stageButton.click()
    slicer_host.wait_until(lambda: not panel.ui.progressWidget.visible)
    return 1000 * (time.monotonic() - clicked)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    print("longest gap, ms; the same without a segmentation, ms; until cancelled, ms")
    for _ in range(options.runs):
        slicer_host.start().Clear(0)
        panel = slicer_host.open_panel()
        volume, segmentation = slicer_host.import_module().loadSample()
        panel.ui.inputVolumeSelector.setCurrentNode(volume)
        gaps = []
        for chosen in (segmentation, None):
            panel.ui.segmentationSelector.setCurrentNode(chosen)
            gaps.append(longest_gap(lambda panel=panel: stage(panel)))
        print(*(f"{value:6.0f}" for value in (*gaps, cancelling(panel))), flush=True)
        slicer_host.close_panel(panel)


if __name__ == "__main__":
    main()
