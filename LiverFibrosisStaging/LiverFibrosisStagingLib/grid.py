"""From a CT to what the network sees: the working grid and its patches of consecutive slices.

Arrays are [slice, row, column]; spacings that belong to arrays are in the same order, in mm.
"""

import math
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

AIR_HU = -1024.0
BODY_THRESHOLD_HU = -250.0


@dataclass(frozen=True)
class WorkingGrid:
    """A CT in the model's geometry: LPS axes, the model's spacing and in-plane size.

    volume: float32 image, 0..1; body, liver, spleen: uint8 masks on the same grid (spleen may be
    None); starts: first slice of every patch; padded: slices added (below, above) the scan because
    it is shorter than one patch.
    """

    volume: sitk.Image
    body: sitk.Image
    liver: sitk.Image
    spleen: sitk.Image | None
    starts: tuple[int, ...]
    padded: tuple[int, int]
    warnings: tuple[str, ...]


def working_grid(
    ct: sitk.Image,
    liver: sitk.Image,
    spleen: sitk.Image | None = None,
    *,
    spacing: tuple[float, float, float],
    patch_size: tuple[int, int, int],
    window: tuple[float, float] = (-125.0, 225.0),
    overlap: float = 0.5,
) -> WorkingGrid:
    """Bring a CT and its masks (on the CT's grid) to the model's geometry.

    The patient's axes decide, not the array's: any orientation, oblique ones included, is
    resampled onto LPS axes. In plane the patch is centred on the body; along the body it runs over
    the slices that hold liver (Yin et al. 2021, "Algorithm scheme": 32 consecutive slices, soft
    tissue window -125..225 HU scaled to 0..1).

    ct: scalar 3-D image in HU; liver, spleen: masks, non-zero inside. spacing: (slice, row,
    column) mm; patch_size: (slices, rows, columns) voxels; overlap: least shared fraction of
    neighbouring patches.
    """
    reference = _reference_grid(ct, spacing)
    hu = _resample_ct(ct, reference)
    body = _body_mask(hu)
    liver = _resample_mask(liver, reference)
    spleen = None if spleen is None else _resample_mask(spleen, reference)

    slices, rows, columns = patch_size
    holds_liver = np.flatnonzero(sitk.GetArrayViewFromImage(liver).any(axis=(1, 2)))
    first, last = int(holds_liver[0]), int(holds_liver[-1])
    first, last, padded, warnings = _slice_range(first, last, reference.GetSize()[2], slices)
    warnings = [text.format(thickness=spacing[0]) for text in warnings]

    body_array = sitk.GetArrayViewFromImage(body)[max(first, 0) : last + 1]
    row_start, row_cut = _centred(body_array.any(axis=(0, 2)), body_array.sum(axis=(0, 2)), rows)
    column_start, column_cut = _centred(
        body_array.any(axis=(0, 1)), body_array.sum(axis=(0, 1)), columns
    )
    for cut, step, side in (
        (row_cut, spacing[1], "front or back"),
        (column_cut, spacing[2], "side"),
    ):
        if cut * step > 10:
            warnings.append(
                f"The body is wider than the network's field of view: {cut * step:.0f} mm are cut "
                f"off at the {side}."
            )

    start = (column_start, row_start, first)
    size = (columns, rows, last - first + 1)
    low, high = window
    windowed = sitk.IntensityWindowing(hu, low, high, 0.0, 1.0)
    return WorkingGrid(
        volume=_crop_or_pad(windowed, start, size),
        body=_crop_or_pad(body, start, size, repeat=False),
        liver=_crop_or_pad(liver, start, size, repeat=False),
        spleen=None if spleen is None else _crop_or_pad(spleen, start, size, repeat=False),
        starts=patch_starts(size[2], slices, overlap),
        padded=padded,
        warnings=tuple(warnings),
    )


def patch_starts(length: int, patch: int, overlap: float) -> tuple[int, ...]:
    """First slices of the fewest patches that cover `length` slices with at least `overlap`."""
    if length <= patch:
        return (0,)
    step = patch * (1.0 - overlap)
    count = math.ceil((length - patch) / step - 1e-6) + 1
    return tuple(int(round(start)) for start in np.linspace(0, length - patch, count))


def patch_array(grid: WorkingGrid, start: int, slices: int) -> np.ndarray:
    """Network input float32 [1, 1, slices, rows, columns] of the patch that begins at `start`."""
    volume = sitk.GetArrayViewFromImage(grid.volume)
    return np.ascontiguousarray(volume[start : start + slices], np.float32)[None, None]


def _reference_grid(ct: sitk.Image, spacing: tuple[float, float, float]) -> sitk.Image:
    """An empty LPS image at the model's spacing over the bounding box of the CT's voxels."""
    direction = np.array(ct.GetDirection()).reshape(3, 3)
    step = direction * np.array(ct.GetSpacing())
    half = np.abs(step).sum(axis=1) / 2
    corners = np.array(
        [
            ct.TransformContinuousIndexToPhysicalPoint(
                [i * (n - 1.0) for i, n in zip(c, ct.GetSize())]
            )
            for c in np.ndindex(2, 2, 2)
        ]
    )
    low, high = corners.min(axis=0) - half, corners.max(axis=0) + half
    step_xyz = np.array(spacing[::-1])
    # A hair less than the full extent: rounding noise must not decide about a slice.
    size = np.maximum(1, np.floor((high - low) / step_xyz + 1e-3)).astype(int)
    centre = (low + high) / 2
    reference = sitk.Image([int(n) for n in size], sitk.sitkUInt8)
    reference.SetSpacing(step_xyz.tolist())
    reference.SetOrigin((centre - (size - 1) * step_xyz / 2).tolist())
    return reference


def _resample_ct(ct: sitk.Image, reference: sitk.Image) -> sitk.Image:
    """HU as float32 on the reference grid: block means where it is coarser, then linear."""
    target = np.array(reference.GetSpacing())
    direction = np.abs(np.array(ct.GetDirection()).reshape(3, 3))
    # What the target spacing is along each axis of the array.
    along = target[direction.argmax(axis=0)]
    factors = [
        max(1, min(int(wanted / found + 1e-3), count))
        for wanted, found, count in zip(along, ct.GetSpacing(), ct.GetSize())
    ]
    if max(factors) > 1:
        ct = sitk.BinShrink(ct, factors)
    return sitk.Resample(ct, reference, sitk.Transform(), sitk.sitkLinear, AIR_HU, sitk.sitkFloat32)


def _resample_mask(mask: sitk.Image, reference: sitk.Image) -> sitk.Image:
    return sitk.Resample(
        mask != 0, reference, sitk.Transform(), sitk.sitkNearestNeighbor, 0, sitk.sitkUInt8
    )


def _body_mask(hu: sitk.Image) -> sitk.Image:
    """The patient without table and air outside: largest dense component, filled slice by slice."""
    dense = sitk.BinaryThreshold(hu, BODY_THRESHOLD_HU, 1e6)
    dense = sitk.BinaryMorphologicalOpening(dense, [2, 2, 0])
    largest = sitk.RelabelComponent(sitk.ConnectedComponent(dense)) == 1
    slices = [sitk.BinaryFillhole(largest[:, :, k]) for k in range(largest.GetSize()[2])]
    filled = sitk.JoinSeries(slices)
    filled.CopyInformation(hu)
    return filled


def _slice_range(
    first: int, last: int, available: int, slices: int
) -> tuple[int, int, tuple[int, int], list[str]]:
    """Grow [first, last] to one patch at least, with the scan's own slices while there are any."""
    missing = slices - (last - first + 1)
    if missing <= 0:
        return first, last, (0, 0), []
    liver_slices = last - first + 1
    first -= missing // 2
    last += missing - missing // 2
    if first < 0:
        first, last = 0, last - first
    if last >= available:
        first, last = first - (last - available + 1), available - 1
    if first >= 0:
        return (
            first,
            last,
            (0, 0),
            [
                f"The liver spans {liver_slices} slices of {{thickness:g}} mm; the network looks "
                f"at {slices}, so slices without liver were added."
            ],
        )
    below = -first // 2
    above = -first - below
    warning = (
        f"The scan spans {available} slices of {{thickness:g}} mm; the network needs {slices}, so "
        "its first and last slices were repeated. The result is less certain."
    )
    return -below, available - 1 + above, (below, above), [warning]


def _centred(occupied: np.ndarray, weights: np.ndarray, size: int) -> tuple[int, int]:
    """Start of a window of `size` centred on the body, and how many body voxels' width it cuts."""
    if not occupied.any():
        return (len(occupied) - size) // 2, 0
    centre = float((np.arange(len(weights)) * weights).sum() / weights.sum())
    start = int(round(centre - (size - 1) / 2 + 1e-3))
    extent = np.flatnonzero(occupied)
    return start, max(start - int(extent[0]), int(extent[-1]) - (start + size - 1), 0)


def _crop_or_pad(
    image: sitk.Image, start: tuple[int, int, int], size: tuple[int, int, int], repeat: bool = True
) -> sitk.Image:
    """Window of an image that may reach beyond it: air in plane; along the body, edge slices
    repeated (or nothing, for masks)."""
    available = image.GetSize()
    before = [max(0, -s) for s in start]
    after = [max(0, s + n - a) for s, n, a in zip(start, size, available)]
    image = sitk.ConstantPad(image, [*before[:2], 0], [*after[:2], 0], 0)
    if repeat:
        image = sitk.ZeroFluxNeumannPad(image, [0, 0, before[2]], [0, 0, after[2]])
    else:
        image = sitk.ConstantPad(image, [0, 0, before[2]], [0, 0, after[2]], 0)
    # Padding leaves a negative start index behind; an image of our own begins at 0.
    cropped = sitk.RegionOfInterest(image, size, [s + b for s, b in zip(start, before)])
    return cropped
