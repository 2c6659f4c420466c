"""SimpleITK and files: one way to name them, and its warnings kept off the console."""

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import SimpleITK as sitk

from ..errors import StagingError

_UTF8 = 65001  # Windows' code page, which Slicer asks for and a plain Python does not
_WINDOWS = os.name == "nt"

_lock = threading.Lock()
_reading = 0
_shown_before = True


@contextmanager
def quiet() -> Iterator[None]:
    """ITK's own warnings off for a while: what matters is said by our own sentences.

    The switch is one for the whole process. The first of several threads turns it off, the last
    sets it back.
    """
    global _reading, _shown_before
    with _lock:
        if _reading == 0:
            _shown_before = sitk.ProcessObject.GetGlobalWarningDisplay()
            sitk.ProcessObject.SetGlobalWarningDisplay(False)
        _reading += 1
    try:
        yield
    finally:
        with _lock:
            _reading -= 1
            if _reading == 0:
                sitk.ProcessObject.SetGlobalWarningDisplay(_shown_before)


def itk_path(path: Path) -> str:
    """The path as SimpleITK can open it, also for a file that is still to be written.

    In a plain Python on Windows SimpleITK opens only what the system's code page can spell, so
    folders go by their short (8.3) names there. The file keeps its own name: its ending tells the
    format. Raises StagingError where there is no such path, and for a name that is no text, which
    would end the process.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        name = os.fsencode(path.name).decode("utf-8", "replace")
        raise StagingError(f"{name}: its path is not valid text (UTF-8); rename it.") from None
    if not _WINDOWS or str(path).isascii() or _code_page() == _UTF8:
        return str(path)
    folder = _short_name(path.parent)
    if not (folder.isascii() and path.name.isascii()):
        raise StagingError(
            f"{path.name}: its path holds letters that SimpleITK cannot open on this Windows; move "
            "or rename it so that the path has plain letters only."
        )
    return f"{folder}{os.sep}{path.name}"


def _code_page() -> int:
    return ctypes.windll.kernel32.GetACP()


def _short_name(folder: Path) -> str:
    """The 8.3 path of a folder; its own path where the drive keeps no such names."""
    buffer = ctypes.create_unicode_buffer(32768)
    found = ctypes.windll.kernel32.GetShortPathNameW(str(folder), buffer, len(buffer))
    return buffer.value if found else str(folder)
