"""Published values of signs by stage, from `Resources/Published/signs.json`.

Every value names its source; all of them are read from this one file. Nothing here combines signs:
no coefficients for that have been published.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import StagingError
from ..resources import published_signs_path

GROUP_NAMES = ("F0", "F0-F1", "F1", "F2", "F3", "F4", "no cirrhosis", "cirrhosis")
SHAPES = ("normal", "log-normal")
SIDES = ("below", "at least")


@dataclass(frozen=True)
class Sign:
    """A sign and how to write it.

    unit: "" for a ratio; shape: of the distribution in a group, one of SHAPES; comparable: False if
    values of another program cannot be placed among the published ones; remark: why, or the skew.
    """

    key: str
    name: str
    unit: str
    decimals: int
    shape: str
    comparable: bool
    remark: str

    def text(self, value: float) -> str:
        """A value with its unit, such as "720 mL"."""
        return f"{value:.{self.decimals}f} {self.unit}".rstrip()


@dataclass(frozen=True)
class Source:
    """A publication: its cohort of n patients and the technique.

    name: short, for sentences; link: its DOI, or else a page with its abstract.
    """

    key: str
    name: str
    citation: str
    link: str
    n: int
    cohort: str
    technique: str
    remark: str


@dataclass(frozen=True)
class Group:
    """Mean and SD of a sign, in its unit, in a group of n patients; n is None if not published."""

    sign: Sign
    group: str
    mean: float
    sd: float
    n: int | None
    source: Source


@dataclass(frozen=True)
class Interval:
    """A reference interval: `share` of the group lies between `low` and `high`, centrally."""

    sign: Sign
    group: str
    low: float
    high: float
    share: float
    source: Source


@dataclass(frozen=True)
class Cutoff:
    """A threshold with its sensitivity and specificity for a finding.

    side: whether the finding is present below the value or from it on; phase: the contrast phase
    for which it holds, as in `imaging.dicom_series`; None if it does not depend on it.
    """

    sign: Sign
    finding: str
    side: str
    value: float
    sensitivity: float
    specificity: float
    phase: str | None
    source: Source


@dataclass(frozen=True)
class Accuracy:
    """Area under the ROC curve of one sign, or several together, for a finding.

    set: "internal" or "external" where a source has both, otherwise "".
    """

    signs: tuple[Sign, ...]
    finding: str
    auc: float
    set: str
    source: Source


@dataclass(frozen=True)
class PublishedSigns:
    """All published values, in the order of the file."""

    signs: dict[str, Sign]
    sources: dict[str, Source]
    groups: tuple[Group, ...]
    intervals: tuple[Interval, ...]
    cutoffs: tuple[Cutoff, ...]
    accuracies: tuple[Accuracy, ...]

    def sign(self, key: str) -> Sign:
        """The sign with this key. Raises StagingError if there is none."""
        if key not in self.signs:
            raise StagingError(
                f"No sign is called {key!r}; one of {', '.join(self.signs)} is needed."
            )
        return self.signs[key]


@cache
def published_signs() -> PublishedSigns:
    """The shipped values. Raises StagingError if the file is missing or damaged."""
    return read_published_signs(published_signs_path())


def read_published_signs(path: Path) -> PublishedSigns:
    """Read a file of published values.

    Raises StagingError, with the file, the table and the row, for a row with a missing, unknown or
    impossible value, for a row without a source, and for two rows about the same thing.
    """
    try:
        tables = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StagingError(
            f"{path.name}: cannot be read ({type(error).__name__}); a JSON file is needed."
        ) from None
    names = ("signs", "sources", "groups", "intervals", "cutoffs", "accuracies")
    if not isinstance(tables, dict) or set(tables) != set(names):
        raise StagingError(f"{path.name}: the tables {', '.join(names)} are needed, and no other.")
    file = _File(path.name, tables)
    word = {"key": _word}
    signs = {
        row["key"]: Sign(**row)
        for row in file.rows(
            "signs",
            ("key",),
            word
            | {"name": _word, "unit": _text, "decimals": _count, "shape": _one_of(SHAPES)}
            | {"comparable": _flag, "remark": _text},
        )
    }
    sources = {
        row["key"]: Source(**row)
        for row in file.rows(
            "sources",
            ("key",),
            word
            | {"name": _word, "citation": _word, "link": _link, "n": _positive_count}
            | {"cohort": _word, "technique": _word, "remark": _text},
        )
    }
    sign, source = _entry(signs, "sign"), _entry(sources, "source")
    group = {"sign": sign, "group": _one_of(GROUP_NAMES), "source": source}
    groups = tuple(
        Group(**row)
        for row in file.rows(
            "groups",
            ("sign", "group", "source"),
            group | {"mean": _positive, "sd": _positive, "n": _count_or_null},
        )
    )
    intervals = tuple(
        Interval(**row)
        for row in file.rows(
            "intervals",
            ("sign", "group", "source"),
            group | {"group": _word, "low": _positive, "high": _positive, "share": _share},
        )
    )
    cutoffs = tuple(
        Cutoff(**row)
        for row in file.rows(
            "cutoffs",
            ("sign", "finding", "value", "source"),
            {"sign": sign, "finding": _word, "side": _one_of(SIDES), "value": _number}
            | {"sensitivity": _share, "specificity": _share, "phase": _word_or_null}
            | {"source": source},
        )
    )
    accuracies = tuple(
        Accuracy(**row)
        for row in file.rows(
            "accuracies",
            ("signs", "finding", "set", "source"),
            {"signs": _entries(sign), "finding": _word, "auc": _share, "source": source}
            | {"set": _one_of(("", "internal", "external"))},
        )
    )
    for interval in intervals:
        if interval.low >= interval.high:
            raise StagingError(
                f"{path.name}: an interval of {interval.sign.key} runs from {interval.low:g} to "
                f"{interval.high:g}; the lower limit has to come first."
            )
    _check_sizes(groups, path.name)
    return PublishedSigns(signs, sources, groups, intervals, cutoffs, accuracies)


def _check_sizes(groups: tuple[Group, ...], name: str) -> None:
    counted: dict[tuple[str, str], int] = {}
    for group in groups:
        where = (group.sign.key, group.source.key)
        counted[where] = counted.get(where, 0) + (group.n or 0)
        if counted[where] > group.source.n:
            raise StagingError(
                f"{name}: the groups of {group.sign.key} have {counted[where]} patients, their "
                f"source {group.source.n}; at most as many as in the source are possible."
            )


Check = Callable[[Any], Any]


class _Wrong(ValueError):
    """What a value should have been."""


@dataclass(frozen=True)
class _File:
    name: str
    tables: dict[str, Any]

    def rows(
        self, table: str, unique: tuple[str, ...], columns: dict[str, Check]
    ) -> list[dict[str, Any]]:
        """The checked rows of a table; no two have the same values in the columns `unique`."""
        rows = self.tables[table]
        if not isinstance(rows, list) or not rows:
            raise StagingError(f"{self.name}: {table} is not a list with rows; one is needed.")
        checked: list[dict[str, Any]] = []
        seen = set()
        for number, row in enumerate(rows, start=1):
            where = f"{self.name}: {table}, row {number}"
            if not isinstance(row, dict) or set(row) != set(columns):
                raise StagingError(f"{where}: exactly the columns {', '.join(columns)} are needed.")
            checked.append({})
            for column, check in columns.items():
                try:
                    checked[-1][column] = check(row[column])
                except _Wrong as wrong:
                    raise StagingError(
                        f"{where}: {column} is {row[column]!r}; {wrong} is needed."
                    ) from None
            key = repr([row[column] for column in unique])
            if key in seen:
                raise StagingError(f"{where}: repeats an earlier row; one of them is enough.")
            seen.add(key)
        return checked


def _text(value: Any) -> str:
    if not isinstance(value, str) or value != value.strip():
        raise _Wrong("text")
    return value


def _word(value: Any) -> str:
    if not _text(value):
        raise _Wrong("text that is not empty")
    return value


def _word_or_null(value: Any) -> str | None:
    return None if value is None else _word(value)


def _link(value: Any) -> str:
    if not _word(value).startswith("https://"):
        raise _Wrong("a link that starts with https://")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _Wrong("true or false")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _Wrong("a number")
    return float(value)


def _positive(value: Any) -> float:
    if _number(value) <= 0:
        raise _Wrong("a number above 0")
    return float(value)


def _share(value: Any) -> float:
    if not 0 < _number(value) <= 1:
        raise _Wrong("a share above 0 and up to 1")
    return float(value)


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise _Wrong("a whole number from 0 on")
    return value


def _positive_count(value: Any) -> int:
    if _count(value) == 0:
        raise _Wrong("a whole number above 0")
    return value


def _count_or_null(value: Any) -> int | None:
    return None if value is None else _positive_count(value)


def _one_of(choices: tuple[str, ...]) -> Check:
    def check(value: Any) -> str:
        if value not in choices:
            raise _Wrong(f"one of {', '.join(map(repr, choices))}")
        return value

    return check


def _entry(table: dict[str, Any], kind: str) -> Check:
    def check(value: Any) -> Any:
        if not isinstance(value, str) or value not in table:
            raise _Wrong(f"the key of a {kind}")
        return table[value]

    return check


def _entries(entry: Check) -> Check:
    def check(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list) or not value:
            raise _Wrong("a list of keys")
        return tuple(entry(key) for key in value)

    return check
