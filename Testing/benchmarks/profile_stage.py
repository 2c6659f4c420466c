"""One Stage by step: automatic organs, the shipped ensemble, and saving.

    python Testing/benchmarks/profile_stage.py [CT] [--slices 454] [--runs 3] [--threads 2]
        [--against CHECKOUT]

The part of `bench.py` that developers run alone. Without a CT, the sample phantom is staged. Each
run is a process of its own. By step, without the steps inside it: the least CPU seconds of all
runs, of all threads, which other work of the machine changes little; the least wall seconds; the
cores that were busy; MiB of the images, arrays and files that the step was given or has made, each
once, whatever part of them it used; and how much the step raised the resident memory, at its peak,
above what there was at its beginning. The last lines are the whole job, the whole process (with
imports), and its peak memory. --slices: of a scan made from the CT (`longer`). --against: another
checkout of this project, such as an older version; runs of both alternate, and its CPU seconds and
the ratios to this one's are added to the table. Linux only.
"""

import argparse
import dataclasses
import functools
import importlib
import inspect
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from machine import described, environment

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "LiverFibrosisStaging" / "Resources" / "SampleData" / "phantom_F4_ct.nii.gz"
STEP_MM = 0.6
MIB = 1 << 20
# Functions of LiverFibrosisStagingLib, each a step. Another checkout may lack some.
STEPS = (
    "model.StagingModel.load",
    "imaging.reading.read_ct",
    "imaging.checks.check_ct",
    "imaging.segmentation.shipped_network",
    "imaging.segmentation.network_grid",
    "imaging.segmentation._run",
    "imaging.segmentation.SegmentationModel.run",
    "imaging.plausibility.landmarks",
    "imaging.plausibility.without_heart",
    "imaging.refinement.refine_em_mrf",
    "imaging.refinement.organs_on_ct",
    "imaging.segmentation.segment_checked",
    "imaging.masks.organ_masks",
    "imaging.checks.check_organs",
    "imaging.coarse.CoarseScan.of",
    "imaging.phase.phase_by_hu",
    "imaging.input_checks.scan_checks",
    "imaging.input_checks.input_checks",
    "signs.measure.measure_signs",
    "imaging.grid.working_grid",
    "explaining.run_network",
    "model.StagingModel.run",
    "model.StagingModel.location_map",
    "location_map.merge_patches",
    "analysis.regions",
    "analysis.measure",
    "location_map.on_ct",
    "analysis.outside_share",
    "staging._voxels_sha256",
    "staging.stage",
    "result._write_maps",
    "result.StagingResult._write_organs",
    "report.overview.render_overview",
    "result.StagingResult.save",
)
# Steps that run a network -> its file.
NETWORKS = {
    "imaging.segmentation.SegmentationModel.run": "VNet.onnx",
    "model.StagingModel.run": "LFS.onnx",
}


class _AtOnce(ThreadPoolExecutor):
    """Work that is given to a thread is done at once, so that the steps' costs stay apart."""

    def submit(self, function: Callable[..., Any], *args: Any) -> Future:
        done: Future = Future()
        done.set_result(function(*args))
        return done


class Profile:
    """Cost of each step, without the steps that it calls.

    costs: CPU and wall seconds, bytes touched, and bytes by which the memory rose. shapes: of the
    input of each network, by run.
    """

    def __init__(self) -> None:
        self.costs: dict[str, list[float]] = {}
        self.shapes: dict[str, list[list[int]]] = {}
        self._open: list[list[float]] = []
        self._peaks: list[float] = []  # of the memory, of the steps that are open

    def step(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with its cost added to the step."""

        @functools.wraps(function)
        def measured(*args: Any, **named: Any) -> Any:
            begun = _now()
            resident = memory("VmRSS")
            if self._peaks:  # up to here, the peak is that of the step around
                self._peaks[-1] = max(self._peaks[-1], memory("VmHWM"))
            _forget_peak()
            self._peaks.append(0.0)
            self._open.append([0.0, 0.0])
            made = None
            before = _now()
            try:
                made = function(*args, **named)
                return made
            finally:
                spent = _since(before)
                own = [a - b for a, b in zip(spent, self._open.pop())]
                peak = max(memory("VmHWM"), self._peaks.pop())
                if self._peaks:
                    self._peaks[-1] = max(self._peaks[-1], peak)
                _forget_peak()
                found = self.costs.setdefault(name, [0.0] * 4)
                touched = _bytes((args, named, made), set())
                found[:3] = [a + b for a, b in zip(found, (*own, touched))]
                found[3] = max(found[3], peak - resident)
                if name in NETWORKS:
                    self.shapes.setdefault(name, []).append(list(args[1].shape))
                if self._open:  # what the measuring takes is no cost of the step around
                    self._open[-1] = [a + b for a, b in zip(self._open[-1], _since(begun))]

        return measured

    def attach(self) -> None:
        """Replace each function of STEPS wherever the library refers to it."""
        for name in ("staging", "result", "imaging.refinement", "imaging.segmentation"):
            importlib.import_module(f"LiverFibrosisStagingLib.{name}").ThreadPoolExecutor = _AtOnce
        for name in STEPS:
            owner, last = _place(name)
            function = inspect.getattr_static(owner, last, None)
            if function is None:
                continue
            if isinstance(function, classmethod):
                setattr(owner, last, classmethod(self.step(name, function.__func__)))
                continue
            measured = self.step(name, function)
            setattr(owner, last, measured)
            for module in list(sys.modules.values()):
                if module.__name__.startswith("LiverFibrosisStagingLib"):
                    for key, value in list(vars(module).items()):
                        if value is function:
                            setattr(module, key, measured)


def _place(name: str) -> tuple[Any, str]:
    """Module or class of a step, None where there is no such, and the function's name in it."""
    *path, last = name.split(".")
    modules = [part for part in path if part[0].islower()]
    try:
        owner: Any = importlib.import_module(".".join(["LiverFibrosisStagingLib", *modules]))
    except ModuleNotFoundError:
        return None, last
    for part in path[len(modules) :]:
        owner = getattr(owner, part, None)
    return owner, last


def _bytes(value: Any, seen: set[int]) -> float:
    """Bytes of the images, arrays and files in arguments and results, each once."""
    import numpy as np
    import SimpleITK as sitk

    if id(value) in seen:
        return 0.0
    seen.add(id(value))
    if isinstance(value, sitk.Image):
        size = value.GetSizeOfPixelComponent() * value.GetNumberOfComponentsPerPixel()
        return float(value.GetNumberOfPixels() * size)
    if isinstance(value, np.ndarray):
        return float(value.nbytes)
    if isinstance(value, Path):
        return float(value.stat().st_size) if value.is_file() else 0.0
    parts: Iterable[Any] = ()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = vars(value).values()
    elif isinstance(value, dict):
        parts = value.values()
    elif isinstance(value, list | tuple):
        parts = value
    return sum(_bytes(part, seen) for part in parts)


def _now() -> list[float]:
    """CPU and wall seconds of this process."""
    return [time.process_time(), time.perf_counter()]


def _since(before: list[float]) -> list[float]:
    return [b - a for a, b in zip(before, _now())]


def memory(key: str) -> float:
    """A value of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{key}:"):
            return 1024.0 * float(line.split()[1])
    raise KeyError(key)


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def longer(ct: Path, slices: int, target: Path) -> None:
    """Write a scan of `slices` slices made from a CT.

    Its slices are interpolated over the same length, but not closer than STEP_MM; if that leaves
    some over, the first slice is repeated below with noise of 10 HU.
    """
    import numpy as np
    import SimpleITK as sitk

    image = sitk.ReadImage(ct)
    values = sitk.GetArrayFromImage(image).astype(np.float32)
    length = image.GetSize()[2] * image.GetSpacing()[2]
    step = max(STEP_MM, length / slices)
    places = np.linspace(0, len(values) - 1, min(int(length / step + 1e-6), slices))
    below = np.floor(places).astype(int)
    part = (places - below).astype(np.float32)
    made = np.empty((slices, *values.shape[1:]), np.int16)
    more = slices - len(places)
    for k, (low, share) in enumerate(zip(below, part)):
        high = min(low + 1, len(values) - 1)
        made[more + k] = np.rint((1 - share) * values[low] + share * values[high])
    random = np.random.default_rng(1)
    noise = random.normal(0, 10, values[0].size)
    for k in range(more):  # noise anew for each slice would take longer than staging
        made[k] = values[0] + np.roll(noise, random.integers(noise.size)).reshape(values[0].shape)
    del values
    long = sitk.GetImageFromArray(made)
    long.SetSpacing((*image.GetSpacing()[:2], step))
    long.SetDirection(image.GetDirection())
    long.SetOrigin(image.GetOrigin())
    sitk.WriteImage(long, target, useCompression=True, compressionLevel=1)


def once(ct: str, plain: bool) -> dict[str, Any]:
    """Stage and save once in this process; plain: without the steps, whose memory is then true."""
    from LiverFibrosisStagingLib import stage
    from LiverFibrosisStagingLib.staging import software

    profile = Profile()
    if not plain:
        importlib.import_module("LiverFibrosisStagingLib.report.overview")  # loaded when saving
        profile.attach()
        from LiverFibrosisStagingLib.staging import stage
    with tempfile.TemporaryDirectory() as folder:
        before = _now()
        result = stage(Path(ct), any_phase=True)
        staged = _since(before)
        before = _now()
        result.save(folder)
        saved = _since(before)
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
    return {
        "steps": profile.costs,
        "shapes": profile.shapes,
        "stage": staged,
        "save": saved,
        "process": _now()[0],
        "peak": memory("VmHWM"),
        "files": size,
        "size": result.ct.GetSize(),
        "spacing": result.ct.GetSpacing(),
        "voxels": _bytes(result.ct, set()),
        "versions": software(),
    }


def child(ct: str | Path, kind: str, threads: int, root: Path) -> dict[str, Any]:
    """`once` in a process of its own; kind: "steps" or "plain". Its wall seconds are added."""
    command = [sys.executable, __file__, str(ct), "--once", kind]
    return measured_process(command, environment(threads, root))


def measured_process(command: list[str], variables: dict[str, str]) -> dict[str, Any]:
    """The JSON in the last line that a process prints, and its wall seconds, `process_wall`."""
    started = time.perf_counter()
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    found = json.loads(done.stdout.splitlines()[-1])
    return {**found, "process_wall": time.perf_counter() - started}


def alternating(
    ct: str | Path, runs: int, threads: int, checkouts: list[Path]
) -> list[dict[str, Any]]:
    """Steps and job of each checkout, the least of all runs; runs alternate."""
    done: dict[tuple[Path, str], list[dict[str, Any]]] = {}
    for _ in range(runs):
        for root in checkouts:
            for kind in ("steps", "plain"):
                done.setdefault((root, kind), []).append(child(ct, kind, threads, root))
    return [summary(done[root, "steps"], done[root, "plain"]) for root in checkouts]


def summary(steps: list[dict[str, Any]], plain: list[dict[str, Any]]) -> dict[str, Any]:
    """Of some runs: `steps` by name, each [CPU s, wall s, MiB touched, MiB more memory], and the
    job: CPU and wall seconds of `stage` and `save`, those of the process, and its peak in MiB.
    """

    def least(values: list[list[float]]) -> list[float]:
        return [min(each) for each in zip(*values)]

    table = {}
    for name in STEPS:
        found = [run["steps"][name] for run in steps if name in run["steps"]]
        if found:
            cpu, wall, touched, rise = least(found)
            table[name] = [cpu, wall, touched / MIB, rise / MIB]
    return {
        "steps": table,
        "shapes": steps[0]["shapes"],
        "stage": least([run["stage"] for run in plain]),
        "save": least([run["save"] for run in plain]),
        "process": least([[run["process"], run["process_wall"]] for run in plain]),
        "peak": min(run["peak"] for run in plain) / MIB,
        "files": plain[0]["files"] / MIB,
        "voxels": plain[0]["voxels"] / MIB,
        **{key: plain[0][key] for key in ("size", "spacing", "versions")},
    }


def main() -> None:
    """Print the table, or with --once the costs of one run as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ct", nargs="?", type=Path, default=SAMPLE)
    parser.add_argument("--slices", type=int)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--against", type=Path)
    parser.add_argument("--once", choices=["steps", "plain"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        print(json.dumps(once(options.ct, options.once == "plain")))
        return
    with tempfile.TemporaryDirectory() as folder:
        ct = options.ct
        if options.slices:
            ct = Path(folder) / "long.nii.gz"
            longer(options.ct, options.slices, ct)
        checkouts = [ROOT] if options.against is None else [ROOT, options.against]
        own, *other = alternating(ct, options.runs, options.threads, checkouts)
    print(described())
    print(", ".join(f"{name} {version}" for name, version in own["versions"].items()))
    print(f"{options.runs} runs, {options.threads} threads; least of all runs")
    show(own, other[0] if other else None)


def show(own: dict[str, Any], other: dict[str, Any] | None) -> None:
    """Print the steps and the job, and beside them the CPU seconds of another checkout."""
    heading = f"{'step':44s}{'CPU s':>9s}{'wall s':>8s}{'cores':>7s}{'MiB':>8s}{'rise MiB':>10s}"
    print(heading + (f"{'against':>10s}{'ratio':>7s}" if other else ""))
    before = {} if other is None else other["steps"]
    for name in [name for name in STEPS if name in own["steps"] or name in before]:
        line = f"{name:44s}"
        if name in own["steps"]:
            cpu, wall, touched, rise = own["steps"][name]
            line += f"{cpu:9.3f}{wall:8.3f}{cpu / wall:7.2f}{touched:8.0f}{rise:10.0f}"
        if name in before:
            line = f"{line:86s}{before[name][0]:10.3f}"
            line += (
                f"{before[name][0] / own['steps'][name][0]:7.2f}" if name in own["steps"] else ""
            )
        print(line)
    for name in ("stage", "save", "process"):
        cpu, wall = own[name]
        line = f"{name + ', without the measuring':44s}{cpu:9.3f}{wall:8.3f}{cpu / wall:7.2f}"
        print(f"{line:86s}{other[name][0]:10.3f}{other[name][0] / cpu:7.2f}" if other else line)
    line = f"{'peak of the process, MiB':44s}{own['peak']:42.0f}"
    print(f"{line}{other['peak']:10.0f}{other['peak'] / own['peak']:7.2f}" if other else line)
    print(f"{'files of the result, MiB':44s}{own['files']:42.1f}")


if __name__ == "__main__":
    main()
