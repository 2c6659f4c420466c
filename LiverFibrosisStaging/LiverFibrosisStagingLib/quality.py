"""Is this location map like those of other cases? The paper's "quality control" made concrete.

Yin et al. 2021 ("Discussion") propose to look at the location map before the stage is believed. A
model's metadata holds the distribution of each region's mean weight over reference cases by
predicted stage (Training/evaluation/cohort_maps.py); a case outside the middle 95 % of it is named.
"""

from collections.abc import Mapping

from .card import MIDDLE, Reference
from .report.summary import REGION_NAMES

LEAST_CASES = 20  # of a stage: fewer do not say what is usual


def unusual(
    measurements: Mapping[str, Mapping[str, float]], reference: Reference, stage: str
) -> list[str]:
    """A sentence where a region's mean weight is outside what is usual for the predicted stage.

    measurements: of the predicted stage's map. reference: the model's (`Card.reference`); one
    that is empty, or has fewer than 20 cases of the stage, gives no sentence.
    """
    usual = reference.get("stages", {}).get(stage, {})
    if usual.get("cases", 0) < LEAST_CASES:
        return []
    percentiles = reference["percentiles"]
    lowest, highest = map(percentiles.index, MIDDLE)
    outside = [
        f"{REGION_NAMES[region].lower()} {values['mean']:.2f} "
        f"({usual[region][lowest]:.2f} to {usual[region][highest]:.2f})"
        for region, values in measurements.items()
        if region in usual and not usual[region][lowest] <= values["mean"] <= usual[region][highest]
    ]
    if not outside:
        return []
    return [
        f"Unusual location map for {stage}, attention by region against 95 % of {usual['cases']} "
        f"reference cases: {', '.join(outside)}."
    ]
