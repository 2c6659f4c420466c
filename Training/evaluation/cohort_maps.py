"""Location maps of a cohort: weights by region, and the two patterns of the paper.

Yin et al. 2021, "Location map analysis" and Fig. 5. Weights are relative to the body's mean (1 is
the mean), measured by the library on each case's map of the stage predicted by the model that
staged it. A case with an empty map (no region contributed to the predicted stage) has no weights;
it is excluded and counted. Two scans of a patient count as two cases.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.stats import binomtest

from evaluation.staged import Staged
from LiverFibrosisStagingLib import analysis
from LiverFibrosisStagingLib.card import MAX_WEIGHT
from LiverFibrosisStagingLib.evaluation.cohort import (
    describe_weights,
    relative_weights,
    weights_by_stage,
)
from LiverFibrosisStagingLib.report.summary import REGION_NAMES
from LiverFibrosisStagingLib.stages import STAGES

PERCENTILES = (2.5, 25, 50, 75, 97.5)
UNUSUAL = 0.05  # share of cases like the reference cases that the joint bounds leave out
MIN_CASES = 5  # for the reference distribution of a stage

# Yin et al. 2021: the predicted stage of each pattern, and how often three readers found it there.
PAPER_PATTERNS = {"surface_over_core": ("F0", 0.910), "organs_over_rest": ("F4", 0.764)}


def surface_over_core(case: Staged) -> float:
    """Pattern (i): ratio of the weights of the liver's surface and core; present above 1.

    NaN if neither has any weight or there is no core.
    """
    return _or_nan(analysis.surface_to_core(case.measurements))


def organs_over_rest(case: Staged) -> float:
    """Pattern (ii): the lower weight of liver core and spleen over the weight of the rest.

    Present above 1: both weights are higher than that of the rest. NaN without spleen mask or
    weight.
    """
    return _or_nan(analysis.organs_over_rest(case.measurements))


PATTERNS: dict[str, Callable[[Staged], float]] = {
    "surface_over_core": surface_over_core,
    "organs_over_rest": organs_over_rest,
}


def grouped(cases: Sequence[Staged]) -> dict[str, dict[str, np.ndarray]]:
    """Region -> predicted stage -> mean weights, the groups of the paper's Fig. 5."""
    means = [{region: one["mean"] for region, one in c.measurements.items()} for c in cases]
    predicted = np.array([case.predicted for case in cases], int)
    return weights_by_stage(relative_weights(means), predicted)


def is_empty(case: Staged) -> bool:
    """Whether the case's location map is 0 everywhere."""
    return all(values["mean"] == 0 for values in case.measurements.values())


def predicted_as(cases: Sequence[Staged], stage: int) -> list[Staged]:
    """Cases with the predicted stage `stage` (0..4)."""
    return [case for case in cases if case.predicted == stage]


def rows(cases: Sequence[Staged]) -> list[dict[str, Any]]:
    """A row per case: stages; mean, share and volume of every region; ratios of the patterns."""
    return [
        {
            "name": case.name,
            "patient": case.patient,
            "stage": str(case.stages),
            "predicted": STAGES[case.predicted],
            **{
                f"{region}_{what}": case.measurements.get(region, {}).get(what, "")
                for region in REGION_NAMES
                for what in ("mean", "share", "volume_ml")
            },
            **{name: _finite(number(case), "") for name, number in PATTERNS.items()},
        }
        for case in cases
    ]


def analyse(cases: Sequence[Staged]) -> dict[str, Any]:
    """Weights by region and predicted stage, F0 against F4, and pattern frequencies.

    By histology, of the cases with one stage.
    """
    groups = {STAGES[s]: predicted_as(cases, s) for s in range(len(STAGES))}
    return {
        "cases": len(cases),
        "empty_maps": sum(map(is_empty, cases)),
        **describe_weights(grouped(cases)),
        "patterns": {
            name: {
                "by_histology": {
                    STAGES[s]: _frequency([number(c) for c in cases if c.stage == s])
                    for s in range(len(STAGES))
                },
                "by_predicted_stage": {
                    stage: _frequency([number(c) for c in group]) for stage, group in groups.items()
                },
            }
            for name, number in PATTERNS.items()
        },
    }


def reference(cases: Sequence[Staged], source: str) -> dict[str, Any]:
    """Reference distributions for the model's metadata: weights by region and predicted stage.

    source: one sentence on the cases. A stage is included if at least 5 cases have weights, with
    the percentiles 2.5, 25, 50, 75 and 97.5 of each region that was measured in at least 5 cases,
    and with `joint` bounds of these regions (`joint_bounds`). The library derives the thresholds of
    the patterns from the medians (`analysis.thresholds`).
    """
    stages: dict[str, Any] = {}
    by_region = grouped(cases)
    for index, name in enumerate(STAGES):
        group = [case for case in predicted_as(cases, index) if not is_empty(case)]
        if len(group) < MIN_CASES:
            continue
        found = {region: by_region[region][name] for region in REGION_NAMES}
        stages[name] = {
            "cases": len(group),
            **{
                region: np.percentile(values, PERCENTILES).round(4).tolist()
                for region, values in found.items()
                if len(values) >= MIN_CASES
            },
            "joint": joint_bounds(
                {region: values for region, values in found.items() if len(values) == len(group)}
            ),
        }
    return {"source": source, "percentiles": list(PERCENTILES), "stages": stages}


def joint_bounds(weights_by_region: dict[str, np.ndarray]) -> dict[str, list[float]]:
    """Lowest and highest usual weight of each region; 5 % of such cases are outside in any region.

    weights_by_region: of the same n cases, two or more. A case's distance is the largest over the
    regions from the median, in units of the distance of the quartile on the same side. The limit is
    the 95th percentile of the cases' distances, each by the quartiles of the other cases (the
    jackknife; otherwise more than 5 % of further cases are outside if n is small), at the rank
    (n + 1) * 0.95, which a further case exceeds with a probability of 5 % (Weibull's plotting
    position; Hyndman and Fan 1996, definition 6). Up to 18 cases the limit is the largest distance.
    """
    weights = np.array(list(weights_by_region.values()), float)
    cases = range(weights.shape[1])
    distances = [
        _distance(weights[:, case], _quartiles(np.delete(weights, case, axis=1))) for case in cases
    ]
    limit = np.quantile(distances, 1 - UNUSUAL, method="weibull")
    middle, below, above = _quartiles(weights)
    # Where all cases but one have nearly the same weight, the limit is in the billions.
    ends = [middle - limit * below, middle + limit * above]
    bounds = np.stack(ends, axis=1).clip(0, MAX_WEIGHT)
    return dict(zip(weights_by_region, bounds.round(4).tolist()))


def _quartiles(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Median, and distances of lower and upper quartile from it, of [regions, cases]."""
    low, middle, high = np.percentile(weights, (25, 50, 75), axis=1)
    return middle, np.maximum(middle - low, 1e-9), np.maximum(high - middle, 1e-9)


def _distance(case: np.ndarray, quartiles: tuple[np.ndarray, np.ndarray, np.ndarray]) -> float:
    middle, below, above = quartiles
    return float(np.maximum((middle - case) / below, (case - middle) / above).max())


def _or_nan(ratio: float | None) -> float:
    return np.nan if ratio is None else ratio


def _frequency(numbers: Sequence[float]) -> dict[str, float | int | None]:
    """Frequency of a pattern, with the exact 95 % interval (Clopper and Pearson 1934)."""
    known = [number for number in numbers if not np.isnan(number)]
    shown = sum(number > 1 for number in known)
    found = {"cases": len(known), "shown": shown, "frequency": None, "low": None, "high": None}
    if known:
        ends = binomtest(shown, len(known)).proportion_ci(0.95)
        found |= {
            "frequency": shown / len(known),
            "low": float(ends.low),
            "high": float(ends.high),
        }
    return found


def _finite(value: float, otherwise: str) -> float | str:
    return value if np.isfinite(value) else otherwise
