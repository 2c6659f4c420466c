"""A result's signs for the panel, the scene's table and its chart.

They are made from the result's summary, so also from one that was saved with the scene.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..report.content import sign_name, sign_text
from ..signs.measure import Measurement
from ..signs.placing import Placement, place
from ..signs.published import Source, published_signs

NOT_MEASURABLE, NOT_ASSESSED = "not measurable", "not assessed"


@dataclass(frozen=True)
class SignRow:
    """A sign: its name, its value with the unit, or that there is none, and sentences on it.

    notes: among whose patients the value lies, with the source; or, with None, the reason why it is
    not measurable.
    """

    name: str
    value: str
    notes: tuple[tuple[str, Source | None], ...]


def sign_rows(summary: Mapping[str, Any]) -> list[SignRow]:
    """All signs, in their order; the hint of steatosis is the last row."""
    rows, shown = [], set()
    for found in _measurements(summary):
        placed = _placed(found)
        shown.update(each.sentence for each in placed)
        if found.value is None:
            rows.append(SignRow(sign_name(found), NOT_MEASURABLE, ((found.reason, None),)))
        else:
            notes = tuple((_without_start(each.sentence), each.source) for each in placed)
            rows.append(SignRow(sign_name(found), sign_text(found), notes))
    steatosis = summary["signs_notes"].get("steatosis")
    if steatosis is not None:
        rows.append(SignRow("Steatosis", NOT_ASSESSED, ((_without_start(steatosis), None),)))
    for sentence in summary["signs_placed"]:
        if sentence not in shown:
            value = sentence.partition(":")[0]
            rows.append(SignRow("Steatosis", value, ((_without_start(sentence), None),)))
    return rows


def group_percentiles(summary: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Of each published group, with its sign's name, the percentage with smaller values."""
    return [
        (f"{sign_name(found)}, {each.group.group}", each.percentile)
        for found in _measurements(summary)
        for placement in _placed(found)
        for each in placement.percentiles
    ]


def _measurements(summary: Mapping[str, Any]) -> Iterator[Measurement]:
    for key, value in summary["signs"].items():
        yield Measurement(key, value, summary["signs_notes"].get(key, ""))


def _placed(found: Measurement) -> tuple[Placement, ...]:
    if found.value is None or found.key not in published_signs().signs:
        return ()
    return place(found.key, found.value)


def _without_start(sentence: str) -> str:
    """A sentence such as "Spleen 289 mL: within ..." without the sign and its value."""
    rest = sentence.partition(": ")[2]
    return rest[:1].upper() + rest[1:]
