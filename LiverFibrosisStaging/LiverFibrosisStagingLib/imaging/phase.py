"""The contrast phase of a CT from the HU of aorta, liver, spleen and vessels in the liver.

Medians on a coarse grid are compared with thresholds. What is known of them:

- Without contrast, blood has 30 to 60 HU, the spleen 40 to 60, the liver 50 to 65.
- Goshima et al. 2006 (AJR 187:W25-W32; 171 patients) measured the enhancement, in HU, of aorta,
  spleen, liver and portal vein: in the late arterial phase (10 to 15 s after the bolus has reached
  the aorta) 300-336, 97-108, 15-25, 75-104; in the portal-venous phase (45 to 55 s) 117-125, 73-82
  and 59-63 for the first three. So the aorta exceeds liver and spleen by more than 150 HU in the
  arterial phase and by 40 to 80 HU in the portal-venous phase.
- In the CTs at hand, the aorta exceeds liver and spleen by 258 and 237 HU in the arterial phase, by
  22 to 73 and 11 to 74 HU in the portal-venous phase (eight patients), and by -5 and 7 HU without
  contrast.

The thresholds lie in between, nearer to the wrong phases, because a refusal needs clear evidence.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .aorta import find_aorta, find_spine
from .coarse import STEP_MM, CoarseScan
from .components import components
from .dicom_series import ARTERIAL, LATE, PORTAL_VENOUS, UNENHANCED
from .grid import bounding_box
from .masks import dilated_by_ball, eroded_by_ball

MIN_CORE_VOXELS = 100
_VESSELS_PERCENTILE = 99.0  # of the smoothed liver: trunks of the portal and hepatic veins

# Highest without contrast. Blood is that of the aorta or of the liver's vessels.
UNENHANCED_BLOOD_HU = 75.0
UNENHANCED_SPLEEN_HU = 70.0
UNENHANCED_LIVER_HU = 80.0  # amiodarone and iron raise it
# Lowest of the aorta above liver and spleen in the arterial phase, and highest of the liver, and
# of the enhancement of its vessels as a share of the aorta's.
ARTERIAL_OVER_LIVER_HU = 120.0
ARTERIAL_OVER_SPLEEN_HU = 100.0
ARTERIAL_LIVER_HU = 85.0
ARTERIAL_VESSELS = 0.5
BLOOD_HU = 40.0  # without contrast
# In the late phase, blood and organs approach each other.
LATE_AORTA_HU = 125.0
LATE_OVER_LIVER_HU = 35.0
LATE_OVER_SPLEEN_HU = 15.0
# In the portal-venous phase, the liver has 80 to 130 HU, less if steatotic.
ENHANCED_LIVER_HU = 80.0
ENHANCED_SPLEEN_HU = 90.0
STRONG_LIVER_HU = 180.0

# Kidneys, from the centre of the spine's bone: beside it and not in front of the vertebrae.
_KIDNEY_BESIDE_MM = (24.0, 100.0)
_KIDNEY_BEHIND_MM = (-66.0, 30.0)
_KIDNEY_HU = (100.0, 500.0)  # enhanced; fat and muscle are below, bone and oral contrast above
_KIDNEY_ML = (40.0, 400.0)
_OPENING = (1, 2, 2)  # voxels, 3 or 4 mm


@dataclass(frozen=True)
class Phase:
    """name: UNENHANCED, ARTERIAL, PORTAL_VENOUS, LATE, or "" if it is not known.

    clear: whether a wrong phase is beyond doubt. values: HU by name, of what was found.
    """

    name: str
    clear: bool
    values: dict[str, float]


def phase_by_hu(scan: CoarseScan) -> Phase:
    """The contrast phase that the HU show."""
    liver, spleen = (
        scan.smooth(core.box)[core.inside] for core in (scan.liver_core, scan.spleen_core)
    )
    spine = find_spine(scan)
    aorta = None if spine is None else find_aorta(scan, spine)
    found: dict[str, float | np.floating | None] = {
        "aorta_hu": None if aorta is None else aorta.hu,
        "liver_hu": None,
        "liver_vessels_hu": None,
        "spleen_hu": None,
        "kidneys_hu": None if spine is None else _kidneys(scan, spine),
    }
    if liver.size >= MIN_CORE_VOXELS:
        found["liver_hu"] = np.median(liver)
        found["liver_vessels_hu"] = np.percentile(liver, _VESSELS_PERCENTILE)
    if spleen.size >= MIN_CORE_VOXELS:
        found["spleen_hu"] = np.median(spleen)
    values = {name: round(float(hu), 1) for name, hu in found.items() if hu is not None}
    return Phase(*judged(values), values)


def judged(values: Mapping[str, float]) -> tuple[str, bool]:
    """Name of the phase, and whether a wrong one is clear.

    values: HU by name, as in `Phase`. Without contrast is clear if the liver is low, two of aorta,
    spleen and the liver's vessels are, and neither aorta nor spleen is enhanced.
    Arterial is clear if the aorta is far above a liver and spleen, and the liver's vessels are not
    enhanced as it is. Late is never clear, because a weak portal-venous phase has similar HU.
    """
    liver, vessels = values.get("liver_hu"), values.get("liver_vessels_hu")
    aorta, spleen = values.get("aorta_hu"), values.get("spleen_hu")
    if liver is None or vessels is None or liver > STRONG_LIVER_HU:
        return "", False
    aorta_low = aorta is None or aorta < UNENHANCED_BLOOD_HU
    spleen_low = spleen is None or spleen < UNENHANCED_SPLEEN_HU
    if liver < UNENHANCED_LIVER_HU and aorta_low and spleen_low:
        agreeing = [aorta is not None, spleen is not None, vessels < UNENHANCED_BLOOD_HU]
        return (UNENHANCED, sum(agreeing) >= 2) if any(agreeing) else ("", False)
    if aorta is not None:
        over_spleen = None if spleen is None else aorta - spleen
        if aorta - liver >= ARTERIAL_OVER_LIVER_HU and liver < ARTERIAL_LIVER_HU:
            arterial = over_spleen is None or over_spleen >= ARTERIAL_OVER_SPLEEN_HU
            vessels_low = vessels - BLOOD_HU < ARTERIAL_VESSELS * (aorta - BLOOD_HU)
            return (ARTERIAL, vessels_low) if arterial else ("", False)
        if (
            UNENHANCED_BLOOD_HU <= aorta <= LATE_AORTA_HU
            and aorta - liver <= LATE_OVER_LIVER_HU
            and over_spleen is not None
            and over_spleen <= LATE_OVER_SPLEEN_HU
        ):
            return LATE, False
    enhanced = liver >= ENHANCED_LIVER_HU or (spleen is not None and spleen >= ENHANCED_SPLEEN_HU)
    contradicted = aorta is not None and spleen is not None and aorta_low and spleen_low
    return (PORTAL_VENOUS, False) if enhanced and not contradicted else ("", False)


def _kidneys(scan: CoarseScan, spine: np.ndarray) -> float | None:
    """Median HU of the enhanced kidneys, or of one; None if none was found."""
    row, column = (np.arange(length) for length in scan.hu.shape[1:])
    behind = (row - spine[:, :1]) * STEP_MM[1]
    beside = np.abs(column - spine[:, 1:]) * STEP_MM[2]
    rows = (behind > _KIDNEY_BEHIND_MM[0]) & (behind < _KIDNEY_BEHIND_MM[1])
    columns = (beside > _KIDNEY_BESIDE_MM[0]) & (beside < _KIDNEY_BESIDE_MM[1])
    box = bounding_box(rows[:, :, None] & columns[:, None, :])
    if box is None:
        return None
    smooth = scan.smooth(box)
    zone = (
        rows[:, box[1], None]
        & columns[:, None, box[2]]
        & (smooth > _KIDNEY_HU[0])
        & (smooth < _KIDNEY_HU[1])
        & scan.body[box]
        & ~(scan.liver[box] | scan.spleen[box])
    )
    inner = bounding_box(zone)
    if inner is None:
        return None
    parts, sizes = components(dilated_by_ball(eroded_by_ball(zone[inner], _OPENING), _OPENING))
    volumes = sizes * (math.prod(STEP_MM) / 1000.0)
    volumes[np.argsort(-sizes, kind="stable")[2:]] = 0  # only the largest two can be kidneys
    fitting = (volumes >= _KIDNEY_ML[0]) & (volumes <= _KIDNEY_ML[1])
    return float(np.median(scan.hu[box][inner][fitting[parts]])) if fitting.any() else None
