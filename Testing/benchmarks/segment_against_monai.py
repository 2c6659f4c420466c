"""Segmentation of a large CT: the library compared with MONAI's transforms and sliding window.

    python Testing/benchmarks/segment_against_monai.py [--ct CT] [--slices 200]

Both run the shipped V-Net on the same axial CT, from the image in memory to labels on its grid: the
library with ONNX Runtime, including its refinement; MONAI with PyTorch, without refinement
(Spacing, sliding_window_inference, probabilities resampled by ResampleToMatch). Each runs in its
own process, to measure its peak memory. Seconds, MB, their ratios, the agreement of the labels, and
the share of segmentation in staging are printed. Without --ct, a phantom of 512 x 512 voxels is
used.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "Training")]

import numpy as np  # noqa: E402
import SimpleITK as sitk  # noqa: E402

from LiverFibrosisStagingLib.imaging.segmentation import segment, shipped_network  # noqa: E402


def ours(ct: sitk.Image) -> np.ndarray:
    """The library, including loading the model."""
    return sitk.GetArrayFromImage(segment(ct).labels)


def with_monai(ct: sitk.Image) -> np.ndarray:
    """The same network as a MONAI user would run it."""
    import torch
    from monai.data import MetaTensor
    from monai.inferers import sliding_window_inference
    from monai.transforms import (
        ResampleToMatch,
        ScaleIntensityRange,
        Spacing,
    )

    from vnet.data import PATCH_SIZE
    from vnet.network import VNet, load_weights

    model = shipped_network()
    network = VNet().eval()
    load_weights(network, model.path)
    affine = np.eye(4)
    affine[:3, :3] = np.array(ct.GetDirection()).reshape(3, 3) * ct.GetSpacing()
    affine[:3, 3] = ct.GetOrigin()
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # MONAI's axes are RAS
    voxels = sitk.GetArrayFromImage(ct).astype(np.float32).transpose(2, 1, 0)[None]
    original = MetaTensor(voxels, affine=affine)
    coarse = Spacing(model.card.spacing_mm[::-1])(original)
    windowed = ScaleIntensityRange(*model.card.window_hu, 0.0, 1.0, clip=True)(coarse)
    with torch.no_grad():
        probabilities = sliding_window_inference(
            windowed.permute(0, 3, 2, 1)[None], PATCH_SIZE, 1, lambda x: network(x).softmax(1)
        )[0].permute(0, 3, 2, 1)
    there = MetaTensor(probabilities.as_tensor(), affine=coarse.affine)
    labels = ResampleToMatch()(there, original).argmax(dim=0, keepdim=True)
    return np.asarray(labels)[0].transpose(2, 1, 0).astype(np.uint8)


def measured(which: str, ct: Path, labels: Path) -> dict[str, float]:
    """Run one of both in its own process; seconds and peak MB."""
    command = [sys.executable, __file__, "--ct", str(ct), "--only", which, "--labels", str(labels)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _only(which: str, ct: sitk.Image, labels: Path) -> None:
    before = _peak_mb()
    began = time.perf_counter()
    found = {"ours": ours, "monai": with_monai}[which](ct)
    seconds = time.perf_counter() - began
    peak = _peak_mb()
    np.save(labels, found)
    print(json.dumps({"seconds": seconds, "peak_mb": peak, "before_mb": before}))


def _peak_mb() -> float:
    """Peak memory of this process; `resource` would include its parent's. Linux only."""
    (line,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(line) / 1024


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ct", type=Path)
    parser.add_argument("--slices", type=int, default=200)
    parser.add_argument("--only", choices=("ours", "monai"), help=argparse.SUPPRESS)
    parser.add_argument("--labels", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        _only(options.only, sitk.ReadImage(str(options.ct)), options.labels)
        return
    with tempfile.TemporaryDirectory() as folder:
        ct = options.ct
        if ct is None:
            from cases.phantom import phantom

            size = (options.slices, 512, 512)
            made = phantom(4, 7, spacing=(230 / options.slices, 0.78, 0.78), size=size)
            ct = Path(folder) / "ct.mha"
            sitk.WriteImage(made.ct, str(ct))
        found, arrays = {}, {}
        for which in ("ours", "monai"):
            labels = Path(folder) / f"{which}.npy"
            found[which] = measured(which, ct, labels)
            arrays[which] = np.load(labels)
            print(which, {key: round(value, 1) for key, value in found[which].items()})
        ratio = {k: found["monai"][k] / found["ours"][k] for k in ("seconds", "peak_mb")}
        print("MONAI takes {seconds:.1f} x the time and {peak_mb:.1f} x the memory".format(**ratio))
        for label, organ in ((1, "liver"), (2, "spleen")):
            a, b = (array == label for array in arrays.values())
            print(f"{organ}: Dice of both {2 * (a & b).sum() / max(1, a.sum() + b.sum()):.4f}")
        from LiverFibrosisStagingLib import stage

        seconds = stage(ct).provenance["seconds"]
        part = seconds["Segmenting liver and spleen"]
        rest = sum(seconds.values()) - part
        print(
            f"Staging: segmentation {part:.1f} s, other steps {rest:.1f} s, ratio {part / rest:.2f}"
        )


if __name__ == "__main__":
    main()
