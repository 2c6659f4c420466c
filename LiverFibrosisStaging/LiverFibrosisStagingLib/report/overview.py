"""Overview picture of a result: location map on the CT, probabilities and measurements.

Composed in numpy from `slices` and `drawing`, without a window or OpenGL.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import SimpleITK as sitk

from ..errors import CancelToken, check_cancel
from ..stages import GROUPS, RESEARCH_USE, STAGES, AtPoint
from .colors import BANDS, color_slice
from .drawing import ACCENT, BLACK, MUTED, TRACK, WHITE, Box, Pen, blank
from .slices import LEVELS, LIVER_COLOR, SPLEEN_COLOR, WINDOW_HU, Slices
from .summary import REGION_NAMES, group_label

if TYPE_CHECKING:
    from ..location_map import MapOnCt

WIDTH, HEIGHT = 1600, 1000

_AXIALS = Box(20, 96, 796, 846)
_CORONAL = Box(836, 96, 600, 440)
_BAR = Box(1452, 96, 128, 440)
_PANELS = (Box(836, 582, 340, 170), Box(1216, 582, 364, 170))
_LOWER_PANELS = (Box(836, 770, 340, 172), Box(1216, 770, 364, 172))
_TITLE_WIDTH = 1220  # left of the picture's own title
_FOOTER = Box(20, 954, 1560, 40)


def render_overview(
    *,
    ct: sitk.Image,
    location_map: MapOnCt,
    liver: sitk.Image,
    spleen: sitk.Image | None = None,
    probabilities: Sequence[float],
    stage: str,
    explained: str,
    scores: Mapping[str, float],
    at_points: Mapping[str, AtPoint | None] | None = None,
    measurements: Mapping[str, Mapping[str, float]],
    reasons: Sequence[str] = (),
    pattern: str = "",
    agreement: str = "",
    warnings: Sequence[str] = (),
    model_name: str = "",
    model_training: str = "",
    ensemble: Mapping[str, Any] | None = None,
    cancel: CancelToken | None = None,
) -> np.ndarray:
    """Picture of one staged CT, uint8 RGB [1000, 1600, 3].

    ct: HU, any orientation; location_map: in its voxels; liver and spleen (non-zero inside) on its
    grid. probabilities: F0..F4; stage: the predicted one; explained: the stage or group whose score
    the map explains; scores: probability per group of `stages.GROUPS`; at_points: the same at the
    model's operating points (`stages.at_points`); measurements: region ->
    {"mean": relative weight, "share": 0..1}; reasons: why the stage is not supported, which is then
    greyed; pattern: of the map; agreement: a sentence on signs and stage; ensemble: agreement of
    its members (`ensemble.spread`), drawn as the range of their probabilities. Raises Cancelled.
    """
    pen = blank(WIDTH, HEIGHT)
    slices = Slices.of(ct, location_map, liver, spleen)

    supported = not reasons
    _draw_title(pen, stage, float(probabilities[STAGES.index(stage)]), explained, reasons)
    _draw_slices(pen, slices, cancel)
    _draw_color_bar(pen)
    ranges = {} if ensemble is None else ensemble["range"]
    points = at_points or {}
    _draw_bars(
        pen,
        _PANELS[0],
        "Probability of each stage",
        [
            _Row(name, float(value), supported and name == stage, ranges.get(name))
            for name, value in zip(STAGES, probabilities)
        ],
    )
    _draw_bars(
        pen,
        _PANELS[1],
        "Probability of each group",
        [
            _group_row(name, float(scores[name]), supported, ranges.get(name), points.get(name))
            for name in GROUPS
        ],
    )
    _draw_group_notes(pen, _PANELS[1], ensemble, stage, any(points.values()))
    _draw_measurements(pen, _LOWER_PANELS[0], measurements, pattern)
    further = [warning for warning in warnings if warning not in reasons]
    _draw_notes(pen, _LOWER_PANELS[1], agreement, further)
    _draw_footer(pen, model_name, model_training)
    return pen.picture()


def _draw_title(
    pen: Pen, stage: str, probability: float, explained: str, reasons: Sequence[str]
) -> None:
    """The stage in large letters; if it is not supported, the reasons, and the stage in grey."""
    what = group_label(explained) if explained in GROUPS else explained
    colors = f"Colours show how much each region contributed to the score for {what}"
    map_title = "Grad-CAM location map"
    if reasons:
        x = 20 + pen.text("Stage not supported", 20, 10, 28, WHITE, bold=True) + 20
        pen.text(f"{stage}, probability {_percent(probability)}", x, 14, 22, MUTED)
        first, *more = pen.wrap(" ".join(reasons), _TITLE_WIDTH, 18)
        pen.text(first, 20, 44, 18, ACCENT)
        if more:
            pen.text(_fitted(pen, " ".join(more), _TITLE_WIDTH, 18), 20, 66, 18, ACCENT)
            map_title = f"Grad-CAM for {what}"
        else:
            pen.text(colors, 20, 68, 17, MUTED)
    else:
        x = 20 + pen.text(stage, 20, 18, 66, ACCENT, bold=True) + 24
        title = f"Predicted fibrosis stage {stage}, probability {_percent(probability)}"
        pen.text(title, x, 20, 30)
        pen.text(colors, x, 56, 20, MUTED)
    pen.text("Liver fibrosis staging on CT", 1580, 24, 22, WHITE, align=1)
    pen.text(map_title, 1580, 56, 20, MUTED, align=1)


def _draw_slices(pen: Pen, slices: Slices, cancel: CancelToken | None) -> None:
    """Axial montage, cranial slices first, and the coronal slice with the axial levels marked."""
    gap, columns = 6, 2
    rows = -(-LEVELS // columns)
    width = (_AXIALS.width - gap * (columns - 1)) // columns
    height = (_AXIALS.height - gap * (rows - 1)) // rows
    extent = slices.high - slices.low
    mm = max(extent[0] / width, extent[1] / height)
    for number, z in enumerate(slices.levels):
        check_cancel(cancel)
        cell = Box(
            _AXIALS.x + number % columns * (width + gap),
            _AXIALS.y + number // columns * (height + gap),
            width,
            height,
        )
        _draw_view(pen, cell, slices.axial(z, mm))
        level = f"{number + 1}   S {_signed(z)} mm"
        pen.text(level, cell.x + 8, cell.y + 6, 16, outline=True)

    # Of a scan longer than the panel, the part around the liver is shown.
    mm = max(
        extent[0] / _CORONAL.width,
        min(extent[2], 1.6 * (slices.liver_z[1] - slices.liver_z[0])) / _CORONAL.height,
    )
    length = min(extent[2], _CORONAL.height * mm)
    bottom = sum(slices.liver_z) / 2 - length / 2
    bottom = min(max(bottom, slices.low[2]), slices.high[2] - length)
    picture = slices.coronal_slice(bottom, bottom + length, mm)
    top = _draw_view(pen, _CORONAL, picture)
    x = _CORONAL.x + _CORONAL.width - 40  # beside the orientation label
    free = top  # numbers that would overlap are left out
    for number, z in enumerate(slices.levels):
        y = top + round((bottom + length - z) / mm)
        pen.fill(Box(x, y, 12, 1), WHITE)
        if y >= free:
            pen.text(str(number + 1), x - 4, y - 8, 13, align=1, outline=True)
            free = y + 14
    level = f"Coronal   A {_signed(-slices.coronal)} mm"
    pen.text(level, _CORONAL.x + 8, _CORONAL.y + 6, 16, outline=True)

    x, y = _CORONAL.x, _CORONAL.y + _CORONAL.height + 8
    for name, color, mask in (
        ("Liver", LIVER_COLOR, slices.liver),
        ("Spleen", SPLEEN_COLOR, slices.spleen),
    ):
        if mask is not None:
            pen.fill(Box(x, y + 7, 22, 2), color)
            x += 30 + pen.text(name, x + 30, y, 15, MUTED) + 24
    low, high = WINDOW_HU
    pen.text(f"Window {low:.0f} to {high:.0f} HU", x, y, 15, MUTED)


def _draw_view(pen: Pen, cell: Box, picture: np.ndarray) -> int:
    """Centre a slice in its black cell, with orientation labels; returns its first row."""
    picture = picture[: cell.height, : cell.width]  # rounding may add a pixel
    rows, columns = picture.shape[:2]
    left, top = cell.x + (cell.width - columns) // 2, cell.y + (cell.height - rows) // 2
    pen.fill(cell, BLACK)
    pen.paste(picture, left, top)
    y = cell.y + cell.height // 2 - 9
    pen.text("R", cell.x + 6, y, 18, bold=True, outline=True)
    pen.text("L", cell.x + cell.width - 6, y, 18, bold=True, align=1, outline=True)
    return top


def _draw_color_bar(pen: Pen) -> None:
    """The bands on dark to bright tissue, the highest on top."""
    width, caption = 40, 64
    height = (_BAR.height - caption) // (len(BANDS) - 1)
    grey = np.tile(np.linspace(0.15, 0.75, width), (height - 2, 1))
    y = _BAR.y
    for label in range(len(BANDS) - 1, 0, -1):
        pen.paste(color_slice(np.full(grey.shape, label), grey), _BAR.x, y)
        pen.text(BANDS[label].name, _BAR.x + width + 10, y + height // 2 - 10, 16)
        y += height
    for line, text in enumerate(pen.wrap("Percent of this case's maximum", _BAR.width, 15)):
        pen.text(text, _BAR.x, y + 8 + 19 * line, 15, MUTED)


def _draw_heading(pen: Pen, box: Box, text: str) -> None:
    pen.text(text, box.x, box.y, 17, MUTED)
    pen.fill(Box(box.x, box.y + 24, box.width, 1), TRACK)


class _Row(NamedTuple):
    """One bar: name, value 0..1, whether it is highlighted, and a range and a point to draw on it;
    answer: in words, at that point.
    """

    name: str
    value: float
    marked: bool
    range: Sequence[float] | None = None
    point: float | None = None
    answer: str = ""


def _group_row(
    name: str,
    value: float,
    supported: bool,
    spread: Sequence[float] | None,
    found: AtPoint | None,
) -> _Row:
    """Highlighted if positive or, without an operating point, if the predicted stage is in it."""
    label = group_label(name)
    if found is None:
        return _Row(label, value, supported and value > 0.5, spread)
    answer = "yes" if found.positive else "no"
    return _Row(label, value, supported and found.positive, spread, found.point, answer)


def _draw_bars(pen: Pen, box: Box, heading: str, rows: list[_Row]) -> None:
    """Horizontal bars 0..1 with their values; highlighted ones in the accent colour."""
    _draw_heading(pen, box, heading)
    label = max(pen.width(row.name, 16, bold=True) for row in rows) + 12
    number = 72
    answers = 36 if any(row.answer for row in rows) else 0
    track = box.width - label - number - answers
    for line, (name, value, marked, range_, point, answer) in enumerate(rows):
        y = box.y + 36 + 26 * line
        color = WHITE if marked else MUTED
        pen.text(name, box.x, y, 16, color, bold=marked)
        pen.fill(Box(box.x + label, y + 1, track, 16), TRACK)
        bar = Box(box.x + label, y + 1, round(track * min(max(value, 0.0), 1.0)), 16)
        pen.fill(bar, ACCENT if marked else MUTED)
        if range_ is not None:
            low, high = (bar.x + round(track * min(max(end, 0.0), 1.0)) for end in range_)
            for whisker in (Box(low, y + 8, high - low, 2), Box(low, y + 4, 2, 10)):
                pen.fill(whisker, WHITE)
            pen.fill(Box(high - 2, y + 4, 2, 10), WHITE)
        if point is not None:
            pen.fill(Box(bar.x + round(track * point) - 1, y - 2, 3, 22), WHITE)
        end = box.x + box.width
        pen.text(_percent(value), end - answers, y, 16, color, bold=marked, align=1)
        pen.text(answer, end, y, 16, color, bold=marked, align=1)


def _draw_group_notes(
    pen: Pen, box: Box, ensemble: Mapping[str, Any] | None, stage: str, has_points: bool
) -> None:
    """Below the groups' bars: what the lines on them are, and how many networks agree."""
    notes = []
    if has_points:
        notes.append("Upright line: operating point; yes: at or above it")
    if ensemble is not None:
        members = ensemble["members"]
        notes.append(
            f"{ensemble['agreeing']} of {members} networks predict {stage}; lines: their range"
        )
    for line, note in enumerate(notes):
        pen.text(note, box.x, box.y + 36 + 26 * len(GROUPS) + 6 + 18 * line, 13, MUTED)


def _draw_measurements(
    pen: Pen, box: Box, measurements: Mapping[str, Mapping[str, float]], pattern: str
) -> None:
    """Mean relative weight and share of the total weight, by region, and the map's pattern."""
    _draw_heading(pen, box, "Attention by region")
    mean_x, share_x = box.x + 250, box.x + box.width
    pen.text("mean", mean_x, box.y, 15, MUTED, align=1)
    pen.text("share", share_x, box.y, 15, MUTED, align=1)
    y = box.y + 34
    for region, name in REGION_NAMES.items():
        if region not in measurements:
            continue
        values = measurements[region]
        part = name.removeprefix("Liver ")  # parts of the liver are indented below it
        indent, color = (0, WHITE) if part == name else (16, MUTED)
        pen.text(part, box.x + indent, y, 16, color)
        mean = f"{values['mean']:.2f}" if math.isfinite(values["mean"]) else "-"
        pen.text(mean, mean_x, y, 16, align=1)
        pen.text(_percent(values["share"]), share_x, y, 16, align=1)
        y += 23
    about = "mean: 1 = average over the body"
    pen.text(f"Pattern: {pattern}; {about}" if pattern else about, box.x, y + 2, 13, MUTED)


def _draw_notes(pen: Pen, box: Box, agreement: str, warnings: Sequence[str]) -> None:
    """Signs beside the stage, and as many warnings as fit, then the number of others."""
    size, leading = 15, 19
    _draw_heading(pen, box, "Signs and warnings" if agreement else "Warnings")
    y = box.y + 34
    if agreement:
        for line in pen.wrap(agreement, box.width, size):
            pen.text(line, box.x, y, size, MUTED)
            y += leading
        y += 4
    elif not warnings:
        pen.text("None", box.x, y, size, MUTED)
    for shown, warning in enumerate(warnings):
        left = len(warnings) - shown
        lines = pen.wrap(warning, box.width - 16, size)
        free = (box.y + box.height - y) // leading - (left > 1)
        if len(lines) > free:
            if shown:
                pen.text(f"+ {left} more", box.x, y, size, MUTED)
                break
            lines = [*lines[: free - 1], lines[free - 1][:-3].rstrip() + "..."]
        pen.fill(Box(box.x, y + 3, 4, leading * len(lines) - 6), ACCENT)
        for line in lines:
            pen.text(line, box.x + 16, y, size)
            y += leading
        y += 4


def _draw_footer(pen: Pen, model_name: str, model_training: str) -> None:
    pen.fill(Box(_FOOTER.x, _FOOTER.y, _FOOTER.width, 1), TRACK)
    used = pen.text(RESEARCH_USE, _FOOTER.x, _FOOTER.y + 13, 18, ACCENT, bold=True)
    model = f"Model {model_name}".strip()
    if model_training:
        model = f"{model}, trained on: {model_training}"
    lines = pen.wrap(model, _FOOTER.width - used - 40, 14)
    if len(lines) > 2:
        lines = [lines[0], lines[1][:-3].rstrip() + "..."]
    y = _FOOTER.y + (14 if len(lines) == 1 else 6)
    for line in lines:
        pen.text(line, _FOOTER.x + _FOOTER.width, y, 14, MUTED, align=1)
        y += 18


def _fitted(pen: Pen, text: str, width: int, size: int) -> str:
    """The part of a text that fits into a line, with an ellipsis if anything is left out."""
    first, *more = pen.wrap(text, width, size)
    return first[:-3].rstrip() + "..." if more else first


def _signed(millimetres: float) -> str:
    """Position as in Slicer (RAS), without a minus sign before zero."""
    return f"{round(millimetres, 1) + 0.0:.1f}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %" if math.isfinite(value) else "-"
