"""From the V-Net's probabilities to a segmentation on the CT: one component per organ, no holes.

Probabilities are [class, slice, row, column], classes as in `segmentation.CLASSES`, on the
network's coarse grid. Refinement by HU and selection of components run on that grid, where they are
fast; the margin of each organ's probability over the other classes, not the label, is then
resampled to the CT.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk

from ..errors import CancelToken, check_cancel
from .components import filled, largest
from .filters import times
from .grid import Part, bounding_box, box_on_ct, widened
from .masks import dilated_by_ball, eroded, eroded_by_ball
from .organs import LIVER_LABEL, SPLEEN_LABEL
from .resampling import planes
from .voxels import Voxels

LABELS = (LIVER_LABEL, SPLEEN_LABEL)
# Chosen on four patients, each with a network not trained on that patient; results change little
# around these values. On the coarse grid, more than 90 % of every liver and spleen, tumours
# included, lies within MAX_DEVIATION_HU of the organ's median; contrast-filled bowel does not.
MAX_DEVIATION_HU = 60.0
BIN_HU = 5.0
HISTOGRAM_SIGMA_HU = 10.0  # standard deviation
# How far an organ may grow beyond the voxels with a probability above 0.5. The liver borders on
# heart, muscles and veins of similar HU; the spleen is surrounded by fat.
MAX_GROWTH_MM = {LIVER_LABEL: 20.0, SPLEEN_LABEL: 32.0}
ITERATIONS = 6
NEIGHBOURHOOD_MM = 4.0  # standard deviation of the neighbourhood
# Of the network's probabilities; the rest is the neighbourhood's. With 0.5, a spleen grew into a
# kidney or a heart of the same HU in two other patients; a spleen found in part loses little.
NETWORK_WEIGHT = 0.75
# Thinner parts are leakage, unless within CORE_MARGIN_MM of a thicker part.
CORE_RADIUS_MM = {LIVER_LABEL: 8.0, SPLEEN_LABEL: 4.0}
CORE_MARGIN_MM = 4.0
MIN_LOBE_FRACTION = 0.08  # of the largest component: a lobe separated by a fissure or a tumour


def refine_em_mrf(probabilities: np.ndarray, grid: sitk.Image) -> np.ndarray:
    """Refine probabilities with the patient's HU and each voxel's neighbourhood.

    Expectation maximisation on a hidden Markov random field, after Zhang et al. 2001 (IEEE Trans
    Med Imaging 20:45-57), with the network's output as the spatial prior: by Bayes' rule a voxel's
    class probabilities are the prior, mixed from the network and the neighbourhood, times the
    likelihood of its HU in each class. The likelihoods are histograms of this CT, estimated again
    in each iteration, so no contrast phase or disease is assumed. This removes a contrast-filled
    stomach beside the liver and completes a large spleen that the network found in part.

    grid: HU of the same voxels. Returns probabilities of the same shape.
    """
    hu = sitk.GetArrayViewFromImage(grid)
    spacing = grid.GetSpacing()
    allowed = [
        _within(probabilities[label] > 0.5, MAX_GROWTH_MM[label], spacing) for label in LABELS
    ]
    refined = np.zeros(probabilities.shape, np.float32)
    refined[0] = 1.0
    near = np.logical_or.reduce(allowed)
    box = bounding_box(near)
    if box is None:
        return refined
    lowest, highest = hu[box].min(), hu[box].max()
    smoothers = [_smoother(length, step) for length, step in zip(hu[box].shape, spacing[::-1])]
    # Elsewhere all is background, whatever the HU: the iterations are for these voxels alone.
    at = np.flatnonzero(near)
    own_hu = hu.ravel()[at]
    refined.reshape(len(refined), -1)[:, at] = _iterate(
        probabilities.reshape(len(refined), -1).take(at, axis=1),
        own_hu,
        ((own_hu - lowest) / BIN_HU).astype(np.intp),
        int((highest - lowest) / BIN_HU) + 1,
        [_Organ.of(near[box], each[box], smoothers) for each in allowed],
    )
    return refined


class _Organ(NamedTuple):
    """Voxels that may be an organ, by their numbers.

    near: among the voxels near any organ; in_box: in a box around the organ, of this shape.
    smoothers: for that box, see `_smooth`.
    """

    near: np.ndarray
    in_box: np.ndarray
    shape: tuple[int, ...]
    smoothers: list[np.ndarray]

    @classmethod
    def of(cls, near: np.ndarray, allowed: np.ndarray, smoothers: list[np.ndarray]) -> "_Organ":
        box = bounding_box(allowed) or (slice(0),) * 3
        part = allowed[box]
        parts = [along[each, each] for along, each in zip(smoothers, box)]
        return cls(np.flatnonzero(allowed[near]), np.flatnonzero(part), part.shape, parts)


def _iterate(
    network: np.ndarray, hu: np.ndarray, bins: np.ndarray, count: int, organs: list[_Organ]
) -> np.ndarray:
    """The iterations of `refine_em_mrf`, for voxels in any order: [class, n], [n].

    bins: of the HU in the histograms, of `count` bins.
    """
    prior = posterior = _restricted(network, hu, organs)
    for iteration in range(ITERATIONS):
        if iteration:
            mixed = NETWORK_WEIGHT * network
            for label, organ in zip(LABELS, organs):
                if not organ.near.size:
                    continue
                values = np.zeros(organ.shape, np.float32)
                values.ravel()[organ.in_box] = posterior[label][organ.near]
                around = _smooth(values, organ.smoothers).ravel()[organ.in_box]
                mixed[label][organ.near] += (1 - NETWORK_WEIGHT) * around
            prior = _restricted(mixed, hu, organs)
        for label, probability in enumerate(posterior):
            weights = probability * (probability > 0.5) if label else probability
            prior[label] *= _histogram(bins, weights, count)[bins]
        posterior = prior
        posterior /= posterior.sum(axis=0)
    return posterior


def _restricted(probabilities: np.ndarray, hu: np.ndarray, organs: list[_Organ]) -> np.ndarray:
    """Organ probabilities set to 0 where none may be and where the HU are far from the organ's."""
    kept = np.zeros_like(probabilities)
    for label, organ in zip(LABELS, organs):
        values, own_hu = probabilities[label][organ.near], hu[organ.near]
        sure = values > 0.5
        if sure.any():
            values *= np.abs(own_hu - np.median(own_hu[sure])) <= MAX_DEVIATION_HU
        kept[label][organ.near] = values
    kept[0] = 1.0 - kept[1:].sum(axis=0)
    return kept


def _within(inside: np.ndarray, reach_mm: float, spacing: tuple[float, ...]) -> np.ndarray:
    """Voxels, bool, at most this far from a mask; none if it is empty; spacing: x, y, z in mm."""
    near = np.zeros(inside.shape, bool)
    box = bounding_box(inside)
    if box is not None:
        box = widened(box, [int(reach_mm / step) + 1 for step in spacing[::-1]])
        near[box] = ~eroded(~inside[box], reach_mm, spacing[::-1])
    return near


def _smoother(length: int, step: float) -> np.ndarray:
    """Weights, float32 [to, from], of a Gaussian along an axis of voxels of this many mm."""
    every = sitk.GetImageFromArray(np.eye(length, dtype=np.float32))
    smooth = sitk.DiscreteGaussian(every, [0.0, (NEIGHBOURHOOD_MM / step) ** 2], 9, 0.01, False)
    return sitk.GetArrayFromImage(smooth)


def _smooth(values: np.ndarray, along: Sequence[np.ndarray]) -> np.ndarray:
    """Values smoothed along each axis with the weights of `_smoother`."""
    for axis, weights in enumerate(along):
        values = times(values, weights.T, axis)
    return values


def _histogram(bins: np.ndarray, weights: np.ndarray, count: int) -> np.ndarray:
    """A smoothed histogram of `count` bins, float32 of sum 1; uniform if all weights are 0."""
    found = np.bincount(bins, weights, count)
    width = HISTOGRAM_SIGMA_HU / BIN_HU
    steps = np.arange(-round(4 * width), round(4 * width) + 1)
    smooth = np.convolve(found, np.exp(-0.5 * (steps / width) ** 2), "full")
    smooth = smooth[len(steps) // 2 :][: len(found)]
    smooth += 1e-4 * smooth.sum() + 1e-12  # no likelihood of 0
    return (smooth / smooth.sum()).astype(np.float32)


def organs_on_ct(
    probabilities: np.ndarray,
    grid: sitk.Image,
    ct: sitk.Image,
    cancel: CancelToken | None = None,
) -> tuple[Part, Part]:
    """Liver and spleen on the CT's grid, where each is the most probable class.

    grid: of the probabilities. One component of each remains, without holes (`_clean_margin`);
    voxels of both are the liver's. Raises Cancelled.
    """
    with ThreadPoolExecutor(1) as beside:  # each organ takes one core
        finding = beside.submit(_voxels_on_ct, probabilities, SPLEEN_LABEL, grid, ct, cancel)
        inside, box = _voxels_on_ct(probabilities, LIVER_LABEL, grid, ct, cancel)
        check_cancel(cancel)
        liver = Part(largest(inside), box)
        inside, box = finding.result()
    check_cancel(cancel)
    inside[_within_box(liver.box, box)] &= ~liver.inside[_within_box(box, liver.box)]
    return liver, Part(largest(inside), box)


def _within_box(other: tuple[slice, ...], box: tuple[slice, ...]) -> tuple[slice, ...]:
    """Where a box has voxels of another one, from its own first voxel on."""
    return tuple(
        slice(max(b.start - a.start, 0), max(min(b.stop, a.stop) - a.start, 0))
        for a, b in zip(box, other)
    )


def _voxels_on_ct(
    probabilities: np.ndarray,
    label: int,
    grid: sitk.Image,
    ct: sitk.Image,
    cancel: CancelToken | None,
) -> Part:
    """Where an organ is the most probable class.

    On the grid of the probabilities it is one component, without holes. Raises Cancelled.
    """
    nowhere = Part(np.zeros((1, 1, 1), bool), (slice(0, 1),) * 3)
    margin = probabilities[label] - np.delete(probabilities, label, axis=0).max(axis=0)
    around = bounding_box(margin > 0)
    if around is None:
        return nowhere
    around = widened(around, (1, 1, 1))
    margin[around] = _clean_margin(margin[around], CORE_RADIUS_MM[label], grid.GetSpacing())
    if not (margin > 0).any():
        return nowhere
    first, size = box_on_ct(margin > 0, grid, ct)
    box = tuple(slice(start, start + count) for start, count in zip(first, size))[::-1]
    scan = Voxels.of(ct)
    origin = scan.places(np.array(first)[:, None])[:, 0]
    part = replace(scan, array=scan.array[box], origin=origin)
    image = sitk.GetImageFromArray(margin)
    image.CopyInformation(grid)
    inside = np.empty(size[::-1], bool)
    for plane, values in zip(inside, planes(image, part, -1.0)):
        check_cancel(cancel)
        np.greater(values, 0, out=plane)
    return Part(inside, box)


def _clean_margin(margin: np.ndarray, radius_mm: float, spacing: tuple[float, ...]) -> np.ndarray:
    """The margin (-1..1, the organ where it is positive) of the largest component, holes filled.

    Erosion with a ball of `radius_mm` removes thin parts and thin bridges, through which a
    segmentation leaks into neighbours of similar HU; dilation by the radius plus CORE_MARGIN_MM,
    within the organ, restores the boundary.
    """
    inside = margin > 0
    thin, wide = (
        [max(1, round(radius / step)) for step in spacing[::-1]]
        for radius in (radius_mm, radius_mm + CORE_MARGIN_MM)
    )
    core = largest(eroded_by_ball(largest(inside), thin), MIN_LOBE_FRACTION)
    organ = dilated_by_ball(core, wide) & inside
    kept = np.where(inside & ~organ, np.float32(-1.0), margin)
    return np.where(filled(organ) & ~inside, np.float32(1.0), kept)
