"""The abdominal aorta, found from HU and geometry.

The spine is the path of most bone near the midline. The aorta is the path, in front or to the left
of the spine, of round and evenly filled disks whose HU drop to most sides. Brightness counts but is
not needed, so that an aorta without contrast is found as well. Both paths are the best ones over
all slices (Viterbi 1967, IEEE Trans Inf Theory 13:260-269). The constants were set on the CTs of
nine patients, one without contrast and one also in the arterial phase, and on simulated CTs.

Arrays are [slice, row, column] on the grid of `coarse.CoarseScan`.
"""

from dataclasses import dataclass

import numpy as np

from .coarse import STEP_MM, CoarseScan
from .filters import gaussian
from .grid import bounding_box

RADII_MM = (5.0, 7.0, 9.0, 11.0, 13.0, 16.0)  # of an aneurysm, the inner part is found
MIN_LENGTH_MM = 30.0  # of the slices in which the aorta is clear
_MIN_CLEAR = 0.4  # share of the slices

_BONE_HU = (150.0, 550.0)  # weights increase in this range, so that kidneys weigh little
_MIN_BONE = 0.02  # of the largest weight
_SPINE_MM = 14.0  # sigma of the Gaussian that joins vertebral body and arch
_MIDLINE_MM = 45.0  # the scan need not be centred on the patient
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
_REACH = 8  # voxels by which the spine can move from slice to slice


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
    found = [_disks(windows, margin, radius) for radius in RADII_MM]
    scores, drops, means = (np.stack(kind) for kind in zip(*found))
    scores -= ((columns * STEP_MM[2] - _USUAL_LEFT_MM) / _SPREAD_MM) ** 2
    scores -= np.where(means > _MAX_BLOOD_HU, _NEVER, 0.0)
    best = scores.max(axis=0)
    path = _best_path(best, np.diff(spine, axis=0))

    slices = np.arange(len(path))
    radius = scores.argmax(axis=0)[slices, path[:, 0], path[:, 1]]
    at = (radius, slices, path[:, 0], path[:, 1])
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
    _, rows, columns = box
    low, high = _BONE_HU
    bone = np.where(scan.body, np.clip(scan.hu - low, 0.0, high - low), 0.0)
    # The rear half of the body, where the spine is.
    rear = slice((rows.start + rows.stop - 1) // 2 + 1, rows.stop)
    bone = gaussian(bone, [_SPINE_MM] * 3, STEP_MM, (slice(None), rear, columns))
    across = np.arange(bone.shape[2]) - (bone.shape[2] - 1) / 2
    bone *= np.exp(-0.5 * (across * STEP_MM[2] / _MIDLINE_MM) ** 2)
    if bone.size == 0 or bone.max() < _MIN_BONE * (high - low):
        return None
    path = _best_path(bone / bone.max(), np.zeros((len(bone) - 1, 2), int))
    return path + np.array([rear.start, columns.start])


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


def _disks(
    windows: np.ndarray, margin: int, radius: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Score, share of the directions with a drop, and mean HU of the disks of one radius."""
    height, width = (length - 2 * margin for length in windows.shape[:2])
    step = STEP_MM[1]

    def shifted(values: np.ndarray, down: float, right: float) -> np.ndarray:
        row, column = margin + round(down / step), margin + round(right / step)
        return values[row : row + height, column : column + width]

    grid = step * np.arange(-int(radius / step), int(radius / step) + 1)
    inside = [(y, x) for y in grid for x in grid if np.hypot(y, x) <= 0.75 * radius]

    def mean_inside(values: np.ndarray) -> np.ndarray:
        total = np.zeros((height, width, values.shape[2]), values.dtype)
        for place in inside:
            total += shifted(values, *place)
        return total / len(inside)

    mean = mean_inside(windows)
    variance = mean_inside(windows**2) - mean**2
    scatter = np.sqrt(np.maximum(variance, 0.0))
    needed = np.maximum(_MIN_DROP * mean, np.maximum(_MIN_DROP_SD * scatter, _MIN_DROP_HU))
    lowest, highest = mean - needed, mean + _RIM_HU
    found = np.zeros(mean.shape, np.uint8)
    for angle in 2 * np.pi * np.arange(_DIRECTIONS) / _DIRECTIONS:
        near, *ray = (
            shifted(windows, distance * np.sin(angle), distance * np.cos(angle))
            for distance in radius + np.array((-1.0, 1.0, 3.0, 5.0))
        )
        lower = np.minimum(ray[1], ray[2]) < lowest
        for each in ray:
            near = np.maximum(near, each)
        found += lower & (near < highest)
    drops = found / np.float32(_DIRECTIONS)
    brightness = np.clip((mean - _DARK_HU) / (_BRIGHT_HU - _DARK_HU), -1.0, 1.0)
    score = drops - _CLEAR - scatter / _SCATTER_HU + _BRIGHTNESS * brightness + _PER_MM * radius
    score, drops, mean = (np.moveaxis(kind, -1, 0) for kind in (score, drops, mean))
    return score, drops, mean


def _best_path(scores: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """Row and column, int [slices, 2], of the connected path with the highest sum of scores.

    moved: by how many rows and columns the scores' origin moves to the next slice.
    """
    moves = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    cost = _TURN * np.abs(moves).sum(axis=1)
    moved = np.clip(moved, 1 - _REACH, _REACH - 1)
    height, width = scores.shape[1:]
    total, came = scores[0], np.zeros(scores.shape, np.int8)
    for number in range(1, len(scores)):
        padded = np.pad(total, _REACH, constant_values=-np.inf)
        rows, columns = (_REACH + moved[number - 1] + moves).T
        before = [padded[y : y + height, x : x + width] for y, x in zip(rows, columns)]
        best = before[0] - cost[0]
        for move in range(1, len(moves)):
            option = before[move] - cost[move]
            np.copyto(came[number], move, where=option > best)
            np.maximum(best, option, out=best)
        total = scores[number] + best
    path = np.empty((len(scores), 2), int)
    path[-1] = np.unravel_index(total.argmax(), total.shape)
    for number in range(len(scores) - 1, 0, -1):
        move = moves[came[(number, *path[number])]]
        path[number - 1] = path[number] + moved[number - 1] + move
    return path
