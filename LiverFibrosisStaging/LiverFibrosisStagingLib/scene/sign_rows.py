"""A result's signs for the panel, the scene's table and its chart, as values for JSON."""

from typing import Any

from ..report.content import shown_signs, sign_name, sign_text
from ..signs.measure import MeasuredSigns, Measurement
from ..signs.placing import place_signs
from ..signs.published import Source, published_signs

NOT_MEASURABLE, NOT_ASSESSED = "not measurable", "not assessed"


def sign_rows(signs: MeasuredSigns) -> list[dict[str, Any]]:
    """All signs, in their order, and the hint of steatosis; those without a value come last.

    Each has a name, a value with its unit, or that there is none, and notes: sentences on its place
    among published groups, with the source's name, link and citation; or, without these, the
    reason why it is not measurable or not comparable.
    """
    rows = []
    for found in shown_signs(signs):
        published = published_signs().signs.get(found.key)
        notes = [] if found.value is not None else [_note(found.reason)]
        if found.value is not None and published is not None and not published.comparable:
            notes.append(_note(published.remark))
        notes += [
            _note(_without_start(each.sentence), each.source)
            for each in place_signs(MeasuredSigns((found,), signs.steatosis))
        ]
        rows.append({"name": sign_name(found), "value": _value(found), "notes": notes})
    start, _, rest = signs.steatosis.sentence.partition(": ")
    value = start if signs.steatosis.assessed else NOT_ASSESSED
    rows.append({"name": "Steatosis", "value": value, "notes": [_note(_capital(rest))]})
    return sorted(rows, key=lambda row: row["value"] in (NOT_MEASURABLE, NOT_ASSESSED))


def group_percentiles(signs: MeasuredSigns) -> list[tuple[str, str, str, float]]:
    """Of each published group: label, sign, group, and the percentage with smaller values.

    The labels stand side by side below a chart's bars, so only the first group of a sign has the
    sign's name in its label, or its initials, such as LSVR.
    """
    rows = []
    for placed in place_signs(signs):
        words = placed.sign.name.split()
        short = words[0] if len(words) == 1 else "".join(word[0].upper() for word in words)
        for each in placed.percentiles:
            group, first = each.group.group, each is placed.percentiles[0]
            label = f"{short} {group}" if first else group
            rows.append((label, placed.sign.name, group, each.percentile))
    return rows


def _value(found: Measurement) -> str:
    return NOT_MEASURABLE if found.value is None else sign_text(found)


def _note(sentence: str, source: Source | None = None) -> dict[str, str]:
    if source is None:
        return {"sentence": sentence}
    about = {"source": source.name, "link": source.link, "citation": source.citation}
    return {"sentence": sentence, **about}


def _without_start(sentence: str) -> str:
    """A sentence such as "Spleen 289 mL: within ..." without the sign and its value; those of a
    lower bound, "Spleen at least 289 mL: ...", are kept.
    """
    start, _, rest = sentence.partition(": ")
    return sentence if " at least " in start else _capital(rest)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
