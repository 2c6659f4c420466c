"""Training steps with cached cases, compared with a DataLoader that reads each CT.

    python Testing/benchmarks/training_data.py [--phantoms 12] [--steps 6] [--workers 1 2 4]

Both use the same network and the same patches (equal draws and augmentation), prepared by the first
number of worker processes. The plain DataLoader reads and resamples the CT for every patch. Seconds
per step, samples per second and their ratio are printed for crops and for whole sections, and, for
each number of workers, the time to fill the cache and the steps per second for which they prepare
patches, without a network: a GPU waits if it is faster.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "Training")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from monai.data import Dataset  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

from cases.manifest import read_manifest  # noqa: E402
from cases.phantom_cohort import write_cohort  # noqa: E402
from lfs.build import FULL  # noqa: E402
from lfs.data import Draws, Patches, WorkingGrid, prepare  # noqa: E402
from lfs.fit import ordinal_loss  # noqa: E402
from lfs.network import PATCH_SIZE, LFSNetwork  # noqa: E402


def batches(
    prepared: Dataset, stages: np.ndarray, steps: int, cropped: bool, workers: int, ahead: int = 1
) -> DataLoader:
    """So many batches, after a first that starts the worker processes."""
    draws = Draws(stages, range(steps + 1), 8, steps + 1 if cropped else 0, 80, 0.5, 0)
    patches = Patches(prepared, stages, PATCH_SIZE[0])
    return DataLoader(patches, batch_sampler=draws, num_workers=workers, prefetch_factor=ahead)


def steps_per_second(
    prepared: Dataset, stages: np.ndarray, steps: int, cropped: bool, workers: int
) -> float:
    """Steps for which the workers prepare patches, as `lfs.fit` lets them, in a second."""
    loader = iter(batches(prepared, stages, steps, cropped, workers, 4))
    next(loader)
    began = time.perf_counter()
    done = sum(1 for _ in loader)
    return done / (time.perf_counter() - began)


def seconds_per_step(
    network: LFSNetwork,
    prepared: Dataset,
    stages: np.ndarray,
    steps: int,
    cropped: bool,
    workers: int,
) -> float:
    """Seconds per step, after a first step that starts the worker processes."""
    loader = batches(prepared, stages, steps, cropped, workers)
    optimizer = torch.optim.AdamW(network.parameters())
    began = 0.0
    for number, (batch, truth) in enumerate(loader):
        logits = network(batch.to(memory_format=torch.channels_last_3d))
        optimizer.zero_grad()
        ordinal_loss(logits, truth).backward()
        optimizer.step()
        if number == 0:
            began = time.perf_counter()
    return (time.perf_counter() - began) / steps


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--phantoms", type=int, default=12)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    options = parser.parse_args()
    torch.manual_seed(0)
    network = LFSNetwork().to(memory_format=torch.channels_last_3d)
    with tempfile.TemporaryDirectory() as folder:
        cohort = write_cohort(Path(folder), options.phantoms, 5, workers=2)
        cases = read_manifest(cohort)
        stages = np.array([case.stage for case in cases])
        for workers in options.workers:
            began = time.perf_counter()
            cached = prepare(cases, Path(folder) / f"cache_{workers}", FULL, workers)
            filled = time.perf_counter() - began
            print(f"{workers} workers: filling the cache with {len(cases)} CTs: {filled:.1f} s")
            for cropped, name in ((True, "crops"), (False, "whole sections")):
                rate = steps_per_second(cached, stages, 4 * options.steps, cropped, workers)
                print(f"{workers} workers: patches for {rate:.1f} steps/s, {name}")
        plain = Dataset(cached.data, WorkingGrid(FULL))
        workers = options.workers[0]
        for cropped, size, name in ((True, 16, "crops"), (False, 8, "whole sections")):
            ours = seconds_per_step(network, cached, stages, options.steps, cropped, workers)
            theirs = seconds_per_step(network, plain, stages, options.steps, cropped, workers)
            print(
                f"{name}: {ours:.2f} s per step ({size / ours:.1f} samples/s), plain DataLoader "
                f"{theirs:.2f} s ({size / theirs:.1f} samples/s): {theirs / ours:.1f} times"
            )


if __name__ == "__main__":
    main()
