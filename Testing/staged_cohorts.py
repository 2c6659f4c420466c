"""Simulated results of staging a cohort, without CTs."""

import numpy as np

from evaluation.staged import Staged
from LiverFibrosisStagingLib.stages import StageRange, median_stage, softmax

PAPER_COUNTS = (134, 8, 10, 18, 82)


def staged_cohort(
    counts=PAPER_COUNTS, seed: int = 0, skill: float = 1.6, spleens: bool = True, twice: int = 2
) -> list[Staged]:
    """Cases whose logits are highest near the true stage; the last `twice` are second scans."""
    rng = np.random.default_rng(seed)
    cases = []
    for number, stage in enumerate(np.repeat(np.arange(5), counts)):
        severity = stage / 2 + rng.normal(0, 1 / skill)
        logits = -2 * (np.arange(5) / 2 - severity) ** 2 + (1, -1, -1, -0.5, 0.5)
        logits += rng.normal(0, 0.3, 5)
        predicted = int(median_stage(softmax(logits)))
        weights = {
            "liver_surface": rng.gamma(12, (1.9 - 0.2 * predicted) / 12),
            "liver_core": rng.gamma(12, (0.6 + 0.3 * predicted) / 12),
            "spleen": rng.gamma(8, (0.7 + 0.2 * predicted) / 8),
            "rest": rng.gamma(20, 0.9 / 20),
        }
        weights["liver"] = 0.4 * weights["liver_surface"] + 0.6 * weights["liver_core"]
        if not spleens:
            del weights["spleen"]
        measurements = {
            region: {"mean": float(mean), "share": float(mean) / 5, "volume_ml": 500.0}
            for region, mean in weights.items()
        }
        name, known = f"case{number:03d}", StageRange(int(stage), int(stage))
        cases.append(Staged(name, name, known, logits, softmax(logits), predicted, measurements))
    for number in range(twice):
        second = cases[-1 - number]
        cases[-1 - number] = Staged(**{**vars(second), "patient": f"case{number:03d}"})
    return cases
