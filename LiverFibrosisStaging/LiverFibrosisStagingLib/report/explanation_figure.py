"""The figure of an explanation check: a slice of each changed CT beside its expected stage."""

from collections.abc import Sequence

import numpy as np

from ..stages import RESEARCH_USE, STAGES
from .drawing import ACCENT, MUTED, TRACK, WHITE, Box, blank

WIDTH, TOP, BOTTOM, GAP, MARGIN = 1000, 96, 86, 10, 30
_BAR_HEIGHT = 18
_BARS_LEFT, _BARS_WIDTH = 300, 580


def render(
    title: str,
    rows: Sequence[tuple[str, float | None, str]],
    pictures: Sequence[np.ndarray | None],
    verdict: str,
) -> np.ndarray:
    """The figure, uint8 RGB [height, 1000, 3].

    rows: name, expected stage (0 to 4) or None, and a note; the first is the CT as it is, whose
    expected stage is marked in every row. pictures: a slice for each row, 0..1, all of one shape;
    None where a CT could not be changed.
    """
    height = max(pictures[0].shape[0], 90)
    pen = blank(WIDTH, TOP + len(rows) * (height + GAP) + BOTTOM)
    pen.text(title, MARGIN, 22, 24, bold=True)
    for stage, name in enumerate(STAGES):
        pen.text(name, _column(stage), TOP - 26, 15, MUTED, align=0.5)
    original = rows[0][1]
    for number, ((name, expected, note), picture) in enumerate(zip(rows, pictures)):
        y = TOP + number * (height + GAP)
        if picture is not None:
            pen.paste(np.repeat(picture[..., None], 3, axis=2), MARGIN, y)
        middle = y + height // 2
        pen.text(f"{name[0].upper()}{name[1:]}", _BARS_LEFT, middle - 32, 17, bold=True)
        bar = Box(_BARS_LEFT, middle, _BARS_WIDTH, _BAR_HEIGHT)
        pen.fill(bar, TRACK)
        if expected is None:
            pen.text(f"{note[0].upper()}{note[1:]}", _BARS_LEFT, middle + 28, 15, MUTED)
        else:
            pen.fill(bar._replace(width=max(_column(expected) - _BARS_LEFT, 2)), ACCENT)
            moved = f" ({expected - original:+.2f})" if number else ""
            text = f"{expected:.2f}{moved}"
            pen.text(text, WIDTH - MARGIN, middle - 32, 17, align=1.0)
        pen.fill(Box(_column(original) - 1, middle - 5, 2, _BAR_HEIGHT + 10), WHITE)
    y = pen.canvas.shape[0] - BOTTOM + 6
    for line in pen.wrap(verdict, WIDTH - 2 * MARGIN, 15):
        pen.text(line, MARGIN, y, 15)
        y += 22
    pen.text(RESEARCH_USE, MARGIN, y + 4, 15, MUTED)
    return pen.picture()


def _column(stage: float) -> int:
    """Column of an expected stage."""
    return _BARS_LEFT + round(stage / (len(STAGES) - 1) * _BARS_WIDTH)
