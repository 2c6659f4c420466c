"""The figure of a faithfulness check: curves on the left, weight randomisation on the right."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..stages import RESEARCH_USE
from .drawing import MUTED, TRACK, WHITE, Box, Color, Pen, blank

WIDTH, HEIGHT = 1200, 590
_PLOT = Box(90, 110, 560, 340)
_BARS = Box(740, 110, 420, 340)
_DELETION: Color = (0.99, 0.61, 0.10)
_INSERTION: Color = (0.10, 0.62, 1.0)


def render(found: Mapping[str, Any]) -> np.ndarray:
    """The figure, uint8 RGB [590, 1200, 3], of a check as written to faithfulness.json."""
    pen = blank(WIDTH, HEIGHT)
    pen.text(f"Faithfulness of the location map for {found['explained']}", 30, 24, 26, bold=True)
    _draw_curves(pen, found)
    _draw_shuffled(pen, found)
    pen.text(RESEARCH_USE, 30, HEIGHT - 32, 15, MUTED)
    return pen.picture()


def _draw_curves(pen: Pen, found: Mapping[str, Any]) -> None:
    box = _PLOT
    pen.text("Score by share of voxels masked or restored", box.x, box.y - 32, 17, bold=True)
    curves, by_chance, areas = found["curves"], found["by_chance"], found["areas"]
    every = [*curves["deletion"], *curves["insertion"]]
    every += [*by_chance["deletion"], *by_chance["insertion"]]
    low, high = min(0.0, *every), max(1.0, *every)
    for level in (0.0, 0.5, 1.0):
        y = _row(box, level, low, high)
        pen.fill(Box(box.x, y, box.width, 1), TRACK)
        pen.text(f"{level:.1f}", box.x - 12, y - 8, 14, MUTED, align=1.0)
    for fraction in (0, 50, 100):
        x = box.x + round(fraction / 100 * box.width)
        pen.text(f"{fraction} %", x, box.y + box.height + 8, 14, MUTED, align=0.5)
    for drawn, thick in ((by_chance, 1), (curves, 3)):
        for scores, color in ((drawn["deletion"], _DELETION), (drawn["insertion"], _INSERTION)):
            _draw_line(pen, box, drawn["fractions"], scores, (low, high), color, thick)
    y = box.y + box.height + 36
    for key, color in (("deletion", _DELETION), ("insertion", _INSERTION)):
        area, other = areas["map"][key], areas["by_chance"][key]
        name = key.capitalize()
        text = f"{name}: area {area:.2f}, random order (thin line) {other:.2f}"
        pen.fill(Box(box.x, y + 4, 22, 8), color)
        pen.text(text, box.x + 32, y, 15)
        y += 24


def _row(box: Box, value: float, low: float, high: float) -> int:
    return box.y + round((high - value) / (high - low) * (box.height - 1))


def _draw_line(
    pen: Pen,
    box: Box,
    fractions: tuple[float, ...],
    values: tuple[float, ...],
    limits: tuple[float, float],
    color: Color,
    thick: int,
) -> None:
    """Draw a curve column by column, each as high as the curve's step there."""
    across = np.linspace(0, 1, box.width)
    rows = [_row(box, v, *limits) for v in np.interp(across, fractions, values)]
    for column, (row, following) in enumerate(zip(rows, [*rows[1:], rows[-1]])):
        top, height = min(row, following), abs(following - row) + thick
        pen.fill(Box(box.x + column, top - thick // 2, 1, height), color)


def _draw_shuffled(pen: Pen, found: Mapping[str, Any]) -> None:
    box = _BARS
    pen.text("Map similarity after shuffling weights", box.x, box.y - 32, 17, bold=True)
    rows = max(len(found["shuffled"]), 1)
    step = min(48, box.height // rows)
    middle = box.x + box.width // 2
    for number, (name, rho) in enumerate(found["shuffled"]):
        y = box.y + number * step
        pen.text(f"from the scores to {name}", box.x, y, 14, MUTED)
        pen.fill(Box(box.x, y + 22, box.width, 10), TRACK)
        pen.fill(Box(middle, y + 19, 1, 16), WHITE)
        if rho is None:
            pen.text("constant", middle, y + 18, 14, align=0.5)
            continue
        length = round(abs(rho) * box.width / 2)
        pen.fill(Box(middle if rho >= 0 else middle - length, y + 22, length, 10), _INSERTION)
        pen.text(f"{rho:.2f}", box.x + box.width, y, 14, align=1.0)
    y = box.y + box.height + 36
    for line in (
        "Spearman's rank correlation, -1 to 1.",
        "Near 0 is desirable: the map depends on the weights.",
    ):
        pen.text(line, box.x, y, 15, MUTED)
        y += 24
