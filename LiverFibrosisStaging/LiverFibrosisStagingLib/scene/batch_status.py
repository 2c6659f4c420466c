"""Progress of a batch, where the user of Slicer sees it. For the main thread only."""

import sys
from collections.abc import Callable
from datetime import timedelta

import qt
import slicer
from slicer.i18n import tr as _

BAR_WIDTH, BUTTON_WIDTH = 200, 100  # pixels
STEPS = 1000  # of the bar
END_MS = 10_000  # how long the last message stays


class BatchStatus:
    """In the main window's status bar: the step, a bar, and a button that cancels. Without a main
    window: a line on stderr for each finished case, without names of cases.
    """

    def __init__(self, cancel: Callable[[], None]) -> None:
        self._bar = self._widget = None
        self._reported = ""  # counts
        self._window = slicer.util.mainWindow()
        if self._window is not None:
            self._show_bar(cancel)

    def _show_bar(self, cancel: Callable[[], None]) -> None:
        self._widget = qt.QWidget()
        layout = qt.QHBoxLayout(self._widget)
        layout.setContentsMargins(0, 0, 0, 0)
        self._bar = qt.QProgressBar()
        self._bar.maximum = STEPS
        self._bar.maximumWidth = BAR_WIDTH
        button = qt.QPushButton(_("Cancel"))
        button.toolTip = _("Cancel the batch; the cases that are finished are kept.")
        button.maximumWidth = BUTTON_WIDTH
        button.connect("clicked(bool)", cancel)
        layout.addWidget(self._bar)
        layout.addWidget(button)
        self._window.statusBar().addPermanentWidget(self._widget)

    def show(self, fraction: float, step: str, seconds_left: float | None, counts: str) -> None:
        """Show the progress of the batch.

        fraction: 0..1. step: with the name of the case. counts: how many cases are finished.
        """
        left = ""
        if seconds_left is not None:
            left = f", {timedelta(seconds=round(seconds_left))} " + _("left")
        if self._window is not None:
            self._bar.value = int(STEPS * fraction)
            slicer.util.showStatusMessage(f"{step} ({counts}{left})")
        elif counts != self._reported:
            self._reported = counts
            self._print(f"{counts}, {fraction:.0%}{left}")

    def close(self, message: str) -> None:
        """Remove the bar and show how the batch ended."""
        if self._window is None:
            self._print(message)
            return
        self._window.statusBar().removeWidget(self._widget)
        self._widget.deleteLater()
        slicer.util.showStatusMessage(message, END_MS)

    def _print(self, line: str) -> None:
        print(f"Liver Fibrosis Staging: {line}", file=sys.stderr, flush=True)
