"""summary.html: a cohort's results on one page, which opens in any browser without a network.

Counts, distributions of the signs and of the location maps by predicted stage, failures, warnings,
and a table of the cases. Laid out in Resources/ReportTemplate (summary.html, summary.css,
summary.js), in the style of the report. Pictures are the cases' own overviews, which a browser
loads only when they are scrolled into view: there are no thumbnails that could be out of date.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

import numpy as np

from ..report.content import SIGN_NAMES, TITLE, percent
from ..report.documents import REPORT_FILES
from ..report.markup import at, content_hash, line, rect, svg
from ..report.summary import REGION_NAMES, group_label, group_stages
from ..resources import report_template
from ..result import FILES
from ..signs.measure import UNITS
from ..signs.placing import distribution
from ..signs.published import Group, published_signs
from ..stages import GROUPS, RESEARCH_USE, STAGES
from .table import DONE, SEPARATOR

SUMMARY = "summary.html"
OVERVIEW = FILES[3]
NOT_SUPPORTED, NOT_STAGED = "Not supported", "Failed"
MOST_DOTS = 12  # with up to as many cases, each is drawn; a box would suggest more than is known
_WHISKER = 1.5  # box lengths to the ends of the lines: Tukey 1977, Exploratory Data Analysis
_NUMBER = re.compile(r"(?<![\w.-])-?\d+(?:[.,]\d+)*")  # not that of a name, as in F3 or NIfTI-1

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Plotted:
    """A column to draw by stage: its heading with the unit, and the decimals of its axis."""

    key: str
    heading: str
    decimals: int


@dataclass(frozen=True)
class Shown:
    """A column of the table of cases: its heading, full name, and the text of a value."""

    key: str
    heading: str
    name: str
    text: Callable[[float], str]


def summary_page(rows: Sequence[Row], folder: Path) -> str:
    """The page; rows: of the table, missing values None or left out; folder: with the results.

    Links are relative to the folder, so that it can be moved. StagingError if a part of the shipped
    template is missing.
    """
    done = [row for row in rows if row["status"] == DONE]
    groups = {stage: _supported(done, stage) for stage in STAGES}
    unsupported = [row for row in done if not row["supported"]]
    failed = len(rows) - len(done)
    style = report_template("report.css") + report_template("summary.css")
    script = report_template("summary.js")
    signs = [_plotted(key) for key in UNITS if key in SIGN_NAMES]
    regions = [Plotted(f"{key}_mean", name, 2) for key, name in REGION_NAMES.items()]
    regions.append(Plotted("surface_to_core", "Liver surface over liver core", 2))
    plots = {**groups, NOT_SUPPORTED: unsupported}
    return Template(report_template(SUMMARY)).substitute(
        title=TITLE,
        notice=RESEARCH_USE,
        style=style,
        style_hash=content_hash(style),
        script=script,
        script_hash=content_hash(script),
        headline=f"{len(done)} of {_count(len(rows), 'case')} staged",
        statement=_statement(len(unsupported), failed),
        models="".join(
            f'<p class="quiet">Model {escape(str(name))}, trained on: {escape(str(training))}</p>'
            for name, training in dict.fromkeys((row["model"], row["trained_on"]) for row in rows)
        ),
        stages=_stages(done, failed),
        signs=_plots(signs, plots) or '<p class="quiet">No sign was measured.</p>',
        regions=_plots(regions, plots) or '<p class="quiet">There is no location map.</p>',
        most_dots=MOST_DOTS,
        counts=_counts(rows, done),
        count=len(rows),
        header="".join(map(_heading, _SHOWN)),
        cases="\n".join(_case(row, folder) for row in rows),
        version=escape(", ".join(sorted({str(row["software"]) for row in rows}))),
    )


def _supported(done: Iterable[Row], stage: str) -> list[Row]:
    return [row for row in done if row["supported"] and row["stage"] == stage]


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _statement(unsupported: int, failed: int) -> str:
    if not unsupported and not failed:
        return "The stages of all cases are supported."
    return (
        f"{_count(unsupported, 'stage')} not supported, {_count(failed, 'case')} failed; the "
        "reasons are below."
    )


def _stages(done: Sequence[Row], failed: int) -> str:
    """How many cases have each stage, with and without support."""
    counts = [
        (stage, len(_supported(done, stage)), sum(row["stage"] == stage for row in done))
        for stage in STAGES
    ]
    most = max(failed, 1, *(total for _, _, total in counts))
    body = ""
    for stage, supported, total in counts:
        bars = [
            rect("track", 0, most, 0, most, 4, 12),
            rect("bar", 0, total, 0, most, 4, 12),
            rect("bar supported", 0, supported, 0, most, 4, 12),
        ]
        body += (
            f'<tr><th scope="row">{stage}</th><td class="drawn">{svg(20, bars)}</td>'
            f'<td class="number">{supported}</td><td class="number">{total - supported}</td></tr>'
        )
    bars = [rect("track", 0, most, 0, most, 4, 12), rect("bar failed", 0, failed, 0, most, 4, 12)]
    body += (
        f'<tr><th scope="row">{NOT_STAGED}</th><td class="drawn">{svg(20, bars)}</td>'
        f'<td class="number" colspan="2">{failed}</td></tr>'
    )
    return (
        '<table><caption>Cases by predicted stage</caption><thead><tr><th scope="col">Stage</th>'
        '<td></td><th scope="col" class="number key supported">Supported</th>'
        f'<th scope="col" class="number key">Not supported</th></tr></thead><tbody>{body}</tbody>'
        "</table>"
    )


# ---------------------------------------------------------------------------- distributions


def _plotted(key: str) -> Plotted:
    sign = published_signs().signs.get(key)
    unit = UNITS[key]
    heading = f"{SIGN_NAMES[key]} ({unit})" if unit else SIGN_NAMES[key]
    return Plotted(key, heading, sign.decimals if sign else 1 if unit else 2)


def _plots(columns: Iterable[Plotted], groups: Mapping[str, Sequence[Row]]) -> str:
    return "".join(_plot(column, groups) for column in columns)


def _plot(column: Plotted, groups: Mapping[str, Sequence[Row]]) -> str:
    """One column by group, on one axis; "" without any value."""
    found = {
        name: sorted((row[column.key], row["case"]) for row in rows if _has(row, column.key))
        for name, rows in groups.items()
    }
    values = [value for pairs in found.values() for value, _ in pairs]
    if not values:
        return ""
    published = _published(column.key)
    spans = {
        group: tuple(distribution(g).quantile(q) for q in (0.05, 0.95))
        for group, g in published.items()
    }
    ends = [*values, *(end for span in spans.values() for end in span)]
    low, high = min(ends), max(ends)
    margin = 0.03 * (high - low) or 1.0  # dots are as wide as that
    low, high = low - margin, high + margin
    body = []
    for name, pairs in found.items():
        parts = [rect("track", low, high, low, high, 0, 20), *_spread(pairs, low, high)]
        if name in spans:
            parts.append(rect("published", *spans[name], low, high, 18, 2))
        body.append(
            f'<tr><th scope="row">{escape(name)}</th><td class="drawn">{svg(20, parts)}</td>'
            f'<td class="number">{_median(pairs, column.decimals)}</td>'
            f'<td class="number">{len(pairs)}</td></tr>'
        )
    source = next((group.source.name for group in published.values()), "")
    note = f'<p class="quiet">Thin line: central 90 % in {escape(source)}.</p>' if source else ""
    start, end = (f"{each:.{column.decimals}f}" for each in (min(ends), max(ends)))
    return (
        f'<section class="plot"><h3>{escape(column.heading)}</h3><table class="strips"><thead><tr>'
        '<th scope="col">Stage</th><td></td><th scope="col" class="number">Median</th>'
        f'<th scope="col" class="number">Cases</th></tr></thead><tbody>{"".join(body)}'
        '<tr class="axis" aria-hidden="true"><td></td><td><div class="ends">'
        f"<span>{start}</span><span>{end}</span></div></td><td></td><td></td></tr></tbody></table>"
        f"{note}</section>"
    )


def _has(row: Row, key: str) -> bool:
    return row.get(key) is not None


def _published(key: str) -> dict[str, Group]:
    """The published groups that are single stages, where they can be compared; by stage."""
    return {
        group.group: group
        for group in published_signs().groups
        if group.sign.key == key and group.sign.comparable and group.group in STAGES
    }


def _median(pairs: Sequence[tuple[float, str]], decimals: int) -> str:
    return f"{np.median([value for value, _ in pairs]):.{decimals}f}" if pairs else ""


def _spread(pairs: Sequence[tuple[float, str]], low: float, high: float) -> list[str]:
    """Box, line and the cases beyond it, or all of few cases; pairs: (value, case), sorted."""
    if len(pairs) <= MOST_DOTS:
        return [_dot(*pair, low, high) for pair in pairs]
    values = np.array([value for value, _ in pairs])
    first, median, third = np.percentile(values, (25, 50, 75))
    reach = _WHISKER * (third - first)
    inside = values[(values >= first - reach) & (values <= third + reach)]
    return [
        rect("whisker", inside[0], inside[-1], low, high, 8, 2),
        rect("box", first, third, low, high, 4, 10),
        line("median", median, low, high, 4, 14),
        *(_dot(*pair, low, high) for pair in pairs if not inside[0] <= pair[0] <= inside[-1]),
    ]


def _dot(value: float, case: str, low: float, high: float) -> str:
    return (
        f'<circle class="dot" cx="{at(value, low, high)}" cy="9" r="3">'
        f"<title>{escape(case)}: {value:g}</title></circle>"
    )


# ---------------------------------------------------------------------------- reasons


def _counts(rows: Sequence[Row], done: Sequence[Row]) -> str:
    """Tables of what went wrong and how often."""
    tables = (
        ("Failures", "Reason", [row.get("reason") for row in rows if row["status"] != DONE]),
        ("Stages not supported", "Reason", [row.get("reasons") for row in done]),
        ("Checks of the input", "Not passed", [row.get("checks") for row in done]),
        ("Warnings", "Warning", [row.get("warnings") for row in done]),
    )
    return "".join(_counted(*table) for table in tables)


def _counted(title: str, heading: str, cells: Iterable[str | None]) -> str:
    """Sentences that differ only in their numbers are counted together."""
    counts: Counter[str] = Counter()
    variants: dict[str, set[str]] = {}
    for cell in cells:
        for sentence in _sentences(cell):
            pattern = _NUMBER.sub("\u2026", sentence)
            counts[pattern] += 1
            variants.setdefault(pattern, set()).add(sentence)
    if not counts:
        return f'<section><h3>{title}</h3><p class="quiet">None.</p></section>'
    body = ""
    for pattern, count in counts.most_common():
        only, *others = variants[pattern]
        shown = escape(pattern if others else only)
        body += f'<tr><th scope="row">{shown}</th><td class="number">{count}</td></tr>'
    return (
        f'<section><h3>{title}</h3><table class="counts"><thead><tr><th scope="col">{heading}</th>'
        f'<th scope="col" class="number">Cases</th></tr></thead><tbody>{body}</tbody></table>'
        "</section>"
    )


def _sentences(cell: str | None) -> list[str]:
    return cell.split(SEPARATOR) if cell else []


# ---------------------------------------------------------------------------- cases


_AT_POINT = "yes: at or above the model's operating point"
_SHOWN = (
    *(
        Shown(name, group_stages(name), f"{group_label(name)}; {_AT_POINT}", percent)
        for name in GROUPS
    ),
    Shown("expected", "Expected", "Expected stage, 0 to 4", lambda value: f"{value:.2f}"),
    Shown("spleen_volume_ml", "Spleen, mL", "Volume of the spleen", lambda value: f"{value:.0f}"),
    Shown("liver_volume_ml", "Liver, mL", "Volume of the liver", lambda value: f"{value:.0f}"),
    Shown(
        "nodularity_mm10",
        "Nodularity",
        "Surface nodularity in tenths of a mm",
        lambda value: f"{value:.2f}",
    ),
)


def _heading(column: Shown) -> str:
    return f'<th scope="col" class="number" title="{escape(column.name)}">{column.heading}</th>'


def _case(row: Row, folder: Path) -> str:
    numbers = "".join(
        f'<td class="number" data-value="{row[column.key]:g}">{column.text(row[column.key])}'
        f"{_answer(row.get(f'{column.key}_positive'))}</td>"
        if _has(row, column.key)
        else "<td></td>"
        for column in _SHOWN
    )
    return (
        f'<tr><th scope="row">{_name(row, folder)}</th>{_stage(row)}{numbers}'
        f"<td>{escape(row.get('pattern') or '')}</td><td>{_remarks(row)}</td></tr>"
    )


def _answer(positive: bool | None) -> str:
    """Whether a group's probability reaches the operating point; "" without one."""
    return "" if positive is None else ", yes" if positive else ", no"


def _name(row: Row, folder: Path) -> str:
    """The case's name, with its picture, as a link to its report or else to the picture."""
    case = row["case"]
    name = f"<span>{escape(case)}</span>"
    if row["status"] != DONE:
        return name
    pages = (REPORT_FILES[-1], OVERVIEW)
    page = next((page for page in pages if (folder / case / page).is_file()), None)
    if page is None:
        return name
    place = escape(f"./{quote(case)}/")
    return (
        f'<a href="{place}{page}">{name}<img src="{place}{OVERVIEW}" alt="" width="128" '
        'height="80" loading="lazy" decoding="async"></a>'
    )


def _stage(row: Row) -> str:
    if row["status"] != DONE:
        return f'<td class="failed" data-value="">{NOT_STAGED}</td>'
    stage, note = escape(row["stage"]), ""
    kind = "supported"
    if not row["supported"]:
        kind, note = "unsupported", "<br>not supported"
    return f'<td class="{kind}" data-value="{STAGES.index(row["stage"])}">{stage}{note}</td>'


def _remarks(row: Row) -> str:
    """Why the case failed or has no supported stage; its warnings on request."""
    found = [*_sentences(row.get("reason")), *_sentences(row.get("reasons"))]
    text = "<br>".join(map(escape, found))
    warnings = _sentences(row.get("warnings"))
    if warnings:
        items = "".join(f"<li>{escape(warning)}</li>" for warning in warnings)
        text += (
            f"<details><summary>{_count(len(warnings), 'warning')}</summary><ul>{items}</ul>"
            "</details>"
        )
    return text
