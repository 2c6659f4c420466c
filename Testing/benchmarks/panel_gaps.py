"""Longest time for which the panel does not respond, and its memory, for each action.

    python Testing/benchmarks/panel_gaps.py [--slices 300 454] [--where 80]

The panel runs on the tests' stand-ins for Slicer and Qt, with a timer of 5 ms during each action.
For each action, the longest time between two ticks is printed (on a busy machine this includes
other processes), the longest computing time of the main thread between two ticks, and the current
and peak memory; last, the time from the click on Cancel until the panel is idle. This is done for
the sample, and for the sample resampled to 512 x 512 voxels and the given numbers of slices.
--where: after this many ms without a tick, print the stack of each thread. Slicer's own drawing is
not included.
"""

import argparse
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "Testing" / "hosts"), str(Path(__file__).parent)]

import numpy as np  # noqa: E402
import SimpleITK as sitk  # noqa: E402
import slicer  # noqa: E402
import slicer_host  # noqa: E402
from panel_ticks import longest_gap  # noqa: E402
from slicer_host import wait_until  # noqa: E402

SAMPLE = ROOT / "LiverFibrosisStaging" / "Resources" / "SampleData" / "phantom_F4_ct.nii.gz"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--slices", type=int, nargs="*", default=[300, 454])
    parser.add_argument("--where", type=float, default=0.0, help="ms")
    options = parser.parse_args()
    slicer_host.start()
    panel = slicer_host.open_panel()
    sample = sitk.ReadImage(str(SAMPLE))
    print(f"{'CT':>18} {'action':>8} {'gap':>8} {'computing':>10} {'took':>8} {'memory, peak':>16}")
    for slices in (None, *options.slices):
        ct = sample if slices is None else enlarged(sample, (512, 512, slices))
        size = " x ".join(map(str, ct.GetSize()))
        panel.ui.inputVolumeSelector.setCurrentNode(add_volume(ct))
        del ct
        panel.ui.segmentationSelector.setCurrentNode(None)
        for name, click in actions(panel.ui):
            gap, computing, took = longest_gap(panel, click, options.where / 1000)
            now, peak = memory_gb()
            print(
                f"{size:>18} {name:>8} {1000 * gap:5.0f} ms {1000 * computing:7.0f} ms "
                f"{took:6.1f} s {now:7.2f}, {peak:.2f} GB",
                flush=True,
            )
        print(f"{size:>18} {'cancel':>8} {'':8} {'':10} {cancelling(panel):6.2f} s", flush=True)
        slicer.mrmlScene.Clear(0)
    slicer_host.close_panel(panel)


def actions(ui: Any) -> list[tuple[str, Callable[[], None]]]:
    def explain() -> None:
        ui.explainedComboBox.setCurrentIndex(1)
        ui.explainedComboBox.activated.emit(1)

    return [
        ("stage", ui.stageButton.click),
        ("again", ui.stageButton.click),
        ("explain", explain),
        ("smooth", ui.smoothCheckBox.click),
        ("bands", ui.smoothCheckBox.click),
        ("outline", ui.outlineCheckBox.click),
        ("report", ui.reportButton.click),
    ]


def cancelling(panel: Any) -> float:
    """Seconds from the click on Cancel, while the network runs, until the panel is idle."""
    panel.ui.stageButton.click()
    wait_until(lambda: panel.ui.progressBar.value >= 400, 900)
    clicked = time.monotonic()
    panel.ui.stageButton.click()
    wait_until(lambda: not panel.ui.progressWidget.visible, 900)
    return time.monotonic() - clicked


def enlarged(image: sitk.Image, size: tuple[int, int, int]) -> sitk.Image:
    """The image resampled to `size` voxels, with the same field of view."""
    grid = sitk.Image(size, image.GetPixelID())
    grid.SetDirection(image.GetDirection())
    grid.SetSpacing([s * n / m for s, n, m in zip(image.GetSpacing(), image.GetSize(), size)])
    grid.SetOrigin(image.GetOrigin())
    return sitk.Resample(image, grid, sitk.Transform(), sitk.sitkLinear, -1000)


def add_volume(image: sitk.Image) -> Any:
    lps = np.eye(4)
    lps[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    lps[:3, 3] = image.GetOrigin()
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps
    return slicer.util.addVolumeFromArray(sitk.GetArrayFromImage(image), ras, "CT")


def memory_gb() -> tuple[float, float]:
    """Current and peak memory in GB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return pages * resource.getpagesize() / 2**30, peak / 2**20


if __name__ == "__main__":
    main()
