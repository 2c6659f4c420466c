"""The axial slices of the interactive report: CT, location map and organs, 8 bits each, as PNG.

Sampled along the patient's axes like the overview (`slices`), on the CT's own planes where they are
axial, and limited to the levels of liver and spleen and to the body. Every browser decodes PNG, so
the report needs no other decoder.
"""

from __future__ import annotations

import base64
import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk

from ..errors import CancelToken, check_cancel
from ..imaging.grid import AIR_HU, bounding_box
from .colors import BANDS
from .drawing import encode_png
from .slices import INSIDE, LIVER_COLOR, SPLEEN_COLOR, WINDOW_HU, Plane, Slices

# A grey value g stands for FIRST_HU + STEP_HU * g; steps of 2 HU are far below the noise of a CT.
FIRST_HU, STEP_HU = -200.0, 2.0
MAX_SLICES = 128
# Base64 adds a third: even a CT of pure noise, which PNG cannot compress, stays below 15 MB.
MAX_PIXELS = 7_500_000
_MARGIN_MM = 10.0


@dataclass(frozen=True)
class ViewerSlices:
    """Axial slices from cranial to caudal.

    levels: z of each slice, LPS mm; mm: size of a pixel; tiles: one PNG for each slice, grey,
    [3 * rows, columns]: CT (`FIRST_HU`, `STEP_HU`), location map (255 is its maximum over the
    CT) and organs (0, 1 liver, 2 spleen), one below the other; first: the slice with most liver.
    """

    levels: tuple[float, ...]
    mm: float
    columns: int
    rows: int
    tiles: tuple[bytes, ...]
    first: int

    def data(self) -> dict[str, Any]:
        """Everything that report.js needs, for JSON; positions as in Slicer (S, superior)."""
        return {
            "levels": [round(z, 1) + 0.0 for z in self.levels],
            "columns": self.columns,
            "rows": self.rows,
            "first": self.first,
            "firstHu": FIRST_HU,
            "stepHu": STEP_HU,
            "windowHu": WINDOW_HU,
            "bands": [[*(round(255 * part) for part in b.rgb), b.opacity] for b in BANDS],
            "liverColor": [round(255 * part) for part in LIVER_COLOR],
            "spleenColor": [round(255 * part) for part in SPLEEN_COLOR],
            "tiles": [base64.b64encode(tile).decode("ascii") for tile in self.tiles],
        }


def viewer_slices(slices: Slices, cancel: CancelToken | None = None) -> ViewerSlices:
    """The slices of a case. Raises Cancelled."""
    axis = int(np.abs(slices.ct.GetDirection()[6:]).argmax())
    levels = _levels(slices, axis)
    extent = (slices.high - slices.low)[:2]
    finest = min(np.delete(slices.ct.GetSpacing(), axis))
    mm = max(finest, math.sqrt(float(np.prod(extent)) * len(levels) / MAX_PIXELS))
    columns, rows = (max(1, math.floor(length / mm)) for length in extent)
    maximum = slices.location_map.maximum or 1.0
    tiles, liver_pixels = [], []
    for z in levels:
        check_cancel(cancel)
        plane = Plane(
            np.array([*slices.low[:2] + mm / 2, z]),
            np.array([columns, rows, 1]),
            np.array([mm, mm, 1.0]),
        )
        hu = plane.sample(slices.ct, outside=AIR_HU)[0]
        weight = np.minimum(slices.weights(plane)[0] / maximum, 1.0)
        organs = np.zeros((rows, columns), np.uint8)
        if slices.spleen is not None:
            organs[plane.sample(slices.spleen)[0] > INSIDE] = 2
        organs[plane.sample(slices.liver)[0] > INSIDE] = 1
        grey = np.clip(np.rint((hu - FIRST_HU) / STEP_HU), 0, 255)
        shown = np.concatenate([grey, np.rint(255 * weight), organs]).astype(np.uint8)
        tiles.append(encode_png(shown))
        liver_pixels.append(np.count_nonzero(organs == 1))
    return ViewerSlices(levels, mm, columns, rows, tuple(tiles), int(np.argmax(liver_pixels)))


def _levels(slices: Slices, axis: int) -> tuple[float, ...]:
    """z of the slices around liver and spleen, cranial first, at most MAX_SLICES.

    axis: the CT's axis along the body.
    """
    ct = slices.ct
    bottom, top = slices.liver_z
    for mask in (slices.liver, slices.spleen):
        box = None if mask is None else bounding_box(sitk.GetArrayViewFromImage(mask))
        if box is not None:
            low, high = _z_range(ct, [(part.start, part.stop - 1) for part in box[::-1]])
            bottom, top = min(bottom, low), max(top, high)
    lowest, highest = _z_range(ct, [(0, size - 1) for size in ct.GetSize()])
    bottom, top = max(bottom - _MARGIN_MM, lowest), min(top + _MARGIN_MM, highest)
    spacing = ct.GetSpacing()[axis]
    if math.isclose(abs(ct.GetDirection()[6 + axis]), 1.0, abs_tol=1e-6):  # the CT's own planes
        bottom = lowest + spacing * math.floor((bottom - lowest) / spacing + 1e-3)
        top = lowest + spacing * math.ceil((top - lowest) / spacing - 1e-3)
    step = spacing * max(1, math.ceil((top - bottom) / spacing / (MAX_SLICES - 1)))
    count = math.floor((top - bottom) / step + 1e-6) + 1
    return tuple(round(top - step * k, 3) for k in range(count))


def _z_range(ct: sitk.Image, ends: list[tuple[int, int]]) -> tuple[float, float]:
    """Lowest and highest z of the corners of a box, given by first and last index per axis."""
    z = [ct.TransformIndexToPhysicalPoint(corner)[2] for corner in itertools.product(*ends)]
    return min(z), max(z)
