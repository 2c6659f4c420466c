"""Clinical tables as rows: tab-separated text and Excel sheets."""

import re
from collections.abc import Sequence
from pathlib import Path

from LiverFibrosisStagingLib.errors import StagingError

from .labels import TableError

Row = tuple[int, dict[str, str]]


def column_name(name: str) -> str:
    """A column's name without differences of letter case, spaces and hyphens."""
    return re.sub(r"[\s-]+", "_", name.strip().casefold())


def read_lines(path: Path) -> list[tuple[int, list[str]]]:
    """Line number and fields of each line of a tab-separated table that is not empty.

    Lines that begin with # are left out. Raises TableError.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise TableError(path, [f"The file cannot be read: {error.strerror}."]) from None
    except UnicodeDecodeError:
        raise TableError(path, ["The file is not UTF-8 text."]) from None
    # Not splitlines(), which also splits at characters that occur within a field.
    return [
        (number, [_unquoted(field.strip()) for field in line.split("\t")])
        for number, line in enumerate(text.split("\n"), start=1)
        if line.strip() and not line.startswith("#")
    ]


def read_sheet(path: Path, columns: Sequence[str]) -> list[Row]:
    """Row number and values of the sheet of an Excel file whose first row has all `columns`.

    Keys are as in `columns`; whole numbers are without a decimal point, empty cells are "". Empty
    rows are left out. Raises StagingError without the package openpyxl, else TableError.
    """
    try:
        from openpyxl import load_workbook
    except ImportError:
        raise StagingError(
            f"{path}: an Excel table; reading it needs the package openpyxl, which is not "
            "installed."
        ) from None
    try:
        with path.open("rb") as stream:
            sheets = load_workbook(stream, data_only=True).worksheets
    except OSError as error:
        raise TableError(path, [f"The file cannot be read: {error.strerror}."]) from None
    except Exception as error:  # openpyxl raises many types on a damaged file
        raise TableError(path, ["The file is not an Excel workbook (.xlsx)."]) from error
    found = []
    for sheet in sheets:
        header, *rows = [[_text(cell) for cell in row] for row in sheet.values] or [[]]
        names = [column_name(name) for name in header]
        if {column_name(column) for column in columns} <= set(names):
            found.append((names, rows))
    if len(found) != 1:
        raise TableError(
            path,
            [
                f"{len(found) or 'No'} sheets have the columns {', '.join(columns)} in their first "
                "row; one is needed."
            ],
        )
    names, rows = found[0]
    twice = [column for column in columns if names.count(column_name(column)) > 1]
    if twice:
        raise TableError(path, [f"line 1: the column {name!r} occurs twice." for name in twice])
    places = {column: names.index(column_name(column)) for column in columns}
    return [
        (number, {column: row[place] for column, place in places.items()})
        for number, row in enumerate(rows, start=2)
        if any(row)
    ]


def _unquoted(value: str) -> str:
    return value[1:-1].strip() if len(value) > 1 and value[0] == value[-1] == '"' else value


def _text(value: object) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else str(value).strip()
