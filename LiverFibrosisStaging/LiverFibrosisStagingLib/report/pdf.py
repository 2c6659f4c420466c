"""report.pdf: the report on A4 pages, drawn with matplotlib, which is optional.

Positions and sizes are in points from the page's upper left corner. The margins leave room for
printing on Letter.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CancelToken, cancellable, check_cancel
from ..settings import shared
from .colors import BANDS
from .content import (
    OUTCOMES,
    STRIPS_NOTE,
    TITLE,
    Bar,
    Region,
    Report,
    Row,
    SignStrip,
    fraction,
    percent,
    source_text,
)
from .pictures import Picture
from .slices import LIVER_COLOR, SPLEEN_COLOR

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTH, _HEIGHT, _MARGIN = 595.0, 842.0, 42.0
_INNER = _WIDTH - 2 * _MARGIN
_GAP = 26.0
_COLUMN = (_INNER - _GAP) / 2
_FOOT = _HEIGHT - 46.0
_BOTTOM = _FOOT - 8.0

_TEXT, _QUIET, _STRONG = "#1d2329", "#59636e", "#a8430c"
_LINE, _TRACK, _BAR, _BAND, _BOX = "#d9dee3", "#eceff2", "#8896a4", "#cfd6dd", "#93a1af"
_OUTCOME = {"pass": "#2b6b3f", "warn": "#8a5300", "refuse": "#b3261e"}
_FONT = "DejaVu Sans"  # comes with matplotlib
_LEADING = 1.3


def write_pdf(
    path: Path, report: Report, pictures: Sequence[Picture], cancel: CancelToken | None = None
) -> None:
    """Write the report; needs matplotlib. Raises OSError if the file cannot be written, and
    Cancelled, at once: matplotlib cannot be interrupted, so what it still draws is dropped.
    """
    path.write_bytes(cancellable(lambda: _pdf(report, pictures, cancel), cancel))


def _pdf(report: Report, pictures: Sequence[Picture], cancel: CancelToken | None) -> bytes:
    from matplotlib.backends.backend_pdf import PdfPages

    content = BytesIO()
    # No date: the same result gives the same file.
    about = {"Title": f"{TITLE}: {report.headline}", "CreationDate": None}
    with _true_type(), PdfPages(content, metadata=about) as pages:
        for figure in pdf_pages(report, pictures, cancel):
            check_cancel(cancel)
            pages.savefig(figure)
    return content.getvalue()


@shared
def _true_type() -> AbstractContextManager[None]:
    """Fonts whose text can be found and copied."""
    from matplotlib import rc_context

    return rc_context({"pdf.fonttype": 42})


def pdf_pages(
    report: Report, pictures: Sequence[Picture], cancel: CancelToken | None = None
) -> list[Figure]:
    """The pages, A4; as many as the content needs. Raises Cancelled."""
    check_cancel(cancel)
    first = _Page(report.notice)
    flow = _Flow([first], _montage(first, report, pictures, _head(first, report)))
    for draw in (_signs, _why, _checks):
        check_cancel(cancel)
        draw(flow, report)
    check_cancel(cancel)
    _facts(flow, "Model", report.model, 96)
    _facts(flow, "What the result rests on", report.basis)
    _sources(flow, report)
    for number, page in enumerate(flow.pages, start=1):
        of = f"{number} / {len(flow.pages)}"
        page.text(of, _WIDTH - _MARGIN, _FOOT, 7, _QUIET, align="right")
    return [page.figure for page in flow.pages]


class _Page:
    """One page with the notice at its bottom."""

    def __init__(self, notice: str) -> None:
        from matplotlib.figure import Figure

        self.notice = notice
        self.figure = Figure(figsize=(_WIDTH / 72, _HEIGHT / 72))
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.axis("off")
        self.axes.set(xlim=(0, _WIDTH), ylim=(_HEIGHT, 0), autoscale_on=False)
        self.text(notice, _MARGIN, _FOOT, 7, _STRONG, bold=True)

    def text(
        self,
        text: str,
        x: float,
        y: float,
        size: float,
        color: str = _TEXT,
        *,
        bold: bool = False,
        align: str = "left",
    ) -> None:
        """One line with its top at y; align: which end of it is at x."""
        self.axes.text(
            x,
            y + size,
            text,
            size=size,
            color=color,
            family=_FONT,
            weight="bold" if bold else "normal",
            ha=align,
            va="baseline",
            parse_math=False,
        )

    def fill(self, x: float, y: float, width: float, height: float, color: Any) -> None:
        """Fill a rectangle."""
        from matplotlib.patches import Rectangle

        self.axes.add_patch(Rectangle((x, y), width, height, facecolor=color, linewidth=0))

    def picture(self, picture: Picture, x: float, y: float, width: float) -> float:
        """Draw a picture; returns its height."""
        rows, columns = picture.rgb.shape[:2]
        height = width * rows / columns
        self.axes.imshow(picture.rgb, extent=(x, x + width, y + height, y), aspect="auto")
        return height


class _Flow:
    """Two columns on each page, filled one after the other; pages are added as needed."""

    def __init__(self, pages: list[_Page], top: float) -> None:
        self.pages = pages
        self.top = self.y = top
        self.column = 0

    @property
    def page(self) -> _Page:
        return self.pages[-1]

    @property
    def x(self) -> float:
        return _MARGIN + self.column * (_COLUMN + _GAP)

    def need(self, height: float) -> None:
        """Go on in the next column if less than this is left in this one."""
        if self.y + height <= _BOTTOM:
            return
        if self.column == 0:
            self.column = 1
        else:
            self.pages.append(_Page(self.page.notice))
            self.column, self.top = 0, _MARGIN
        self.y = self.top

    def text(self, text: str, size: float = 8, color: str = _TEXT, bold: bool = False) -> None:
        """A paragraph."""
        lines = _wrap(text, _COLUMN, size, bold)
        self.need(min(len(lines), 5) * size * _LEADING)  # short ones are not split
        for line in lines:
            self.need(size * _LEADING)
            self.page.text(line, self.x, self.y, size, color, bold=bold)
            self.y += size * _LEADING
        self.y += 3

    def heading(self, text: str, following: float = 40) -> None:
        """A heading, in one column with the `following` points below it."""
        self.y += 9 if self.y > self.top else 0
        self.need(20 + following)
        self.page.text(text, self.x, self.y, 10, bold=True)
        self.page.fill(self.x, self.y + 14, _COLUMN, 0.6, _LINE)
        self.y += 20

    def row(
        self,
        label: str,
        note: str,
        draw: Callable[[_Page, float, float, float], None],
        label_width: float,
        note_width: float,
    ) -> None:
        """A label, a drawing (page, x, y, width) of 10 points' height, and a note."""
        self.page.text(label, self.x, self.y + 1, 7)
        self.page.text(note, self.x + _COLUMN, self.y + 1, 7, align="right")
        draw(self.page, self.x + label_width, self.y, _COLUMN - label_width - note_width)
        self.y += 11


def _wrap(text: str, width: float, size: float, bold: bool = False) -> list[str]:
    """Lines of at most `width` points; words that are longer are broken."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextToPath

    font = FontProperties(family=_FONT, size=size, weight="bold" if bold else "normal")
    measure = TextToPath().get_text_width_height_descent

    def length(line: str) -> float:
        return measure(line, font, ismath=False)[0]

    lines = [text]
    average = max(length(text), 1.0) / max(len(text), 1)
    # Letters differ in width: start with too many per line and reduce until all lines fit.
    for characters in range(math.ceil(1.2 * width / average), 0, -1):
        lines = textwrap.wrap(text, characters)
        if all(length(line) <= width for line in lines):
            break
    return lines


def _paragraph(
    page: _Page, text: str, x: float, y: float, width: float, size: float, color: str = _TEXT
) -> float:
    """Text in lines of `width`; returns the y below it."""
    for line in _wrap(text, width, size):
        page.text(line, x, y, size, color)
        y += size * _LEADING
    return y


def _head(page: _Page, report: Report) -> float:
    """Stage, reasons and probabilities; returns the y below them."""
    x, y = _MARGIN, _MARGIN
    page.text(TITLE, x, y, 9, bold=True)
    page.text(report.notice, _WIDTH - _MARGIN, y, 7.5, _STRONG, bold=True, align="right")
    y += 26
    size, color = (36.0, _STRONG) if report.supported else (20.0, _QUIET)
    page.text(report.headline, x, y, size, color, bold=True)
    left = _paragraph(page, report.statement, x, y + size + 14, _COLUMN, 10) + 3
    for reason in report.reasons:
        page.fill(x, left + 2, 2.5, 8, _OUTCOME["refuse"])
        left = _paragraph(page, reason, x + 8, left, _COLUMN - 8, 8.5) + 3
    left = _paragraph(page, f"Signs: {report.agreement}", x, left + 3, _COLUMN, 8.5)
    left = _paragraph(page, report.trained_on, x, left + 3, _COLUMN, 7.5, _QUIET)
    right = _MARGIN + _COLUMN + _GAP
    for bars in (report.stages, report.groups):
        for bar in bars:
            _bar(page, bar, right, y, report.supported, 22.0 if report.points else 0.0)
            y += 13
        y += 5
    for note in filter(None, (report.networks, report.points)):
        y = _paragraph(page, note, right, y - 1, _COLUMN, 7, _QUIET) + 2
    return max(left, y) + 12


def _bar(page: _Page, bar: Bar, x: float, y: float, supported: bool, answer: float) -> None:
    """A bar with its numbers; answer: width for whether it reaches the operating point."""
    label, number = 92.0, 40.0
    width = _COLUMN - label - number - answer
    color = _STRONG if bar.chosen and supported else _BAR
    page.text(bar.name, x, y, 8, bold=bar.chosen)
    page.fill(x + label, y + 2, width, 7, _TRACK)
    page.fill(x + label, y + 2, width * bar.value, 7, color)
    if bar.range is not None:
        low, high = bar.range
        page.fill(x + label + width * low, y + 5.1, width * (high - low), 0.8, _TEXT)
        for end in bar.range:
            page.fill(x + label + width * end - 0.4, y + 3.5, 0.8, 4, _TEXT)
    if bar.point is not None:
        page.fill(x + label + width * bar.point - 0.6, y + 0.5, 1.2, 10, _TEXT)
        page.text(bar.answer, x + _COLUMN, y, 8, bold=bar.chosen, align="right")
    end = x + label + width + number
    page.text(percent(bar.value), end, y, 8, bold=bar.chosen, align="right")


def _montage(page: _Page, report: Report, pictures: Sequence[Picture], y: float) -> float:
    """The pictures in rows of three, with the legend; returns the y below it."""
    gap = 5.0
    width = (_INNER - 2 * gap) / 3
    for start in range(0, len(pictures), 3):
        heights = []
        for k, picture in enumerate(pictures[start : start + 3]):
            x = _MARGIN + k * (width + gap)
            heights.append(page.picture(picture, x, y, width))
            page.text(picture.caption, x, y + heights[-1] + 1, 7, _QUIET)
        y += max(heights) + 13
    step = 120 / (len(BANDS) - 1)
    for k, band in enumerate(BANDS[1:]):
        page.fill(_MARGIN + k * step, y + 2, step, 6, band.rgb)
    page.text("0 to 100 % of this case's maximum", _MARGIN + 126, y, 7, _QUIET)
    x = _MARGIN + 282.0
    for name, color in (("Liver", LIVER_COLOR), ("Spleen", SPLEEN_COLOR)):
        if any(region.name == name for region in report.regions):
            page.fill(x, y + 3, 14, 3, color)
            page.text(name, x + 18, y, 7, _QUIET)
            x += 58
    return _paragraph(page, report.map_caption, _MARGIN, y + 12, _INNER, 7, _QUIET) + 12


def _signs(flow: _Flow, report: Report) -> None:
    flow.heading("Signs measured on this CT")
    if report.signs:
        flow.text(STRIPS_NOTE, 6.5, _QUIET)
    for strip in report.signs:
        flow.need(45 + 11 * len(strip.rows))
        flow.text(strip.sentence, 8, bold=True)
        for row in strip.rows:
            flow.row(row.label, row.note, partial(_strip, strip, row), 62, 52)
        if strip.rows:
            low, high = strip.sign.text(strip.low), strip.sign.text(strip.high)
            flow.page.text(low, flow.x + 62, flow.y, 6, _QUIET)
            flow.page.text(high, flow.x + _COLUMN - 52, flow.y, 6, _QUIET, align="right")
            flow.y += 9
        flow.text(f"{strip.source.name}. {strip.note}".rstrip(), 6.5, _QUIET)
        flow.y += 2
    flow.text(report.steatosis)
    _pairs(flow, report.measured, 132)
    _pairs(flow, report.missing)


def _strip(strip: SignStrip, row: Row, page: _Page, x: float, y: float, width: float) -> None:
    """A group or interval, and the patient's value."""
    at = [x + width * fraction(value, strip.low, strip.high) for value in row.values]
    page.fill(x, y, width, 10, _TRACK)
    page.fill(at[0], y + 2.5, at[-1] - at[0], 5, _BAND)
    if len(at) > 2:
        page.fill(at[1], y + 2.5, at[3] - at[1], 5, _BOX)
        page.fill(at[2] - 0.4, y + 2.5, 0.8, 5, _TEXT)
    patient = x + width * fraction(strip.value, strip.low, strip.high)
    page.fill(patient - 0.9, y, 1.8, 10, _STRONG)


def _why(flow: _Flow, report: Report) -> None:
    flow.heading("Where the map's weight lies", 40 + 11 * len(report.regions))
    flow.text(report.pattern)
    flow.text("Mean of the map by region (1 is the mean over the body); share", 6.5, _QUIET)
    for region in report.regions:
        note = f"{region.mean:.2f}   {percent(region.share)}"
        flow.row(region.name, note, partial(_region, region, report.regions_high), 78, 62)
    flow.y += 2
    flow.text(report.regions_note, 6.5, _QUIET)


def _region(region: Region, high: float, page: _Page, x: float, y: float, width: float) -> None:
    """A region's usual range, and the patient's mean."""
    page.fill(x, y, width, 10, _TRACK)
    if region.usual is not None:
        low, top = (width * fraction(end, 0, high) for end in (region.usual[0], region.usual[-1]))
        page.fill(x + low, y + 2.5, top - low, 5, _BAND)
    page.fill(x + width * fraction(region.mean, 0, high) - 0.9, y, 1.8, 10, _STRONG)


def _checks(flow: _Flow, report: Report) -> None:
    flow.heading("Checks of the input")
    for name, outcome, sentence in report.checks:
        flow.text(f"{name}: {OUTCOMES[outcome]}. {sentence}", 7.5, _OUTCOME[outcome])
    for warning in report.warnings:
        flow.text(f"Warning: {warning}", 7.5, _OUTCOME["warn"])
    if not report.checks and not report.warnings:
        flow.text("No warnings.")


def _facts(
    flow: _Flow, heading: str, facts: Sequence[tuple[str, str]], label_width: float = 82
) -> None:
    flow.heading(heading)
    _pairs(flow, facts, label_width)


def _sources(flow: _Flow, report: Report) -> None:
    if report.sources:
        flow.heading("Sources")
    for source in report.sources:
        flow.text(f"{source.name}: {source_text(source)} {source.link}", 6, _QUIET)


def _pairs(flow: _Flow, pairs: Sequence[tuple[str, str]], label_width: float = 82) -> None:
    """Labels and texts side by side."""
    for label, text in pairs:
        labels = _wrap(label, label_width - 6, 7)
        texts = _wrap(text, _COLUMN - label_width, 7)
        flow.need(max(len(labels), len(texts)) * 7 * _LEADING)
        for x, lines, color in ((0.0, labels, _QUIET), (label_width, texts, _TEXT)):
            for k, line in enumerate(lines):
                flow.page.text(line, flow.x + x, flow.y + k * 7 * _LEADING, 7, color)
        flow.y += max(len(labels), len(texts)) * 7 * _LEADING + 1.5
    flow.y += 2
