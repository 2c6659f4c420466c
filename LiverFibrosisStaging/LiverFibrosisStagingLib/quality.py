"""Quality control: comparison of a location map with those of reference cases.

Yin et al. 2021 ("Discussion") propose the location map as quality control of the predicted stage. A
model's metadata contain the distribution of each region's mean weight in reference cases, by
predicted stage (Training/evaluation/cohort_maps.py); values outside the central 95 % give a
warning.
"""

from collections.abc import Mapping

from .card import CENTRAL_95, Reference
from .report.summary import REGION_NAMES

MIN_CASES = 20  # of a stage, for a meaningful reference range


def unusual(
    measurements: Mapping[str, Mapping[str, float]], reference: Reference, stage: str
) -> list[str]:
    """A warning if a region's mean weight is outside the reference range of the predicted stage.

    measurements: of the predicted stage's map. reference: the model's (`Card.reference`); without
    at least 20 cases of the stage there is no warning.
    """
    usual = reference.get("stages", {}).get(stage, {})
    if usual.get("cases", 0) < MIN_CASES:
        return []
    percentiles = reference["percentiles"]
    lowest, highest = map(percentiles.index, CENTRAL_95)
    outside = [
        f"{REGION_NAMES[region].lower()} {values['mean']:.2f} "
        f"({usual[region][lowest]:.2f} to {usual[region][highest]:.2f})"
        for region, values in measurements.items()
        if region in usual and not usual[region][lowest] <= values["mean"] <= usual[region][highest]
    ]
    if not outside:
        return []
    return [
        f"Unusual location map for {stage}; attention by region (central 95 % of {usual['cases']} "
        f"reference cases): {', '.join(outside)}."
    ]
