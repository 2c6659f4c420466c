"""Tables as CSV and Markdown."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from LiverFibrosisStagingLib.files import cell

MISSING = "-"  # a cell without a value


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
