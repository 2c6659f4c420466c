"""A batch that is killed at random moments and resumed, against one that is not disturbed.

    python Testing/benchmarks/batch_kills.py [--kills 20] [--cases 6] [--workers 2] [--seed 0]

SIGKILL reaches the batch's main process at a random moment of its time. After each kill nothing
half-made may lie under a final name; at the end, table and results must be those of an undisturbed
batch, but for times.
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "Testing"), str(ROOT / "Testing/benchmarks")]

from batch_throughput import COMMAND, ENVIRONMENT, MODEL, write_cases  # noqa: E402
from small_cohorts import summaries, table  # noqa: E402

RESULT = {
    "location_map.nrrd",
    "location_map_label.nrrd",
    "organs.seg.nrrd",
    "overview.png",
    "staging.json",
}


def check_whole(output: Path) -> int:
    """The number of finished results; each is complete, and the table can be read."""
    import SimpleITK as sitk

    finished = list(output.glob("*/staging.json"))
    for path in finished:
        json.loads(path.read_text())
        assert {other.name for other in path.parent.iterdir()} >= RESULT, path.parent
        sitk.ReadImage(path.with_name("location_map.nrrd"))
    if (output / "results.csv").exists():
        assert all(row["status"] for row in table(output))
    return len(finished)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--cases", type=int, default=6)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        cohort, whole, output = (Path(folder) / name for name in ("in", "whole", "out"))
        write_cases(cohort, options.cases, 3)
        (cohort / "bad.nii").write_text("Dear radiologist")
        command = [*COMMAND, "batch", str(cohort), "--model", str(MODEL), "-q"]
        command += ["--workers", str(options.workers), "-o"]
        quiet = {"env": ENVIRONMENT, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        started = time.perf_counter()
        subprocess.run([*command, str(whole)], **quiet, check=False)
        length = time.perf_counter() - started
        kills, restarts = 0, 0
        while kills < options.kills:
            batch = subprocess.Popen([*command, str(output)], **quiet)
            try:
                batch.wait(chance.uniform(0, 1.5 * length))
            except subprocess.TimeoutExpired:
                batch.send_signal(signal.SIGKILL)
                batch.wait()
                kills += 1
                print(f"kill {kills}: {check_whole(output)} of {options.cases} results", flush=True)
            else:  # ended by itself before the moment came: from the beginning
                assert (table(output), summaries(output)) == (table(whole), summaries(whole))
                shutil.rmtree(output)
                restarts += 1
        subprocess.run([*command, str(output)], **quiet, check=False)
        assert (table(output), summaries(output)) == (table(whole), summaries(whole))
        left = {path.relative_to(output) for path in output.rglob("*")}
        assert left == {path.relative_to(whole) for path in whole.rglob("*")}, left
        print(f"{kills} kills, {restarts} batches that ended before; the table is the same")


if __name__ == "__main__":
    main()
