"""The log of the module's jobs: what was done, the seconds of each step, the versions used.

It is written to Slicer's application log and shown in the panel. It contains no name of a file,
node or patient, so it can be sent to the developers.
"""

import importlib.metadata
import logging
import platform
import time
from collections.abc import Mapping
from typing import Any

import slicer

from .. import __version__

PACKAGES = ("numpy", "SimpleITK", "onnxruntime")
SHORTEST = 0.005  # seconds; shorter steps are not listed


class RunLog:
    """Writes to the application log and appends to the text edit `shown`, if there is one."""

    def __init__(self, shown: Any = None) -> None:
        self._shown = shown
        self._versions = ""

    def add(self, event: str, seconds: Mapping[str, float] | float = 0.0) -> str:
        """Log an event and the seconds it took, in all or by step; returns the text, with the
        versions, for an error's details. The versions are logged first, and when they change.
        """
        current = versions()
        if current != self._versions:
            self._versions = current
            self._write([current])
        by_step = seconds if isinstance(seconds, Mapping) else {}
        total = sum(by_step.values()) if by_step else seconds
        steps = [f"{step} {taken:.2f} s" for step, taken in by_step.items() if taken >= SHORTEST]
        lines = [f"{event}, {total:.2f} s" if total else event, *steps]
        self._write(lines)
        return "\n".join([current, *lines])

    def _write(self, lines: list[str]) -> None:
        logging.info("Liver Fibrosis Staging: %s", "; ".join(lines))
        if self._shown is None:
            return
        now = time.strftime("%H:%M:%S")
        self._shown.appendPlainText(f"{now} " + "\n    ".join(lines))


def versions() -> str:
    """Versions of the module, Slicer, Python and the packages that the results depend on."""
    found = {
        "LiverFibrosisStaging": __version__,
        "Slicer": slicer.app.applicationVersion,
        "Python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
    }
    return ", ".join(f"{name} {number}" for name, number in found.items())


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
