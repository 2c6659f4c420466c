"""The log of a cohort's batches, in the folder of the results; it contains no names of patients.

The log is also the lock of the folder: a second batch into the same one is refused.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import StagingError
from ..files import unwritable
from .case_row import Notify, Row
from .lock import Locked, lock

LOG = "batch.log"


class BatchLog:
    """Appends lines to the log of a folder, each of them at once."""

    def __init__(self, file: BinaryIO, folder: Path) -> None:
        self._file, self._folder = file, folder

    def begin(self, cases: int, about: Mapping[str, Any]) -> None:
        """The first lines of a batch; about: what its results depend on."""
        if self._file.seek(0, os.SEEK_END):
            self._file.seek(-1, os.SEEK_END)
            if self._file.read(1) != b"\n":  # the last batch was killed within a line
                self._append(b"\n")
        self.line(f"Batch of {cases} cases")
        for name, value in about.items():
            self.line(f"{name}: {value}")

    def case(self, row: Row, finished: int, cases: int) -> None:
        """The line of a case."""
        parts = [f"{finished}/{cases}", row["case"], row["status"]]
        if "seconds" in row:
            parts.append(f"{row['seconds']:.1f} s")
        self.line(" ".join([*parts, row.get("reason", "")]))

    def line(self, text: str) -> None:
        """A line with the time (UTC). Raises StagingError if it cannot be written."""
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self._append(f"{now} {' '.join(text.split())}\n".encode(errors="backslashreplace"))

    def _append(self, line: bytes) -> None:
        try:
            self._file.write(line)
        except OSError as error:
            raise unwritable(self._folder, error) from None


@contextmanager
def batch_log(folder: Path, notify: Notify) -> Iterator[BatchLog]:
    """The log of a batch into `folder`, which is created; no other batch can have it meanwhile.

    notify: told if the file system has no locks. Raises StagingError if another batch has it, or
    the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOG).open("a+b", buffering=0)
    except OSError as error:
        raise unwritable(folder, error) from None
    with file:
        try:
            locked = lock(file)
        except Locked:
            raise StagingError(
                f"{folder}: another batch is writing to this folder; wait until it has ended, or "
                "choose another folder."
            ) from None
        if not locked:
            notify(f"{folder} cannot be locked; start no other batch into it at the same time.")
        yield BatchLog(file, folder)
