"""Train the LFS network on a cohort, export it, and measure the exported file.

    python Training/train.py --manifest COHORT/manifest.csv --test TEST/manifest.csv -o RUN

The cohort comes as a CSV with the columns patient, ct, liver, spleen, stage (F0..F4; paths
relative to the CSV). RUN receives the preprocessed cases (cache/), log.csv, checkpoint.pt (a run
that was interrupted goes on from there), LFS.onnx and metrics.json.

What training sees is what staging sees: both take the library's `working_grid`. Each iteration
draws stages with equal chance, a patient of that stage, and 32 consecutive slices of the liver
(Yin et al. 2021, "Algorithm scheme").
"""

import argparse
import csv
import datetime
import hashlib
import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from export import export
from network import PATCH_SIZE, SPACING_MM, LFSNetwork
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from torch.nn import functional
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "LiverFibrosisStaging"))
from LiverFibrosisStagingLib.grid import patch_starts, working_grid
from LiverFibrosisStagingLib.reading import read_ct, read_mask
from LiverFibrosisStagingLib.stages import GROUPS, RESEARCH_USE, STAGES, softmax

WINDOW_HU = (-125.0, 225.0)
PATCH_OVERLAP = 0.5
CODE_VERSION = "0.1.0"


@dataclass(frozen=True)
class Case:
    """One CT of one patient; `stage` is the index into STAGES."""

    patient: str
    ct: Path
    liver: Path
    stage: int


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to learn."""

    steps: int = 3000
    batch: int = 4
    learning_rate: float = 2e-3
    bfloat16: bool = True
    check_every: int = 500
    seed: int = 0


def read_manifest(path: Path) -> list[Case]:
    """The cases of a manifest. Raises ValueError that names the line of an unknown stage."""
    cases = []
    with path.open(newline="", encoding="utf-8") as stream:
        for number, row in enumerate(csv.DictReader(stream), start=2):
            if row["stage"] not in STAGES:
                raise ValueError(f"{path}, line {number}: stage {row['stage']!r} is not F0..F4.")
            ct, liver = path.parent / row["ct"], path.parent / row["liver"]
            cases.append(Case(row["patient"], ct, liver, STAGES.index(row["stage"])))
    return cases


def prepare(
    cases: Sequence[Case],
    cache: Path,
    patch_size: tuple[int, int, int] = PATCH_SIZE,
    spacing: tuple[float, float, float] = SPACING_MM,
    workers: int | None = None,
) -> list[np.ndarray]:
    """Each case's working grid over the liver's slices, uint8 [slices, rows, columns], 0..255.

    Kept on disk in `cache` and mapped into memory; a case is prepared anew when its files change.
    """
    cache.mkdir(parents=True, exist_ok=True)
    one = partial(_prepare_one, cache=cache, patch_size=tuple(patch_size), spacing=tuple(spacing))
    with ProcessPoolExecutor(workers or os.cpu_count()) as pool:
        paths = list(tqdm(pool.map(one, cases), "Preprocessing", len(cases), unit="CT"))
    return [np.load(path, mmap_mode="r") for path in paths]


def _prepare_one(
    case: Case, *, cache: Path, patch_size: tuple[int, ...], spacing: tuple[float, ...]
) -> Path:
    files = [(str(p.resolve()), p.stat().st_mtime_ns) for p in (case.ct, case.liver)]
    key = hashlib.sha256(repr((files, patch_size, spacing, WINDOW_HU)).encode()).hexdigest()[:16]
    path = cache / f"{key}.npy"
    if not path.exists():
        ct = read_ct(case.ct)
        grid = working_grid(
            ct,
            read_mask(case.liver, ct),
            spacing=spacing,
            patch_size=patch_size,
            window=WINDOW_HU,
            overlap=PATCH_OVERLAP,
        )
        volume = sitk_array(grid.volume)
        unfinished = cache / f"{key}.{os.getpid()}.npy"
        np.save(unfinished, np.round(volume * 255).astype(np.uint8))
        unfinished.replace(path)
    return path


def hold_out(cases: Sequence[Case], folds: int, seed: int) -> tuple[list[int], list[int]]:
    """Indices to train on and to hold out: one of `folds` parts, by patient, stages balanced."""
    split = StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(
        cases, [case.stage for case in cases], [case.patient for case in cases]
    )
    kept, held = next(split)
    return kept.tolist(), held.tolist()


def draw_batch(
    volumes: Sequence[np.ndarray],
    stages: np.ndarray,
    batch: int,
    slices: int,
    rng: np.random.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches float32 [batch, 1, slices, rows, columns] and stages [batch], stages balanced."""
    present = np.unique(stages)
    drawn = rng.choice(present, batch)
    patches = []
    for stage in drawn:
        volume = volumes[rng.choice(np.flatnonzero(stages == stage))]
        start = rng.integers(len(volume) - slices + 1)
        patches.append(volume[start : start + slices])
    return torch.from_numpy(np.stack(patches)[:, None]).float() / 255, torch.from_numpy(drawn)


def augment(
    patches: torch.Tensor, spacing: tuple[float, float, float], rng: np.random.Generator
) -> torch.Tensor:
    """Patches moved as patients lie differently, and brightened as contrast and scanners differ.

    Rotations (standard deviation 3 degrees about each axis), scale (4 %) and shifts (8 mm) act in
    mm, so that unequal spacings do not shear. One in five stays where it is: interpolation smooths,
    and the network must know unsmoothed scans too.
    """
    size = np.array(patches.shape[2:])
    # affine_grid counts from -1 to 1 over the volume, axes in the order column, row, slice.
    half = (size * spacing / 2)[::-1]
    matrices = []
    for _ in patches:
        x, y, z = np.radians(rng.normal(0, 3, 3))
        turn = np.array([[1, -z, y], [z, 1, -x], [-y, x, 1]]) * np.exp(rng.normal(0, 0.04))
        shift = rng.normal(0, 8, 3)
        if rng.random() < 0.2:
            turn, shift = np.eye(3), np.zeros(3)
        matrices.append(np.column_stack([turn * half / half[:, None], shift / half]))
    grid = functional.affine_grid(
        torch.tensor(np.array(matrices), dtype=torch.float32), list(patches.shape), False
    )
    moved = functional.grid_sample(patches, grid, padding_mode="border", align_corners=False)
    count = len(patches)
    gain, offset, noise = (
        torch.tensor(values, dtype=torch.float32).view(-1, 1, 1, 1, 1)
        for values in (
            rng.normal(1, 0.06, count),
            rng.normal(0, 0.03, count),
            rng.uniform(0, 0.02, count),
        )
    )
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    moved = (moved - 0.5) * gain + 0.5 + offset
    moved += noise * torch.randn(moved.shape, generator=generator)
    return moved.clamp_(0, 1)


def ordinal_loss(logits: torch.Tensor, stages: torch.Tensor) -> torch.Tensor:
    """Cross-entropy against soft labels exp(-2 d^2), d the distance to the true stage.

    Soft ordinal labels (Diaz and Marathe, CVPR 2019): F4 called F0 costs more than F4 called F3.
    """
    distance = torch.arange(logits.shape[1]) - stages[:, None]
    return functional.cross_entropy(logits, torch.softmax(-2.0 * distance**2, dim=1))


def fit(
    network: LFSNetwork,
    volumes: Sequence[np.ndarray],
    stages: np.ndarray,
    held: tuple[Sequence[np.ndarray], np.ndarray],
    schedule: Schedule,
    run: Path,
    spacing: tuple[float, float, float] = SPACING_MM,
) -> None:
    """Train `network` in place; goes on from RUN/checkpoint.pt where there is one.

    Every step's draws depend on the seed and the step's number alone, so that a run that was
    interrupted ends as it would have. held: volumes and stages that only log.csv sees.
    """
    network.to(memory_format=torch.channels_last_3d)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.01)
    rates = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, schedule.learning_rate, total_steps=schedule.steps
    )
    checkpoint, log = run / "checkpoint.pt", run / "log.csv"
    parts = {"network": network, "optimizer": optimizer, "rates": rates}
    first = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        first = state["step"]
        for name, part in parts.items():
            part.load_state_dict(state[name])
    else:
        log.write_text("step,seconds,loss,held_out_loss,significant,advanced,cirrhosis\n")

    losses, began = [], time.monotonic()
    progress = tqdm(range(first, schedule.steps), "Training", initial=first, total=schedule.steps)
    for step in progress:
        rng = np.random.default_rng([schedule.seed, step])
        torch.manual_seed(int(rng.integers(2**31)))
        network.train()
        patches, truth = draw_batch(
            volumes, stages, schedule.batch, network.patch_size[0], rng
        )
        patches = augment(patches, spacing, rng).to(memory_format=torch.channels_last_3d)
        with torch.autocast("cpu", torch.bfloat16, enabled=schedule.bfloat16):
            logits = network(patches)
        loss = ordinal_loss(logits.float(), truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
        losses.append(float(loss.detach()))
        progress.set_postfix(loss=f"{np.mean(losses[-50:]):.3f}")
        if (step + 1) % schedule.check_every == 0 or step + 1 == schedule.steps:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, schedule.bfloat16):
                network.eval()
                logits = np.stack([
                    _mean_logits(lambda x: network(torch.from_numpy(x)).float().numpy(), v, network)
                    for v in held[0]
                ])
            held_loss = float(ordinal_loss(torch.from_numpy(logits), torch.from_numpy(held[1])))
            aucs = [_auc(softmax(logits), held[1], g) for g in GROUPS.values()]
            row = [time.monotonic() - began, np.mean(losses), held_loss, *aucs]
            with log.open("a") as stream:
                print(step + 1, *(f"{value:.4f}" for value in row), sep=",", file=stream)
            state = {"step": step + 1, **{n: p.state_dict() for n, p in parts.items()}}
            torch.save(state, checkpoint.with_suffix(".part"))
            checkpoint.with_suffix(".part").replace(checkpoint)
            losses = []


def predict(path: Path, volumes: Sequence[np.ndarray]) -> np.ndarray:
    """Probabilities [cases, 5] by the exported file: patch logits averaged, then softmax."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    slices = session.get_inputs()[0].shape[2]
    ...
