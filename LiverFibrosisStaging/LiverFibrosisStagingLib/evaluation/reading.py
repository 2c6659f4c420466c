"""A batch's table and a reference standard as the cases of an evaluation."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..batch.table import DONE, TABLE_SCHEMA
from ..batch.table_files import read_parquet
from ..errors import StagingError
from ..files import cell
from ..fingerprint import sha256_of
from ..report.summary import REGION_NAMES
from ..signs.measure import UNITS
from ..stages import ANY_STAGE, GROUPS, STAGES, StageRange, stage_array
from .cohort import relative_weights

NEEDED = ("case", "status", "stage", *STAGES)
HASH = "model_sha256"
_SUM = 0.001  # by which the probabilities of a case may miss 1, being rounded
_TRUE, _FALSE = ("true", "1"), ("false", "0")
_DELIMITERS = ",;\t"
_A_TABLE = "a CSV or Parquet file is needed"

Row = Mapping[str, str]


class LeftOut(NamedTuple):
    """A case that is not evaluated; case: "" for one that is not in the results."""

    case: str
    reason: str


class Model(NamedTuple):
    """A model named in the results; sha256: "" if the table has no such column."""

    name: str
    sha256: str
    trained_on: str


@dataclass(frozen=True)
class Source:
    """A file that was read: its SHA-256 and its number of rows."""

    sha256: str
    rows: int


@dataclass(frozen=True, eq=False)
class Cases:
    """n evaluated cases, in the order of the results.

    stage: int [n], 0..4, by the reference standard, or [n, 2] with lowest and highest if it has
    ranges (`stages.stage_array`). predicted: int [n], as staged. probabilities: float64 [n, 5].
    supported: bool [n], or None if the results do not say. positive: group -> bool [n], at the
    model's operating points, or None if the results do not say it of all cases. signs: sign ->
    float64 [n], NaN where not measured. weights: region -> mean weight [n] of the predicted stage's
    map, NaN where there is none.
    """

    case: np.ndarray
    patient: np.ndarray
    stage: np.ndarray
    predicted: np.ndarray
    probabilities: np.ndarray
    supported: np.ndarray | None
    positive: dict[str, np.ndarray] | None
    signs: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]
    models: tuple[Model, ...]
    left_out: tuple[LeftOut, ...]
    results: Source
    truth: Source


def read_evaluated(results: Path, truth: Path) -> Cases:
    """The cases of a batch's table that are staged and have a stage in the reference standard.

    results: CSV or Parquet with columns of `batch.table`, of which only `NEEDED` have to be there,
    so that the table of another program can be evaluated or compared.
    truth: CSV or Parquet with the columns case, stage (F0..F4 or 0..4, or a range such as F1-F2;
    empty if unknown) and, optionally, patient, for patients with several CTs. What cannot be
    evaluated is in `left_out`: cases that failed, have no reference standard, or are not in the
    results.

    Raises StagingError for a file that cannot be read, a missing column, a case that occurs twice,
    a stage or number that is none, and if no case is left.
    """
    rows, known = read_rows(results), read_rows(truth)
    _check_columns(results, rows, NEEDED)
    _check_columns(truth, known, ("case", "stage"))
    for number, row in enumerate(rows):
        if _number(results, number, row, "schema") > TABLE_SCHEMA:
            raise StagingError(
                f"{results}, line {number + 2}: schema {row['schema']}, of a newer version; schema "
                f"{TABLE_SCHEMA} or older is needed."
            )
    row_of, known_of = _by_case(results, rows), _by_case(truth, known)
    used, left_out = [], []
    for name, number in row_of.items():
        row, reference = rows[number], known_of.get(name)
        stage = (
            None if reference is None else stage_of(truth, reference + 2, known[reference]["stage"])
        )
        if row["status"] != DONE:
            reason = f"not staged: {row.get('reason') or row['status']}"
        elif reference is None:
            reason = "not in the reference standard"
        elif stage is None:
            reason = "the reference standard has no stage"
        else:
            used.append((number, reference, stage))
            continue
        left_out.append(LeftOut(name, reason))
    for name, number in known_of.items():
        if name not in row_of:  # whose name is in none of the outputs
            where = f"line {number + 2} of the reference standard"
            left_out.append(LeftOut("", f"{where}: not in the results"))
    if not used:
        raise StagingError(
            f"{results}: none of the {len(rows)} rows is a staged case with a stage in {truth}; "
            "at least one is needed."
        )
    staged = [rows[number] for number, _, _ in used]
    probabilities = np.array(
        [[_number(results, n, rows[n], name) for name in STAGES] for n, _, _ in used]
    )
    for (n, _, _), own in zip(used, probabilities):
        if not (np.isfinite(own).all() and abs(own.sum() - 1) <= _SUM and own.min() >= 0):
            raise StagingError(
                f"{results}, line {n + 2}: the probabilities F0 to F4 are "
                f"{', '.join(f'{p:g}' for p in own)}; numbers that add up to 1 are needed."
            )
    supported = [row.get("supported", "").lower() for row in staged]
    return Cases(
        case=np.array([row["case"] for row in staged]),
        patient=np.array(
            [known[r].get("patient") or f"case {rows[n]['case']}" for n, r, _ in used]
        ),
        stage=stage_array([stage for _, _, stage in used]),
        predicted=np.array([_predicted(results, n, rows[n]) for n, _, _ in used], int),
        probabilities=probabilities,
        supported=np.isin(supported, _TRUE) if any(supported) else None,
        positive=_positive(staged),
        signs={
            key: np.array([_number(results, n, rows[n], key) for n, _, _ in used]) for key in UNITS
        },
        weights=relative_weights([_weights(results, n, rows[n]) for n, _, _ in used]),
        models=tuple(
            dict.fromkeys(
                Model(row.get("model", ""), row.get(HASH, ""), row.get("trained_on", ""))
                for row in staged
            )
        ),
        left_out=tuple(left_out),
        results=Source(sha256_of(results), len(rows)),
        truth=Source(sha256_of(truth), len(known)),
    )


def _positive(staged: Sequence[Row]) -> dict[str, np.ndarray] | None:
    words = {name: [row.get(f"{name}_positive", "").lower() for row in staged] for name in GROUPS}
    if not all(np.isin(column, (*_TRUE, *_FALSE)).all() for column in words.values()):
        return None
    return {name: np.isin(column, _TRUE) for name, column in words.items()}


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV (comma, semicolon or tab) or Parquet file, as text; "" for a missing value.

    Raises StagingError.
    """
    if path.suffix.lower() == ".parquet":
        return [_text(row) for row in read_parquet(path, _A_TABLE)]
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header = file.readline()
            file.seek(0)
            delimiter = max(_DELIMITERS, key=header.count)
            rows = list(csv.DictReader(file, delimiter=delimiter, restval=""))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise StagingError(
            f"{path}: cannot be read ({type(error).__name__}); {_A_TABLE}."
        ) from None
    return [_text(row) for row in rows]


def _text(row: Mapping[str | None, object]) -> dict[str, str]:
    return {
        key.strip(): "" if value is None else str(value).strip()
        for key, value in row.items()
        if key is not None  # cells beyond the header
    }


def _check_columns(path: Path, rows: Sequence[Row], needed: Sequence[str]) -> None:
    if not rows:
        raise StagingError(f"{path}: no rows; a header and a row for each case are needed.")
    missing = [name for name in needed if name not in rows[0]]
    if missing:
        raise StagingError(
            f"{path}: no column {', '.join(missing)}; the columns {', '.join(needed)} are needed."
        )


def _by_case(path: Path, rows: Sequence[Row]) -> dict[str, int]:
    """Case -> number of its row; a name is as the table would write it (`files.cell`)."""
    found: dict[str, int] = {}
    for number, row in enumerate(rows):
        name = cell(row["case"])
        if not name:
            raise StagingError(f"{path}, line {number + 2}: no case; its name is needed.")
        if name in found:
            raise StagingError(
                f"{path}: the case {name!r} is in lines {found[name] + 2} and {number + 2}; each "
                "case is needed once."
            )
        found[name] = number
    return found


def stage_of(path: Path, line: int, text: str) -> StageRange | None:
    """The stage or range of stages in a cell of a table.

    None if the cell is empty or its range is that of all stages. Raises StagingError.
    """
    if not text:
        return None
    value = _as_float(text.upper().removeprefix("F"))  # numbers of a spreadsheet, such as 2.0
    try:
        found = StageRange.of(str(int(value)) if value in range(len(STAGES)) else text)
    except ValueError:
        raise StagingError(
            f"{path}, line {line}: the stage is {text!r}; F0 to F4, 0 to 4, a range such as F1-F2, "
            "or nothing if it is unknown, is needed."
        ) from None
    return None if found == ANY_STAGE else found


def _predicted(path: Path, number: int, row: Row) -> int:
    if row["stage"] not in STAGES:
        raise StagingError(
            f"{path}, line {number + 2}: the stage is {row['stage']!r}; F0 to F4 is needed."
        )
    return STAGES.index(row["stage"])


def _number(path: Path, number: int, row: Row, column: str) -> float:
    """The number in a column; NaN if it is empty or there is no such column."""
    text = row.get(column, "")
    value = _as_float(text)
    if text and text.lower() != "nan" and not math.isfinite(value):
        raise StagingError(
            f"{path}, line {number + 2}: {column} is {text!r}; a number or nothing is needed."
        )
    return value


def _as_float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _weights(path: Path, number: int, row: Row) -> dict[str, float]:
    """Region -> mean weight; none if the map explains another stage than the predicted one."""
    if (row.get("explained") or row["stage"]) != row["stage"]:
        return {}
    found = {r: _number(path, number, row, f"{r}_mean") for r in REGION_NAMES}
    return {region: value for region, value in found.items() if math.isfinite(value)}
