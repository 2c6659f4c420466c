"""One Stage by step: automatic organs, ensemble, and saving; seconds of CPU, bytes and memory.

    python Testing/benchmarks/profile_stage.py CT [--slices 454] [--runs 3] [--threads 2]

Each run is a process of its own. By step, without the steps inside it: the least CPU seconds of all
runs, of all threads, which other work of the machine changes little; the least wall seconds; bytes
read and written; and how much the step raised the resident memory, at its peak, above what there
was at its beginning. The last lines are the whole job, the whole process (with imports), and its
peak memory. --slices: of a longer scan made from the CT: its slices are interpolated to 0.6 mm, and
below them the first slice is repeated with noise of 10 HU. Linux only.
"""

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STEP_MM = 0.6
MIB = 1 << 20
# Functions of LiverFibrosisStagingLib, each a step.
STEPS = (
    "model.StagingModel.load",
    "imaging.reading.read_ct",
    "imaging.checks.check_ct",
    "imaging.segmentation.shipped_network",
    "imaging.segmentation.network_grid",
    "imaging.segmentation._run",
    "imaging.plausibility.landmarks",
    "imaging.plausibility.without_heart",
    "imaging.refinement.refine_em_mrf",
    "imaging.refinement.labels_on_ct",
    "imaging.segmentation.segment_checked",
    "imaging.masks.organ_masks",
    "imaging.checks.check_organs",
    "imaging.coarse.CoarseScan.of",
    "imaging.phase.phase_by_hu",
    "imaging.input_checks.input_checks",
    "signs.measure.measure_signs",
    "imaging.grid.working_grid",
    "explaining.run_network",
    "model.StagingModel.location_map",
    "location_map.merge_patches",
    "analysis.measure",
    "location_map.on_ct",
    "analysis.outside_share",
    "staging._provenance",
    "staging.stage",
    "result._write_image",
    "imaging.organs.write_labels",
    "result.StagingResult.overview",
    "result.StagingResult.save",
)


class Profile:
    """Cost of each step, without the steps that it calls."""

    def __init__(self) -> None:
        self.costs: dict[str, list[float]] = {}
        self._open: list[list[float]] = []

    def step(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with its cost added to the step."""

        @functools.wraps(function)
        def measured(*args: Any, **named: Any) -> Any:
            resident = _memory("VmRSS")
            highest = _memory("VmHWM")
            _forget_peak()
            before = _now()
            self._open.append([0.0] * len(before))
            try:
                return function(*args, **named)
            finally:
                spent = [b - a for a, b in zip(before, _now())]
                inner = self._open.pop()
                if self._open:
                    self._open[-1] = [a + b for a, b in zip(self._open[-1], spent)]
                own = [a - b for a, b in zip(spent, inner)]
                rise = max(_memory("VmHWM"), highest if self._open else 0.0) - resident
                found = self.costs.setdefault(name, [0.0] * 5)
                found[:4] = [a + b for a, b in zip(found, own)]
                found[4] = max(found[4], rise)

        return measured

    def attach(self) -> None:
        """Replace each function of STEPS wherever the library refers to it."""
        import importlib

        for name in STEPS:
            *path, last = name.split(".")
            parts = [part for part in path if part[0].islower()]
            owner: Any = importlib.import_module(".".join(["LiverFibrosisStagingLib", *parts]))
            if len(parts) < len(path):
                owner = getattr(owner, path[-1])
                kind = vars(owner)[last]
                if isinstance(kind, classmethod):
                    setattr(owner, last, classmethod(self.step(name, kind.__func__)))
                else:
                    setattr(owner, last, self.step(name, kind))
                continue
            function = getattr(owner, last)
            measured = self.step(name, function)
            for module in list(sys.modules.values()):
                if module.__name__.startswith("LiverFibrosisStagingLib"):
                    for key, value in list(vars(module).items()):
                        if value is function:
                            setattr(module, key, measured)


def _now() -> list[float]:
    """CPU seconds, wall seconds, bytes read and bytes written by this process."""
    counts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return [
        time.process_time(),
        time.perf_counter(),
        float(counts["rchar"]),
        float(counts["wchar"]),
    ]


def _memory(key: str) -> float:
    """A value of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return 1024.0 * float(line.split()[1])
    raise KeyError(key)


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def longer(ct: Path, slices: int, target: Path) -> None:
    """Write a scan of `slices` slices of STEP_MM; see the module's docstring."""
    import numpy as np
    import SimpleITK as sitk

    image = sitk.ReadImage(ct)
    values = sitk.GetArrayFromImage(image).astype(np.float32)
    count = int(image.GetSize()[2] * image.GetSpacing()[2] / STEP_MM)
    places = np.linspace(0, len(values) - 1, min(count, slices))
    below = np.floor(places).astype(int)
    part = (places - below).astype(np.float32)
    made = np.empty((slices, *values.shape[1:]), np.int16)
    more = slices - len(places)
    for k, (low, share) in enumerate(zip(below, part)):
        high = min(low + 1, len(values) - 1)
        made[more + k] = np.rint((1 - share) * values[low] + share * values[high])
    noise = np.random.default_rng(1)
    for k in range(more):
        made[k] = values[0] + noise.normal(0, 10, values[0].shape)
    long = sitk.GetImageFromArray(made)
    long.SetSpacing((*image.GetSpacing()[:2], STEP_MM))
    long.SetDirection(image.GetDirection())
    long.SetOrigin(image.GetOrigin())
    sitk.WriteImage(long, target, useCompression=True, compressionLevel=1)


def once(ct: str, plain: bool) -> dict[str, Any]:
    """Stage and save once in this process; plain: without the steps, whose memory is then true."""
    import LiverFibrosisStagingLib.result
    from LiverFibrosisStagingLib import stage

    profile = Profile()
    if not plain:
        import LiverFibrosisStagingLib.report.overview  # noqa: F401

        profile.attach()
        from LiverFibrosisStagingLib.staging import stage
    with tempfile.TemporaryDirectory() as folder:
        before = _now()
        result = stage(ct, any_phase=True)
        staged = _now()
        result.save(folder)
        saved = _now()
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
    return {
        "steps": profile.costs,
        "stage": [b - a for a, b in zip(before, staged)],
        "save": [b - a for a, b in zip(staged, saved)],
        "process": time.process_time(),
        "peak": _memory("VmHWM"),
        "files": size,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ct")
    parser.add_argument("--slices", type=int)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--once", choices=["steps", "plain"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        print(json.dumps(once(options.ct, options.once == "plain")))
        return
    with tempfile.TemporaryDirectory() as folder:
        ct = options.ct
        if options.slices:
            ct = str(Path(folder) / "long.nii.gz")
            longer(Path(options.ct), options.slices, Path(ct))
        runs = {
            kind: [_child(ct, kind, options.threads) for _ in range(options.runs)]
            for kind in ("steps", "plain")
        }
    _show(runs["steps"], runs["plain"], options)


def _child(ct: str, kind: str, threads: int) -> dict[str, Any]:
    environment = {
        **os.environ,
        **{f"{name}_NUM_THREADS": str(threads) for name in ("OMP", "OPENBLAS", "MKL")},
        "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": str(threads),
    }
    command = [sys.executable, __file__, ct, "--once", kind]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def _show(steps: list[dict], plain: list[dict], options: argparse.Namespace) -> None:
    print(f"{options.runs} runs, {options.threads} threads; least of all runs")
    print(f"{'step':44s}{'CPU s':>8s}{'wall s':>8s}{'read':>8s}{'written':>9s}{'rise MiB':>10s}")

    def line(name: str, costs: list[float]) -> None:
        cpu, wall, read, written, *rise = costs
        print(
            f"{name:44s}{cpu:8.3f}{wall:8.3f}{read / MIB:8.1f}{written / MIB:9.1f}"
            + "".join(f"{value / MIB:10.0f}" for value in rise)
        )

    def least(values: list[list[float]]) -> list[float]:
        return [min(each) for each in zip(*values)]

    for name in STEPS:
        found = [run["steps"][name] for run in steps if name in run["steps"]]
        if found:
            line(name, least(found))
    for name in ("stage", "save"):
        line(f"{name}, without the measuring", least([run[name] for run in plain]))
    print(f"{'process, CPU s':44s}{min(run['process'] for run in plain):8.3f}")
    print(f"{'peak of the process, MiB':44s}{min(run['peak'] for run in plain) / MIB:8.0f}")
    print(f"{'files of the result, MiB':44s}{plain[0]['files'] / MIB:8.2f}")


if __name__ == "__main__":
    main()
