"""Rows of a cohort's table, without staging."""

import numpy as np

from LiverFibrosisStagingLib.batch.table import (
    BOOLEAN,
    DONE,
    FAILED,
    INTEGER,
    NUMBER,
    SCHEMA,
    TABLE_SCHEMA,
)
from LiverFibrosisStagingLib.stages import STAGES

HOSTILE = "<script>alert(1)</script>\"'&</td>"


def table_rows(count: int = 40, seed: int = 0) -> list[dict]:
    """Every seventh case has failed, every fifth stage is not supported, some values are missing.

    Among the texts are a formula, HTML, separators, quotes, and words that readers take for
    missing values.
    """
    rng = np.random.default_rng(seed)
    rows = []
    names = ["007", "NA", "-1", *(f"case{number:04d}" for number in range(3, count))]
    for number in range(count):
        common = {
            "model": "Network",
            "trained_on": "phantoms, \u201equoted\u201c; no patient",
            "software": "1.2.3",
            "schema": TABLE_SCHEMA,
            "notice": "Research use only.",
        }
        if number % 7 == 3:
            reason = f"=1+1 {HOSTILE}" if number == 3 else f'The CT, "{number} slices";\nno HU.'
            rows.append({**common, "status": FAILED, "reason": reason})
            continue
        row = {"chosen": "NA", "status": DONE}
        for column in SCHEMA:
            if column.kind == NUMBER:
                row[column.name] = round(float(rng.gamma(4, 50)), 6)
            elif column.kind == BOOLEAN:
                row[column.name] = bool(number % 5)
            elif column.kind == INTEGER:
                row[column.name] = number
        row["stage"] = STAGES[number % 4]
        row["lsvr"] = row["spleen_mean"] = None
        row["nodularity_mm10"] = None if number % 3 else 1e-6
        row["reasons"] = None if row["supported"] else f"{number} % lie outside. | {HOSTILE}"
        row["checks"] = "phase: warn | slices: warn" if number % 2 else ""
        row["warnings"] = f"A liver of {number} mL." if number % 2 else None
        row["pattern"] = "surface"
        rows.append({**row, **common})
    return [{**row, "case": name} for row, name in zip(rows, names)]
