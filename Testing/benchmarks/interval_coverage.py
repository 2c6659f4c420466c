"""How often the intervals of `evaluate` contain the true value, for cohorts of several sizes.

    python Testing/benchmarks/interval_coverage.py [RUNS]      (default: 1000, a minute)

Scores are normal, with the same standard deviation in both classes and the cutoff half way.
"""

import sys
from pathlib import Path

import numpy as np
from scipy.stats import norm

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = ((250, 80, 1.8), (120, 50, 1.5), (60, 12, 1.5), (60, 12, 2.5), (40, 8, 1.5), (30, 15, 1))


def coverage(cases: int, positive: int, shift: float, runs: int) -> dict[str, float]:
    """Measure -> share of the runs whose interval contains the true value."""
    from LiverFibrosisStagingLib.evaluation.cohort import binary_measures
    from LiverFibrosisStagingLib.evaluation.measures import draw_patients

    rng = np.random.default_rng(0)
    truth, patient = np.arange(cases) < positive, np.arange(cases)
    right = norm.cdf(shift / 2)
    true = {"auc": norm.cdf(shift / np.sqrt(2))}
    true |= dict.fromkeys(("sensitivity", "specificity", "accuracy"), right)
    hits = dict.fromkeys(true, 0)
    for seed in range(runs):
        score = rng.normal(truth * shift, 1)
        weights = draw_patients(patient, 400, seed)
        found = binary_measures(truth, score, score >= shift / 2, patient, weights)
        for name, value in true.items():
            hits[name] += found[name]["low"] <= value <= found[name]["high"]
    return {name: count / runs for name, count in hits.items()}


def main() -> None:
    """Print a line for each setting."""
    sys.path.insert(0, str(ROOT / "LiverFibrosisStaging"))
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    for cases, positive, shift in SETTINGS:
        found = coverage(cases, positive, shift, runs)
        shares = ", ".join(f"{name} {share:.3f}" for name, share in found.items())
        print(f"{positive} positive of {cases}, AUC {norm.cdf(shift / np.sqrt(2)):.2f}: {shares}")


if __name__ == "__main__":
    main()
