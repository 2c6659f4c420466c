"""The figure of a faithfulness check: curves on the left, shuffled weights on the right.

Composed in numpy with the overview's letters; pixels are [row, column, RGB].
"""

import numpy as np

from ..faithfulness import Faithfulness
from ..stages import RESEARCH_USE
from .overview import _BACKGROUND, _MUTED, _TRACK, _WHITE, Color, _Box, _Pen

WIDTH, HEIGHT = 1200, 590
_PLOT = _Box(90, 110, 560, 340)
_BARS = _Box(740, 110, 420, 340)
_DELETION: Color = (0.99, 0.61, 0.10)
_INSERTION: Color = (0.10, 0.62, 1.0)


def render(found: Faithfulness) -> np.ndarray:
    """The figure as uint8 RGB [HEIGHT, WIDTH, 3]."""
    canvas = np.empty((HEIGHT, WIDTH, 3), np.float32)
    canvas[:] = _BACKGROUND
    pen = _Pen(canvas)
    pen.text(f"Does the map of {found.explained} tell the truth?", 30, 24, 26, bold=True)
    _draw_curves(pen, found)
    _draw_shuffled(pen, found)
    pen.text(RESEARCH_USE, 30, HEIGHT - 32, 15, _MUTED)
    return (canvas.clip(0, 1) * 255 + 0.5).astype(np.uint8)


def _draw_curves(pen: _Pen, found: Faithfulness) -> None:
    box = _PLOT
    pen.text("Score while the picture is deleted, or inserted", box.x, box.y - 32, 17, bold=True)
    every = [*found.curves.deletion, *found.curves.insertion]
    every += [*found.by_chance.deletion, *found.by_chance.insertion]
    low, high = min(0.0, *every), max(1.0, *every)
    for level in (0.0, 0.5, 1.0):
        y = _row(box, level, low, high)
        pen.fill(_Box(box.x, y, box.width, 1), _TRACK)
        pen.text(f"{level:.1f}", box.x - 12, y - 8, 14, _MUTED, align=1.0)
    for fraction in (0, 50, 100):
        x = box.x + round(fraction / 100 * box.width)
        pen.text(f"{fraction} %", x, box.y + box.height + 8, 14, _MUTED, align=0.5)
    for curves, thick in ((found.by_chance, 1), (found.curves, 3)):
        for scores, color in ((curves.deletion, _DELETION), (curves.insertion, _INSERTION)):
            _draw_line(pen, box, curves.fractions, scores, (low, high), color, thick)
    y = box.y + box.height + 36
    ours, chance = found.curves, found.by_chance
    for name, color, area, other in (
        ("Deletion", _DELETION, ours.deletion_area, chance.deletion_area),
        ("Insertion", _INSERTION, ours.insertion_area, chance.insertion_area),
    ):
        text = f"{name}: area {area:.2f}, by chance (thin line) {other:.2f}"
        pen.fill(_Box(box.x, y + 4, 22, 8), color)
        pen.text(text, box.x + 32, y, 15)
        y += 24


def _row(box: _Box, value: float, low: float, high: float) -> int:
    return box.y + round((high - value) / (high - low) * (box.height - 1))


def _draw_line(
    pen: _Pen,
    box: _Box,
    fractions: tuple[float, ...],
    values: tuple[float, ...],
    limits: tuple[float, float],
    color: Color,
    thick: int,
) -> None:
    """A curve, column by column, each as high as the curve rises there."""
    across = np.linspace(0, 1, box.width)
    rows = [_row(box, v, *limits) for v in np.interp(across, fractions, values)]
    for column, (row, following) in enumerate(zip(rows, [*rows[1:], rows[-1]])):
        top, height = min(row, following), abs(following - row) + thick
        pen.fill(_Box(box.x + column, top - thick // 2, 1, height), color)


def _draw_shuffled(pen: _Pen, found: Faithfulness) -> None:
    box = _BARS
    pen.text("Likeness to the map after shuffling weights", box.x, box.y - 32, 17, bold=True)
    rows = max(len(found.shuffled), 1)
    step = min(48, box.height // rows)
    middle = box.x + box.width // 2
    for number, (name, rho) in enumerate(found.shuffled):
        y = box.y + number * step
        pen.text(f"from the scores to {name}", box.x, y, 14, _MUTED)
        pen.fill(_Box(box.x, y + 22, box.width, 10), _TRACK)
        pen.fill(_Box(middle, y + 19, 1, 16), _WHITE)
        if rho is None:
            pen.text("constant", middle, y + 18, 14, align=0.5)
            continue
        length = round(abs(rho) * box.width / 2)
        pen.fill(_Box(middle if rho >= 0 else middle - length, y + 22, length, 10), _INSERTION)
        pen.text(f"{rho:.2f}", box.x + box.width, y, 14, align=1.0)
    y = box.y + box.height + 36
    for line in (
        "Rank correlation, -1 to 1.",
        "Near 0 is right: the map depends on the weights.",
    ):
        pen.text(line, box.x, y, 15, _MUTED)
        y += 24
