"""Where liver and spleen can lie: a heart is taken out of the V-Net's probabilities.

Blood in the heart has nearly the HU of liver and spleen. The criteria are positions relative to
spine and lungs, in patients with the liver on the right; where spine or lungs are not in the scan,
nothing is changed. Arrays are [slice, row, column] along LPS axes, on the network's grid;
probabilities [class, slice, row, column] as in `refinement`.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk

from .components import components, filled, largest
from .grid import BODY_THRESHOLD_HU, bounding_box, widened
from .masks import dilated_by_ball, eroded_by_ball

# Chosen on the eight CTs with masks and 115 cases painted into them (100 to 1250
# mL of spleen): seen from the spine, the centre of a spleen lies at most 34 degrees in front of the
# left side, that of a left ventricle 55 to 70 degrees.
BONE_HU = 180.0
SPINE_SHARE = 0.3  # of the slices that have bone in a place of the spine; ribs cross the slices
MIN_SPINE_MM2 = 100.0
LUNG_HU = -500.0
GAS_HU = -950.0  # the median of lungs is higher, that of gas in the bowel lower
MIN_LUNG_ML = 100.0
MIN_SPLEEN_ML = 15.0
UNSURE = 0.2  # least probability of a spleen instead of which the network chose a heart
RIGHT_LOBE_MM = 50.0  # farther to the right of the spine's middle, there is liver but no heart
LUNG_BETWEEN = 0.3  # of a section's rows: with lung on its right
# To the left of the spine's middle: centre of a section of the heart, and of a ventricle at most.
HEART_MM = (-30.0, 60.0)
VENTRICLE_MM = 100.0
MIN_HEART_MM = 12.0  # height: less may be the top of a left lobe


class Landmarks(NamedTuple):
    """Row and column of the spine's middle; lungs, bool; spacing in mm (slice, row, column)."""

    row: float
    column: float
    lungs: np.ndarray
    spacing: tuple[float, ...]


def without_heart(probabilities: np.ndarray, marks: Landmarks | None) -> np.ndarray:
    """The probabilities with those of liver and spleen set to 0 where the heart lies.

    marks: of the same scan; None: nothing is changed. If the network took only a heart for the
    spleen, what it considered less likely, at least `UNSURE`, becomes the spleen, if its position
    is that of one.
    """
    if marks is None:
        return probabilities
    _, liver, spleen = probabilities
    beside = _heart_in_liver(liver > 0.5, marks)
    likely, heart = _split(spleen > 0.5, (liver > 0.5) & ~beside, marks)
    if not beside.any() and not heart.any():
        return probabilities
    found = probabilities.copy()
    _, liver, spleen = found
    liver[beside] = 0.0
    if heart.any():
        spleen[(spleen > 0.5) & ~likely] = 0.0
        if not likely.any():
            chosen, _ = _split((spleen > UNSURE) & (spleen > liver), liver > 0.5, marks)
            spleen[chosen], liver[chosen] = 0.75, 0.0
    found[0] = 1.0 - found[1:].sum(axis=0)
    return found


def landmarks(probabilities: np.ndarray, grid: sitk.Image) -> Landmarks | None:
    """Spine and lungs; None if no spine is found at the organs' level."""
    hu = sitk.GetArrayViewFromImage(grid)
    organs = bounding_box((probabilities[1:] > 0.5).any(axis=0))
    if organs is None:
        return None
    body = largest(hu > BODY_THRESHOLD_HU)
    level = body[organs[0]]
    box = bounding_box(level)
    if box is None:
        return None
    bone = ((hu[organs[0]] > BONE_HU) & level).mean(axis=0) > SPINE_SHARE
    # In the rear half, and the middle half across.
    _, rows, columns = box
    margin = (columns.stop - columns.start) // 4
    bone[: (rows.start + rows.stop) // 2] = False
    bone[:, : columns.start + margin] = bone[:, columns.stop - margin :] = False
    places = np.argwhere(largest(bone))
    if len(places) * np.prod(grid.GetSpacing()[:2]) < MIN_SPINE_MM2:
        return None
    row, column = np.median(places, axis=0)
    # Lungs are looked for within the body, from the organs' lower end upwards.
    first = organs[0].start
    box = bounding_box(body[first:])
    lungs = np.zeros(body.shape, bool)
    own_hu, own_lungs = hu[first:][box], lungs[first:][box]
    parts, sizes = components(_in_sections(filled, body[first:][box]) & (own_hu < LUNG_HU))
    for number in np.flatnonzero(sizes * np.prod(grid.GetSpacing()) > 1000 * MIN_LUNG_ML):
        part = parts == number
        # The scan's last slice may be a partial one.
        if part[-2:].any() and np.median(own_hu[part]) > GAS_HU:
            own_lungs |= part
    return Landmarks(float(row), float(column), lungs, grid.GetSpacing()[::-1])


def _split(
    spleen: np.ndarray, liver: np.ndarray, marks: Landmarks
) -> tuple[np.ndarray, np.ndarray]:
    """Parts of a spleen where a spleen can lie, and parts where it cannot, bool.

    The centre of a spleen, a very large one too, lies more to the left of the spine than in front
    of it, and not above the liver; that of a left ventricle lies more in front, or higher. Parts
    that are joined by less than 8 mm are judged on their own, the smallest not at all.
    """
    likely = np.zeros(spleen.shape, bool)
    heart = likely.copy()
    box = bounding_box(spleen)
    if box is None:
        return likely, heart
    box = widened(box, (1, 1, 1))
    parts, sizes = components(eroded_by_ball(spleen[box], (1, 1, 1)))
    top = np.flatnonzero(liver.any(axis=(1, 2)))[-1] if liver.any() else len(liver)
    least = 1000 * MIN_SPLEEN_ML / np.prod(marks.spacing)
    for number in range(1, len(sizes)):
        core = parts == number
        part = dilated_by_ball(core, (2, 2, 2)) & spleen[box]
        if np.count_nonzero(part) < least:
            continue
        places = np.argwhere(core) + [each.start for each in box]
        height, row, column = places.mean(axis=0)
        left = (column - marks.column) * marks.spacing[2]
        front = (marks.row - row) * marks.spacing[1]
        high = height > top or front > left
        target = heart if high and left < VENTRICLE_MM else likely
        target[box] |= part
    return likely, heart & ~likely


def _heart_in_liver(liver: np.ndarray, marks: Landmarks) -> np.ndarray:
    """Voxels of a liver, bool, that lie where the heart is.

    In an axial section these are parts apart from the right lobe, in front of the spine, with lung
    between them and the right lobe. The left lobe lies below the heart.
    """
    heart = np.zeros(liver.shape, bool)
    lobe = max(round(marks.column - RIGHT_LOBE_MM / marks.spacing[2]), 0)
    sections = np.flatnonzero(liver.any(axis=(1, 2)) & marks.lungs.any(axis=(1, 2)))
    if not sections.size:
        return heart
    inside = liver[sections]
    _, rows, columns = box = widened(bounding_box(inside), (0, 2, 2))
    inside = inside[box]
    parts = _in_sections(lambda each: components(each)[0], eroded_by_ball(inside, (0, 1, 1)))
    count = parts.max()
    right = parts[:, :, : max(lobe - columns.start, 0)]
    # Of each part, its section and centre: in one pass, not one for each.
    section, row, column = places = np.nonzero(parts)
    numbers = parts[places]
    size = np.maximum(np.bincount(numbers, minlength=count + 1), 1)
    section_of = np.zeros(count + 1, np.intp)
    section_of[numbers] = section
    front = marks.row - rows.start - np.bincount(numbers, row, count + 1) / size
    front *= marks.spacing[1]
    left = np.bincount(numbers, column, count + 1) / size + columns.start - marks.column
    left *= marks.spacing[2]
    there = (HEART_MM[0] < left) & (left < np.minimum(HEART_MM[1], front))
    there &= right.any(axis=(1, 2))[section_of]
    there[0] = False
    there[right] = False
    cores = np.zeros(parts.shape, bool)
    for number in np.flatnonzero(there):
        at = section_of[number]
        part = parts[at] == number
        first = np.flatnonzero(part.any(axis=0))[0]
        lung = marks.lungs[sections[at], rows, : columns.start + first]
        if lung[part.any(axis=1)].any(axis=1).mean() >= LUNG_BETWEEN:
            cores[at] |= part
    if not cores.any():
        return heart
    heart[sections, rows, columns] = dilated_by_ball(cores, (0, 2, 2)) & inside
    parts, sizes = components(heart)
    for number in range(1, len(sizes)):
        part = parts == number
        if np.count_nonzero(part.any(axis=(1, 2))) * marks.spacing[0] < MIN_HEART_MM:
            heart[part] = False
    return heart


def _in_sections(function: Callable[[np.ndarray], np.ndarray], inside: np.ndarray) -> np.ndarray:
    """`components` or `filled` of each section on its own.

    In one call for all sections, below each other with an empty row between any two: a call for
    each is slower.
    """
    apart = np.pad(inside, ((0, 0), (0, 1), (0, 0)))
    return function(apart.reshape(-1, inside.shape[2])).reshape(apart.shape)[:, :-1]
