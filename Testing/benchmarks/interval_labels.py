"""Training on ranges of stages, compared with training on the stages themselves.

    python Testing/benchmarks/interval_labels.py -o FOLDER [-n 240] [--steps 120] [--seeds 5]
    python Testing/benchmarks/interval_labels.py -o FOLDER --phantoms small [-n 120] [--steps 260]

The labels of phantoms are coarsened as those of public cohorts are; folds, seeds and networks are
the same for all labels. Without --phantoms, the phantoms are boxes of 12 x 24 x 32 voxels whose
brightness rises with the severity, and a network that fits them is trained, in seconds; with it,
they are those of train.py, and so is the network, small or full. Both have as many cases of each
stage, and severities that overlap between neighbouring stages. Printed are the AUCs of the pooled
out-of-fold predictions, always against the true stages, as means over the seeds, with their
standard deviation and the difference from the training on true stages:

    stages      the true stages
    tcga        groups of Ishak stages as of TCGA-LIHC: F0, F1, F2-F3, F4
    half        half of the cases as cirrhosis yes or no (F4, F0-F3), the others as stages
    thirds      a third as stages, a third as in tcga, a third as cirrhosis yes or no
    cirrhosis   all as cirrhosis yes or no
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "Training"), str(ROOT / "LiverFibrosisStaging")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch.utils.data import Subset  # noqa: E402

from cases.folds import split  # noqa: E402
from cases.manifest import Case, read_manifest  # noqa: E402
from cases.phantom_cohort import write_cohort  # noqa: E402
from lfs.build import FULL, SMALL, Build  # noqa: E402
from lfs.data import prepare  # noqa: E402
from lfs.fit import Schedule, aucs, case_logits, fit  # noqa: E402
from LiverFibrosisStagingLib.stages import GROUPS, StageRange, softmax  # noqa: E402

LABELS = ("stages", "tcga", "half", "thirds", "cirrhosis")


def labelled(stage: np.ndarray, labels: str) -> np.ndarray:
    """Lowest and highest stage, int [n, 2], of the true stages [n] under one of LABELS."""
    exact = np.stack([stage, stage], axis=1)
    tcga = np.where(np.isin(stage, (2, 3))[:, None], (2, 3), exact)
    cirrhosis = np.where((stage < 4)[:, None], (0, 3), exact)
    # Within each stage, cases are given the kinds of label in turn, in random order.
    order = np.random.default_rng(0).permutation(len(stage))
    turn = np.empty(len(stage), int)
    for s in np.unique(stage):
        own = order[stage[order] == s]
        turn[own] = np.arange(len(own))
    kinds = {
        "stages": [exact],
        "tcga": [tcga],
        "half": [exact, cirrhosis],
        "thirds": [exact, tcga, cirrhosis],
        "cirrhosis": [cirrhosis],
    }[labels]
    return np.stack(kinds)[turn % len(kinds), np.arange(len(stage))]


def boxes(count: int) -> tuple[list[Case], list[dict[str, torch.Tensor]]]:
    """Cases and their prepared volumes; brightness rises by 8 grey values (11 HU) per stage."""
    rng = np.random.default_rng(7)
    cases, prepared = [], []
    for number in range(count):
        stage = number % 5
        grey = 165 + 8 * (stage + rng.normal(0, 0.8) - 2)
        volume = grey + rng.normal(0, 8, (1, 12, 24, 32))
        prepared.append(
            {
                "volume": torch.from_numpy(volume.clip(0, 255).astype(np.uint8)),
                "liver": torch.tensor([[6, 12, 16]], dtype=torch.int16),
                "spleen": torch.empty((0, 3), dtype=torch.int16),
            }
        )
        name = f"{number:04d}"
        cases.append(Case(number, name, name, Path(name), StageRange(stage, stage)))
    return cases, prepared


def out_of_fold(
    prepared: Sequence[Any],
    known: np.ndarray,
    folds: Sequence[Any],
    build: Build,
    schedule: Schedule,
    run: Path,
) -> np.ndarray:
    """Logits [n, 5] of each case by the network of the fold that tests it."""
    logits = np.zeros((len(known), 5))
    for k, part in enumerate(folds):
        own = replace(schedule, seed=schedule.seed + k)
        training, validation = (
            (Subset(prepared, p), known[p]) for p in (part.train, part.validation)
        )
        network = build.network(own.seed)
        fit(network, training, validation, own, run / f"fold_{k}", build.spacing, workers=0)
        logits[part.test] = case_logits(network, Subset(prepared, part.test), torch.device("cpu"))
    return logits


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--phantoms", choices=("small", "full"), help="train.py's, and its network")
    parser.add_argument("-n", type=int, default=240, help="number of cases")
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--labels", nargs="+", choices=LABELS, default=LABELS)
    options = parser.parse_args(arguments)
    # Half of the steps with crops, and no early stop: equal training for all labels.
    schedule = Schedule(steps=options.steps, crop_steps=options.steps // 2, patience=10**6)
    if options.phantoms is None:
        cases, prepared = boxes(options.n)
        build = Build((8, 24, 32), (8.0, 8.0, 8.0), (3, 4, 5, 6), 8)
        schedule = replace(schedule, crop=16, learning_rate=1e-2, sparsity=0.0)
    else:
        manifest = write_cohort(options.output / "cohort", options.n, 7, balanced=True)
        cases = read_manifest(manifest)
        build = SMALL if options.phantoms == "small" else FULL
        schedule = replace(schedule, crop=40 if options.phantoms == "small" else 80)
        prepared = prepare(cases, options.output / "cache", build.patch_size, build.spacing)
    stage = np.array([case.stage for case in cases])
    folds = split(cases, options.folds)
    found: dict[str, list[list[float]]] = {labels: [] for labels in options.labels}
    rows: list[list[object]] = [["seed", "labels", *GROUPS]]
    for seed in range(options.seeds):
        for labels in options.labels:
            run = options.output / f"{labels}_{seed}"
            own = replace(schedule, seed=100 * seed)
            logits = out_of_fold(prepared, labelled(stage, labels), folds, build, own, run)
            found[labels].append(list(aucs(softmax(logits), stage).values()))
            rows.append([seed, labels, *(f"{value:.4f}" for value in found[labels][-1])])
            print(*rows[-1], flush=True)
    with (options.output / "aucs.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    first = np.array(found[options.labels[0]])
    for labels, values in found.items():
        of_seeds = np.array(values)
        columns = zip(
            GROUPS, of_seeds.mean(axis=0), of_seeds.std(axis=0), (of_seeds - first).mean(axis=0)
        )
        print(f"{labels}:", *(f"{g} {m:.3f} (SD {s:.3f}, {d:+.3f})" for g, m, s, d in columns))


if __name__ == "__main__":
    main()
