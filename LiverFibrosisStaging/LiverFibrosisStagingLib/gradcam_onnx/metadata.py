"""Validation of the JSON metadata in model files: types and ranges of all fields that are used.

`read_fields` checks a model's metadata against a description of its fields and returns values of
the described types, which need no further checks. Other fields are kept unchanged.
"""

import json
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import StagingError

# Converts a JSON value to its type, or raises InvalidValue.
Check = Callable[[Any], Any]
_SHOWN = 100  # characters of an invalid value in a message


class InvalidValue(Exception):
    """An invalid value: what was found, what is needed, and its field (outermost first)."""

    def __init__(self, found: Any, needed: str, *where: str) -> None:
        super().__init__(needed)
        self.found, self.needed, self.where = found, needed, where


MISSING = object()  # stands for the value of a missing field


def read_fields(text: str | None, key: str, check: Check, name: str, advice: str) -> Any:
    """A model's metadata entry `key`, whose JSON is `text`, in the types of `check`.

    name: of the model, for messages. advice: what to do about a model without the entry. Raises
    StagingError with the file, the field, what was found and what is needed.
    """
    if text is None:
        raise StagingError(f"The model {name} has no {key!r} metadata; {advice}.")
    try:
        data = json.loads(text)
        # Infinite numbers and lone surrogates could not be written to JSON again.
        json.dumps(data, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        raise StagingError(
            f"The model {name} has {key!r} metadata that is not readable JSON."
        ) from None
    try:
        return check(data)
    except InvalidValue as wrong:
        field = ".".join((key, *wrong.where))
        field = _short(field if field.isprintable() else repr(field))
        found = "missing" if wrong.found is MISSING else _short(json.dumps(wrong.found))
        raise StagingError(
            f"The model {name} has metadata in which {field} is {found}; {wrong.needed} is needed."
        ) from None


def as_arguments(cls: type, found: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a frozen dataclass among those found, lists as tuples."""
    known = cls.__dataclass_fields__
    return {k: tuple(v) if isinstance(v, list) else v for k, v in found.items() if k in known}


def number(low: float, high: float) -> Check:
    """A number from `low` to `high`, as float."""

    def check(value: Any) -> float:
        known = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not known or not low <= value <= high:
            raise InvalidValue(value, f"a number from {low:g} to {high:g}")
        return float(value)

    return check


def whole(low: int, high: int) -> Check:
    """A whole number from `low` to `high`."""

    def check(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise InvalidValue(value, f"a whole number from {low} to {high}")
        return value

    return check


def line(value: Any) -> str:
    """One non-empty line of text."""
    if not isinstance(value, str) or not value.strip() or set(map(_category, value)) & _BREAKS:
        raise InvalidValue(value, "one line of text")
    return value


# Unicode's categories of control characters, line and paragraph separators.
_category, _BREAKS = unicodedata.category, {"Cc", "Zl", "Zp"}


def version(*known: int) -> Check:
    """One of the supported versions."""
    listed = " or ".join(map(str, known))

    def check(value: Any) -> int:
        if isinstance(value, bool) or value not in known:
            plural = "s" if len(known) > 1 else ""
            raise InvalidValue(value, f"{listed} (the supported version{plural})")
        return int(value)

    return check


def exactly(*allowed: Any) -> Check:
    """One of the given values, of the same type."""

    def check(value: Any) -> Any:
        for one in allowed:
            if type(value) is type(one) and value == one:
                return value
        raise InvalidValue(value, " or ".join(json.dumps(one) for one in allowed))

    return check


def items(each: Check, *lengths: int, ascending: bool = False) -> Check:
    """A list of one of the `lengths`, if given; `ascending`: of numbers in ascending order."""
    count = f" of {' or '.join(map(str, lengths))} values" if lengths else ""

    def check(value: Any) -> list:
        if not isinstance(value, list) or (lengths and len(value) not in lengths):
            raise InvalidValue(value, f"a list{count}")
        found = [_within(str(i), each, one) for i, one in enumerate(value)]
        if ascending and found != sorted(found):
            raise InvalidValue(value, "a list in ascending order")
        return found

    return check


def entries(each: Check) -> Check:
    """A JSON object whose values all pass `each`."""

    def check(value: Any) -> dict[str, Any]:
        return {name: _within(name, each, one) for name, one in _object(value).items()}

    return check


def fields(checks: Mapping[str, Check], optional: Sequence[str] | None = None) -> Check:
    """A JSON object with the named fields; those in `optional` (default: all) may be missing.

    Other fields are kept unchanged.
    """

    def check(value: Any) -> dict[str, Any]:
        found = dict(_object(value))
        for name, each in checks.items():
            if name in found:
                found[name] = _within(name, each, found[name])
            elif optional is not None and name not in optional:
                _within(name, each, MISSING)
        return found

    return check


def nullable(each: Check) -> Check:
    """A value that passes `each`, or null."""
    return lambda value: None if value is None else each(value)


def window_hu(value: Any) -> list[float]:
    """The HU mapped to 0 and 1, the lower first."""
    found = items(number(-1e5, 1e5), 2)(value)
    if not found[0] < found[1]:
        raise InvalidValue(value, "a list with the lower HU first")
    return found


spacing_mm = items(number(0.5, 50), 3)  # a finer grid of a whole CT would take gigabytes


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidValue(value, "a JSON object")
    return value


def _within(name: str, check: Check, value: Any) -> Any:
    try:
        return check(value)
    except InvalidValue as wrong:
        raise InvalidValue(wrong.found, wrong.needed, name, *wrong.where) from None
