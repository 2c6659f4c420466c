"""How long the commands of docs/train-on-patients.md take, and what is read in their output.

    python Testing/benchmarks/walk_through.py FOLDER [--full]

writes synthetic downloads (Testing/walk_copies.py; coarse phantoms, no patient) into FOLDER and
runs every command of the page there, with the networks that are shipped. Networks are trained anew
with --small, unless --full is given. Prints wall-clock and CPU seconds of each command.
"""

import argparse
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / name) for name in ("Testing", "Training", "LiverFibrosisStaging")]

from phantom_cohorts import MEDIUM  # noqa: E402
from walk_copies import page_commands, write_downloads  # noqa: E402

STAGE = ["-m", "LiverFibrosisStagingLib", "stage"]


def main() -> int:
    """Returns the highest exit status of the commands."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--full", action="store_true", help="networks of full size")
    options = parser.parse_args()
    write_downloads(options.folder / "downloads", **MEDIUM)
    models = options.folder / "LiverFibrosisStaging"
    if not models.exists():
        models.symlink_to(ROOT / "LiverFibrosisStaging")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "LiverFibrosisStaging")}
    statuses = []
    for task, *words in page_commands():
        script = STAGE if task == "stage" else [str(ROOT / "Training" / f"{task}.py")]
        anew = task == "train" and "--start-from" not in words and not options.full
        command = [sys.executable, *script, *words, *(["--small"] if anew else [])]
        began, before = time.monotonic(), os.times()
        done = subprocess.run(command, cwd=options.folder, env=environment, check=False)
        after = os.times()
        spent = sum(after[2:4]) - sum(before[2:4])
        statuses.append(done.returncode)
        print(
            f"== {time.monotonic() - began:.0f} s, {spent:.0f} s of CPU, status {done.returncode}: "
            f"{shlex.join([task, *words])}",
            flush=True,
        )
    return max(statuses)


if __name__ == "__main__":
    sys.exit(main())
