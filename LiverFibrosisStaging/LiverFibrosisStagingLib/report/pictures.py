"""The still pictures of a report, for paper and wherever the interactive slices cannot be shown."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .slices import Slices

_WIDTH = 420  # pixels: 170 dpi for three beside each other on A4


@dataclass(frozen=True)
class Picture:
    """A slice with the map and the contours, uint8 RGB [row, column, 3], and its position."""

    rgb: np.ndarray
    caption: str


def pictures(slices: Slices) -> tuple[Picture, ...]:
    """The axial slices of the overview, cranial first; the patient's right is on the left."""
    mm = float((slices.high - slices.low)[0]) / _WIDTH
    return tuple(
        Picture(
            np.rint(255 * np.clip(slices.axial(z, mm), 0, 1)).astype(np.uint8),
            f"S {round(z, 1) + 0.0:.1f} mm",
        )
        for z in slices.levels
    )
