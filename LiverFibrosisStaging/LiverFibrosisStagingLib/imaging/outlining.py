"""From the V-Net's probabilities to liver and spleen on the CT: one piece each, without holes.

Probabilities are [class, slice, row, column], classes as in `segmentation.CLASSES`, on the
network's coarse grid. There the patient's own HU have their say and pieces are chosen, where it
takes no time; how far each organ exceeds all else, not its label, is carried to the CT's voxels.
"""

from collections.abc import Callable

import numpy as np
import SimpleITK as sitk

from .grid import bounding_box, box_on_ct
from .organs import LIVER_LABEL, SPLEEN_LABEL

LABELS = (LIVER_LABEL, SPLEEN_LABEL)
# These were chosen on four patients with networks that had not seen them; around them little
# changes. An organ's voxels of some millimetres lie within SPREAD_HU of its median: more than nine
# in ten of every liver and spleen, tumours included, and no bowel full of contrast.
SPREAD_HU = 60.0
BIN_HU = 5.0
SMOOTH_HU = 10.0  # standard deviation
# How far beyond what the network is sure of an organ may grow. The liver lies beside heart, muscles
# and veins that are as bright as it is; the spleen lies in fat.
REACH_MM = {LIVER_LABEL: 20.0, SPLEEN_LABEL: 32.0}
ROUNDS = 6
NEIGHBOURS_MM = 4.0  # standard deviation of the neighbourhood
TRUST = 0.5  # in the network, against the neighbours
THICK_MM = {LIVER_LABEL: 8.0, SPLEEN_LABEL: 4.0}  # what is thinner is a leak, but for an edge ...
CLOSE_MM = 4.0  # ... as close as this to what is thick
LOBE = 0.08  # of the largest thick piece: a lobe beyond a fissure or a tumour


def judged_by_hu(probabilities: np.ndarray, grid: sitk.Image) -> np.ndarray:
    """The probabilities, after this patient's own HU and each voxel's neighbours had their say.

    Expectation maximisation on a hidden Markov random field, after Zhang et al. 2001 (IEEE Trans
    Med Imaging 20:45-57), with the network in the place of an atlas: by Bayes' rule a voxel's
    probabilities are those of the network and of its neighbours, times how common its HU are in
    each class, which is read off the patient anew each round. So neither phase nor disease has to
    be known, a stomach full of contrast beside the liver is left, and a large spleen of which the
    network saw a half is found whole.

    grid: HU of the same voxels. Returns probabilities of the same shape.
    """
    hu = sitk.GetArrayFromImage(grid)
    allowed = np.ones(probabilities.shape, bool)
    for label in LABELS:
        allowed[label] = _within(probabilities[label] > 0.5, REACH_MM[label], grid)
    judged = _without_others(probabilities * allowed)
    where = allowed[1:].any(axis=0)
    if where.any():  # time is spent only there
        box = bounding_box(where)
        part = (slice(None), *box)
        judged[part] = _rounds(probabilities[part], hu[box], allowed[part], grid.GetSpacing())
    return judged


def _rounds(
    network: np.ndarray, hu: np.ndarray, allowed: np.ndarray, spacing: tuple[float, ...]
) -> np.ndarray:
    """The rounds of `judged_by_hu`, within a box; spacing: x, y, z in mm."""
    places = ((hu - hu.min()) / BIN_HU).astype(np.intp)
    near = allowed[1:].any(axis=0)
    prior = judged = _likely(network, hu, allowed)
    for number in range(ROUNDS):
        if number:
            mixed = TRUST * network
            for label in LABELS:
                mixed[label] += (1 - TRUST) * _smooth(judged[label], spacing)
            prior = _likely(mixed, hu, allowed)
        common = np.empty_like(judged)
        for label, one in enumerate(judged):
            belongs = one * (near & ((one > 0.5) | (label == 0)))
            common[label] = _how_common(places, belongs)[places]
        judged = prior * common
        judged /= judged.sum(axis=0)
    return judged


def _likely(probabilities: np.ndarray, hu: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Without organs where they cannot be, and where the HU are far from the organ's."""
    kept = probabilities * allowed
    for label in LABELS:
        sure = kept[label] > 0.5
        if sure.any():
            kept[label][np.abs(hu - np.median(hu[sure])) > SPREAD_HU] = 0.0
    return _without_others(kept)


def _without_others(probabilities: np.ndarray) -> np.ndarray:
    """What is no organ is background."""
    probabilities[0] = 1.0 - probabilities[1:].sum(axis=0)
    return probabilities


def _within(inside: np.ndarray, reach_mm: float, grid: sitk.Image) -> np.ndarray:
    """Where, bool, a mask is no further than this; nowhere, if it is empty."""
    if not inside.any():
        return inside
    mask = sitk.GetImageFromArray(inside.astype(np.uint8))
    mask.SetSpacing(grid.GetSpacing())
    distance = sitk.SignedMaurerDistanceMap(mask, squaredDistance=False, useImageSpacing=True)
    return sitk.GetArrayFromImage(distance) <= reach_mm


def _smooth(values: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    image = sitk.GetImageFromArray(values)
    variance = [(NEIGHBOURS_MM / step) ** 2 for step in spacing]
    smooth = sitk.DiscreteGaussian(image, variance, 9, 0.01, False)
    return sitk.GetArrayFromImage(smooth)


def _how_common(places: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """A smooth histogram, float32 of sum 1; even, where there is nothing to count."""
    found = np.bincount(places.ravel(), weights.ravel())
    width = SMOOTH_HU / BIN_HU
    steps = np.arange(-round(4 * width), round(4 * width) + 1)
    smooth = np.convolve(found, np.exp(-0.5 * (steps / width) ** 2), "full")
    smooth = smooth[len(steps) // 2 :][: len(found)]
    smooth += 1e-4 * smooth.sum() + 1e-12  # nothing is impossible
    return (smooth / smooth.sum()).astype(np.float32)


def on_ct(probabilities: np.ndarray, grid: sitk.Image, ct: sitk.Image) -> sitk.Image:
    """The most probable organ of each of the CT's voxels, uint8; grid: of the probabilities."""
    labels = sitk.Image(ct.GetSize(), sitk.sitkUInt8)
    labels.CopyInformation(ct)
    for label in LABELS:
        others = np.delete(probabilities, label, axis=0).max(axis=0)
        margin = _one_piece(probabilities[label] - others, THICK_MM[label], grid.GetSpacing())
        if not (margin > 0).any():
            continue
        first, size = box_on_ct(margin > 0, grid, ct)
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


def _one_piece(margin: np.ndarray, thick_mm: float, spacing: tuple[float, ...]) -> np.ndarray:
    """How much more probable an organ is than all else, -1..1: its largest piece, filled.

    Of the organ, what a ball of the radius `thick_mm` fits into, and what lies close around that:
    what leaks into neighbours that are as bright is thin, or hangs on a thin bridge.
    """
    inside = margin > 0
    image = sitk.GetImageFromArray(_largest(inside).astype(np.uint8))
    thick = _largest(_ball(sitk.BinaryErode, image, thick_mm, spacing) > 0, LOBE)
    image = sitk.GetImageFromArray(thick.astype(np.uint8))
    body = (_ball(sitk.BinaryDilate, image, thick_mm + CLOSE_MM, spacing) > 0) & inside
    whole = sitk.BinaryFillhole(sitk.GetImageFromArray(body.astype(np.uint8)))
    kept = np.where(inside & ~body, np.float32(-1.0), margin)
    holes = (sitk.GetArrayViewFromImage(whole) > 0) & ~inside
    return np.where(holes, np.float32(1.0), kept)


def _ball(
    filtered: Callable[..., sitk.Image],
    image: sitk.Image,
    radius_mm: float,
    spacing: tuple[float, ...],
) -> np.ndarray:
    return sitk.GetArrayFromImage(
        filtered(image, [max(1, round(radius_mm / step)) for step in spacing], sitk.sitkBall)
    )


def _largest(inside: np.ndarray, share: float = 1.0) -> np.ndarray:
    """The largest piece of a mask, bool, and those of at least this share of its size."""
    pieces = sitk.ConnectedComponent(sitk.GetImageFromArray(inside.astype(np.uint8)))
    numbers = sitk.GetArrayViewFromImage(pieces)
    sizes = np.bincount(numbers.ravel())
    sizes[0] = 0
    return (sizes >= share * max(1, sizes.max()))[numbers]
