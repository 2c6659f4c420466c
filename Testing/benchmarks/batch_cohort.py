"""Stage a large cohort as its user would, and check its table: phantoms, real CTs, broken files.

    python Testing/benchmarks/batch_cohort.py FOLDER [--cases 300] [--workers 2]

FOLDER/cohort receives coarse phantoms with masks, the real CTs of ../shared/data if they are there
(linked, segmented automatically) and 15 inputs that must be refused; FOLDER/out the results. Prints
the counts and the reasons of the failures, and compares the table as read by csv, pandas and
DuckDB. Exits with 1 if a case is missing, appears twice, or differs between the readers.
"""

import argparse
import csv
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import duckdb
import pandas as pd

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / part) for part in ("Testing", "Training", "LiverFibrosisStaging")]

from bad_inputs import BAD_CTS  # noqa: E402
from phantom_cohorts import COARSE  # noqa: E402

from cases import phantom, phantom_cohort  # noqa: E402

BROKEN = 15
NO_CASES = ("missing file", "empty folder", "unknown format")


def make(folder: Path, cases: int) -> tuple[int, int]:
    """Write the cohort; returns the numbers of phantoms and of real CTs."""
    shared = ROOT.parent / "shared" / "data"
    real = sorted(shared.glob("*/ct*.nii.gz"))
    for number, ct in enumerate(real):
        place = folder / f"real{number:02d}"
        place.mkdir(parents=True, exist_ok=True)
        link = place / "ct.nii.gz"
        if not link.exists():
            link.symlink_to(ct)
    broken = [(name, bad) for name, bad in BAD_CTS.items() if name not in NO_CASES]
    for number, (name, bad) in enumerate(broken[:BROKEN]):
        place = folder / f"broken{number:02d}"
        if not place.exists():
            place.mkdir(parents=True)
            bad.build(place)
            print(f"broken{number:02d}: {name}")
    phantoms = cases - len(real) - BROKEN
    for number in range(phantoms):
        place = folder / f"phantom{number:03d}"
        if not (place / "p_spleen.nii.gz").exists():
            place.mkdir(parents=True, exist_ok=True)
            phantom_cohort.write(phantom.phantom(number % 5, number, **COARSE), place / "p")
    return phantoms, len(real)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    cohort, out = options.folder / "cohort", options.folder / "out"
    phantoms, real = make(cohort, options.cases)
    print(f"{phantoms} phantoms, {real} real CTs, {BROKEN} broken inputs")
    command = [sys.executable, "-m", "LiverFibrosisStagingLib", "batch", str(cohort)]
    command += ["-o", str(out), "--workers", str(options.workers), "--parquet", "-q"]
    start = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT / "LiverFibrosisStaging", check=False)
    print(f"exit code {done.returncode}, {time.perf_counter() - start:.0f} s")
    with (out / "results.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    print(Counter(row["status"] for row in rows))
    for row in rows:
        if row["status"] != "done":
            print(f"  {row['case']}: {row['reason']}")
    names = [row["case"] for row in rows]
    wanted = {place.name for place in cohort.iterdir()}
    complete = len(names) == len(set(names)) and wanted <= {name.split("/")[0] for name in names}
    print(f"{len(rows)} rows; complete: {complete}")
    by_pandas = pd.read_csv(out / "results.csv")
    by_duckdb = duckdb.sql(f"select * from read_csv('{out / 'results.csv'}')").df()
    parquet = pd.read_parquet(out / "results.parquet")
    numbers = [c for c in by_pandas if pd.api.types.is_float_dtype(by_pandas[c])]
    same = all(
        len(other) == len(rows)
        and list(other["case"]) == names
        and (other[numbers].astype(float) - by_pandas[numbers]).abs().max().max() < 1e-9
        and other[numbers].isna().equals(by_pandas[numbers].isna())
        for other in (by_duckdb, parquet)
    )
    print(f"csv, pandas, DuckDB and Parquet agree: {same}")
    return 0 if complete and same else 1


if __name__ == "__main__":
    sys.exit(main())
