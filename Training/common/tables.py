"""Tables: reading text, and writing CSV and Markdown."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from LiverFibrosisStagingLib.errors import StagingError
from LiverFibrosisStagingLib.files import cell
from LiverFibrosisStagingLib.stages import RESEARCH_USE

MISSING = "-"  # a cell without a value


class TableError(StagingError):
    """A table that cannot be used; `problems` has one sentence per problem."""

    def __init__(self, path: Path, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        count = "one problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__(f"{path} cannot be used, {count}:\n" + "\n".join(problems))


def read_utf8(path: Path) -> str:
    """The text of a file, without a byte-order mark. Raises TableError."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise TableError(path, [f"The file cannot be read: {error.strerror}."]) from None
    except UnicodeDecodeError:
        raise TableError(path, ["The file is not UTF-8 text; save it as CSV UTF-8."]) from None


def write_table(stem: Path, rows: Sequence[Sequence[str]], trained_on: str) -> None:
    """Write a table, header first, as `stem`.csv and .md, into a folder that may be new.

    Below it stands on what the measured model was trained, one sentence, and the restriction.
    """
    notice = notice_of(trained_on)
    stem.parent.mkdir(parents=True, exist_ok=True)
    write_csv(stem.with_suffix(".csv"), [*rows, [notice]])
    write_markdown(stem.with_suffix(".md"), rows, notice)


def notice_of(trained_on: str) -> str:
    """The sentences below a table of results; trained_on: one sentence on the training data."""
    return f"Model trained on: {trained_on.rstrip('.')}. {RESEARCH_USE}"


def write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Write rows as a UTF-8 CSV file; spreadsheets do not evaluate its cells as formulas."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([_plain(value) for value in row] for row in rows)


def write_markdown(path: Path, rows: Sequence[Sequence[str]], notice: str) -> None:
    """Write a table, header first, as Markdown with a notice below it."""
    path.write_text(f"{markdown(rows)}\n\n{notice}\n", encoding="utf-8")


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table, header first, as Markdown."""
    header, *body = rows
    lines = [header, ["---"] * len(header), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _plain(value: object) -> object:
    return value if value == MISSING else cell(value)
