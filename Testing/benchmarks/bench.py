"""Time and memory of staging, beside PyTorch + MONAI and an older version: the whole table.

    python3 run.py bench [CT] [--quick] [--runs 3] [--against CHECKOUT] [--record]

CT: a file, the sample phantom by default. Measured in one run: what the machine can do, one Stage
step by step, the same job in PyTorch + MONAI, and the cost of scans of 50 to 1,500 slices. The
table is printed in the form of docs/performance.md. --quick: one run each, up to 200 slices.
--against: another checkout of this project, such as an older version; runs alternate. --record:
append the numbers to Testing/benchmarks/history.jsonl and write docs/performance.md; --docs: only
write the page from the recorded runs. Linux only. In full 5 to 12 minutes.
"""

import argparse
import datetime
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import described, environment
from network_work import network_work
from performance_page import PAGE, page, record, rounded, write_page
from profile_stage import (
    MIB,
    NETWORKS,
    ROOT,
    SAMPLE,
    alternating,
    child,
    longer,
    measured_process,
)

HERE = Path(__file__).resolve().parent
SLICES = (50, 109, 200, 400, 800, 1500)
QUICK_SLICES = (50, 109, 200)
MODELS = {"shipped": "LFS.onnx", "phantoms": "LFS_phantoms.onnx"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ct", nargs="?", type=Path, default=SAMPLE)
    parser.add_argument("--runs", type=int)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--against", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--docs", action="store_true")
    options = parser.parse_args()
    if options.docs:
        write_page()
        return
    runs = options.runs or (1 if options.quick else 3)
    checkouts = {"now": ROOT}
    if options.against is not None:
        checkouts["before"] = options.against.resolve()
    found = measured(
        options.ct, runs, options.threads, checkouts, QUICK_SLICES if options.quick else SLICES
    )
    if options.record:
        record(found)
        write_page()
        print(f"Recorded; see {PAGE.relative_to(ROOT)}.")
    else:
        print(page([rounded(found)]))


def measured(
    ct: Path, runs: int, threads: int, checkouts: dict[str, Path], slices: tuple[int, ...]
) -> dict[str, Any]:
    """All numbers of one run, as in a line of the history."""
    _say("What the machine can do")
    command = [sys.executable, str(HERE / "machine.py"), str(ct), "--threads", str(threads)]
    limits = measured_process(command, environment(threads, ROOT))
    del limits["process_wall"]
    _say("One Stage step by step")
    both = dict(zip(checkouts, alternating(ct, runs, threads, list(checkouts.values()))))
    models = ROOT / "LiverFibrosisStaging" / "Resources" / "Models"
    work = {}
    for name, shapes in both["now"]["shapes"].items():
        each = [network_work(models / NETWORKS[name], _five_axes(shape)) for shape in shapes]
        work[name] = [sum(parts) for parts in zip(*each)]
    versions = both["now"]["versions"]
    for side, summary in both.items():
        summary["commit"] = commit(checkouts[side])
        del summary["versions"], summary["shapes"]
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "commit": both["now"]["commit"],
        "machine": described(),
        "versions": {**versions, **_versions("torch", "monai")},
        "threads": threads,
        "runs": runs,
        "sample": ct == SAMPLE,
        "limits": limits,
        "now": both["now"],
        "before": both.get("before"),
        "work": work,
        "monai": compared(ct, runs, threads, checkouts),
        "slices": against_slices(ct, threads, checkouts, slices),
    }


def compared(
    ct: Path, runs: int, threads: int, checkouts: dict[str, Path]
) -> dict[str, dict[str, Any]]:
    """By job, medians of each side: seconds of job and process, and peak in MiB."""
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        mask = str(Path(folder) / "organs.nii.gz")
        command = [sys.executable, "-m", "LiverFibrosisStagingLib", "segment", str(ct), "-o", mask]
        variables = environment(threads, ROOT)
        subprocess.run(command, env=variables, check=True, stdout=subprocess.DEVNULL)
        sides = {side: ("library", root) for side, root in checkouts.items()}
        sides |= {side: (side, ROOT) for side in ("plain", "tuned")}
        for job, model in MODELS.items():
            _say(f"Beside PyTorch + MONAI: {job}")
            masks = ["--liver", mask] if job == "phantoms" else []
            done: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
            for _ in range(runs):
                for side, (kind, root) in sides.items():
                    script = [sys.executable, str(HERE / "stage_job.py"), kind, str(ct)]
                    command = [*script, "--model", model, *masks]
                    done[side].append(measured_process(command, environment(threads, root)))
            found[job] = {side: _medians(results) for side, results in done.items()}
            ours, theirs = (done[side][0]["probabilities"] for side in ("now", "tuned"))
            found[job]["difference"] = max(abs(a - b) for a, b in zip(ours, theirs))
    return found


def against_slices(
    ct: Path, threads: int, checkouts: dict[str, Path], counts: tuple[int, ...]
) -> dict[str, list[list[float]]]:
    """By checkout and scan: slices, wall and CPU seconds of Stage, and peak in MiB."""
    found: dict[str, list[list[float]]] = {side: [] for side in checkouts}
    with tempfile.TemporaryDirectory() as folder:
        scan = Path(folder) / "scan.nii.gz"
        for count in counts:
            _say(f"A scan of {count} slices")
            longer(ct, count, scan)
            for side, root in checkouts.items():
                run = child(scan, "plain", threads, root)
                cpu, wall = run["stage"]
                found[side].append([count, wall, cpu, run["peak"] / MIB])
    return found


def commit(checkout: Path) -> str:
    """Short name of the checked-out commit, "+" if files differ from it; "unknown" without git."""
    git = ["git", "-C", str(checkout)]
    name = subprocess.run(
        [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    changes = subprocess.run(
        [*git, "status", "--porcelain"], capture_output=True, text=True, check=False
    )
    return name.stdout.strip() + ("+" if changes.stdout else "") or "unknown"


def _medians(results: list[dict[str, Any]]) -> dict[str, float]:
    columns = {"job": "job", "process": "process_wall", "peak": "peak"}
    return {
        name: statistics.median(run[column] for run in results) for name, column in columns.items()
    }


def _five_axes(shape: list[int]) -> list[int]:
    return [1] * (5 - len(shape)) + shape


def _versions(*packages: str) -> dict[str, str]:
    from importlib.metadata import version

    return {package: version(package) for package in packages}


_BEGUN = time.perf_counter()


def _say(what: str) -> None:
    print(f"{time.perf_counter() - _BEGUN:5.0f} s  {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
