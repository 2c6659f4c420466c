"""report.html: one file with everything in it, which opens in any browser without a network.

Laid out in Resources/ReportTemplate (report.html, report.css, report.js). A Content-Security-Policy
forbids everything but the page's own style, script and pictures.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from html import escape
from string import Template
from typing import Any

from ..resources import report_template
from ..signs.published import Source
from .colors import BANDS, css
from .content import (
    OUTCOMES,
    STRIPS_NOTE,
    TITLE,
    Bar,
    Region,
    Report,
    SignStrip,
    percent,
    source_text,
)
from .drawing import encode_png
from .markup import at, content_hash, line, rect, svg
from .pictures import Picture
from .slices import LIVER_COLOR, SPLEEN_COLOR
from .viewer import ViewerSlices


def report_page(report: Report, pictures: Sequence[Picture], viewer: ViewerSlices) -> str:
    """The page; StagingError if a part of the shipped template is missing."""
    style, script = report_template("report.css"), report_template("report.js")
    text = {name: escape(value) for name, value in vars(report).items() if isinstance(value, str)}
    return Template(report_template("report.html")).substitute(
        {
            **text,
            "title": TITLE,
            "state": "supported" if report.supported else "unsupported",
            "style": style,
            "style_hash": content_hash(style),
            "script": script,
            "script_hash": content_hash(script),
            "slices": _json(viewer.data()),
            "reasons": _list(report.reasons, "reasons"),
            "stages": _bars("Probability of each stage", report.stages),
            "groups": _bars(
                "Probability of each group, and whether it reaches the operating point"
                if report.points
                else "Probability of each group",
                report.groups,
            ),
            "networks": _quiet(report.networks),
            "points": _quiet(report.points),
            "legend": _legend(has_spleen=any(r.name == "Spleen" for r in report.regions)),
            "pictures": "".join(map(_picture, pictures)),
            "signs": "".join(map(_sign, report.signs)),
            "strips_note": f'<p class="quiet">{escape(STRIPS_NOTE)}</p>' if report.signs else "",
            "sources": _sources(report.sources),
            "measured": _facts(report.measured, "All measurements"),
            "missing": _facts(report.missing, "Not measurable"),
            "regions": _regions(report.regions, report.regions_high),
            "checks": _checks(report.checks),
            "warnings": _warnings(report),
            "model": _facts(report.model),
            "basis": _facts(report.basis),
        }
    )


def _json(data: Any) -> str:
    """JSON in which no text can end the script element that contains it."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _bars(caption: str, bars: Sequence[Bar]) -> str:
    rows = []
    for bar in bars:
        parts = [rect("track", 0, 1, 0, 1, 4, 12), rect("bar", 0, bar.value, 0, 1, 4, 12)]
        spread = ""
        if bar.range is not None:
            low, high = bar.range
            x1, x2 = at(low, 0, 1), at(high, 0, 1)
            parts.append(f'<line class="range" x1="{x1}" x2="{x2}" y1="10" y2="10"/>')
            parts += [line("range", end, 0, 1, 6, 14) for end in bar.range]
            spread = f' title="{percent(low)} to {percent(high)} by network"'
        answer = ""
        if bar.point is not None:
            parts.append(line("point", bar.point, 0, 1, 1, 19))
            answer = f'<td class="answer">{escape(bar.answer)}</td>'
        rows.append(
            f'<tr class="{"chosen" if bar.chosen else ""}"><th scope="row">{escape(bar.name)}</th>'
            f'<td class="drawn"{spread}>{svg(20, parts)}</td>'
            f'<td class="number">{percent(bar.value)}</td>{answer}</tr>'
        )
    return f"<table><caption>{escape(caption)}</caption>{''.join(rows)}</table>"


def _quiet(text: str) -> str:
    return f'<p class="quiet">{escape(text)}</p>' if text else ""


def _sign(strip: SignStrip) -> str:
    low, high, text, source = strip.low, strip.high, strip.sign.text, strip.source
    rows = []
    for row in strip.rows:
        parts = [
            rect("track", low, high, low, high, 0, 20),
            rect("band", row.values[0], row.values[-1], low, high, 5, 10),
        ]
        if len(row.values) > 2:
            parts.append(rect("box", row.values[1], row.values[3], low, high, 5, 10))
            parts.append(line("median", row.values[2], low, high, 5, 15))
        parts.append(line("patient", strip.value, low, high, 0, 20))
        rows.append(
            f'<tr><th scope="row">{escape(row.label)}</th>'
            f'<td class="drawn">{svg(20, parts)}</td>'
            f'<td class="number">{escape(row.note)}</td></tr>'
        )
    table = (
        '<table class="strips"><thead><tr><th scope="col">Group</th><td></td>'
        f'<th scope="col" class="number">'
        f"{'Interval' if strip.is_interval else 'Below this patient'}</th></tr></thead>"
        f"<tbody>{''.join(rows)}"
        '<tr class="axis" aria-hidden="true"><td></td><td><div class="ends">'
        f"<span>{escape(text(low))}</span><span>{escape(text(high))}</span></div></td>"
        "<td></td></tr></tbody></table>"
    )
    return (
        f"<h3>{escape(strip.sentence)}</h3>{table if rows else ''}"
        f'<p class="quiet">{_link(source.link, source.name)}. {escape(strip.note)}</p>'
    )


def _link(address: str, text: str) -> str:
    return f'<a href="{escape(address)}" rel="noopener noreferrer">{escape(text)}</a>'


def _sources(sources: Sequence[Source]) -> str:
    if not sources:
        return ""
    items = "".join(
        f"<li>{escape(f'{s.name}: {source_text(s)}')} {_link(s.link, s.link)}</li>" for s in sources
    )
    return f'<h3>Sources</h3><ul class="sources">{items}</ul>'


def _regions(regions: Sequence[Region], high: float) -> str:
    rows = []
    for region in regions:
        parts = [rect("track", 0, high, 0, high, 0, 20)]
        note = "no reference"
        if region.usual is not None:
            usual = region.usual
            parts.append(rect("band", usual[0], usual[-1], 0, high, 5, 10))
            note = f"{usual[0]:.2f} to {usual[-1]:.2f}"
        parts.append(line("patient", region.mean, 0, high, 0, 20))
        rows.append(
            f'<tr><th scope="row">{escape(region.name)}</th>'
            f'<td class="drawn">{svg(20, parts)}</td>'
            f'<td class="number">{region.mean:.2f}</td><td class="number">{note}</td>'
            f'<td class="number">{percent(region.share)}</td></tr>'
        )
    return (
        '<table class="strips regions"><caption>Mean of the map by region (1 is the mean over the '
        'body) and share of its weight</caption><thead><tr><th scope="col">Region</th>'
        '<td></td><th scope="col" class="number">Mean</th>'
        '<th scope="col" class="number">Reference</th>'
        f'<th scope="col" class="number">Share</th></tr></thead><tbody>{"".join(rows)}</tbody>'
        "</table>"
    )


def _checks(checks: Sequence[tuple[str, str, str]]) -> str:
    if not checks:
        return ""
    items = "".join(
        f'<li class="{outcome}"><span class="outcome">{escape(name)}: {OUTCOMES[outcome]}.</span> '
        f"{escape(sentence)}</li>"
        for name, outcome, sentence in checks
    )
    return f'<ul class="checks">{items}</ul>'


def _warnings(report: Report) -> str:
    if report.warnings:
        return f"<h3>Warnings</h3>{_list(report.warnings, 'warnings')}"
    return "" if report.checks else "<p>No warnings.</p>"


def _list(sentences: Sequence[str], name: str) -> str:
    if not sentences:
        return ""
    return f'<ul class="{name}">{"".join(f"<li>{escape(s)}</li>" for s in sentences)}</ul>'


def _facts(facts: Sequence[tuple[str, str]], title: str = "") -> str:
    if not facts:
        return ""
    heading = f"<h3>{escape(title)}</h3>" if title else ""
    pairs = "".join(f"<dt>{escape(label)}</dt><dd>{escape(text)}</dd>" for label, text in facts)
    return f"{heading}<dl>{pairs}</dl>"


def _picture(picture: Picture) -> str:
    encoded = base64.b64encode(encode_png(picture.rgb)).decode("ascii")
    caption = escape(picture.caption)
    return (
        f'<figure><img src="data:image/png;base64,{encoded}" alt="Axial CT slice at {caption} with '
        f'location map and contours of the organs"><figcaption>{caption}</figcaption></figure>'
    )


def _legend(has_spleen: bool) -> str:
    width = 100 / (len(BANDS) - 1)
    swatches = "".join(
        f'<rect x="{width * k:g}%" width="{width:g}%" height="10" fill="{css(band.rgb)}"/>'
        for k, band in enumerate(BANDS[1:])
    )
    organs = [("Liver", LIVER_COLOR), *([("Spleen", SPLEEN_COLOR)] if has_spleen else [])]
    keys = "".join(
        f'<span><svg height="10" aria-hidden="true"><rect width="100%" y="2" height="6" '
        f'fill="{css(color)}"/></svg>{name}</span>'
        for name, color in organs
    )
    return (
        f'<div class="legend">{svg(10, [swatches])}<div class="scale"><span>0 %</span>'
        "<span>of this case's maximum</span><span>100 %</span></div>"
        f'<div class="keys">{keys}</div></div>'
    )
