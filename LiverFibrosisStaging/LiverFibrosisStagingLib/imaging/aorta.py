"""The abdominal aorta, found from HU and geometry.

The spine is the path of most bone near the midline. The aorta is the path, in front or to the left
of the spine, of round and evenly filled disks whose HU drop to most sides. Brightness counts but is
not needed, so that an aorta without contrast is found as well. Both paths are the best ones over
all slices (Viterbi 1967, IEEE Trans Inf Theory 13:260-269). The constants were set on the CTs of
nine patients, one without contrast and one also in the arterial phase, and on simulated CTs.

Arrays are [slice, row, column] on the grid of `coarse.CoarseScan`.
"""

import math
from dataclasses import dataclass

import numpy as np

from .coarse import STEP_MM, CoarseScan
from .filters import gaussian
from .grid import bounding_box, widened

RADII_MM = (5.0, 7.0, 9.0, 11.0, 13.0, 16.0)  # of an aneurysm, the inner part is found
MIN_LENGTH_MM = 30.0  # of the slices in which the aorta is clear
_MIN_CLEAR = 0.4  # share of the slices

_BONE_HU = (150.0, 550.0)  # weights increase in this range, so that kidneys weigh little
_MIN_BONE = 0.02  # of the largest weight
_SPINE_MM = 14.0  # sigma of the Gaussian that joins vertebral body and arch
_MIDLINE_MM = 45.0  # the scan need not be centred on the patient
_NEAR_MM = 126.0  # farther from the midline, the densest bone weighs less than _MIN_BONE
# Where the centre of the aorta can be, from the centre of the spine's bone.
_BEHIND_MM = (-76.0, 4.0)
_LEFT_MM = (-24.0, 48.0)
_USUAL_LEFT_MM, _SPREAD_MM = 12.0, 40.0  # the vena cava lies to the right
_MAX_BLOOD_HU, _NEVER = 600.0, 10.0  # denser disks are bone; no sum of scores outweighs this
_DIRECTIONS = 16
_MIN_DROP_HU = 20.0
_MIN_DROP = 0.3  # of the disk's HU, so that muscle beside an enhanced aorta is lower
_MIN_DROP_SD = 2.5  # times the standard deviation in the disk, so that noise makes no drop
_RIM_HU = 60.0  # a brighter rim is the cortical bone of a vertebra
_CLEAR = 0.5  # share of the directions with a drop
_SCATTER_HU = 60.0  # standard deviation in the disk that outweighs a drop to all sides
_DARK_HU, _BRIGHT_HU = 20.0, 130.0  # brighter than in the portal-venous phase is not better
_BRIGHTNESS = 0.5
_PER_MM = 0.015  # small disks fit into everything, so larger ones count more
_TURN = 0.05  # for each voxel by which a path moves from slice to slice


@dataclass(frozen=True, eq=False)
class Aorta:
    """hu: median over the clear slices of the disk's mean; radius_mm: median; length_mm: of the
    clear slices; path: row and column in each slice, int [slices, 2].
    """

    hu: float
    radius_mm: float
    length_mm: float
    path: np.ndarray


def find_aorta(scan: CoarseScan, spine: np.ndarray) -> Aorta | None:
    """The aorta; None if none is clear. spine: as from `find_spine`."""
    rows, columns = (
        np.arange(round(low / step), round(high / step) + 1)
        for (low, high), step in zip((_BEHIND_MM, _LEFT_MM), STEP_MM[1:])
    )
    windows, margin = _windows(scan.hu, spine, rows, columns)
    sums = zip(RADII_MM, _disk_means(windows, margin), _disk_means(windows**2, margin))
    found = [_disks(windows, margin, *each) for each in sums]
    away = ((columns * STEP_MM[2] - _USUAL_LEFT_MM) / _SPREAD_MM) ** 2
    for score, _, mean in found:
        score -= away[:, None].astype(np.float32)
        score[mean > _MAX_BLOOD_HU] -= _NEVER
    best = np.maximum.reduce([score for score, _, _ in found])
    path = _best_path(np.moveaxis(best, -1, 0), np.diff(spine, axis=0))

    slices = np.arange(len(path))
    # On the path, [radius, slice].
    scores, drops, means = (
        np.stack([each[path[:, 0], path[:, 1], slices] for each in kind]) for kind in zip(*found)
    )
    radius = scores.argmax(axis=0)
    at = (radius, slices)
    clear = (drops[at] >= _CLEAR) & (scores[at] > 0)
    length = float(np.count_nonzero(clear) * STEP_MM[0])
    if length < MIN_LENGTH_MM or clear.mean() < _MIN_CLEAR:
        return None
    return Aorta(
        hu=float(np.median(means[at][clear])),
        radius_mm=float(np.median(np.array(RADII_MM)[radius[clear]])),
        length_mm=length,
        path=spine + np.column_stack([rows[path[:, 0]], columns[path[:, 1]]]),
    )


def find_spine(scan: CoarseScan) -> np.ndarray | None:
    """Row and column of the middle of the spine's bone, int [slices, 2]; None without bone."""
    box = bounding_box(scan.body)
    if box is None:
        return None
    # Only the body and one voxel around it, from which the filter sees that no bone is beyond.
    box = widened(box, (len(scan.hu), 1, 1))
    body = scan.body[box]
    low, high = _BONE_HU
    bone = (scan.hu[box] - low).clip(0.0, high - low)
    bone *= body
    # The rear half of the body, where the spine is, near the midline.
    _, rows, columns = bounding_box(body)
    rear = slice((rows.start + rows.stop - 1) // 2 + 1, rows.stop)
    across = (np.arange(body.shape[2]) - (columns.start + columns.stop - 1) / 2) * STEP_MM[2]
    reach = math.ceil(_NEAR_MM / STEP_MM[2])
    middle = (columns.start + columns.stop) // 2
    near = slice(max(columns.start, middle - reach), min(columns.stop, middle + reach))
    bone = gaussian(bone, [_SPINE_MM] * 3, STEP_MM, (slice(None), rear, near))
    bone *= np.exp(-0.5 * (across[near] / _MIDLINE_MM) ** 2)
    if bone.size == 0 or bone.max() < _MIN_BONE * (high - low):
        return None
    path = _best_path(bone / bone.max(), np.zeros((len(bone) - 1, 2), int))
    return path + np.array([box[1].start + rear.start, box[2].start + near.start])


def _windows(
    hu: np.ndarray, spine: np.ndarray, rows: np.ndarray, columns: np.ndarray
) -> tuple[np.ndarray, int]:
    """Smoothed HU [row, column, slice] at these places from the spine, with a margin for rays.

    Slices are last, since the arrays of `_disks` are then added up in long runs of memory.
    """
    margin = int((RADII_MM[-1] + 6.0) / STEP_MM[1]) + 1
    around = [np.arange(each[0] - margin, each[-1] + margin + 1) for each in (rows, columns)]
    y, x = (
        np.clip(spine[:, axis, None] + around[axis], 0, hu.shape[axis + 1] - 1) for axis in (0, 1)
    )
    # Smoothed along the body, only where the windows are.
    above, left = y.min(), x.min()
    near = hu[:, above : y.max() + 1, left : x.max() + 1]
    near = gaussian(near, (STEP_MM[0], 0.0, 0.0), STEP_MM)
    slices = np.arange(len(hu))[:, None, None]
    windows = near[slices, y[:, :, None] - above, x[:, None, :] - left]
    return np.ascontiguousarray(np.moveaxis(windows, 0, -1)), margin


def _disk_means(values: np.ndarray, margin: int) -> list[np.ndarray]:
    """Means of values [row, column, slice] in the disks of each of RADII_MM around all places.

    A disk is added up row by row. The sums of 1, 3, 5... neighbours in a row serve all disks.
    """
    height, width = (length - 2 * margin for length in values.shape[:2])
    limits = [0.75 * radius / STEP_MM[1] for radius in RADII_MM]
    rows = [values[:, margin : margin + width]]
    for half in range(1, int(limits[-1]) + 1):
        left, right = (values[:, margin + side :][:, :width] for side in (-half, half))
        rows.append(rows[-1] + left)
        rows[-1] += right
    means = []
    for limit in limits:
        total, count = np.zeros((height, width, values.shape[2]), values.dtype), 0
        for down in range(-int(limit), int(limit) + 1):
            half = int(math.sqrt(limit**2 - down**2))
            total += rows[half][margin + down : margin + down + height]
            count += 2 * half + 1
        total /= count
        means.append(total)
    return means


def _disks(
    windows: np.ndarray, margin: int, radius: float, mean: np.ndarray, mean_square: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Score, share of the directions with a drop, and mean HU of the disks of one radius.

    mean, mean_square: of the HU in the disks. All [row, column, slice].
    """
    height, width = mean.shape[:2]
    step = STEP_MM[1]

    def shifted(down: float, right: float) -> np.ndarray:
        row, column = margin + round(down / step), margin + round(right / step)
        return windows[row : row + height, column : column + width]

    scatter = np.sqrt(np.maximum(mean_square - mean**2, 0.0))
    needed = np.maximum(_MIN_DROP * mean, np.maximum(_MIN_DROP_SD * scatter, _MIN_DROP_HU))
    lowest, highest = mean - needed, mean + _RIM_HU
    found = np.zeros(mean.shape, np.uint8)
    extreme, fits = np.empty_like(mean), np.empty(mean.shape, bool)
    for angle in 2 * np.pi * np.arange(_DIRECTIONS) / _DIRECTIONS:
        near, *ray = (
            shifted(distance * np.sin(angle), distance * np.cos(angle))
            for distance in radius + np.array((-1.0, 1.0, 3.0, 5.0))
        )
        # In the same memory each time, which takes a tenth less.
        lower = np.less(np.minimum(ray[1], ray[2], out=extreme), lowest, out=fits)
        for each in ray:
            near = np.maximum(near, each, out=extreme)
        found += lower & (near < highest)
    drops = found / np.float32(_DIRECTIONS)
    brightness = np.clip((mean - _DARK_HU) / (_BRIGHT_HU - _DARK_HU), -1.0, 1.0)
    score = drops - _CLEAR - scatter / _SCATTER_HU + _BRIGHTNESS * brightness + _PER_MM * radius
    return score, drops, mean


def _best_path(scores: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """Row and column, int [slices, 2], of the connected path with the highest sum of scores.

    moved: by how many rows and columns the scores' origin moves to the next slice.
    """
    height, width = scores.shape[1:]
    # By slice, the highest sum of a path up to each voxel; with a border, which none crosses.
    reach = int(np.abs(moved).max(initial=0)) + 1
    totals = np.full((len(scores), height + 2 * reach, width + 2 * reach), -np.inf)
    inner = totals[:, reach:-reach, reach:-reach]
    inner[0] = scores[0]

    def before(number: int) -> np.ndarray:
        """Sums in the slice before this one, at its voxels and one around."""
        y, x = reach - 1 + moved[number - 1]
        return totals[number - 1, y : y + height + 2, x : x + width + 2]

    for number in range(1, len(scores)):
        # A move costs as much as its parts along rows and columns, so that each is chosen alone.
        best = before(number)
        best = np.maximum(best[:, 1:-1], np.maximum(best[:, :-2], best[:, 2:]) - _TURN)
        best = np.maximum(best[1:-1], np.maximum(best[:-2], best[2:]) - _TURN)
        np.add(scores[number], best, out=inner[number])
    cost = _TURN * np.add.outer([1, 0, 1], [1, 0, 1])
    path = np.empty((len(scores), 2), int)
    path[-1] = np.unravel_index(inner[-1].argmax(), inner[-1].shape)
    for number in range(len(scores) - 1, 0, -1):
        y, x = path[number]
        options = before(number)[y : y + 3, x : x + 3] - cost
        move = np.unravel_index(options.argmax(), options.shape)
        path[number - 1] = path[number] + moved[number - 1] + np.subtract(move, 1)
    return path
