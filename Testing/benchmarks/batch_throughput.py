"""Throughput and memory of a batch.

    python Testing/benchmarks/batch_throughput.py [--cases 8] [--rounds 3] [--many 200] [--shrink 1]

Copies of the sample, with masks, are staged by one worker, by two, and by a loop that starts the
command line once per case, in turn, so that other work of the machine affects all alike; medians
of wall-clock and CPU time per case are printed. Then the peak memory of batches of 20 and of many
cases of the coarse sample, in this process and in its largest worker.
"""

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "LiverFibrosisStaging/Resources/SampleData"
MODEL = ROOT / "LiverFibrosisStaging/Resources/Models/LFS_single.onnx"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "LiverFibrosisStaging")}
COMMAND = [sys.executable, "-m", "LiverFibrosisStagingLib"]
PEAK = """
import resource, sys
from LiverFibrosisStagingLib import stage_folder
stage_folder(sys.argv[1], sys.argv[2], sys.argv[3], workers=int(sys.argv[4]))
for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
    print(resource.getrusage(who).ru_maxrss / 1024)
"""


def write_cases(folder: Path, count: int, shrink: int) -> None:
    """Copies of the sample, each a little brighter, since equal ones would be cached."""
    import SimpleITK as sitk

    images = [
        sitk.ReadImage(SAMPLE / name) for name in ("phantom_F4_ct.nii.gz", "phantom_F4.seg.nrrd")
    ]
    ct, organs = (sitk.Shrink(image, [shrink] * 3) for image in images)
    for number in range(count):
        place = folder / f"p{number:03d}"
        place.mkdir(parents=True)
        sitk.WriteImage(ct + (number % 7), place / "ct.nii.gz")
        sitk.WriteImage(organs, place / "seg.nii.gz")


def measured(commands: list[list[str]]) -> tuple[float, float]:
    """Seconds of wall clock and of CPU for commands, one after the other."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    for command in commands:
        subprocess.run(command, env=ENVIRONMENT, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - started, cpu


def ways(cohort: Path, output: Path) -> dict[str, list[list[str]]]:
    """Commands by way of staging a cohort."""
    model = ["--model", str(MODEL), "-q"]
    cts = [(place / "ct.nii.gz", place / "seg.nii.gz") for place in sorted(cohort.iterdir())]
    return {
        "1 worker": [[*COMMAND, "batch", str(cohort), "-o", str(output), *model]],
        "2 workers": [
            [*COMMAND, "batch", str(cohort), "-o", str(output), *model, "--workers", "2"]
        ],
        "loop": [
            [
                *COMMAND,
                "stage",
                str(ct),
                "--liver",
                str(seg),
                *model,
                "-o",
                str(output / ct.parent.name),
            ]
            for ct, seg in cts
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--many", type=int, default=200, help="0: memory is not measured")
    parser.add_argument("--shrink", type=int, default=1, help="of the sample, for the throughput")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cohort, output = Path(folder) / "in", Path(folder) / "out"
        write_cases(cohort, options.cases, options.shrink)
        found: dict[str, list[tuple[float, float]]] = {}
        for _ in range(options.rounds):
            for name, commands in ways(cohort, output).items():
                found.setdefault(name, []).append(measured(commands))
                shutil.rmtree(output)
        print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        for name, times in found.items():
            wall, cpu = (statistics.median(values) / options.cases for values in zip(*times))
            print(f"{name:10} {wall:6.2f} s, {cpu:6.2f} s of CPU per case")
        for name in ("2 workers", "loop"):
            ratios = [a[0] / b[0] for a, b in zip(found["1 worker"], found[name])]
            print(f"{name}: {statistics.median(ratios):.2f} times the throughput of 1 worker")
        shutil.rmtree(cohort)
        for count in (20, options.many) if options.many else ():
            write_cases(cohort, count, 3)
            for workers in (1, 2):
                arguments = [sys.executable, "-c", PEAK, cohort, output, MODEL, str(workers)]
                peaks = subprocess.run(
                    arguments, env=ENVIRONMENT, check=True, capture_output=True, text=True
                ).stdout.split()
                print(
                    f"{count} cases, {workers} workers: peak {peaks[0]} MB, workers {peaks[1]} MB"
                )
                shutil.rmtree(output)
            shutil.rmtree(cohort)


if __name__ == "__main__":
    main()
