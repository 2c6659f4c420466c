"""Training on ranges of stages, compared with training on the stages themselves.

    python Testing/benchmarks/interval_labels.py -o FOLDER [-n 300] [--seeds 10]

Phantoms with as many cases of each stage are staged once with the shipped model; then the layers
behind its maps are trained anew and fine-tuned, as train.py --start-from does, with the labels
coarsened as those of public cohorts are. Cases, folds and initial weights are the same for all
labels. Printed are the AUCs of the out-of-fold predictions, always against the true stages: means
over the seeds, their standard deviation, and the mean difference from training on the true stages
with its standard error.

    stages      the true stages
    tcga        groups of Ishak stages as of TCGA-LIHC: F0, F1, F2-F3, F4
    half        half of the cases as cirrhosis yes or no (F4, F0-F3), the others as stages
    thirds      a third as stages, a third as in tcga, a third as cirrhosis yes or no
    cirrhosis   all as cirrhosis yes or no

The same command goes on with an interrupted run.
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "Training"), str(ROOT / "LiverFibrosisStaging")]

import numpy as np  # noqa: E402
from joblib import Parallel, delayed  # noqa: E402
from tqdm import tqdm  # noqa: E402

from cases import phantom, phantom_cohort  # noqa: E402
from cases.manifest import Case  # noqa: E402
from finetuning.cohort import Cohort, read_cohort  # noqa: E402
from finetuning.fit import Tuning  # noqa: E402
from finetuning.methods import ANEW, TUNED, Fold, cross_validate  # noqa: E402
from LiverFibrosisStagingLib.evaluation.measures import auc  # noqa: E402
from LiverFibrosisStagingLib.resources import default_model_path  # noqa: E402
from LiverFibrosisStagingLib.stages import GROUPS, StageRange  # noqa: E402
from painted.imported import load  # noqa: E402

LABELS = ("stages", "tcga", "half", "thirds", "cirrhosis")
GRID = {"spacing": (4.0, 3.0, 3.0), "size": (57, 108, 132)}


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


def write_phantom(number: int, folder: Path, strength: float) -> Case:
    """One phantom's files, unless they exist, and its case."""
    stage, name = number % 5, f"{number:04d}"
    files = {kind: folder / f"{name}_{kind}.nii.gz" for kind in phantom.Phantom._fields}
    if not all(file.exists() for file in files.values()):
        made = phantom.phantom(stage, 7000 + number, strength=strength, **GRID)
        phantom_cohort.write(made, folder / name)
    return Case(number, name, name, stages=StageRange(stage, stage), **files)


def folds_of(cohort: Cohort, parts: int, seed: int) -> list[Fold]:
    """Folds by the true stages."""
    return [Fold(*each) for each in cohort.splits(np.arange(len(cohort)), parts, seed)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Stage, train, and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("-n", type=int, default=300, help="number of phantoms")
    parser.add_argument("--strength", type=float, default=1.0, help="of the phantoms' signs")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--labels", nargs="+", choices=LABELS, default=LABELS)
    options = parser.parse_args(arguments)
    folder = options.output / "phantoms"
    folder.mkdir(parents=True, exist_ok=True)
    write = delayed(partial(write_phantom, folder=folder, strength=options.strength))
    made = Parallel(options.workers, return_as="generator")(map(write, range(options.n)))
    cases = list(tqdm(made, "Phantoms", options.n))
    model = default_model_path()
    cohort = read_cohort(cases, model, options.output / "maps", options.workers)
    starts = load(model)
    stage = cohort.lowest
    found: dict[tuple[str, str], list[list[float]]] = {}
    rows: list[list[object]] = [["seed", "method", "labels", *GROUPS]]
    for seed in range(options.seeds):
        folds, tuning = folds_of(cohort, options.folds, seed), replace(Tuning(), seed=seed)
        for labels in options.labels:
            lowest, highest = labelled(stage, labels).T
            known = replace(cohort, lowest=lowest, highest=highest)
            predicted, _ = cross_validate(known, starts, folds, tuning, (TUNED, ANEW))
            for method in (TUNED, ANEW):
                scores, one = predicted.scores[method], np.ones((1, len(stage)))
                values = [float(auc(stage >= f, scores[g], one)[0]) for g, f in GROUPS.items()]
                found.setdefault((method, labels), []).append(values)
                rows.append([seed, method, labels, *(f"{value:.4f}" for value in values)])
                print(*rows[-1], flush=True)
    with (options.output / "aucs.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    for (method, labels), values in found.items():
        own, true = np.array(values), np.array(found[method, options.labels[0]])
        change = own - true
        error = change.std(axis=0, ddof=1) / np.sqrt(len(change))
        columns = zip(GROUPS, own.mean(axis=0), own.std(axis=0), change.mean(axis=0), error)
        listed = [f"{g} {m:.3f} (SD {s:.3f}; {d:+.3f} +- {e:.3f})" for g, m, s, d, e in columns]
        print(f"{method}, {labels}:", *listed)


if __name__ == "__main__":
    main()
