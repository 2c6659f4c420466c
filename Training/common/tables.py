"""CSV files that a spreadsheet shows as they are: no cell of them is taken for a formula."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Write rows as UTF-8 CSV. Numbers, and texts that are numbers, stay as they are."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([harmless(cell) for cell in row] for row in rows)


def harmless(cell: object) -> object:
    """The cell; before text that a spreadsheet would take for a formula stands an apostrophe."""
    if not isinstance(cell, str) or not cell.startswith(_FORMULA) or cell == "-":
        return cell
    try:
        float(cell)
    except ValueError:
        return "'" + cell
    return cell
