"""The table of a cohort as files: results.csv, results.parquet, columns.csv; and reading them back.

Missing values are empty cells in CSV and nulls in Parquet. Values and rows are the same in both.
"""

import csv
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import StagingError
from ..files import cell, plain, write_file, write_table
from .summary_page import SUMMARY, summary_page
from .table import (
    BOOLEAN,
    COLUMNS,
    DONE,
    FAILED,
    INTEGER,
    NUMBER,
    SCHEMA,
    TABLE_SCHEMA,
    TEXT,
    Column,
)

TABLE = "results.csv"
PARQUET_TABLE = "results.parquet"
DICTIONARY = "columns.csv"
_NEEDED = ("case", "status", "schema")  # without which a table is none of results
_WORDS = {"true": True, "false": False}
_NO_TABLE = "a results.csv or results.parquet written by batch is needed"


def check_parquet() -> None:
    """Raises StagingError without pyarrow, which writes and reads Parquet."""
    if find_spec("pyarrow") is None:
        raise StagingError("Parquet needs the package pyarrow, which is not installed.")


def write_table_csv(output: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write results.csv alone, as often as wanted while a batch runs.

    rows: as from `table.columns_of`; missing columns are missing values. Raises StagingError if it
    cannot be written; an older table is then unchanged.
    """
    words = {word: text for text, word in _WORDS.items()}

    def written(value: Any) -> Any:
        return words[value] if isinstance(value, bool) else value

    lines = ({name: written(value) for name, value in _typed(row).items()} for row in rows)
    write_table(output / TABLE, COLUMNS, lines)


def write_results(output: Path, rows: Sequence[Mapping[str, Any]], parquet: bool = False) -> None:
    """Write the files of a finished batch into `output`, each completely or not at all.

    results.csv, its data dictionary columns.csv, summary.html and, if asked for, results.parquet;
    an older results.parquet that is not written again is removed. Raises StagingError if one cannot
    be written.
    """
    write_table_csv(output, rows)
    write_table(output / DICTIONARY, ("name", "kind", "unit", "meaning"), map(asdict, SCHEMA))
    if parquet:
        write_file(output / PARQUET_TABLE, lambda partial: _write_parquet(partial, rows))
    else:
        _remove(output / PARQUET_TABLE)
    page = summary_page(list(map(_typed, rows)), output)
    # The hashes in the page are those of its text with these line ends.
    write_file(
        output / SUMMARY,
        lambda partial: partial.write_text(page, encoding="utf-8", newline="\n"),
    )


def read_results(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a results.csv or results.parquet, with all columns of SCHEMA.

    Values are str, float, int and bool by the column's kind, and None if missing. Further columns,
    which the user may have added, are kept as they are, as text in CSV. Raises StagingError for a
    file that cannot be read, that is no table of results, or that a newer version wrote.
    """
    path = Path(path)
    parquet = path.suffix.lower() == ".parquet"
    found = read_parquet(path) if parquet else _read_csv(path)
    missing = [name for name in _NEEDED if found and name not in found[0]]
    if not found or missing:
        what = f"no column {', '.join(missing)}" if missing else "no rows"
        raise StagingError(f"{path}: {what}; {_NO_TABLE}.")
    rows = []
    for number, values in enumerate(found, start=1):
        row = dict.fromkeys(COLUMNS) | {name: _plain(value) for name, value in values.items()}
        for column in SCHEMA:
            value = row[column.name]
            try:
                row[column.name] = None if value is None else _READ[column.kind](value)
            except (ValueError, TypeError):  # TypeError: a list, which Parquet can hold
                raise StagingError(
                    f"{path}: {value!r} for {column.name} in row {number}; {_A_KIND[column.kind]} "
                    "is needed."
                ) from None
        _check_row(row, f"{path}, row {number}")
        rows.append(row)
    return rows


def _check_row(row: Mapping[str, Any], where: str) -> None:
    newest = row["schema"]
    if newest is None or row["case"] is None or row["status"] not in (DONE, FAILED):
        raise StagingError(
            f"{where}: case {row['case']}, status {row['status']}, schema {newest}; {_NO_TABLE}."
        )
    if newest > TABLE_SCHEMA:
        raise StagingError(
            f"{where}: schema {newest}, of a newer version; schema {TABLE_SCHEMA} or older is "
            "needed."
        )


# ---------------------------------------------------------------------------- writing


def _typed(row: Mapping[str, Any]) -> dict[str, Any]:
    """All columns of a row, by kind; None if missing."""
    unknown = set(row) - set(COLUMNS)
    if unknown:
        raise ValueError(f"Columns without a documented meaning: {sorted(unknown)}")
    return {column.name: _value(row.get(column.name), column) for column in SCHEMA}


def _value(value: Any, column: Column) -> Any:
    if value is None or value == "":
        return None
    if column.kind == TEXT:
        # One line for each row, and no half of a surrogate pair, which UTF-8 cannot encode.
        text = re.sub(r"[\x00-\x1f\x7f]+", " ", str(value))
        return text.encode("utf-8", "backslashreplace").decode("utf-8") or None
    if column.kind == NUMBER:
        return float(value) if math.isfinite(value) else None
    return int(value) if column.kind == INTEGER else bool(value)


def _write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    import pyarrow
    import pyarrow.parquet

    kinds = {
        TEXT: pyarrow.string(),
        NUMBER: pyarrow.float64(),
        INTEGER: pyarrow.int64(),
        BOOLEAN: pyarrow.bool_(),
    }
    schema = pyarrow.schema(
        pyarrow.field(
            column.name,
            kinds[column.kind],
            metadata={"unit": column.unit, "meaning": column.meaning},
        )
        for column in SCHEMA
    )
    lines = [{name: cell(value) for name, value in _typed(row).items()} for row in rows]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(lines, schema), path)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StagingError(
            f"Cannot remove the older {path}: {error.strerror or error}; is it open in another "
            "program?"
        ) from None


# ---------------------------------------------------------------------------- reading


def _read_csv(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file, strict=True)
            found = list(table)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _unreadable(path, error) from None
    for number, row in enumerate(found, start=1):
        if None in row or None in row.values():
            raise StagingError(
                f"{path}: row {number} has not as many cells as the header; {_NO_TABLE}."
            )
    return found


def read_parquet(path: Path, needed: str = _NO_TABLE) -> list[dict[str, Any]]:
    """Rows of any Parquet file. Raises StagingError, which ends with what is needed."""
    check_parquet()
    import pyarrow
    import pyarrow.parquet

    try:
        with path.open("rb") as file:
            return pyarrow.parquet.read_table(file).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise _unreadable(path, error, needed) from None


def _unreadable(path: Path, error: Exception, needed: str = _NO_TABLE) -> StagingError:
    reason = (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
    return StagingError(f"{path}: cannot be read ({reason}); {needed}.")


def _plain(value: Any) -> Any:
    """A cell's value without the protection against formulas; None if it is empty."""
    return (plain(value) or None) if isinstance(value, str) else value


def _number(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def _integer(value: Any) -> int:
    number = float(value)
    if not number.is_integer():
        raise ValueError
    return int(number)


def _boolean(value: Any) -> bool:
    word = str(value).lower()
    if word not in _WORDS:
        raise ValueError
    return _WORDS[word]


_READ: dict[str, Callable[[Any], Any]] = {
    TEXT: str,
    NUMBER: _number,
    INTEGER: _integer,
    BOOLEAN: _boolean,
}
_A_KIND = {
    TEXT: "a text",
    NUMBER: "a number",
    INTEGER: "a whole number",
    BOOLEAN: "true or false",
}
