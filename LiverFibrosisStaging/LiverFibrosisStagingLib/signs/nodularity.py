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
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from numpy.lib.stride_tricks import sliding_window_view

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
    kernels = [_gaussian(SMOOTHING_MM / spacing) for spacing in frame.spacing[1::-1]]
    corner = np.array([box[2].start, box[1].start])
    parts = [slice(k, k + slab) for k in range(first, last - slab + 1, slab)]
    stack = np.empty((len(parts), *inside[(0, *box[1:])].shape), bool)
    for within, part in zip(stack, parts):
        check_cancel(cancel)
        voxels = np.add.reduce(inside[(part, *box[1:])] != 0, axis=0, dtype=np.uint16)
        np.greater(voxels, slab // 2, out=within)
    curves = []
    for number, outlines in enumerate(_outlines(stack, corner, frame.spacing[:2])):
        check_cancel(cancel)
        smoothed = map(_smoothed, outlines)
        curves += [(number, curve) for curve in smoothed if curve is not None]
    slabs = [_Slab(hu[part], kernels) for part in parts]
    return _fitted(_edges(slabs, curves, frame, level, cancel), frame)


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
        outside = None
        if min(x.min(), y.min()) < 0 or x.max() > columns - 1 or y.max() > rows - 1:
            outside = (x < 0) | (x > columns - 1) | (y < 0) | (y > rows - 1)
            x, y = np.clip(x, 0, columns - 1), np.clip(y, 0, rows - 1)
        column, row = np.floor(x), np.floor(y)
        x, y = x - column, y - row
        left, right, top, bottom = (
            int(end) for end in (column.min(), column.max(), row.min(), row.max())
        )
        # With the pixels behind the last ones.
        values = self._smoothed((top, left), (bottom + 2, right + 2))
        width = values.shape[1]
        place = (row * width + (column - (top * width + left))).astype(np.intp)
        # Each pixel with the one to its right, and the one below.
        values = values.ravel()
        steps = values[1:] - values[:-1]
        upper, lower = (
            values[first:].take(place) + steps[first:].take(place) * x for first in (0, width)
        )
        found = upper + (lower - upper) * y
        if outside is not None:
            found[outside] = np.nan
        return found

    def _smoothed(self, low: tuple[int, int], high: tuple[int, int]) -> np.ndarray:
        """The pixels from (row, column) `low` up to `high`; the slices' edges are repeated."""
        rows, columns = (
            np.arange(start - len(kernel) // 2, stop + len(kernel) // 2).clip(0, length - 1)
            for start, stop, length, kernel in zip(low, high, self.slices.shape[1:], self.kernels)
        )
        part = self.slices[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        values = np.add.reduce(part, axis=0, dtype=np.float64) / len(part)
        if values.shape != (len(rows), len(columns)):
            values = values[np.ix_(rows - rows[0], columns - columns[0])]
        for kernel in self.kernels:
            # The first axis is the last one afterwards, so that both have their turn.
            reach = len(kernel) // 2
            values = _along_rows(values.T, kernel)[:, reach : len(values) - reach]
        return np.ascontiguousarray(values)


def _along_rows(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted sums of neighbours along the rows of an array; not valid at the rows' ends."""
    # All rows at once, one behind the other.
    return np.correlate(values.ravel(), weights, "same").reshape(values.shape)


def _gaussian(sigma: float) -> np.ndarray:
    """Weights of a discrete Gaussian, sigma in pixels: SimpleITK's response to one pixel."""
    reach = math.ceil(8 * sigma) + 1
    impulse = np.zeros((1, 2 * reach + 1))
    impulse[0, reach] = 1
    response = sitk.DiscreteGaussian(sitk.GetImageFromArray(impulse), [sigma**2, 0.0])
    weights = sitk.GetArrayFromImage(response)[0]
    return weights[weights > 0]


def _outlines(inside: np.ndarray, first: np.ndarray, spacing: np.ndarray) -> list[list[np.ndarray]]:
    """Closed outlines of each slice of a mask [slice, row, column] along the borders of its pixels.

    Each is complex [n], the corners x + iy in mm from pixel 0; first: the mask's first column and
    row; spacing: mm along x and y. The inside is on the right of the way when x points right and y
    down.
    """
    padded = np.pad(inside, ((0, 0), (1, 1), (1, 1)))
    width = padded.shape[2]
    # All slices are searched at once. A corner has the number of the pixel above and to the left;
    # the padding of one slice ends where that of the next begins.
    pixels = padded.ravel()
    level = np.flatnonzero(pixels[:-width] != pixels[width:])
    upright = np.flatnonzero(pixels[:-1] != pixels[1:])
    to_right, to_left = level[pixels[level + width]] - 1, level[pixels[level]]
    up, down = upright[pixels[upright + 1]], upright[pixels[upright]] - width
    begin = np.concatenate([to_right, to_left, up, down])
    finish = np.concatenate([to_right + 1, to_left - 1, up - width, down + width])
    order = begin.argsort(kind="stable")
    begin, finish = begin[order], finish[order]
    # Where two pixels touch at a corner, two borders begin: first the later one is followed.
    last = np.diff(begin, append=-1) != 0
    corners = begin[last]
    after = corners.searchsorted(finish[last]).tolist()
    second: list[int | None] = [None] * len(after)
    for corner, end in zip(*(corners.searchsorted(each[~last]) for each in (begin, finish))):
        second[corner] = end
    slices, places = np.divmod(corners, padded.shape[1] * width)
    rows, columns = np.divmod(places, width)
    # Half a pixel before the pixels' centres.
    x, y = ((at + start - 0.5) * mm for at, start, mm in zip((columns, rows), first, spacing))
    places = x + 1j * y
    outlines: list[list[np.ndarray]] = [[] for _ in inside]
    # Each outline has a border to the right, and is found where the first one begins. Two can begin
    # at a corner where two pixels touch.
    for start in corners.searchsorted(to_right).tolist():
        while after[start] is not None:
            way, here = [], start
            while True:
                way.append(here)
                after[here], second[here], here = second[here], None, after[here]
                if here == start:
                    break
            outlines[slices[start]].append(places.take(way))
    return outlines


def _edges(
    slabs: list[_Slab],
    curves: list[tuple[int, np.ndarray]],
    frame: _Frame,
    level: float,
    cancel: CancelToken | None,
) -> list[tuple[int, np.ndarray]]:
    """Pieces of the edge near closed curves: each slab's number and points [n, 2].

    curves: slab's number, in rising order, and places x + iy, in mm from its first pixel.
    """
    if not curves:
        return []
    # All curves one behind the other. In `ring`, each has before and behind it some places of its
    # other end, so that the neighbours of its own places are beside them.
    base = np.concatenate([curve for _, curve in curves])
    counts = np.array([len(curve) for _, curve in curves])
    starts = counts.cumsum() - counts
    reach = math.ceil(3 * ALONG_MM / STEP_MM)
    ring = np.concatenate(
        [start + np.arange(-reach, count + reach) % count for start, count in zip(starts, counts)]
    )
    own = np.arange(len(base)) + reach + (2 * reach * np.arange(len(counts))).repeat(counts)
    tangent = base[ring[own + 1]] - base[ring[own - 1]]
    normal = -1j * tangent / np.abs(tangent)
    anterior = -complex(*frame.direction[1, :2])
    toward = (normal * anterior.conjugate()).real / abs(anterior)
    ahead = toward >= math.cos(math.radians(ANTERIOR_DEGREES))
    if not ahead.any():
        return []
    used = np.zeros(len(ring), bool)
    used[own] = ahead
    steps = np.arange(-reach, reach + 1)
    needed = np.convolve(used, np.ones(len(steps)), "same") > 0.5
    used, slab = used[needed], np.repeat([k for k, _ in curves], counts + 2 * reach)[needed]
    start, way = base[ring[needed]], normal[ring[needed]]
    at = np.arange(-SEARCH_MM - INSIDE_MM[0], SEARCH_MM + OUTSIDE_MM + PROFILE_MM / 2, PROFILE_MM)
    weights = np.exp(-((steps * STEP_MM / ALONG_MM) ** 2) / 2)
    weights /= weights.sum()
    offsets = []
    for number in np.unique(slab):
        check_cancel(cancel)
        part = slice(*slab.searchsorted([number, number + 1]))
        x, y = (
            along(start[part]) / spacing + at[:, None] * (along(way[part]) / spacing)
            for along, spacing in zip((np.real, np.imag), frame.spacing)
        )
        # Profiles [place along the normal, place along the curve], averaged along the curve.
        profiles = _along_rows(slabs[number].at(x, y), weights)[:, used[part]]
        offsets.append(_offsets(profiles.T, at, level))
    offset = np.full(len(base), np.nan)
    offset[ahead] = np.concatenate(offsets)
    edge = base + offset * normal
    return [
        (number, edge[part][piece].view(float).reshape(-1, 2))
        for (number, _), part in zip(curves, map(slice, starts, starts + counts))
        for piece in _pieces(offset[part])
    ]


def _pieces(offset: np.ndarray) -> list[np.ndarray]:
    """The places, in order, of each piece of the edge along a closed curve with these offsets."""
    if np.count_nonzero(np.isfinite(offset)) * STEP_MM < PIECE_MM:
        return []
    # Start behind a gap, so that no piece runs over the end of the closed curve.
    together = np.abs(np.diff(offset, append=offset[:1])) <= JUMP_MM * STEP_MM
    start = int(np.argmin(together)) + 1
    order = np.roll(np.arange(len(offset)), -start)
    ends = np.concatenate([[0], np.flatnonzero(~together[order]) + 1, [len(order)]])
    # Most pieces are single points without an edge, so that only the long ones are looked at.
    long = np.flatnonzero(np.diff(ends) * STEP_MM >= PIECE_MM)
    pieces = (order[ends[k] : ends[k + 1]] for k in long)
    return [piece for piece in pieces if np.isfinite(offset[piece]).all()]


def _smoothed(outline: np.ndarray) -> np.ndarray | None:
    """A closed outline in steps of STEP_MM, smoothed by OUTLINE_MM; None if it is too short."""
    closed, length = _closed(outline)
    if length[-1] < 2 * PIECE_MM:
        return None
    fine = np.interp(np.arange(0, length[-1], PROFILE_MM), length, closed)
    # Continued at both ends, beyond the reach of the Gaussian, to a number of points of which the
    # Fourier transform takes a third of the time that a prime number takes.
    count, reach = len(fine), math.ceil(8 * OUTLINE_MM / PROFILE_MM)
    total = math.ceil((count + 2 * reach) / 128) * 128
    ring = fine.take(np.arange(-reach, total - reach), mode="wrap")
    frequency = np.fft.fftfreq(total, length[-1] / count)
    weight = np.exp(-2 * (np.pi * frequency * OUTLINE_MM) ** 2)
    smooth = np.fft.ifft(np.fft.fft(ring) * weight)[reach : reach + count]
    # The borders of pixels are longer than the line they stand for.
    closed, length = _closed(smooth)
    count = max(round(length[-1] / STEP_MM), 1)
    return np.interp(np.linspace(0, length[-1], count, endpoint=False), length, closed)


def _closed(outline: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A closed outline with its first point again at the end, and the length up to each point."""
    closed = np.append(outline, outline[0])
    length = np.zeros(len(closed))
    np.cumsum(np.abs(closed[1:] - closed[:-1]), out=length[1:])
    return closed, length


def _offsets(profiles: np.ndarray, at: np.ndarray, level: float) -> np.ndarray:
    """Where each profile [n, m] crosses the liver's edge, mm; NaN where it has no usable edge."""
    middle = (level + FAT_HU) / 2
    possible = (at >= -SEARCH_MM) & (at <= SEARCH_MM)
    below = (profiles < middle) & possible
    after = below.argmax(axis=1)  # at least INSIDE_MM[0] behind the profile's first place
    before = after - 1
    every = np.arange(len(profiles))
    high, low = profiles[every, before], profiles[every, after]
    sharp = BLUR_MM * (high - low) >= PROFILE_MM * (level - FAT_HU)
    lines = np.flatnonzero(below[every, after] & (high >= middle) & sharp)
    offsets = np.full(len(profiles), np.nan)
    # From here on only those that cross a sharp edge.
    profiles, before, high, low = profiles[lines], before[lines], high[lines], low[lines]
    offset = at[before] + PROFILE_MM * (high - middle) / (high - low)
    apart = at - offset[:, None]
    inside = (apart >= -INSIDE_MM[0]) & (apart <= -INSIDE_MM[1])
    outside = (apart > 0) & (apart <= OUTSIDE_MM)
    liver = np.where(inside, profiles, 0).sum(axis=1) / inside.sum(axis=1)
    lowest = np.where(outside, profiles, np.inf).min(axis=1)
    good = (np.abs(liver - level) <= LIVER_HU) & (lowest <= FAT_SEEN_HU) & (lowest > AIR_HU)
    offsets[lines[good]] = offset[good]
    return offsets


def _fitted(pieces: list[tuple[int, np.ndarray]], frame: _Frame) -> tuple[EdgePiece, ...]:
    """Each piece, a slab's number and points [n, 2], with its curve and distances from it."""
    if not pieces:
        return ()
    systems = [_normal_equations(points) for _, points in pieces]
    normal, moments = (np.concatenate(each) for each in zip(*systems))
    curve, first, half_second = np.linalg.solve(normal, moments).transpose(1, 0, 2)
    speed = np.hypot(*first.T)
    bend = np.abs(first[:, 0] * half_second[:, 1] - first[:, 1] * half_second[:, 0]) * 2
    across = np.stack([first[:, 1], -first[:, 0]], axis=1) / speed[:, None]
    distances = ((np.concatenate([points for _, points in pieces]) - curve) * across).sum(axis=1)
    counted = bend * CORNER_MM <= speed**3
    ends = np.cumsum([len(points) for _, points in pieces])[:-1]
    parts = zip(pieces, *(np.split(each, ends) for each in (curve, distances, counted)))
    return tuple(
        EdgePiece(
            number,
            frame.in_patient(points, number),
            frame.in_patient(line, number),
            apart,
            counts,
        )
        for (number, points), line, apart, counts in parts
    )


def _normal_equations(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Matrices [n, 3, 3] and right sides [n, 3, 2] of the quadratic regression at each point."""
    count = len(points)
    apart = STEP_MM * np.arange(1 - count, count) / FIT_MM
    powers = np.exp(-(apart**2) / 2) * apart ** np.arange(5)[:, None]
    # [power, point, other point]: the same numbers, read from another place for each point.
    weighted = sliding_window_view(powers, count, axis=1)[:, ::-1]
    normal = weighted.sum(axis=2)[np.add.outer(range(3), range(3))]
    return np.moveaxis(normal, -1, 0), np.moveaxis(weighted[:3] @ points, 0, 1)
