"""docs/performance.md from the recorded runs of `bench.py`, one JSON object a line."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from machine import COPIED
from profile_stage import MIB, NETWORKS, ROOT, STEP_MM, STEPS

HISTORY = ROOT / "Testing" / "benchmarks" / "history.jsonl"
PAGE = ROOT / "docs" / "performance.md"

READING = "imaging.reading.read_ct"
# Steps that go through voxels and should be limited by the memory.
VOXELS = {
    "imaging.checks.check_ct",
    "imaging.segmentation.network_grid",
    "imaging.refinement.organs_on_ct",
    "imaging.masks.organ_masks",
    "imaging.checks.check_organs",
    "imaging.coarse.CoarseScan.of",
    "imaging.grid.working_grid",
    "location_map.merge_patches",
    "location_map.on_ct",
}

RIVALS = ("plain", "tuned")
JOBS = {
    "shipped": "shipped network, organs outlined automatically",
    "phantoms": "five networks of convolutions (`LFS_phantoms.onnx`), masks given",
}

HEAD = f"""# Performance

Written by `python3 run.py bench --record` ([tests](../Testing/README.md)); do not edit it. Times
depend on the machine and on what else it does: compare numbers of one run with each other, and
ratios between runs.

- **Stage**: from the file of a CT to the result in memory: organs outlined automatically, the
  shipped network, location map, signs and checks. **Saving**: all files of the result.
  **Process**: both, with the start of Python and imports. **Peak**: the largest resident memory of
  the process.
- Times of a Stage are the shortest of all runs, those beside MONAI medians. Each run is a process
  of its own; runs of what is compared alternate.
- **Share**: the rate that a step reached, of the rate that the machine reached in the same run.
  Reading: voxels, of the faster of zlib's and ITK's decompression. Networks: 2 operations for each
  weight and voxel of a convolution, of the faster float32 matrix product (2048 x 2048) of numpy
  and ONNX Runtime. Steps through voxels: MiB touched, of what one thread copies in memory, read and
  written, with {COPIED // 10**6} MB. A network without convolutions: the inputs and outputs of all
  its nodes, of the same copy. Where the share of a copy is small, computation takes the time, not
  the memory's bandwidth.
- **MiB touched**: the images, arrays and files that a step was given or has made, each once and
  whole, whatever part of them it used.
"""

MONAI = """
Both sides read the same file, use the same networks, spacing, smoothing, patches and threads, and
compute the map of F4 and its ten bands on the CT's grid. In PyTorch, the model files run node by
node; MONAI reads (with nibabel), resamples and computes Grad-CAM. *Plain*: as its documentation
shows, a forward pass for the probabilities, then `GradCAM` on the network as it is. *Tuned*: one
forward pass for each patch, no gradient before the explained layer or of the weights. In both, the
V-Net runs on the box of the body at once. Only the library checks its input, averages voxels before
it resamples to a coarser grid, refines the outlined organs, measures signs, phase and regions, and
hashes the voxels.
"""


def read_history(path: Path = HISTORY) -> list[dict[str, Any]]:
    """The recorded runs, oldest first; none if nothing was recorded."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line]


def record(run: dict[str, Any], path: Path = HISTORY) -> None:
    """Append a run; its numbers are rounded to four significant digits."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(rounded(run), separators=(",", ":")) + "\n")


def rounded(value: Any) -> Any:
    """Floats of nested lists and dictionaries with four significant digits."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(each) for each in value]
    return value


def write_page() -> None:
    PAGE.write_text(page(read_history()), encoding="utf-8")


def page(history: list[dict[str, Any]]) -> str:
    """The page, with all of the latest run and a line for each run."""
    if not history:
        return HEAD + "\nNo run is recorded yet.\n"
    parts = [HEAD, "\n## Latest run\n", _about(history[-1]), *_sections(history[-1])]
    return "\n".join([*parts, "\n## History\n", _history(history), ""])


def shares(run: dict[str, Any]) -> dict[str, tuple[str, float]]:
    """By step with a limit: which, and the share of its rate that was reached."""
    limits, steps = run["limits"], run["now"]["steps"]
    copied = limits["copy, GB/s"] * 1e9
    product = max(rate for name, rate in limits.items() if name.startswith("product")) * 1e9
    read = max(rate for name, rate in limits.items() if name.startswith("decompressed")) * 1e6
    found = {}
    for name, (_, wall, touched, _) in steps.items():
        if name == READING:
            found[name] = "decompression", run["now"]["voxels"] * MIB / wall / read
        elif name in NETWORKS:
            operations, moved = run["work"][name]
            found[name] = (
                ("matrix product", operations / wall / product)
                if operations
                else ("copy", moved / wall / copied)
            )
        elif name in VOXELS:
            found[name] = "copy", touched * MIB / wall / copied
    return found


def fit(points: Sequence[Sequence[float]], column: int) -> tuple[float, float]:
    """Fixed part and cost of 100 slices: least-squares line of a column of [slices, ...]."""
    import numpy as np

    rows = np.asarray(points, float)
    slope, fixed = np.polyfit(rows[:, 0], rows[:, column], 1)
    return float(fixed), float(100 * slope)


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: float) -> str:
    """Three significant digits, or all digits of a larger whole number."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _about(run: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    return (
        f"{run['date']}, commit {run['commit']}, {run['machine']}; {versions};\n"
        f"{run['threads']} threads, {run['runs']} runs each. {_scan(run)}."
    )


def _scan(run: dict[str, Any]) -> str:
    size = " x ".join(str(n) for n in run["now"]["size"])
    step = " x ".join(f"{s:g}" for s in run["now"]["spacing"])
    return f"{'The sample CT' if run['sample'] else 'A CT'} of {size} voxels of {step} mm"


def _sections(run: dict[str, Any]) -> list[str]:
    return [
        "\n### The whole job\n",
        _whole(run),
        "\n### Beside PyTorch and MONAI",
        MONAI,
        _monai(run),
        "\n### Step by step, against the machine's limits\n",
        "The machine in this run: "
        + "; ".join(
            f"{what} {_number(rate)} {unit}"
            for (what, unit), rate in ((name.split(", "), r) for name, r in run["limits"].items())
        )
        + ".\n",
        _steps(run),
        "\n### Cost against slices\n",
        "Scans made from the same CT: its slices are interpolated over its length, not closer\n"
        f"than {STEP_MM:g} mm; further slices are noise below it.\n",
        _slices(run),
    ]


def _whole(run: dict[str, Any]) -> str:
    now, before = run["now"], run["before"]

    def numbers(of: dict[str, Any]) -> dict[str, float]:
        found = {}
        for part, name in (("stage", "Stage"), ("save", "saving"), ("process", "process")):
            found[f"{name}, s"], found[f"{name}, CPU s"] = of[part][1], of[part][0]
        outlining = of["steps"].get("imaging.segmentation.SegmentationModel.run")
        if outlining:
            found["V-Net, share of Stage, %"] = 100 * outlining[1] / of["stage"][1]
        return {**found, "peak, MiB": of["peak"], "files of the result, MiB": of["files"]}

    rows, earlier = numbers(now), numbers(before) if before else {}
    heading = ["", *([f"before ({before['commit']})"] if before else []), "now"]
    return _table(
        [*heading, *(["before / now"] if before else [])],
        (
            [name, _number(earlier[name]), _number(value), f"{earlier[name] / value:.2f}"]
            if name in earlier
            else [name, *([""] if before else []), _number(value), *([""] if before else [])]
            for name, value in rows.items()
        ),
    )


def _monai(run: dict[str, Any]) -> str:
    rows = []
    for job, what in JOBS.items():
        found = run["monai"][job]
        for key, unit in (("job", "s"), ("process", "s"), ("peak", "MiB")):
            cells = [what if key == "job" else "", f"{key}, {unit}"]
            cells += [
                _number(found[side][key]) for side in (*RIVALS, "before", "now") if side in found
            ]
            cells += [f"{found[side][key] / found['now'][key]:.2f}" for side in RIVALS]
            rows.append(cells)
    before = ["library before"] if run["before"] else []
    sides = [*(f"MONAI, {side}" for side in RIVALS), *before, "library"]
    ratios = [f"{side} / library" for side in RIVALS]
    differences = ", ".join(f"{run['monai'][job]['difference']:.1e}" for job in JOBS)
    return (
        _table(["job", "", *sides, *ratios], rows)
        + f"\n\nLargest difference of a stage's probability between both sides: {differences}."
    )


def _steps(run: dict[str, Any]) -> str:
    before = run["before"]["steps"] if run["before"] else {}
    reached = shares(run)
    rows = []
    for name in STEPS:
        if name not in run["now"]["steps"]:
            continue
        cpu, wall, touched, rise = run["now"]["steps"][name]
        limit, share = reached.get(name, ("", 0.0))
        cells = [f"`{name}`", f"{wall:.3f}", f"{cpu:.3f}", f"{cpu / wall:.1f}"]
        cells += [
            f"{touched:.0f}",
            f"{rise:.0f}",
            f"{100 * share:.0f} % of {limit}" if limit else "",
        ]
        earlier = f"{before[name][1]:.3f}" if name in before else ""
        rows.append([*cells, *([earlier] if before else [])])
    heading = ["step", "s", "CPU s", "cores busy", "MiB touched", "more memory, MiB", "share"]
    return _table([*heading, *(["before, s"] if before else [])], rows)


def _slices(run: dict[str, Any]) -> str:
    columns = ("Stage, s", "Stage, CPU s", "peak, MiB")
    sides = {"now": run["slices"]["now"]}
    if run["before"]:
        sides = {"before": run["slices"]["before"], **sides}
    heading = ["slices", *(f"{column}, {side}" for side in sides for column in columns)]
    rows = []
    for together in zip(*sides.values()):
        rows.append(
            [f"{together[0][0]:.0f}", *(_number(v) for point in together for v in point[1:])]
        )
    for n, name in enumerate(("fixed part", "100 slices more")):
        cells = [fit(p, c)[n] for p in sides.values() for c in (1, 2, 3)]
        rows.append([f"line: {name}", *(_number(cell) for cell in cells)])
    return _table(heading, rows)


def _history(history: list[dict[str, Any]]) -> str:
    heading = ["date", "commit", "machine", "CT, threads", "Stage, s (CPU s)", "peak, MiB"]
    heading += ["MONAI, tuned / library: job, peak", "longest scan: slices, s, MiB"]
    rows = []
    for run in history:
        now, shipped = run["now"], run["monai"]["shipped"]
        ratios = [shipped["tuned"][key] / shipped["now"][key] for key in ("job", "peak")]
        slices, wall, _, peak = run["slices"]["now"][-1]
        size = " x ".join(str(n) for n in now["size"])
        rows.append(
            [
                run["date"],
                run["commit"],
                run["machine"],
                f"{size}, {run['threads']}",
                f"{now['stage'][1]:.2f} ({now['stage'][0]:.2f})",
                f"{now['peak']:.0f}",
                f"{ratios[0]:.2f}, {ratios[1]:.2f}",
                f"{slices:.0f}, {wall:.2f}, {peak:.0f}",
            ]
        )
    return _table(heading, rows)
