"""From the V-Net's probabilities to liver and spleen on the CT: one piece each, without holes.

Probabilities are [class, slice, row, column], classes as in `segmentation.CLASSES`, on the
network's coarse grid. There the patient's own HU have their say and pieces are chosen, where it
takes no time; how far each organ exceeds all else, not its label, is carried to the CT's voxels.
"""

import numpy as np
import SimpleITK as sitk

from .masks import LIVER_LABEL, SPLEEN_LABEL

LABELS = (LIVER_LABEL, SPLEEN_LABEL)
# An organ's voxels of some millimetres lie this close to its median; 60 HU hold 99 % of the livers
# and spleens that the network learned from, tumours included, and no bowel full of contrast.
SPREAD_HU = 60.0
BIN_HU = 5.0
SMOOTH_HU = 10.0  # standard deviation
NEAR_VOXELS = 6  # of an organ: with what lies there it may be confused


def judged_by_hu(probabilities: np.ndarray, hu: np.ndarray) -> np.ndarray:
    """Bayes' rule: the network's probabilities times how common each HU is in each class.

    hu: of the same voxels. How common is read off this patient, where the network is sure enough,
    so that phase and disease do not matter; a stomach full of contrast, a kidney or the heart that
    the network took for a part of the liver differ from the rest of it. Returns probabilities.
    """
    judged = probabilities.copy()
    for label in LABELS:
        sure = judged[label] > 0.5
        if sure.any():
            odd = np.abs(hu - np.median(hu[sure])) > SPREAD_HU
            judged[0][odd] += judged[label][odd]
            judged[label][odd] = 0.0
    organs = sitk.GetImageFromArray((judged[1:].max(axis=0) > 0.3).astype(np.uint8))
    reach = sitk.BinaryDilate(organs, [NEAR_VOXELS] * 3, sitk.sitkBox)
    near = sitk.GetArrayFromImage(reach) > 0
    low = float(hu.min())
    places = ((hu - low) / BIN_HU).astype(np.intp)
    count = int(places.max()) + 1
    for label in range(len(judged)):
        belongs = judged[label] * (near & ((judged[label] > 0.5) | (label == 0)))
        judged[label] *= _how_common(places, belongs, count)[places]
    total = judged.sum(axis=0)
    nothing = total == 0
    judged[0][nothing] = total[nothing] = 1.0
    return judged / total


def _how_common(places: np.ndarray, weights: np.ndarray, count: int) -> np.ndarray:
    """A smooth histogram, float32 of sum 1; even, where there is nothing to count."""
    found = np.bincount(places.ravel(), weights.ravel(), count)
    width = SMOOTH_HU / BIN_HU
    steps = np.arange(-round(4 * width), round(4 * width) + 1)
    smooth = np.convolve(found, np.exp(-0.5 * (steps / width) ** 2), "full")
    smooth = smooth[len(steps) // 2 :][:count]
    smooth += 1e-4 * smooth.sum() + 1e-12  # nothing is impossible
    return (smooth / smooth.sum()).astype(np.float32)


def on_ct(probabilities: np.ndarray, grid: sitk.Image, ct: sitk.Image) -> sitk.Image:
    """The most probable organ of each of the CT's voxels, uint8; grid: of the probabilities."""
    labels = sitk.Image(ct.GetSize(), sitk.sitkUInt8)
    labels.CopyInformation(ct)
    for label in LABELS:
        others = np.delete(probabilities, label, axis=0).max(axis=0)
        margin = _one_piece(probabilities[label] - others)
        box = _box(margin > 0, grid, ct)
        if box is None:
            continue
        first, size = box
        region = sitk.RegionOfInterest(labels, size, first)
        image = sitk.GetImageFromArray(margin)
        image.CopyInformation(grid)
        placed = sitk.Resample(image, region, sitk.Transform(), sitk.sitkLinear, -1.0)
        free = sitk.GetArrayViewFromImage(region) == 0
        inside = _largest((sitk.GetArrayViewFromImage(placed) > 0) & free)
        added = sitk.GetImageFromArray(inside.astype(np.uint8) * np.uint8(label))
        added.CopyInformation(region)
        labels = sitk.Paste(labels, region + added, size, destinationIndex=first)
    return labels


def _one_piece(margin: np.ndarray) -> np.ndarray:
    """How much more probable an organ is than all else, -1..1: its largest piece, filled."""
    inside = margin > 0
    largest = _largest_body(inside)
    whole = sitk.BinaryFillhole(sitk.GetImageFromArray(largest.astype(np.uint8)))
    kept = np.where(inside & ~largest, np.float32(-1.0), margin)
    holes = (sitk.GetArrayViewFromImage(whole) > 0) & ~inside
    return np.where(holes, np.float32(1.0), kept)


def _largest_body(inside: np.ndarray) -> np.ndarray:
    """The largest piece of what is thick, and what lies close around it: no thin bridges."""
    image = sitk.GetImageFromArray(inside.astype(np.uint8))
    thick = _largest(sitk.GetArrayFromImage(sitk.BinaryErode(image, [1, 1, 1], sitk.sitkCross)) > 0)
    reach = sitk.BinaryDilate(
        sitk.GetImageFromArray(thick.astype(np.uint8)), [2, 2, 2], sitk.sitkBall
    )
    return (sitk.GetArrayViewFromImage(reach) > 0) & inside


def _largest(inside: np.ndarray) -> np.ndarray:
    """The largest piece of a mask, bool; empty where the mask is."""
    pieces = sitk.ConnectedComponent(sitk.GetImageFromArray(inside.astype(np.uint8)))
    numbers = sitk.GetArrayViewFromImage(pieces)
    if numbers.max() <= 1:
        return inside
    return numbers == np.bincount(numbers[inside]).argmax()


def _box(where: np.ndarray, grid: sitk.Image, ct: sitk.Image) -> tuple[list[int], list[int]] | None:
    """First voxel and size of the part of the CT that holds `where` of the grid."""
    places = [np.flatnonzero(where.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    if not len(places[0]):
        return None
    ends = [(float(axis[0]) - 1, float(axis[-1]) + 1) for axis in places[::-1]]
    corners = [
        ct.TransformPhysicalPointToContinuousIndex(
            grid.TransformContinuousIndexToPhysicalPoint([e[c] for e, c in zip(ends, corner)])
        )
        for corner in np.ndindex(2, 2, 2)
    ]
    limits = np.array(ct.GetSize())
    first = np.clip(np.floor(np.min(corners, axis=0)), 0, limits - 1).astype(int)
    last = np.clip(np.ceil(np.max(corners, axis=0)), first, limits - 1).astype(int)
    return first.tolist(), (last - first + 1).tolist()
