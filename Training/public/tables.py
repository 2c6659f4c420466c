"""Clinical tables as rows: CSV, tab-separated text and Excel sheets."""

import csv
import io
import re
from collections.abc import Sequence
from datetime import datetime, time
from pathlib import Path

from common.tables import TableError, read_utf8
from LiverFibrosisStagingLib.errors import StagingError

Row = tuple[int, dict[str, str]]


def column_name(name: str) -> str:
    """A column's name without differences of letter case, spaces and hyphens."""
    return re.sub(r"[\s-]+", "_", name.strip().casefold())


def read_lines(path: Path) -> list[tuple[int, list[str]]]:
    """Line number and fields of each line of a tab-separated table that is not empty.

    Lines that begin with # are left out. Raises TableError.
    """
    text = read_utf8(path)
    # Not splitlines(), which also splits at characters that occur within a field.
    return [
        (number, [_unquoted(field.strip()) for field in line.split("\t")])
        for number, line in enumerate(text.split("\n"), start=1)
        if line.strip() and not line.startswith("#")
    ]


def read_sheets(path: Path) -> list[list[list[str]]]:
    """The cells of each row of each sheet of an Excel file; a sheet has one row or more.

    Whole numbers are without a decimal point, days are as 2021-03-05, empty cells are "". Raises
    StagingError without the package openpyxl, else TableError.
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
    return [[[_text(cell) for cell in row] for row in sheet.values] or [[]] for sheet in sheets]


def read_csv(path: Path) -> list[tuple[int, list[str]]]:
    """Line number and fields of each line of a CSV file that is not empty; UTF-8.

    The delimiter is the one of comma, semicolon and tab that the first line has most of; the number
    of a record of several lines is that of its last one. Raises TableError.
    """
    text = read_utf8(path).replace("\r\n", "\n").replace("\r", "\n")
    first = next((line for line in text.split("\n") if line.strip()), "")
    delimiter = max(",;\t", key=re.sub(r'"[^"]*"', "", first).count)
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        return [
            (reader.line_num, [field.strip() for field in fields])
            for fields in reader
            if any(map(str.strip, fields))
        ]
    except csv.Error as error:
        raise TableError(path, [f"line {reader.line_num}: not CSV ({error})."]) from None


def read_sheet(path: Path, columns: Sequence[str]) -> list[Row]:
    """Row number and values of the sheet of an Excel file whose first row has all `columns`.

    Keys are as in `columns`, values as from `read_sheets`. Empty rows are left out. Raises as that
    does.
    """
    found = []
    for header, *rows in read_sheets(path):
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
    if isinstance(value, datetime) and value.time() == time():
        value = value.date()
    return "" if value is None else str(value).strip()
