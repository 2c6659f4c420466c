"""Time to open the panel, and pauses of the main thread in the first Stage of a new process.

    python Testing/benchmarks/first_click.py [--runs 3] [--idle 2] [--where 80]

Each run is a process of its own, on the tests' stand-ins for Slicer and Qt, with the sample CT. Of
each, the least: wall and CPU milliseconds for opening the panel, and what it imported; the longest
time between two ticks of a timer of 5 ms, and the longest computing time of the main thread between
two ticks, while nothing happens after the opening (--idle seconds, 0: Stage is clicked at once) and
during the first and the second Stage. --where: after this many ms without a tick, print the stack
of each thread. Slicer's own drawing is not included.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "LiverFibrosisStaging" / "Resources" / "SampleData" / "phantom_F4_ct.nii.gz"
HEAVY = ("SimpleITK", "onnxruntime", "scipy", "sklearn", "joblib")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--idle", type=float, default=2.0, help="s")
    parser.add_argument("--where", type=float, default=0.0, help="ms")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one_run(options.idle, options.where / 1000)))
        return
    found = []
    for _ in range(options.runs):
        command = [sys.executable, __file__, "--one", "--idle", str(options.idle)]
        command += ["--where", str(options.where)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    for name, first in found[0].items():
        if isinstance(first, list):
            values = [min(run[name][i] for run in found) for i in range(len(first))]
            print(f"{name:14}" + "".join(f"{1000 * value:8.0f} ms" for value in values))
        else:
            print(f"{name:14}  {first}")


def one_run(idle: float, where: float) -> dict[str, Any]:
    """Numbers of this process; pairs are seconds."""
    sys.path[:0] = [str(ROOT / "Testing" / "hosts"), str(Path(__file__).parent)]
    import slicer_host
    import vtk  # noqa: F401 - as Slicer does when it starts

    slicer_host.start()
    slicer_host.qt_host.application()
    slicer_host.import_module()
    volume = slicer_host.load_volume(SAMPLE)
    before = {*sys.modules}
    since, computed = time.perf_counter(), time.thread_time()
    panel = slicer_host.open_panel()
    opening = (time.perf_counter() - since, time.thread_time() - computed)
    imported = [name for name in HEAVY if name in {*sys.modules} - before]

    from panel_ticks import longest_gap, wait

    panel.ui.inputVolumeSelector.setCurrentNode(volume)
    found = {"opening": opening, "imported": ", ".join(imported) or "nothing heavy"}
    if idle:
        found["idle"] = longest_gap(panel, lambda: wait(idle), where)[:2]
    for name in ("first Stage", "second Stage"):
        found[name] = longest_gap(panel, panel.ui.stageButton.click, where)[:2]
    slicer_host.close_panel(panel)
    return found


if __name__ == "__main__":
    main()
