"""A result's reasons, signs and checks as HTML, for the sections of the panel.

Qt's rich text has no element for bars: a bar is a table of one row with coloured cells.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from slicer.i18n import tr as _

from ..imaging.input_checks import PASS, REFUSE, WARN
from ..report.colors import BAND_COUNT, BANDS, css
from ..report.content import OUTCOMES, Region, percent, usual_regions
from ..report.summary import further_warnings, pattern_sentences

_OF_PATIENT = css(BANDS[BAND_COUNT // 2].rgb)
_BAR_WIDTH = 120  # pixels, of the longest bar
_OF_REFERENCE = "#8a8a8a"  # visible on light and dark backgrounds


def unsupported_html(summary: Mapping[str, Any]) -> str:
    """In place of a stage that is not supported: that it is not, and why."""
    title = _("Stage not supported")
    model = _("The model predicts {stage}; do not use this stage:").format(stage=summary["stage"])
    return f"<p><b>{escape(title)}</b></p><p>{escape(model)}{_points(summary['reasons'])}</p>"


def attention_text(summary: Mapping[str, Any]) -> str:
    """A line that refers to the checks; empty if there is nothing to look at."""
    found = _found(summary)
    return _("{found}: see Checks below").format(found=found) if found else ""


def checks_title(summary: Mapping[str, Any]) -> str:
    """The title of the checks, which is visible when they are collapsed."""
    found = _found(summary) or (_("all passed") if summary["checks"] else _("no warnings"))
    return _("Checks: {found}").format(found=found)


def pattern_html(summary: Mapping[str, Any]) -> str:
    """The location map's pattern, and the numbers behind it."""
    pattern = summary["location_map"]["pattern"]["name"]
    if not pattern:
        return escape(_("The location map is empty."))
    name = _("Pattern: {name}.").format(name=pattern)
    return f"<b>{escape(name)}</b> {escape(pattern_sentences(summary))}"


def regions_html(summary: Mapping[str, Any]) -> tuple[str, str]:
    """The map's regions as bars against the model's reference, and a sentence on the reference."""
    regions, note = usual_regions(summary, summary["reference"])
    highest = max(1.0, *(max(region.mean, *(region.usual or (0.0,))) for region in regions))
    rows = [_row("th", _("Region"), "", _("Attention"), _("Share"))]
    for region in regions:
        bar = _bars(region, highest)
        rows.append(_row("td", region.name, bar, f"{region.mean:.2f} x", percent(region.share)))
    if any(region.usual is not None for region in regions):
        note = _("Orange: this CT. Grey: reference.") + f" {note}"
    return f'<table width="100%">{"".join(rows)}</table>', note


def signs_html(summary: Mapping[str, Any]) -> str:
    """The signs, each with its value and its place among the published groups.

    No table: Qt takes three times as long to lay one out, which it does many times.
    """
    lines = []
    for row in summary["sign_rows"]:
        lines.append(f"{escape(row['name'])}: <b>{escape(row['value'])}</b>")
        for note in row["notes"]:
            link = f" ({_link(note['link'], note['source'])})" if "link" in note else ""
            lines.append(f"<small>{escape(note['sentence'].rstrip('.'))}{link}.</small>")
    return "<br>".join(lines)


def checks_html(summary: Mapping[str, Any]) -> str:
    """Each check with its outcome and sentence; those that did not pass are emphasised."""
    lines = []
    for check in summary["checks"]:
        outcome = check["outcome"]
        start = escape(f"{check['name']}: {_(OUTCOMES[outcome])}.")
        if outcome != PASS:
            start = f"\N{WARNING SIGN}\N{NO-BREAK SPACE}<b>{start}</b>"
        lines.append(f"{start} {escape(check['sentence'])}")
    return "<br>".join(lines)


def warnings_html(summary: Mapping[str, Any]) -> str:
    """The warnings, except those that a check states already; empty if there are none."""
    warnings = further_warnings(summary)
    if not warnings:
        return ""
    title = _("Check these points before you use the result:")
    return f"<p><b>\N{WARNING SIGN} {escape(title)}</b>{_points(warnings)}</p>"


def _found(summary: Mapping[str, Any]) -> str:
    """How many checks failed, and how many warnings there are; empty if none."""
    outcomes = Counter(check["outcome"] for check in summary["checks"])
    failed, warned = outcomes[REFUSE], outcomes[WARN] + len(further_warnings(summary))
    parts = [_("{count} failed").format(count=failed)] if failed else []
    if warned:
        text = _("1 warning") if warned == 1 else _("{count} warnings")
        parts.append(text.format(count=warned))
    return ", ".join(parts)


def _points(sentences: Sequence[str]) -> str:
    return "".join(f"<br>\N{BULLET}\N{NO-BREAK SPACE}{escape(each)}" for each in sentences)


def _row(tag: str, name: str, bar: str, *numbers: str) -> str:
    cells = "".join(f'<{tag} align="right">&nbsp;{escape(text)}</{tag}>' for text in numbers)
    return (
        f'<tr><{tag} align="left">{escape(name).replace(" ", "&nbsp;")}&nbsp;</{tag}>'
        f'<td valign="middle">{bar}</td>{cells}</tr>'
    )


def _bars(region: Region, highest: float) -> str:
    """The region's mean as a bar from 0, and below it the reference range."""
    bar = _bar(0.0, region.mean / highest, _OF_PATIENT, 6)
    if region.usual is None:
        return bar
    low, high = region.usual[0] / highest, region.usual[-1] / highest
    return bar + _bar(low, high, _OF_REFERENCE, 3)


def _bar(start: float, end: float, color: str, points: int) -> str:
    """A coloured bar from start to end of the width, 0..1."""
    cells = ((start, ""), (end - start, f' bgcolor="{color}"'), (1.0 - end, ""))
    inside = "".join(
        f'<td width="{round(_BAR_WIDTH * width)}"{fill}></td>'
        for width, fill in cells
        if round(_BAR_WIDTH * width)
    )
    return (
        f'<table width="{_BAR_WIDTH}" cellspacing="0" cellpadding="0" '
        f'style="font-size:{points}pt"><tr>{inside}</tr></table>'
    )


def _link(address: str, text: str) -> str:
    return f'<a href="{escape(address)}">{escape(text)}</a>'
