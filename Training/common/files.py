"""Files that are written completely or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from LiverFibrosisStagingLib.files import PARTIAL


@contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, which replaces `path` if the block ends without an error."""
    partial = path.with_name(f"{PARTIAL}{path.name}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file."""
    with unfinished(path) as partial:
        partial.write_text(text, encoding="utf-8")
