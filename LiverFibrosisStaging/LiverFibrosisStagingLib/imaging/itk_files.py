"""File paths as SimpleITK needs them, and suppression of its console warnings."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import SimpleITK as sitk

from ..errors import StagingError
from ..settings import shared

_UTF8 = 65001  # Windows code page; set in Slicer, not in a plain Python
_WINDOWS = os.name == "nt"


@shared
@contextmanager
def quiet() -> Iterator[None]:
    """Suppress ITK's warnings; problems that matter are reported by this library's own messages."""
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)


def itk_path(path: Path) -> str:
    """The path in a form that SimpleITK can open; the file may not exist yet.

    In a plain Python on Windows, SimpleITK opens only paths that the system's code page can
    represent, so folders are given by their short (8.3) names. The file name is kept, since its
    extension determines the format. Raises StagingError if there is no such form, and for a name
    that is not valid text, which would crash the process.
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
            f"{path.name}: its path contains characters that SimpleITK cannot open on this Windows "
            "system; move or rename it so that the path is plain ASCII."
        )
    return f"{folder}{os.sep}{path.name}"


def _code_page() -> int:
    return ctypes.windll.kernel32.GetACP()


def _short_name(folder: Path) -> str:
    """The 8.3 path of a folder; its own path if the drive has no short names."""
    buffer = ctypes.create_unicode_buffer(32768)
    found = ctypes.windll.kernel32.GetShortPathNameW(str(folder), buffer, len(buffer))
    return buffer.value if found else str(folder)
