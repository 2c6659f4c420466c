"""The still pictures of a report, for paper and wherever the interactive slices cannot be shown."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import CancelToken, check_cancel
from .slices import Slices

_WIDTH = 420  # pixels: 170 dpi for three beside each other on A4


@dataclass(frozen=True)
class Picture:
    """A slice with the map and the contours, uint8 RGB [row, column, 3], and its position."""

    rgb: np.ndarray
    caption: str


def pictures(slices: Slices, cancel: CancelToken | None = None) -> tuple[Picture, ...]:
    """The axial slices of the overview, cranial first; the patient's right is on the left.

    Raises Cancelled.
    """
    mm = float((slices.high - slices.low)[0]) / _WIDTH
    found = []
    for z in slices.levels:
        check_cancel(cancel)
        rgb = np.rint(255 * np.clip(slices.axial(z, mm), 0, 1)).astype(np.uint8)
        found.append(Picture(rgb, f"S {round(z, 1) + 0.0:.1f} mm"))
    return tuple(found)
