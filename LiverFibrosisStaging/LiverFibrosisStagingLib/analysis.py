"""Measurements of the location map: its weight by region.

Yin et al. 2021, "Location map analysis", measure the mean weight in the liver parenchyma. The
weights of surface, core and spleen quantify their two patterns (healthy: the liver's surface;
cirrhosis: parenchyma and spleen).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

from .imaging.grid import WorkingGrid
from .location_map import LocationMap

SURFACE_MM = 10.0  # thickness of the surface region: over one voxel of the shipped model's map


@dataclass(frozen=True)
class Pattern:
    """A location map's pattern: "surface", "core and spleen", "mixed" or "elsewhere"; "" if the
    map is empty. sentence: the numbers that it follows from.
    """

    name: str
    sentence: str


def measure(location: LocationMap, grid: WorkingGrid) -> dict[str, dict[str, float]]:
    """Mean relative weight, share of the total weight and volume (mL) of each region.

    Regions: liver, liver_surface (the liver within 10 mm of its boundary), liver_core (the rest of
    the liver), spleen (left out without a mask), rest (the body without liver and spleen), all
    measured on the working grid, the network's input.
    """
    weight = sitk.GetArrayViewFromImage(location.relative)
    body = _inside(grid.body)
    liver = _inside(grid.liver) & body
    spleen = _inside(grid.spleen) & body & ~liver if grid.spleen is not None else None
    core = (surface_distance(grid.liver) > SURFACE_MM) & liver
    rest = body & ~liver if spleen is None else body & ~liver & ~spleen
    regions = {"liver": liver, "liver_surface": liver & ~core, "liver_core": core}
    if spleen is not None:
        regions["spleen"] = spleen
    regions["rest"] = rest
    total = float(weight[body].sum(dtype=np.float64))
    voxel_ml = float(np.prod(grid.volume.GetSpacing())) / 1000
    return {
        name: {
            "mean": float(weight[region].mean(dtype=np.float64)) if region.any() else 0.0,
            "share": float(weight[region].sum(dtype=np.float64)) / total if total else 0.0,
            "volume_ml": float(region.sum()) * voxel_ml,
        }
        for name, region in regions.items()
    }


def pattern(measurements: Mapping[str, Mapping[str, float]]) -> Pattern:
    """The pattern of a map with these measurements."""
    outside = measurements["rest"]["share"]
    if outside > 0.5:
        return Pattern("elsewhere", f"{outside:.0%} of the weight lies outside liver and spleen.")
    return Pattern("mixed", "")


def surface_distance(mask: sitk.Image) -> np.ndarray:
    """Distance in mm to the mask's boundary, positive inside, [slice, row, column]."""
    distance = sitk.SignedMaurerDistanceMap(
        mask, insideIsPositive=True, squaredDistance=False, useImageSpacing=True
    )
    return sitk.GetArrayFromImage(distance)


def _inside(mask: sitk.Image) -> np.ndarray:
    return sitk.GetArrayViewFromImage(mask) > 0
