"""Atomic writing of result folders and tables: complete or not at all, also after a power failure.

Unfinished output is in a temporary folder or file whose name begins with ".partial-". A killed run
may leave one; the next run into the same folder removes it.
"""

import csv
import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from .errors import DiskFull, StagingError

PARTIAL = ".partial-"
_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
_ROOM_BYTES = 1 << 20
# First characters of spreadsheet formulas; the last four are the same characters in full width.
_FORMULA = "=+-@\uff1d\uff0b\uff0d\uff20"


def write_folder(folder: str | Path, names: Sequence[str], write: Callable[[Path], None]) -> Path:
    """Write files into `folder`, all or none; returns the folder, created if missing.

    write: writes them into the temporary folder that it is given. names: all files that it may
    write, also in one subfolder, "dicom/map.dcm"; an older one that it does not write is removed,
    so that no files of two results are mixed. The last file marks a complete result, so it is the
    first to be removed when older files are replaced, and the last to be added. If one of the older
    files cannot be replaced, all of them are kept.

    Raises DiskFull, StagingError, which states what the folder contains, and any error of `write`.
    """
    folder = Path(folder)
    made = _missing(folder)
    partial = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_partial(folder)
        partial = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=folder))
        write(partial)
        for path in partial.rglob("*"):
            _to_disk(path)
        _exchange(folder, partial, names)
        made = []
    except OSError as error:
        raise unwritable(folder, error) from None
    except StagingError:  # of a library that does not say why it could not write
        if partial is not None:
            _check_room(folder, partial)
        raise
    finally:
        if partial is not None:
            _remove(partial)
        _remove_empty(made)
    return folder


def remove_partial(folder: Path) -> None:
    """Remove what killed runs have left directly in a folder."""
    for left in folder.glob(f"{PARTIAL}*"):
        _remove(left)


def check_writable(folder: str | Path) -> None:
    """Check, before work starts, that a folder can be written or created. Raises StagingError."""
    folder = Path(folder)
    made = _missing(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise unwritable(folder, error) from None
    finally:
        _remove_empty(made)


def write_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file completely or not at all; its folder is created if missing.

    write: writes the temporary file that it is given. Raises DiskFull, and StagingError if that
    fails with another OSError; an older file is then unchanged.
    """
    partial = path.with_name(f"{PARTIAL}{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        _to_disk(partial)
        partial.replace(path)
        _to_disk(path.parent)
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFull(f"Cannot write the file {path}: {_reason(error)}.") from None
        raise StagingError(
            f"Cannot write the file {path}: {_reason(error)}; is it open in another program?"
        ) from None
    finally:
        with suppress(OSError):  # the folder cannot be written, as reported above
            partial.unlink(missing_ok=True)


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a CSV table without formulas (`cell`), as `write_file` does."""

    def write(partial: Path) -> None:
        with partial.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            table = csv.DictWriter(file, columns, restval="")
            table.writeheader()
            table.writerows({key: cell(value) for key, value in row.items()} for row in rows)

    write_file(path, write)


def cell(value: Any) -> Any:
    """A table's cell, with a leading ' for text that spreadsheets would read as a formula.

    Numbers, also as text, are unchanged. See "CSV Injection", OWASP.
    """
    if not isinstance(value, str) or not value.lstrip().startswith(tuple(_FORMULA)):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def plain(text: str) -> str:
    """The text of a table's cell without the ' that `cell` put in front of it."""
    return text[1:] if text.startswith("'") and cell(text[1:]) == text else text


def _exchange(folder: Path, partial: Path, names: Sequence[str]) -> None:
    """Move the older files aside, then the new ones in; on failure, undo all moves."""
    aside = partial / "older"
    aside.mkdir()
    older = [name for name in reversed(names) if (folder / name).exists()]
    moves = [(folder / name, aside / name) for name in older]
    moves += [(partial / name, folder / name) for name in names if (partial / name).exists()]
    done: list[tuple[Path, Path]] = []
    try:
        for source, target in moves:
            if source.is_dir():
                raise IsADirectoryError(errno.EISDIR, "a folder has this name")
            target.parent.mkdir(exist_ok=True)
            if target == folder / names[-1]:  # the mark of a complete result follows the others
                _to_disk(folder)
            source.replace(target)
            done.append((source, target))
        _to_disk(folder)
    except OSError as error:
        state = "the earlier result in it is unchanged" if older else "nothing was written"
        try:
            for back, here in reversed(done):
                here.replace(back)
        except OSError:
            state = f"it now contains an incomplete result, without {names[-1]}"
        raise StagingError(
            f"Cannot write {source.name} to the folder {folder}: {_reason(error)}; is it open in "
            f"another program? In the folder, {state}."
        ) from None
    finally:
        for name in names:
            if Path(name).parent != Path():
                _remove_empty([(folder / name).parent])


def _to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, would survive a power failure."""
    folder = path.is_dir()
    if folder and os.name == "nt":
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # of file systems without it
            raise
    finally:
        os.close(descriptor)


def _check_room(folder: Path, partial: Path) -> None:
    """Raises DiskFull if not even a small file can be written."""
    try:
        with tempfile.TemporaryFile(dir=partial) as file:
            file.write(bytes(_ROOM_BYTES))
            file.flush()
    except OSError as error:
        if error.errno in _FULL:
            raise unwritable(folder, error) from None


def _reason(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__


def _missing(folder: Path) -> list[Path]:
    """The folder and its parents that do not exist, the innermost first."""
    return [place for place in (folder, *folder.parents) if not os.path.exists(place)]


def _remove_empty(folders: Iterable[Path]) -> None:
    with suppress(OSError):  # not created, or no longer empty
        for folder in folders:
            folder.rmdir()


def _remove(path: Path) -> None:
    """Remove a temporary file or folder, ignoring errors."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):  # in use by another program; the next run removes it
            path.unlink()


def unwritable(folder: Path, error: OSError) -> StagingError:
    """The refusal for a folder in which nothing can be written."""
    kind = DiskFull if error.errno in _FULL else StagingError
    return kind(f"Cannot write to the folder {folder}: {_reason(error)}.")
