"""A CT and its masks around the liver on a coarse grid, for the checks.

Arrays are [slice, row, column] along LPS axes: towards the head, the back and the patient's left.
"""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import SimpleITK as sitk

from ..errors import CancelToken, check_cancel
from .grid import (
    OPENING_MM,
    Box,
    Part,
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
    organs: the masks in the CT's voxels along these axes; boxes: of them, None for an empty mask.
    """

    hu: np.ndarray
    body: np.ndarray
    liver: np.ndarray
    spleen: np.ndarray
    organs: dict[str, Voxels] = field(default_factory=dict)
    boxes: dict[str, Box | None] = field(default_factory=dict)

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
        scan = Voxels.of(ct).lps().straight()
        masks = {"liver": liver} if spleen is None else {"liver": liver, "spleen": spleen}
        organs = {organ: Voxels.of(mask).lps().straight() for organ, mask in masks.items()}
        # A mask is as large as the scan, so it is searched only once.
        boxes = {organ: bounding_box(mask.array) for organ, mask in organs.items()}
        low, high = bounds(scan)
        box = boxes["liver"]
        if box is not None:
            first, last = (low[2] + scan.spacing[2] * end for end in (box[0].start, box[0].stop))
            low[2], high[2] = max(low[2], first - _MARGIN_MM), min(high[2], last + _MARGIN_MM)
        step = np.array(STEP_MM[::-1])
        grid = lps_grid((low + high) / 2, np.maximum(np.floor((high - low) / step), 1), step)
        hu = resample_ct(scan, grid, cancel=cancel)
        inside = {"liver": np.zeros(hu.shape, bool), "spleen": np.zeros(hu.shape, bool)}
        for organ, mask in organs.items():
            if boxes[organ] is not None:
                part = _around(mask, boxes[organ], grid)
                inside[organ][part[::-1]] = nearest(mask, grid[part])
        check_cancel(cancel)
        return cls(hu, body_mask(hu, STEP_MM, OPENING_MM), **inside, organs=organs, boxes=boxes)

    def smooth(self, box: Box) -> np.ndarray:
        """Means over 3 x 3 x 3 voxels, which reduce the noise, in a box [slice, row, column]."""
        beyond = [
            (int(part.start == 0), int(part.stop == length))
            for part, length in zip(box, self.hu.shape)
        ]
        total = np.pad(self.hu[widened(box, (1, 1, 1))], beyond, "edge")
        for axis in range(3):
            along = np.moveaxis(total, axis, 0)
            along = along[:-2] + along[1:-1]
            along += np.moveaxis(total, axis, 0)[2:]
            total = np.moveaxis(along, 0, axis)
        total /= 27
        return total

    @cached_property
    def liver_core(self) -> Part:
        """Where the liver is deeper than 5 mm; the edge of the grid is no surface."""
        return _core(self.liver)

    @cached_property
    def spleen_core(self) -> Part:
        """Where the spleen is deeper than 5 mm; the edge of the grid is no surface."""
        return _core(self.spleen)


def _around(mask: Voxels, box: Box, grid: sitk.Image) -> tuple[slice, ...]:
    """The part of a grid, along x, y and z, in which voxels of this box of a mask can lie."""
    ends = np.array([(part.start - 0.5, part.stop - 0.5) for part in box[::-1]])
    last = np.array(grid.GetSize()) - 1
    low, high = Voxels.of(grid).indices(mask.places(ends)).T
    low, high = np.floor(low).clip(0, last), np.ceil(high).clip(0, last)
    return tuple(slice(int(first), int(end) + 1) for first, end in zip(low, high))


def _core(organ: np.ndarray) -> Part:
    box = bounding_box(organ)
    if box is None:
        return Part(organ[:0, :0, :0], (slice(0, 0),) * 3)
    # One voxel around the organ holds the nearest voxels outside.
    box = widened(box, (1, 1, 1))
    inside = eroded(organ[box], _DEPTH_MM, STEP_MM)
    inner = bounding_box(inside) or (slice(0, 0),) * 3
    ends = ((outer.start + part.start, outer.start + part.stop) for outer, part in zip(box, inner))
    return Part(inside[inner], tuple(slice(*each) for each in ends))
