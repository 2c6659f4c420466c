"""Measurements of the location map: its weight by region, and its pattern.

Yin et al. 2021, "Location map analysis", measure the mean weight in the liver parenchyma and
describe two patterns: the liver's surface in healthy livers; parenchyma and spleen in cirrhosis.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import product

import numpy as np
import SimpleITK as sitk

from .card import Reference
from .imaging.filters import gaussian
from .imaging.grid import WorkingGrid, bounding_box
from .imaging.masks import eroded
from .location_map import LocationMap
from .report.summary import AROUND_MM, REGION_NAMES, SURFACE_MM

SURFACE, CORE_AND_SPLEEN, MIXED, ELSEWHERE = "surface", "core and spleen", "mixed", "elsewhere"
MIN_CASES = 20  # of a stage, for a meaningful reference
_PLANES = 8  # of distances that are worked on at once: they fit the processor's cache
_FAR = np.int16(10**4)  # voxels: no row is as long

Measurements = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Pattern:
    """A location map's pattern: SURFACE, CORE_AND_SPLEEN, MIXED or ELSEWHERE; "" if it is empty.

    sentence: the numbers that it follows from.
    """

    name: str
    sentence: str


def measure(
    location: LocationMap, grid: WorkingGrid, surface_mm: float = SURFACE_MM
) -> dict[str, dict[str, float]]:
    """Mean relative weight, share of the total weight and volume (mL) of each region.

    Regions: liver, liver_surface (the liver within `surface_mm` of its boundary), liver_core (the
    rest of the liver), spleen (left out without a mask), rest (the body without liver and spleen),
    all measured on the working grid, the network's input. The shares of liver, spleen and rest add
    up to 1. The mean is also the region's focus, the share of the weight over the share of the
    body's volume, since the map is relative to its mean over the body.
    """
    weight = sitk.GetArrayViewFromImage(location.relative)
    total = float(weight[_inside(grid.body)].sum(dtype=np.float64))
    voxel_ml = float(np.prod(grid.volume.GetSpacing())) / 1000
    found = {}
    for name, region in regions(grid, surface_mm).items():
        weights = weight[region]
        found[name] = {
            "mean": float(weights.mean(dtype=np.float64)) if weights.size else 0.0,
            "share": float(weights.sum(dtype=np.float64)) / total if total else 0.0,
            "volume_ml": weights.size * voxel_ml,
        }
    return found


def outside_share(location: LocationMap, grid: WorkingGrid) -> float | None:
    """Share of the weight farther than AROUND_MM from the liver and outside the spleen.

    None for an empty map.
    """
    weight = sitk.GetArrayViewFromImage(location.relative)
    total = float(weight.sum(dtype=np.float64))
    if not total:
        return None
    outside = eroded(~_inside(grid.liver), AROUND_MM, grid.liver.GetSpacing()[::-1])
    if grid.spleen is not None:
        outside &= ~_inside(grid.spleen)
    return float((weight * outside).sum(dtype=np.float64)) / total


@lru_cache(maxsize=1)
def regions(grid: WorkingGrid, surface_mm: float) -> Mapping[str, np.ndarray]:
    """The regions of `measure`, bool; kept, since every explanation of a case needs the same."""
    body = _inside(grid.body)
    liver = _inside(grid.liver) & body
    core = deeper_than(grid.liver, surface_mm) & liver
    found = {"liver": liver, "liver_surface": liver & ~core, "liver_core": core}
    rest = body & ~liver
    if grid.spleen is not None:
        found["spleen"] = _inside(grid.spleen) & rest
        rest = rest & ~found["spleen"]
    return {**found, "rest": rest}


def deeper_than(mask: sitk.Image, depth_mm: float) -> np.ndarray:
    """Voxels whose centres lie deeper than `depth_mm` in a mask, bool, [slice, row, column].

    The boundary is a smooth surface between the voxels inside and outside: the zero of their
    distances to the nearest voxel of the other kind, smoothed with a Gaussian of one voxel (its
    shrinkage of curved surfaces, which is of second order in sigma, is cancelled by smoothing
    twice). Depth is the distance in mm to the nearest of the points where it crosses the lines
    between voxels. Without the smoothing, the corners of voxels move the surface of a ball by about
    a quarter of a voxel. The working grid ends where the liver ends, so its edge is a surface.
    """
    deeper = np.zeros(mask.GetSize()[::-1], bool)
    box = bounding_box(sitk.GetArrayViewFromImage(mask))
    if box is None:
        return deeper
    step = np.array(mask.GetSpacing()[::-1])
    sigma = float(np.prod(step)) ** (1 / 3)
    margin = [1 + math.ceil(3 * sigma / spacing) for spacing in step]
    inside = np.pad(_inside(mask)[box], [(voxels, voxels) for voxels in margin])
    # Far from the limit the smoothed distances are good enough.
    around = 1.5 * float(np.linalg.norm(step))
    depth = _smooth_depth(inside, step, sigma, depth_mm + around)
    found = inside & (depth > depth_mm)
    near = inside & (depth > max(depth_mm - around, 0)) & (depth < depth_mm + around)
    if near.any():
        np.copyto(found, ~_beside_surface(depth, step, depth_mm), where=near)
    deeper[box] = found[tuple(slice(voxels, -voxels) for voxels in margin)]
    return deeper


def surface_to_core(measurements: Measurements) -> float | None:
    """Mean weight of the liver's surface over that of its core; None without core or weight."""
    surface, core = measurements["liver_surface"], measurements["liver_core"]
    return _over(surface["mean"], core["mean"]) if core["volume_ml"] else None


def organs_over_rest(measurements: Measurements) -> float | None:
    """The lower mean weight of liver core and spleen over that of the rest; None without them."""
    if "spleen" not in measurements or not measurements["liver_core"]["volume_ml"]:
        return None
    organs = min(measurements[region]["mean"] for region in ("liver_core", "spleen"))
    return _over(organs, measurements["rest"]["mean"])


@dataclass(frozen=True)
class Thresholds:
    """The ratios from which a map shows a pattern: `surface_to_core` and `organs_over_rest`."""

    surface_to_core: float = 1.0
    organs_over_rest: float = 1.0


def thresholds(reference: Reference) -> Thresholds:
    """The thresholds of a model, from its reference cases.

    Midway (geometric mean) between the ratios in cases predicted as F0 and as F4, each of the
    regions' median weights; but at least 1, where the region named by the pattern begins to have
    more weight than the other. It is 1 without at least 20 cases of both stages, and for a model
    whose cases do not show the paper's pattern: surface in F0, core and spleen in F4.
    """
    stages = reference.get("stages", {})
    if any(stages.get(stage, {}).get("cases", 0) < MIN_CASES for stage in ("F0", "F4")):
        return Thresholds()
    ratios: dict[str, list[float | None]] = {"surface_to_core": [], "organs_over_rest": []}
    for stage in ("F0", "F4"):
        at = reference["percentiles"]
        medians = {
            region: {"mean": float(np.interp(50, at, stages[stage][region])), "volume_ml": 1.0}
            for region in REGION_NAMES
            if region in stages[stage]
        }
        if not {"liver_surface", "liver_core", "rest"} <= set(medians):
            return Thresholds()
        ratios["surface_to_core"].append(surface_to_core(medians))
        ratios["organs_over_rest"].append(organs_over_rest(medians))
    return Thresholds(
        surface_to_core=_between(*reversed(ratios["surface_to_core"])),
        organs_over_rest=_between(*ratios["organs_over_rest"]),
    )


def pattern(measurements: Measurements, limits: Thresholds) -> Pattern:
    """The pattern of a map with these measurements.

    SURFACE: the liver's surface has more weight than its core, by the threshold, and more than
    spleen and rest of the body. CORE_AND_SPLEEN: core and spleen both have more weight than the
    rest, by the threshold. MIXED: both, or neither although a part of liver or spleen has more
    weight than the rest. ELSEWHERE: no part of them has. Weights are means, i.e. per volume.
    """
    means = {region: values["mean"] for region, values in measurements.items()}
    if not any(means.values()):
        return Pattern("", "")
    rest = means["rest"]
    surface, organs = surface_to_core(measurements), organs_over_rest(measurements)
    on_surface = (
        surface is not None
        and surface > limits.surface_to_core
        and means["liver_surface"] > max(rest, means.get("spleen", 0.0))
    )
    on_organs = organs is not None and organs > limits.organs_over_rest
    parts = [means[region] for region in means if region not in ("liver", "rest")]
    if on_surface != on_organs:
        name = SURFACE if on_surface else CORE_AND_SPLEEN
    else:
        name = MIXED if max(parts) > rest else ELSEWHERE
    sentence = (
        f"Mean of the surface over the core: {_number(surface)} (surface pattern: above "
        f"{limits.surface_to_core:.2f}); lower of core and spleen over the rest of the body: "
        f"{_number(organs)} (core and spleen: above {limits.organs_over_rest:.2f}); highest region "
        f"over the rest: {_number(_over(max(parts), rest))}."
    )
    return Pattern(name, sentence)


def _smooth_depth(inside: np.ndarray, step: np.ndarray, sigma: float, most: float) -> np.ndarray:
    """Smoothed distances in mm, positive inside, to the nearest voxel on the other side.

    Distances above `most` may come out smaller, but not by so much that the 0 moves.
    """
    # Beyond twelve sigma, the filter's answers to a voxel are below 1e-6.
    depth = _distances(inside, step, max(most, 12 * sigma))
    smooth = partial(gaussian, sigma_mm=[sigma] * 3, spacing_mm=step)
    once = smooth(depth)
    twice = smooth(once)
    once *= 2
    once -= twice
    return once


def _distances(inside: np.ndarray, step: np.ndarray, most: float) -> np.ndarray:
    """Distances in mm, positive inside, to the nearest voxel on the other side, at most `most`.

    Float32 [slice, row, column]. In a row they follow from the mask's last change before a voxel
    and its next one; then they spread from row to row and from slice to slice. Two maps of
    sitk.SignedMaurerDistanceMap, one for each side, take three times as long.
    """
    at = np.arange(inside.shape[2] + 1, dtype=np.int16)
    changes = np.diff(inside, axis=2, prepend=inside[..., :1], append=inside[..., -1:])
    last = np.maximum.accumulate(np.where(changes, at, -_FAR), axis=2)[..., :-1]
    ahead = np.where(changes, at, _FAR)[..., :0:-1]
    following = np.minimum.accumulate(ahead, axis=2)[..., ::-1]
    in_row = np.minimum(at[1:] - last, following - at[:-1]) * np.float32(step[2])
    square = np.minimum(in_row, np.float32(most)) ** 2
    within, outside = np.where(inside, square, 0), np.where(inside, 0, square)
    for squares in (within, outside):
        for axis in (1, 0):
            _spread(np.moveaxis(squares, axis, 1), step[axis], most)
        np.sqrt(squares, out=squares)
    return np.subtract(within, outside, out=within)


def _spread(squares: np.ndarray, step: float, most: float) -> None:
    """Lower each square to the least sum, along axis 1, of a voxel's square and that of the way."""
    for first in range(0, len(squares), _PLANES):
        part = squares[first : first + _PLANES]
        old = part.copy("K")
        farther = np.empty_like(old)
        for count in range(1, min(int(most / step), part.shape[1] - 1) + 1):
            np.add(old, np.float32((count * step) ** 2), out=farther)
            np.minimum(part[:, count:], farther[:, :-count], out=part[:, count:])
            np.minimum(part[:, :-count], farther[:, count:], out=part[:, :-count])


def _beside_surface(depth: np.ndarray, step: np.ndarray, reach_mm: float) -> np.ndarray:
    """Voxels within `reach_mm` of the points where `depth` is 0 on the lines between neighbours.

    depth: of each voxel, [slice, row, column]; step: spacing in mm. Returns bool. The ball around a
    point covers an interval of each line of voxels that is parallel to the point's own: counting
    where intervals begin and end is exact, and much faster than a search for the nearest point.
    """
    beside = np.zeros(depth.shape, bool)
    inside = depth > 0
    one_more, one_less = np.int32(1), np.int32(-1)
    for axis in range(3):
        lines, kind, found = (np.moveaxis(each, axis, 2) for each in (depth, inside, beside))
        across, along = np.delete(step, axis), step[axis]
        differ = kind[..., :-1] != kind[..., 1:]
        # Much faster than np.nonzero of three axes.
        row, column, before = np.unravel_index(np.flatnonzero(differ), differ.shape)
        first, second = lines[row, column, before], lines[row, column, before + 1]
        place = before + first.astype(float) / (first - second)
        # Lines beyond the image have room, so that none has to be left out.
        room = (reach_mm / across).astype(int)
        height, width, length = lines.shape
        size = (height + 2 * room[0], width + 2 * room[1], length + 1)
        line = (row * size[1] + column) * size[2]
        changes = np.zeros(math.prod(size), np.int32)
        for up, aside in np.ndindex(*(room + 1)):
            square = reach_mm**2 - (([up, aside] * across) ** 2).sum()
            if square >= 0:
                half = math.sqrt(square) / along
                begin = line + np.ceil(place - half).clip(0, length).astype(int)
                end = line + (np.floor(place + half) + 1).clip(0, length).astype(int)
                for y, x in product({-up, up}, {-aside, aside}):
                    beyond = changes[((room[0] + y) * size[1] + room[1] + x) * size[2] :]
                    np.add.at(beyond, begin, one_more)
                    np.add.at(beyond, end, one_less)
        # Each interval ends in the line in which it begins.
        covered = np.cumsum(changes, out=changes).reshape(size) > 0
        found |= covered[room[0] : room[0] + height, room[1] : room[1] + width, :length]
    return beside


def _between(lower: float | None, higher: float | None) -> float:
    if lower is None or higher is None or not lower < higher < math.inf:
        return 1.0
    return max(1.0, math.sqrt(lower * higher))


def _over(above: float, below: float) -> float | None:
    if below == 0:
        return math.inf if above > 0 else None
    return above / below


def _number(ratio: float | None) -> str:
    return "not measurable" if ratio is None else f"{ratio:.2f}"


def _inside(mask: sitk.Image) -> np.ndarray:
    return sitk.GetArrayViewFromImage(mask) > 0
