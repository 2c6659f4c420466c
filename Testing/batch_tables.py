"""Made-up tables of a batch, and reference standards for them, without CTs."""

import csv
from pathlib import Path

import numpy as np

from LiverFibrosisStagingLib.batch.table import COLUMNS, TABLE_SCHEMA
from LiverFibrosisStagingLib.evaluation.signs import directions
from LiverFibrosisStagingLib.stages import GROUPS, STAGES, median_stage, softmax

SHA = "0" * 64


def batch_rows(count: int = 60, seed: int = 0, noise: float = 0.8) -> tuple[list[dict], list[dict]]:
    """Rows of results and of their reference standard; stages go round from F0 to F4.

    The signs follow the stage in their published direction; the ratios are not measured.
    """
    rng = np.random.default_rng(seed)
    results, truth = [], []
    for number in range(count):
        stage = number % len(STAGES)
        severity = stage + rng.normal(0, noise)
        probabilities = softmax(-((np.arange(5) - severity) ** 2)).round(6)
        predicted = int(median_stage(probabilities))
        row = {
            "case": f"case{number:03d}",
            "status": "done",
            "stage": STAGES[predicted],
            "supported": str(rng.random() < 0.8).lower(),
            **dict(zip(STAGES, probabilities)),
            **{name: probabilities[first:].sum().round(6) for name, first in GROUPS.items()},
            "explained": STAGES[predicted],
            "liver_mean": round(0.6 + 0.2 * predicted + rng.normal(0, 0.1), 6),
            "liver_surface_mean": round(1.1 + rng.normal(0, 0.1), 6),
            "liver_core_mean": round(0.5 + 0.2 * predicted + rng.normal(0, 0.1), 6),
            "spleen_mean": round(0.5 + 0.1 * predicted + rng.normal(0, 0.1), 6),
            "rest_mean": round(0.9 + rng.normal(0, 0.05), 6),
            **{
                key: round(float(np.exp(5 + 0.2 * rises * stage + rng.normal(0, 0.3))), 3)
                for key, rises in directions().items()
                if key not in ("lsvr", "caudate_right_ratio")
            },
            "schema": TABLE_SCHEMA,
            "model": "made-up network",
            "model_sha256": SHA,
            "trained_on": "a made-up cohort, no patients",
        }
        results.append(row)
        truth.append({"case": row["case"], "stage": STAGES[stage]})
    return results, truth


def write_rows(path: Path, rows: list[dict], columns=None) -> Path:
    columns = columns or COLUMNS
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns, restval="")
        table.writeheader()
        table.writerows(rows)
    return path
