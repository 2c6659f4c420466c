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
    """A warning, with each region's percentile, if a map is unusual for the predicted stage.

    With `joint` bounds in the reference, 5 % of its cases are outside of them in any region; other
    references only have each region's central 95 %, of which, with five regions, more than 5 % of
    the cases are outside. Parameters as for `percentiles`.
    """
    usual = _usual(reference, stage)
    if not usual:
        return []
    each = {
        region: [float(np.interp(end, reference["percentiles"], weights)) for end in CENTRAL_95]
        for region, weights in usual.items()
        if region in REGION_NAMES
    }
    bounds = usual.get("joint", each)
    if all(
        low <= measurements[region]["mean"] <= high
        for region, (low, high) in bounds.items()
        if region in measurements
    ):
        return []
    outermost = reference["percentiles"][0], reference["percentiles"][-1]
    usual_ones, found = [], []
    for region, percentile in percentiles(measurements, reference, stage).items():
        mean, (lowest, *_, highest) = measurements[region]["mean"], usual[region]
        text = f"{REGION_NAMES[region].lower()} {mean:.2f}"
        if mean < lowest:
            found.append(f"{text} (below percentile {outermost[0]:g})")
        elif mean > highest:
            found.append(f"{text} (above percentile {outermost[1]:g})")
        else:
            usual_ones.append(f"{text} (percentile {percentile:.0f})")
    what = (
        f"as in fewer than 5 % of {usual['cases']} reference cases"
        if "joint" in usual
        else f"each region by itself against the central 95 % of {usual['cases']} reference cases"
    )
    return [f"Unusual location map for {stage}, {what}: {', '.join(found + usual_ones)}."]


def _usual(reference: Reference, stage: str) -> Mapping:
    usual = reference.get("stages", {}).get(stage, {})
    return usual if usual.get("cases", 0) >= MIN_CASES else {}
