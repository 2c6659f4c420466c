"""Staging with a location map: the library compared with a plain PyTorch and MONAI script.

    python Testing/benchmarks/stage_against_monai.py CT --liver MASK [--runs 5]

Both read the same files, resample the CT to the same spacing and patch size, run LFS_phantoms.onnx
on the same number of patches, explain F4, and produce a location map and its ten bands on the CT's
grid. The library also checks the input, measures regions and hashes the voxels. Each run is a
separate process with the same number of threads; runs of both alternate. Medians, their ratio and
peak memory are printed. Needs nibabel (MONAI's reader) in addition to the tests' packages.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "Testing")]
EXPLAINED = 4


def ours(ct: str, liver: str) -> tuple[float, list[float]]:
    from LiverFibrosisStagingLib import stage
    from LiverFibrosisStagingLib.resources import default_model_path

    started = time.perf_counter()
    result = stage(ct, liver, model=default_model_path("LFS_phantoms.onnx"), explain="F4")
    return time.perf_counter() - started, result.probabilities.tolist()


def theirs(ct: str, liver: str) -> tuple[float, list[float]]:
    import numpy as np
    import torch
    from monai import transforms as mt
    from monai.visualize import GradCAM
    from torch_twin import TorchTwin

    from LiverFibrosisStagingLib.imaging.grid import patch_starts
    from LiverFibrosisStagingLib.model import StagingModel
    from LiverFibrosisStagingLib.resources import default_model_path

    card = StagingModel.load(default_model_path("LFS_phantoms.onnx")).card
    slices, rows, columns = card.patch_size
    started = time.perf_counter()
    network = TorchTwin(default_model_path("LFS_phantoms.onnx")).eval()
    load = mt.Compose(
        [
            mt.LoadImaged(["ct", "liver"]),
            mt.EnsureChannelFirstd(["ct", "liver"]),
        ]
    )
    original = load({"ct": ct, "liver": liver})
    spacing = card.spacing_mm[::-1]
    prepare = mt.Compose(
        [
            mt.Orientationd(["ct", "liver"], axcodes="LPS"),
            mt.Spacingd(["ct", "liver"], pixdim=spacing, mode=("bilinear", "nearest")),
        ]
    )
    data = prepare(original)
    hu, mask = data["ct"], data["liver"]
    body = (hu > -250).float()
    held = torch.nonzero((mask[0] == 1).any(0).any(0)).ravel()
    centre = [
        int((body.sum(axes) * torch.arange(n)).sum() / body.sum())
        for axes, n in (((0, 2, 3), hu.shape[1]), ((0, 1, 3), hu.shape[2]))
    ]
    length = max(slices, int(held[-1] - held[0]) + 1)
    crop = mt.Compose(
        [
            mt.SpatialCrop(
                roi_center=[*centre, int(held[0] + held[-1] + 1) // 2],
                roi_size=[columns, rows, length],
            ),
            mt.ResizeWithPadOrCrop([columns, rows, length], mode="constant", value=-1024),
        ]
    )
    cropped = crop(hu)
    volume = mt.ScaleIntensityRange(*card.window_hu, 0.0, 1.0, clip=True)(cropped)
    cam = GradCAM(
        nn_module=network,
        target_layers=f"nodes.{card.target_layer}",
        postprocessing=lambda x: x,
    )
    total, count, logits = torch.zeros(volume.shape), torch.zeros(volume.shape), []
    for start in patch_starts(length, slices, card.patch_overlap):
        patch = volume[..., start : start + slices].permute(0, 3, 2, 1)[None].as_tensor()
        with torch.no_grad():
            logits.append(network(patch))
        attention = cam(patch, class_idx=EXPLAINED)[0].permute(0, 3, 2, 1)
        total[..., start : start + slices] += torch.as_tensor(attention)
        count[..., start : start + slices] += 1
    total /= count
    inside = cropped > -250
    total *= inside
    total /= total[inside].mean()
    location = volume.clone()
    location.set_array(total)
    relative = mt.ResampleToMatch(mode="bilinear", padding_mode="zeros")(location, original["ct"])
    labels = torch.ceil(relative / relative.max() * 10).clamp(0, 10).to(torch.uint8)
    seconds = time.perf_counter() - started
    assert labels.shape == original["ct"].shape and int(labels.max()) == 10
    scores = torch.cat(logits).mean(0).softmax(0)
    return seconds, np.asarray(scores.detach(), float).tolist()


def measure(which: str, ct: str, liver: str, threads: int) -> dict:
    environment = {
        **os.environ,
        **{f"{name}_NUM_THREADS": str(threads) for name in ("OMP", "OPENBLAS", "MKL")},
        "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": str(threads),
    }
    command = [sys.executable, __file__, ct, "--liver", liver, "--only", which]
    started = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return {**json.loads(done.stdout.splitlines()[-1]), "process": time.perf_counter() - started}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ct")
    parser.add_argument("--liver", required=True)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        job = ours if options.only == "ours" else theirs
        seconds, probabilities = job(options.ct, options.liver)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"job": seconds, "peak": peak, "probabilities": probabilities}))
        return
    runs = {"ours": [], "theirs": []}
    for _ in range(options.runs):
        for which, results in runs.items():
            results.append(measure(which, options.ct, options.liver, options.threads))
    print(f"{options.runs} runs each, {options.threads} threads; medians (min to max)")
    for what, unit in (("job", "s"), ("process", "s"), ("peak", "MiB")):
        values = {which: [run[what] for run in results] for which, results in runs.items()}
        medians = {which: statistics.median(numbers) for which, numbers in values.items()}
        pairs = [b / a for a, b in zip(values["ours"], values["theirs"])]
        shown = "   ".join(
            f"{which} {medians[which]:8.2f} {unit} ({min(v):.2f} to {max(v):.2f})"
            for which, v in values.items()
        )
        print(f"{what:8s} {shown}   theirs / ours {statistics.median(pairs):.2f}")
    for which, results in runs.items():
        print(f"{which} F0..F4:", " ".join(f"{p:.3f}" for p in results[0]["probabilities"]))


if __name__ == "__main__":
    main()
