"""Liver surface nodularity on CT, after Smith et al. 2016 (Radiology 280:771-781).

The score is the mean distance, in tenths of a millimetre, between the liver's edge and a smooth
curve fitted to it, over the anterior surface and all slices. The published program is not
available and a reader chooses its edge; what is not in the paper is defined here, so the values
cannot be compared with those of that program.

**Slices.** The CT is reordered towards LPS axes, not rotated: the edge is sought in the slices as
they were acquired. Slices thinner than SLAB_MM are averaged to slabs of about that thickness, and
each slice is smoothed in plane with a Gaussian of SMOOTHING_MM, which makes noise and pixel size
less important.

**Edge.** The mask's outline, smoothed by OUTLINE_MM, only says where to look and gives the outward
normals, one every STEP_MM. The HU along them are averaged along the outline by ALONG_MM. The edge
is where they first fall below the middle between the liver's median and fat (FAT_HU), by linear
interpolation, within SEARCH_MM of the outline. A point is used if

- its normal is within ANTERIOR_DEGREES of the anterior direction (LPS, projected on the slice),
- the liver lies inside: the mean of INSIDE_MM before the edge is within LIVER_HU of the median,
- fat lies outside: within OUTSIDE_MM the HU fall to FAT_SEEN_HU, but never to AIR_HU, so that lung,
  bowel gas, the abdominal wall and the stomach's wall are no neighbours,
- the edge is sharp: contrast over slope is at most BLUR_MM. A slice that cuts the surface at a flat
  angle, as at the dome, has no sharp edge.

**Curve.** Neighbouring points form a piece as long as the edge does not jump; pieces shorter than
PIECE_MM are left out. The curve is a local quadratic regression of the points' coordinates over the
length of the edge, with Gaussian weights of FIT_MM: waves shorter than 30 mm are distances, waves
longer than 60 mm are shape. Distances are perpendicular to the curve. Where the curve's radius is
below CORNER_MM (tips, fissures, the gallbladder's fossa) they do not count.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

from ..errors import CancelToken, check_cancel
from ..imaging.grid import bounding_box
from ..imaging.voxels import Voxels

SLAB_MM = 2.5
SMOOTHING_MM = 1.0
ALONG_MM = 1.2
STEP_MM = 1.0
SEARCH_MM = 6.0
OUTLINE_MM = 4.0  # standard deviation of the Gaussian along the outline
PROFILE_MM = 0.25
ANTERIOR_DEGREES = 60.0
FAT_HU = -100.0
FAT_SEEN_HU = -30.0
AIR_HU = -200.0
LIVER_HU = 40.0
INSIDE_MM = (4.0, 1.5)
OUTSIDE_MM = 5.0
BLUR_MM = 6.0
JUMP_MM = 1.0
PIECE_MM = 30.0
FIT_MM = 12.0
CORNER_MM = 30.0

# A slice much thicker than a nodule averages over it; pixels must resolve the edge.
MAX_SLICE_MM = 5.0
MAX_PIXEL_MM = 1.5
MIN_CONTRAST_HU = 100.0
MIN_EDGE_MM = 300.0
MIN_SLICES = 5
_TOLERANCE = 1.01


@dataclass(frozen=True, eq=False)
class EdgePiece:
    """A piece of the liver's edge in one slice.

    points: float64 [n, 3], edge, LPS in mm; curve: the fitted curve at the same places;
    distances: float64 [n], mm, positive outside the curve; counted: bool [n], False at corners.
    """

    slice_number: int
    points: np.ndarray
    curve: np.ndarray
    distances: np.ndarray
    counted: np.ndarray


@dataclass(frozen=True)
class Nodularity:
    """mm10: the score in tenths of a millimetre; None if not measurable, for the reason given.

    edge_mm: length of the edge that counts, over all slices; slices: how many slices contain it.
    """

    mm10: float | None
    edge_mm: float
    slices: int
    reason: str = ""


def nodularity(
    ct: sitk.Image, liver: sitk.Image, level: float, cancel: CancelToken | None = None
) -> Nodularity:
    """The score of this module for a CT (HU) and a liver mask on its grid, non-zero inside.

    level: the liver's median HU. cancel: asked before each slab. Raises Cancelled.

    Not measurable: slices thicker than MAX_SLICE_MM, pixels larger than MAX_PIXEL_MM, a liver with
    less than MIN_CONTRAST_HU above fat, an edge shorter than MIN_EDGE_MM or in fewer slices than
    MIN_SLICES.
    """
    *pixels, slice_mm = Voxels.of(ct).lps().spacing
    pixel = max(pixels)
    if slice_mm > MAX_SLICE_MM * _TOLERANCE or pixel > MAX_PIXEL_MM * _TOLERANCE:
        return Nodularity(
            None,
            0.0,
            0,
            f"The voxels have {pixel:.2g} mm in plane and slices of {slice_mm:.2g} mm; at most "
            f"{MAX_PIXEL_MM:g} and {MAX_SLICE_MM:g} mm are needed to measure nodularity.",
        )
    if level - FAT_HU < MIN_CONTRAST_HU:
        return Nodularity(
            None,
            0.0,
            0,
            f"The liver has {level:.0f} HU; at least {FAT_HU + MIN_CONTRAST_HU:.0f} HU are needed "
            "for an edge with contrast to fat.",
        )
    pieces = edge_pieces(ct, liver, level, cancel)
    distances = np.concatenate([[], *(np.abs(piece.distances[piece.counted]) for piece in pieces)])
    slices = len({piece.slice_number for piece in pieces if piece.counted.any()})
    length = STEP_MM * len(distances)
    if length < MIN_EDGE_MM or slices < MIN_SLICES:
        return Nodularity(
            None,
            length,
            slices,
            f"Only {length:.0f} mm of the anterior edge, in {slices} slices, border on fat with "
            f"enough contrast; at least {MIN_EDGE_MM:.0f} mm in {MIN_SLICES} slices are needed to "
            "measure nodularity.",
        )
    return Nodularity(10 * float(distances.mean()), length, slices)


def edge_pieces(
    ct: sitk.Image, liver: sitk.Image, level: float, cancel: CancelToken | None = None
) -> tuple[EdgePiece, ...]:
    """The pieces of the liver's edge that the score rests on, from the lowest slice on.

    Parameters as for `nodularity`. slice_number counts the slabs of the module's description.
    """
    scan = Voxels.of(ct).lps()
    inside, hu = Voxels.of(liver).lps().array, scan.array
    box = bounding_box(inside)
    if box is None:
        return ()
    first, last = box[0].start, box[0].stop
    slab = min(round(SLAB_MM / scan.spacing[2]), last - first) or 1
    frame = _Frame.of_slabs(scan, first, slab)
    kernel = [_gaussian(SMOOTHING_MM / spacing) for spacing in frame.spacing[1::-1]]
    corner = np.array([box[2].start, box[1].start])
    found = []
    for number in range((last - first) // slab):
        check_cancel(cancel)
        part = slice(first + number * slab, first + (number + 1) * slab)
        within = np.add.reduce(inside[(part, *box[1:])] != 0, axis=0, dtype=np.uint16)
        for outline in _outlines(2 * within > slab):
            points = (outline + corner) * frame.spacing[:2]
            for piece in _edges(_Slab(hu[part], kernel), points, frame, level):
                found.append(_fitted(piece, number, frame))
    return tuple(found)


@dataclass(frozen=True, eq=False)
class _Frame:
    """A grid of slabs: LPS mm of the first voxel; cosines, in columns; spacing x, y, z in mm."""

    origin: np.ndarray
    direction: np.ndarray
    spacing: np.ndarray

    @classmethod
    def of_slabs(cls, scan: Voxels, first: int, count: int) -> "_Frame":
        """The frame of slabs of `count` slices from slice `first` of a scan on."""
        middle = scan.spacing[2] * (first + (count - 1) / 2)
        origin = scan.origin + middle * scan.direction[:, 2]
        return cls(origin, scan.direction, scan.spacing * [1, 1, count])

    def in_patient(self, points: np.ndarray, number: int) -> np.ndarray:
        """Points [n, 2] in a slice, in mm from its first pixel, as LPS [n, 3]."""
        place = np.column_stack([points, np.full(len(points), number * self.spacing[2])])
        return self.origin + place @ self.direction.T


@dataclass(frozen=True, eq=False)
class _Slab:
    """The slices of a slab, HU [slice, row, column], and the kernels along rows and columns."""

    slices: np.ndarray
    kernels: list[np.ndarray]

    def at(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """HU averaged over the slab and smoothed, at columns x and rows y; NaN outside.

        Bilinear between pixels; only those around the places are smoothed.
        """
        _, rows, columns = self.slices.shape
        outside = (x < 0) | (x > columns - 1) | (y < 0) | (y > rows - 1)
        x, y = np.clip(x, 0, columns - 1), np.clip(y, 0, rows - 1)
        column, row = x.astype(np.intp), y.astype(np.intp)
        x, y = x - column, y - row
        left, top = column.min(), row.min()
        # With the pixels behind the last ones.
        values = self._smoothed((top, left), (row.max() + 2, column.max() + 2))
        width = values.shape[1]
        place = (row - top) * width + (column - left)
        values = values.ravel()
        upper = values[place] * (1 - x) + values[place + 1] * x
        lower = values[place + width] * (1 - x) + values[place + width + 1] * x
        return np.where(outside, np.nan, upper * (1 - y) + lower * y)

    def _smoothed(self, low: tuple[int, int], high: tuple[int, int]) -> np.ndarray:
        """The pixels from (row, column) `low` up to `high`; the slices' edges are repeated."""
        reach = [len(kernel) // 2 for kernel in self.kernels]
        start, stop = np.subtract(low, reach), np.add(high, reach)
        inner = np.maximum(start, 0), np.minimum(stop, self.slices.shape[1:])
        part = self.slices[(slice(None), *map(slice, *inner))].mean(axis=0, dtype=np.float64)
        values = np.pad(part, np.stack([inner[0] - start, stop - inner[1]], axis=1), mode="edge")
        for axis, kernel in enumerate(self.kernels):
            count = values.shape[axis] - len(kernel) + 1
            lines = np.moveaxis(values, axis, 0)
            lines = sum(weight * lines[k : k + count] for k, weight in enumerate(kernel))
            values = np.moveaxis(lines, 0, axis)
        return values


def _gaussian(sigma: float) -> np.ndarray:
    """Weights of a discrete Gaussian, sigma in pixels: SimpleITK's response to one pixel."""
    reach = math.ceil(8 * sigma) + 1
    impulse = np.zeros((1, 2 * reach + 1))
    impulse[0, reach] = 1
    response = sitk.DiscreteGaussian(sitk.GetImageFromArray(impulse), [sigma**2, 0.0])
    weights = sitk.GetArrayFromImage(response)[0]
    return weights[weights > 0]


def _outlines(inside: np.ndarray) -> list[np.ndarray]:
    """Closed outlines of a mask [row, column] along the borders of its pixels.

    Each is float64 [n, 2], corners (column, row) in pixels, pixel centres at whole numbers. The
    inside is on the right of the way when x points right and y down.
    """
    padded = np.pad(inside, 1)
    width = padded.shape[1] + 1
    # Directed borders between corners, numbered row by row; rows and columns of corners count from
    # the padding.
    starts, ends = [], []
    for axis, to_right, to_left in ((0, (0, 1), (1, 0)), (1, (width, 0), (0, width))):
        first, second = np.moveaxis(padded, axis, 0)[:-1], np.moveaxis(padded, axis, 0)[1:]
        change = np.moveaxis(first != second, 0, axis)
        rows, columns = np.divmod(np.flatnonzero(change), change.shape[1])
        corner = (rows + (axis == 0)) * width + columns + (axis == 1)
        enters = ~padded[rows, columns]
        for chosen, (start, end) in ((enters, to_right), (~enters, to_left)):
            starts.append(corner[chosen] + start)
            ends.append(corner[chosen] + end)
    begin, finish = np.concatenate(starts), np.concatenate(ends)
    after = dict(zip(begin.tolist(), finish.tolist()))
    # Where two pixels touch at a corner, two borders begin; `after` has the later one.
    earlier = {}
    if len(after) < len(begin):
        first_of = np.unique(begin, return_index=True)[1]
        earlier = {
            start: end
            for start, end in zip(begin[first_of].tolist(), finish[first_of].tolist())
            if after[start] != end
        }
    outlines = []
    while after:
        first = here = next(iter(after))
        way = []
        while True:
            way.append(here)
            end = after[here]
            if here in earlier:
                after[here] = earlier.pop(here)
            else:
                del after[here]
            here = end
            if here == first:
                break
        rows, columns = np.divmod(way, width)
        outlines.append(np.stack([columns, rows], axis=1) - 1.5)
    return outlines


def _edges(slab: _Slab, outline: np.ndarray, frame: _Frame, level: float) -> list[np.ndarray]:
    """Pieces [n, 2] of the edge near one outline [m, 2], in mm from the slice's first pixel."""
    base = _smoothed(outline)
    if base is None:
        return []
    tangent = np.roll(base, -1, 0) - np.roll(base, 1, 0)
    normal = np.stack([tangent[:, 1], -tangent[:, 0]], axis=1)
    normal /= np.hypot(*normal.T)[:, None]
    anterior = -frame.direction[1, :2] / np.linalg.norm(frame.direction[1, :2])
    ahead = normal @ anterior >= math.cos(math.radians(ANTERIOR_DEGREES))
    if not ahead.any():
        return []
    at = np.arange(-SEARCH_MM - INSIDE_MM[0], SEARCH_MM + OUTSIDE_MM + PROFILE_MM / 2, PROFILE_MM)

    def profiles(places: np.ndarray) -> np.ndarray:
        x, y = (
            (base[places, axis, None] + at * normal[places, axis, None]) / frame.spacing[axis]
            for axis in (0, 1)
        )
        return slab.at(x, y)

    offset = np.full(len(base), np.nan)
    offset[ahead] = _offsets(_along(profiles, ahead), at, level)
    # Start behind a gap, so that no piece runs over the end of the closed outline.
    together = np.abs(np.diff(offset, append=offset[:1])) <= JUMP_MM * STEP_MM
    start = int(np.argmin(together)) + 1
    order = np.roll(np.arange(len(base)), -start)
    ends = np.concatenate([[0], np.flatnonzero(~together[order]) + 1, [len(order)]])
    edge = base + offset[:, None] * normal
    # Most pieces are single points without an edge, so that only the long ones are looked at.
    long = np.flatnonzero(np.diff(ends) * STEP_MM >= PIECE_MM)
    pieces = (order[ends[k] : ends[k + 1]] for k in long)
    return [edge[piece] for piece in pieces if np.isfinite(offset[piece]).all()]


def _smoothed(outline: np.ndarray) -> np.ndarray | None:
    """A closed outline in steps of STEP_MM, smoothed by OUTLINE_MM; None if it is too short."""
    closed = np.concatenate([outline, outline[:1]])
    length = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(closed, axis=0).T))])
    if length[-1] < 2 * PIECE_MM:
        return None
    fine = np.arange(0, length[-1], PROFILE_MM)
    dense = np.stack([np.interp(fine, length, along) for along in closed.T])
    frequency = np.fft.rfftfreq(len(fine), length[-1] / len(fine))
    weight = np.exp(-2 * (np.pi * frequency * OUTLINE_MM) ** 2)
    smooth = np.fft.irfft(np.fft.rfft(dense) * weight, len(fine)).T
    # The borders of pixels are longer than the line they stand for.
    closed = np.concatenate([smooth, smooth[:1]])
    length = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(closed, axis=0).T))])
    even = np.linspace(0, length[-1], max(round(length[-1] / STEP_MM), 1), endpoint=False)
    return np.stack([np.interp(even, length, closed[:, axis]) for axis in (0, 1)], axis=1)


def _along(profiles: Callable[[np.ndarray], np.ndarray], chosen: np.ndarray) -> np.ndarray:
    """Profiles [n, m] at the chosen places of a closed outline, averaged along it by ALONG_MM.

    profiles: those at places, int [k], as [k, m]; chosen: bool, of every place.
    """
    reach = math.ceil(3 * ALONG_MM / STEP_MM)
    steps = np.arange(-reach, reach + 1)
    weights = np.exp(-((steps * STEP_MM / ALONG_MM) ** 2) / 2)
    weights /= weights.sum()
    around = (np.flatnonzero(chosen) - steps[:, None]) % len(chosen)
    needed, place = np.unique(around, return_inverse=True)
    found = profiles(needed)
    return sum(weight * found[each] for weight, each in zip(weights, place.reshape(around.shape)))


def _offsets(profiles: np.ndarray, at: np.ndarray, level: float) -> np.ndarray:
    """Where each profile [n, m] crosses the liver's edge, mm; NaN where it has no usable edge."""
    middle = (level + FAT_HU) / 2
    lines = np.arange(len(profiles))
    possible = (at >= -SEARCH_MM) & (at <= SEARCH_MM)
    below = (profiles < middle) & possible
    after = below.argmax(axis=1)  # at least INSIDE_MM[0] behind the profile's first place
    before = after - 1
    high, low = profiles[lines, before], profiles[lines, after]
    with np.errstate(invalid="ignore", divide="ignore"):
        offset = at[before] + PROFILE_MM * (high - middle) / (high - low)
        slope = (high - low) / PROFILE_MM
        apart = at - offset[:, None]
        inside = (apart >= -INSIDE_MM[0]) & (apart <= -INSIDE_MM[1])
        outside = (apart > 0) & (apart <= OUTSIDE_MM)
        liver = np.where(inside, profiles, 0).sum(axis=1) / inside.sum(axis=1)
        lowest = np.where(outside, profiles, np.inf).min(axis=1)
        good = (
            below.any(axis=1)
            & (high >= middle)
            & (np.abs(liver - level) <= LIVER_HU)
            & (lowest <= FAT_SEEN_HU)
            & (lowest > AIR_HU)
            & ((level - FAT_HU) / slope <= BLUR_MM)
        )
    return np.where(good, offset, np.nan)


def _fitted(points: np.ndarray, number: int, frame: _Frame) -> EdgePiece:
    """The curve through the points [n, 2] of one piece, and their distances from it."""
    at = STEP_MM * np.arange(len(points))
    apart = (at[None] - at[:, None]) / FIT_MM
    weight = np.exp(-(apart**2) / 2)
    powers = apart[..., None] ** np.arange(3)
    normal = np.einsum("ij,ijk,ijl->ikl", weight, powers, powers)
    moments = np.einsum("ij,ijk,jc->ikc", weight, powers, points)
    curve, first, half_second = np.moveaxis(np.linalg.solve(normal, moments), 1, 0)
    speed = np.linalg.norm(first, axis=1)
    bend = np.abs(first[:, 0] * half_second[:, 1] - first[:, 1] * half_second[:, 0]) * 2
    across = np.stack([first[:, 1], -first[:, 0]], axis=1) / speed[:, None]
    distances = ((points - curve) * across).sum(axis=1)
    return EdgePiece(
        number,
        frame.in_patient(points, number),
        frame.in_patient(curve, number),
        distances,
        bend * CORNER_MM <= speed**3,
    )
