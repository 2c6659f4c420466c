"""A CT and its masks around the liver on a coarse grid, for the checks.

Arrays are [slice, row, column] along LPS axes: towards the head, the back and the patient's left.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import SimpleITK as sitk

from ..errors import CancelToken, check_cancel
from .grid import (
    OPENING_MM,
    body_mask,
    bounding_box,
    bounds,
    lps_grid,
    resample_ct,
    widened,
)
from .masks import eroded
from .resampling import nearest
from .voxels import Voxels

STEP_MM = (3.0, 2.0, 2.0)
_MARGIN_MM = 30.0  # beyond the liver's slices, where the aorta continues
_DEPTH_MM = 5.0  # away from the surface, organs share no voxels with fat or bowel


@dataclass(frozen=True, eq=False)
class CoarseScan:
    """hu: float32, block means at STEP_MM; body, liver, spleen: bool on the same grid.

    An organ without mask is empty. The axes are the CT's own, reordered and flipped towards LPS but
    not rotated: in a CT whose header was rotated, the patient still lies along the voxel axes.
    """

    hu: np.ndarray
    body: np.ndarray
    liver: np.ndarray
    spleen: np.ndarray

    @classmethod
    def of(
        cls,
        ct: sitk.Image,
        liver: sitk.Image,
        spleen: sitk.Image | None,
        cancel: CancelToken | None = None,
    ) -> "CoarseScan":
        """Resample the slices of the liver, with a margin; liver and spleen on the CT's grid.
        Raises Cancelled.
        """
        scan, *organs = (
            None if image is None else Voxels.of(image).lps().straight()
            for image in (ct, liver, spleen)
        )
        low, high = bounds(scan)
        box = bounding_box(organs[0].array)
        if box is not None:
            first, last = (low[2] + scan.spacing[2] * end for end in (box[0].start, box[0].stop))
            low[2], high[2] = max(low[2], first - _MARGIN_MM), min(high[2], last + _MARGIN_MM)
        step = np.array(STEP_MM[::-1])
        grid = lps_grid((low + high) / 2, np.maximum(np.floor((high - low) / step), 1), step)
        hu = resample_ct(scan, grid, cancel=cancel)
        liver_inside, spleen_inside = (
            np.zeros(hu.shape, bool) if mask is None else nearest(mask, grid) for mask in organs
        )
        check_cancel(cancel)
        return cls(hu, body_mask(hu, STEP_MM, OPENING_MM), liver_inside, spleen_inside)

    def smooth(self, box: tuple[slice, slice, slice]) -> np.ndarray:
        """Means over 3 x 3 x 3 voxels, which reduce the noise, in a box [slice, row, column]."""
        around = (
            np.arange(part.start - 1, part.stop + 1).clip(0, length - 1)
            for part, length in zip(box, self.hu.shape)
        )
        total = self.hu[np.ix_(*around)]
        for axis in range(3):
            along = np.moveaxis(total, axis, 0)
            total = np.moveaxis(along[:-2] + along[1:-1] + along[2:], 0, axis)
        return total / 27

    @cached_property
    def liver_core(self) -> np.ndarray:
        """Where the liver is deeper than 5 mm; the edge of the grid is no surface."""
        return _core(self.liver)

    @cached_property
    def spleen_core(self) -> np.ndarray:
        """Where the spleen is deeper than 5 mm; the edge of the grid is no surface."""
        return _core(self.spleen)


def _core(organ: np.ndarray) -> np.ndarray:
    core = np.zeros_like(organ)
    box = bounding_box(organ)
    if box is None:
        return core
    # One voxel around the organ holds the nearest voxels outside.
    box = widened(box, (1, 1, 1))
    core[box] = eroded(organ[box], _DEPTH_MM, STEP_MM)
    return core
