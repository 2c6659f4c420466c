"""Quality control: comparison of a location map with those of reference cases.

Yin et al. 2021 ("Discussion") propose the location map as quality control of the predicted stage. A
model's metadata contain the distribution of each region's mean weight in reference cases, by
predicted stage (Training/evaluation/cohort_maps.py); unusual values give a warning.
"""

from collections.abc import Mapping

import numpy as np

from .analysis import MIN_CASES, Measurements
from .card import CENTRAL_95, Reference
from .report.summary import REGION_NAMES


def percentiles(measurements: Measurements, reference: Reference, stage: str) -> dict[str, float]:
    """The percentile of each region's mean weight among reference cases of the predicted stage.

    Interpolated between the percentiles that the reference contains; beyond the outermost, the
    outermost. measurements: of the predicted stage's map. Empty without at least 20 cases.
    """
    usual = _usual(reference, stage)
    return {
        region: float(np.interp(values["mean"], usual[region], reference["percentiles"]))
        for region, values in measurements.items()
        if region in usual
    }


def unusual(measurements: Measurements, reference: Reference, stage: str) -> list[str]:
    """A warning that names the regions whose weight is unusual for the predicted stage, if any is.

    With `joint` bounds in the reference, 5 % of cases like its own are outside of them in any
    region; other references only have each region's central 95 %, of which, with five regions, more
    than 5 % of the cases are outside. Parameters as for `percentiles`.
    """
    usual = _usual(reference, stage)
    joint = usual.get("joint")
    bounds = joint or {
        region: [float(np.interp(end, reference["percentiles"], weights)) for end in CENTRAL_95]
        for region, weights in usual.items()
        if region in REGION_NAMES
    }
    outside = []
    for region, (low, high) in bounds.items():
        if region not in measurements:
            continue
        mean = measurements[region]["mean"]
        if not low <= mean <= high:
            than = f"below {low:.2f}" if mean < low else f"above {high:.2f}"
            outside.append(f"{REGION_NAMES[region].lower()} {mean:.2f} ({than})")
    if not outside:
        return []
    what = (
        f"outside the range of 95 % of {usual['cases']} reference cases"
        if joint
        else f"each region by itself against the central 95 % of {usual['cases']} reference cases"
    )
    return [f"Unusual location map for {stage}, {what}: {', '.join(outside)}."]


def _usual(reference: Reference, stage: str) -> Mapping:
    usual = reference.get("stages", {}).get(stage, {})
    return usual if usual.get("cases", 0) >= MIN_CASES else {}
