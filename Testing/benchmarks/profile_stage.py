"""One Stage by step: automatic organs, ensemble, and saving; seconds of CPU, bytes and memory.

    python3 run.py bench [CT] [--slices 454] [--runs 3] [--threads 2] [--against CHECKOUT]

Without a CT, the sample phantom is staged. Each run is a process of its own. By step, without the
steps inside it: the least CPU seconds of all runs, of all threads, which other work of the machine
changes little; the least wall seconds; MiB read and written; and how much the step raised the
resident memory, at its peak, above what there was at its beginning. The last lines are the whole
job, the whole process (with imports), and its peak memory. --slices: of a longer scan made from the
CT: its slices are interpolated to 0.6 mm, and below them the first slice is repeated with noise of
10 HU. --against: another checkout of this project, such as an older version; runs of both
alternate, and its CPU seconds and the ratios to this one's are added to the table. Linux only.
"""

import argparse
import functools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "LiverFibrosisStaging" / "Resources" / "SampleData" / "phantom_F4_ct.nii.gz"
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
    from LiverFibrosisStagingLib.staging import software

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
        "versions": software(),
    }


def main() -> None:
    """Print the table, or with --once the costs of one run as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ct", nargs="?", default=str(SAMPLE))
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
            ct = str(Path(folder) / "long.nii.gz")
            longer(Path(options.ct), options.slices, Path(ct))
        runs: dict[tuple[Path, str], list[dict[str, Any]]] = {}
        for _ in range(options.runs):
            for root in [ROOT] if options.against is None else [ROOT, options.against]:
                for kind in ("steps", "plain"):
                    done = _child(ct, kind, options.threads, root)
                    runs.setdefault((root, kind), []).append(done)
    print(_machine(runs[ROOT, "plain"][0]["versions"]))
    print(f"{options.runs} runs, {options.threads} threads; least of all runs")
    own = _table(runs[ROOT, "steps"], runs[ROOT, "plain"])
    other = {}
    if options.against is not None:
        other = _table(runs[options.against, "steps"], runs[options.against, "plain"])
    _show(own, other)


def _machine(versions: dict[str, str]) -> str:
    info = Path("/proc/cpuinfo").read_text().splitlines()
    names = {line.split(":")[1].strip() for line in info if line.startswith("model name")}
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    what = f"{' / '.join(sorted(names)) or platform.machine()}, {os.cpu_count()} cores"
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"{what}, {memory:.0f} GiB, {platform.system()} {platform.release()}\n{named}"


def _child(ct: str, kind: str, threads: int, root: Path) -> dict[str, Any]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(root / "LiverFibrosisStaging"),
        **{f"{name}_NUM_THREADS": str(threads) for name in ("OMP", "OPENBLAS", "MKL")},
        "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": str(threads),
    }
    command = [sys.executable, __file__, ct, "--once", kind]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def _table(steps: list[dict], plain: list[dict]) -> dict[str, list[float]]:
    """By row: CPU and wall seconds, MiB read and written, and rise of the memory in MiB."""

    def least(values: list[list[float]]) -> list[float]:
        cpu, wall, *more = (min(each) for each in zip(*values))
        return [cpu, wall, *(each / MIB for each in more)]

    table = {}
    for name in STEPS:
        found = [run["steps"][name] for run in steps if name in run["steps"]]
        if found:
            table[name] = least(found)
    for name in ("stage", "save"):
        table[f"{name}, without the measuring"] = least([run[name] for run in plain])
    table["process, CPU s"] = [min(run["process"] for run in plain)]
    table["peak of the process, MiB"] = [min(run["peak"] for run in plain) / MIB]
    table["files of the result, MiB"] = [plain[0]["files"] / MIB]
    return table


def _show(own: dict[str, list[float]], other: dict[str, list[float]]) -> None:
    heading = f"{'step':44s}{'CPU s':>9s}{'wall s':>8s}{'read':>8s}{'written':>9s}{'rise MiB':>10s}"
    print(heading + (f"{'against':>10s}{'ratio':>7s}" if other else ""))
    for name in {**own, **other}:
        row = [*own.get(name, []), *[None] * 5][:5]
        forms = ("9.3f", "8.3f", "8.1f", "9.1f", "10.0f")
        cells = [
            format("" if value is None else format(value, form), f">{form.split('.')[0]}s")
            for value, form in zip(row, forms)
        ]
        line = f"{name:44s}{''.join(cells)}"
        if name in other:
            line += f"{other[name][0]:10.3f}"
            line += f"{other[name][0] / own[name][0]:7.2f}" if own.get(name, [0])[0] else ""
        print(line)


if __name__ == "__main__":
    main()
