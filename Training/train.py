"""Train the LFS network on a cohort, export it, and measure the exported file.

    python Training/train.py --manifest COHORT/manifest.csv --test TEST/manifest.csv -o RUN

The cohort comes as a CSV with the columns patient, ct, liver, spleen, stage (F0..F4; paths
relative to the CSV). RUN receives the preprocessed cases (cache/), log.csv, checkpoint.pt (a run
that was interrupted goes on from there), LFS.onnx and metrics.json.

What training sees is what staging sees: both take the library's `working_grid`. Each iteration
draws a stage, a patient of that stage, and 32 consecutive slices of the liver (Yin et al. 2021,
"Algorithm scheme"). Rare stages are drawn more often than they occur, with the square root of their
share: drawn evenly, a handful of patients would be learned by heart.

The first steps look closely: patches cut in plane around a place in the liver. There a step costs a
third and the signal is not a thirtieth of the picture; whole sections, from which the network stays
at chance for long, only follow when it knows what to look at.
"""

import argparse
import csv
import datetime
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from export import export
from network import PATCH_SIZE, SMOOTHING_MM, SPACING_MM, LFSNetwork
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from torch.nn import functional
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "LiverFibrosisStaging"))
from LiverFibrosisStagingLib import StagingModel, __version__, read_ct
from LiverFibrosisStagingLib.grid import patch_starts, working_grid
from LiverFibrosisStagingLib.masks import organ_masks, read_organ
from LiverFibrosisStagingLib.stages import GROUPS, RESEARCH_USE, STAGES, softmax

WINDOW_HU = (-125.0, 225.0)
PATCH_OVERLAP = 0.5


@dataclass(frozen=True)
class Case:
    """One CT of one patient; `stage` is the index into STAGES."""

    patient: str
    ct: Path
    liver: Path
    stage: int


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to learn.

    sparsity: weight in the loss of the target layer's mean absolute activation. Without it the maps
    are busy everywhere, and Grad-CAM, which sums them up, shows the background instead of organs.
    crop_steps: steps at the start with patches of `crop` x `crop` in plane, twice as many per step;
    sparsity acts after them.
    """

    steps: int = 240
    batch: int = 8
    learning_rate: float = 4e-3
    sparsity: float = 0.4
    crop_steps: int = 180
    crop: int = 80
    bfloat16: bool = True
    check_every: int = 100
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
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Each case's working grid over the liver's slices, uint8 [slices, rows, columns], 0..255, and
    places in its liver, int16 [n, 3], indices into that grid.

    Kept on disk in `cache` and mapped into memory; a case is prepared anew when its files change.
    """
    cache.mkdir(parents=True, exist_ok=True)
    one = partial(_prepare_one, cache=cache, patch_size=tuple(patch_size), spacing=tuple(spacing))
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        paths = list(tqdm(pool.map(one, cases), "Preprocessing", len(cases), unit="CT"))
    volumes = [np.load(path, mmap_mode="r") for path in paths]
    return volumes, [np.load(path.with_suffix(".liver.npy")) for path in paths]


def _prepare_one(
    case: Case, *, cache: Path, patch_size: tuple[int, ...], spacing: tuple[float, ...]
) -> Path:
    files = [(str(p.resolve()), p.stat().st_mtime_ns) for p in (case.ct, case.liver)]
    recipe = ("places", __version__, files, patch_size, spacing, WINDOW_HU, SMOOTHING_MM)
    key = hashlib.sha256(repr(recipe).encode()).hexdigest()[:16]
    path = cache / f"{key}.npy"
    if not path.exists():
        ct = read_ct(case.ct)
        liver, _, _ = organ_masks(ct, read_organ(case.liver), None)
        grid = working_grid(
            ct,
            liver,
            spacing=spacing,
            patch_size=patch_size,
            window=WINDOW_HU,
            overlap=PATCH_OVERLAP,
            smoothing_mm=SMOOTHING_MM,
        )
        volume = sitk.GetArrayViewFromImage(grid.volume)
        # Every 4th place in plane is enough to draw from.
        resampled = sitk.Resample(liver, grid.volume, sitk.Transform(), sitk.sitkNearestNeighbor)
        places = np.argwhere(sitk.GetArrayViewFromImage(resampled)[:, ::4, ::4]) * (1, 4, 4)
        np.save(path.with_suffix(".liver.npy"), places.astype(np.int16))
        unfinished = cache / f"{key}.{os.getpid()}.npy"
        np.save(unfinished, np.round(volume * 255).astype(np.uint8))
        unfinished.replace(path)
    return path


def hold_out(
    cases: Sequence[Case], parts: int, seed: int, fold: int = 0
) -> tuple[list[int], list[int]]:
    """Indices to train on and to hold out: fold `fold` of `parts`, by patient, stages balanced."""
    split = StratifiedGroupKFold(parts, shuffle=True, random_state=seed).split(
        cases, [case.stage for case in cases], [case.patient for case in cases]
    )
    kept, held = list(split)[fold]
    return kept.tolist(), held.tolist()


def draw_batch(
    volumes: Sequence[np.ndarray],
    stages: np.ndarray,
    batch: int,
    slices: int,
    rng: np.random.Generator,
    places: Sequence[np.ndarray] | None = None,
    crop: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches float32 [batch, 1, slices, rows, columns] and stages [batch].

    Stages come with the square root of their share. With `crop`, a patch is `crop` x `crop` in
    plane around one of the `places` of its case, otherwise whole sections.
    """
    present, counts = np.unique(stages, return_counts=True)
    drawn = rng.choice(present, batch, p=np.sqrt(counts) / np.sqrt(counts).sum())
    patches = []
    for stage in drawn:
        index = rng.choice(np.flatnonzero(stages == stage))
        volume = volumes[index]
        last = np.array(volume.shape) - (slices, crop, crop)
        if crop:
            place = places[index][rng.integers(len(places[index]))]
            z, y, x = np.clip(place - np.array([slices, crop, crop]) // 2, 0, last)
            patches.append(volume[z : z + slices, y : y + crop, x : x + crop])
        else:
            start = rng.integers(last[0] + 1)
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
    places: Sequence[np.ndarray],
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
    checkpoint, log = run / "checkpoint.pt", run / "log.csv"
    parts = {"network": network, "optimizer": optimizer}
    first = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        first = state["step"]
        for name, part in parts.items():
            part.load_state_dict(state[name])
    else:
        columns = ["step", "seconds", "loss", "held_out_loss", *GROUPS]
        log.write_text(",".join(columns) + "\n", encoding="utf-8")
    # Follows from the step alone, so that a run may go on with more or fewer steps than planned.
    rates = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, schedule.learning_rate, total_steps=schedule.steps, last_epoch=first - 1
    )

    losses, began = [], time.monotonic()
    progress = tqdm(range(first, schedule.steps), "Training", initial=first, total=schedule.steps)
    for step in progress:
        rng = np.random.default_rng([schedule.seed, step])
        torch.manual_seed(int(rng.integers(2**31)))
        network.train()
        close = step < schedule.crop_steps
        batch, crop = (2 * schedule.batch, schedule.crop) if close else (schedule.batch, 0)
        slices = network.patch_size[0]
        patches, truth = draw_batch(volumes, stages, batch, slices, rng, places, crop)
        patches = augment(patches, spacing, rng).to(memory_format=torch.channels_last_3d)
        with torch.autocast("cpu", torch.bfloat16, enabled=schedule.bfloat16):
            features = network.features(patches)
            logits = network.tail(features)
        loss = ordinal_loss(logits.float(), truth)
        optimizer.zero_grad()
        sparsity = 0.0 if close else schedule.sparsity
        (loss + sparsity * features.float().abs().mean()).backward()
        optimizer.step()
        _keep_normalisations_positive(network)
        rates.step()
        losses.append(float(loss.detach()))
        progress.set_postfix(loss=f"{np.mean(losses[-50:]):.3f}")
        if (step + 1) % schedule.check_every == 0 or step + 1 == schedule.steps:
            logits = case_logits(partial(_run, network.eval()), held[0], network.patch_size[0])
            held_loss = float(ordinal_loss(torch.from_numpy(logits), torch.from_numpy(held[1])))
            row = [time.monotonic() - began, np.mean(losses), held_loss]
            row += aucs(softmax(logits), held[1]).values()
            with log.open("a", encoding="utf-8") as stream:
                print(step + 1, *(f"{value:.4f}" for value in row), sep=",", file=stream)
            state = {"step": step + 1, **{n: p.state_dict() for n, p in parts.items()}}
            torch.save(state, checkpoint.with_suffix(".part"))
            checkpoint.with_suffix(".part").replace(checkpoint)
            losses = []


def _keep_normalisations_positive(network: LFSNetwork) -> None:
    """So that they pass through the max pooling before them, into the convolution, at export."""
    with torch.no_grad():
        for layer in network.head:
            if isinstance(layer, torch.nn.BatchNorm3d):
                layer.weight.clamp_(min=1e-3)


def _run(network: LFSNetwork, patch: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return network(torch.from_numpy(patch)).numpy()


def case_logits(
    run: Callable[[np.ndarray], np.ndarray], volumes: Sequence[np.ndarray], slices: int
) -> np.ndarray:
    """Logits [cases, 5] as staging has them: the mean over a case's overlapping patches.

    run: logits [1, 5] of a patch float32 [1, 1, slices, rows, columns].
    """
    return np.stack(
        [
            np.mean(
                [
                    run(np.float32(volume[None, None, start : start + slices]) / np.float32(255))[0]
                    for start in patch_starts(len(volume), slices, PATCH_OVERLAP)
                ],
                axis=0,
            )
            for volume in volumes
        ]
    )


def aucs(probabilities: np.ndarray, stages: np.ndarray) -> dict[str, float]:
    """Area under the ROC curve of every group of stages; nan where one side has no case."""
    return {
        name: float(roc_auc_score(stages >= first, probabilities[:, first:].sum(axis=1)))
        if 0 < np.count_nonzero(stages >= first) < len(stages)
        else float("nan")
        for name, first in GROUPS.items()
    }


def evaluate(
    probabilities: np.ndarray, stages: np.ndarray, repeats: int = 1000, seed: int = 0
) -> dict[str, dict[str, float]]:
    """AUC of every group with its 95 % interval by bootstrap over cases (percentiles)."""
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(repeats):
        picked = rng.integers(len(stages), size=len(stages))
        drawn.append(list(aucs(probabilities[picked], stages[picked]).values()))
    low, high = np.nanpercentile(drawn, (2.5, 97.5), axis=0)
    values = aucs(probabilities, stages)
    return {
        name: {"value": round(value, 4), "low": round(float(a), 4), "high": round(float(b), 4)}
        for (name, value), a, b in zip(values.items(), low, high)
    }


def metadata(
    name: str, data: str, cases_per_stage: Sequence[int], network: LFSNetwork, spacing: Sequence
) -> dict:
    """What the contract says about a model, still without its evaluation."""
    return {
        "contract": 1,
        "name": name,
        "stages": list(STAGES),
        "window_hu": list(WINDOW_HU),
        "spacing_mm": list(spacing),
        "patch_size": list(network.patch_size),
        "patch_overlap": PATCH_OVERLAP,
        "smoothing_mm": SMOOTHING_MM,
        "calibration": {"temperature": 1.0},
        "reference": {},
        "training": {
            "data": data,
            "cases_per_stage": list(cases_per_stage),
            "folds": 0,
            "date": datetime.date.today().isoformat(),
            "code_version": __version__,
        },
        "intended_use": RESEARCH_USE,
    }


def train(
    manifest: Path,
    run: Path,
    *,
    test: Path | None = None,
    parts: int = 5,
    fold: int = 0,
    cache: Path | None = None,
    schedule: Schedule = Schedule(),
    network: LFSNetwork | None = None,
    start_from: Path | None = None,
    spacing: tuple[float, float, float] = SPACING_MM,
    name: str = "LFS",
    data: str = "Not stated.",
) -> dict[str, dict[str, float]]:
    """From a manifest to RUN/LFS.onnx and RUN/metrics.json; the AUCs of the exported file.

    One patient in `parts`, those of `fold`, is held out to watch the training. cache: folder of the
    preprocessed cases, RUN/cache by default; several runs may share one. test: manifest
    of another cohort, on which the exported file is measured; without it, that is done on the held-out patients.
    start_from: checkpoint of another run, whose weights are taken where they fit.
    """
    run.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(schedule.seed)
    network = network or LFSNetwork()
    if start_from is not None:
        begun = torch.load(start_from, weights_only=True)["network"]
        own = network.state_dict()
        fits = {k: v for k, v in begun.items() if k in own and v.shape == own[k].shape}
        network.load_state_dict(own | fits)
    cases = read_manifest(manifest)
    stages = np.array([case.stage for case in cases])
    cache = cache or run / "cache"
    volumes, places = prepare(cases, cache, network.patch_size, spacing)
    kept, held = hold_out(cases, parts, schedule.seed, fold)
    held_out = [volumes[i] for i in held], stages[held]
    taught = [volumes[i] for i in kept], [places[i] for i in kept], stages[kept]
    fit(network, *taught, held_out, schedule, run, spacing)

    tested, truth, cohort = *held_out, f"{len(held)} held-out cases of the cohort"
    if test is not None:
        test_cases = read_manifest(test)
        tested, _ = prepare(test_cases, cache, network.patch_size, spacing)
        truth = np.array([case.stage for case in test_cases])
        cohort = f"{len(test_cases)} cases of another cohort"
    counts = np.bincount(stages[kept], minlength=len(STAGES)).tolist()
    described = metadata(name, data, counts, network, spacing)
    # Measured on the exported file, then written into it: the weights stay the same.
    path = run / "LFS.onnx"
    export(network.to(memory_format=torch.contiguous_format), path, described)
    model = StagingModel.load(path)
    logits = case_logits(lambda x: model.run(x).logits, tested, network.patch_size[0])
    probabilities = softmax(logits, model.card.temperature)
    figures = evaluate(probabilities, truth)
    described["training"] |= {"auc": figures, "evaluated_on": cohort}
    export(network, path, described)
    metrics = {
        "auc": figures,
        "evaluated_on": cohort,
        "confusion": _confusion(probabilities, truth),
    }
    (run / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    return figures


def _confusion(probabilities: np.ndarray, stages: np.ndarray) -> list[list[int]]:
    """Cases by true stage (rows) and most probable stage (columns)."""
    table = np.zeros((len(STAGES), len(STAGES)), int)
    np.add.at(table, (stages, probabilities.argmax(axis=1)), 1)
    return table.tolist()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Train and export a fibrosis staging network.")
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--test", type=Path, help="manifest of a cohort to measure the result on")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the run")
    parser.add_argument("--fold", type=int, default=0, help="which of five parts is held out")
    parser.add_argument("--cache", type=Path, help="folder of the preprocessed cases")
    parser.add_argument("--start-from", type=Path, help="checkpoint.pt of another run")
    parser.add_argument("--steps", type=int, default=Schedule.steps)
    parser.add_argument("--batch", type=int, default=Schedule.batch)
    parser.add_argument("--learning-rate", type=float, default=Schedule.learning_rate)
    parser.add_argument("--sparsity", type=float, default=Schedule.sparsity)
    parser.add_argument("--crop-steps", type=int, default=Schedule.crop_steps)
    parser.add_argument("--crop", type=int, default=Schedule.crop)
    parser.add_argument("--check-every", type=int, default=Schedule.check_every)
    parser.add_argument("--seed", type=int, default=Schedule.seed)
    parser.add_argument("--float32", action="store_true", help="no bfloat16 autocast")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--name", default="LFS", help="the model's name in its metadata")
    parser.add_argument("--data", default="Not stated.", help="one sentence on the training data")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    schedule = Schedule(
        steps=arguments.steps,
        batch=arguments.batch,
        learning_rate=arguments.learning_rate,
        sparsity=arguments.sparsity,
        crop_steps=arguments.crop_steps,
        crop=arguments.crop,
        bfloat16=not arguments.float32,
        check_every=arguments.check_every,
        seed=arguments.seed,
    )
    figures = train(
        arguments.manifest,
        arguments.output,
        test=arguments.test,
        fold=arguments.fold,
        cache=arguments.cache,
        schedule=schedule,
        start_from=arguments.start_from,
        name=arguments.name,
        data=arguments.data,
    )
    for group, auc in figures.items():
        print(f"{group}: AUC {auc['value']:.3f} ({auc['low']:.3f} to {auc['high']:.3f})")


if __name__ == "__main__":
    main()
