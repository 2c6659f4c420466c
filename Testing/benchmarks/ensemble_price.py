"""An ensemble of networks against its members: seconds, discrimination, calibration, spread.

    python Testing/benchmarks/ensemble_price.py COHORT/manifest.csv -o FOLDER
        [--model LFS_phantoms.onnx] [--single LFS_single.onnx]

The cases of a manifest (`Training/phantom.py`, `Training/insilico_cohort.py`), with their masks, go
through the ensemble once; its file gives the members' logits too. Printed for each member (mean,
lowest, highest), and for the ensemble:

- AUC for F2-F4, F3-F4 and F4, of the ensemble with 95 % interval, and the interval of its
  difference from the members' mean (bootstrap of patients)
- log loss and Brier score over the five stages, and the expected calibration error, mean of the
  three groups. Every network has a temperature of its own, chosen on one half of the cases and
  applied to the other (`common.calibration`)
- share of cases whose predicted stage (`median_stage`) is wrong, and the AUC with which that is
  told by the members' spread (mean SD of the cumulative probabilities), and by the entropy of the
  ensemble's probabilities and of each member's own

and the CPU seconds of ensemble and single network for one patch, least of five, in turn. FOLDER
receives the logits of each case; the same command goes on with an interrupted run.
"""

import argparse
import csv
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "Training"), str(ROOT / "LiverFibrosisStaging")]

import numpy as np  # noqa: E402
from tqdm import tqdm  # noqa: E402

from common.calibration import fit_temperature  # noqa: E402
from common.files import unfinished  # noqa: E402
from LiverFibrosisStagingLib.evaluation.measures import (  # noqa: E402
    auc,
    draw_patients,
    expected_calibration_error,
    group_probabilities,
)
from LiverFibrosisStagingLib.explaining import Steps, run_network  # noqa: E402
from LiverFibrosisStagingLib.imaging.grid import working_grid  # noqa: E402
from LiverFibrosisStagingLib.imaging.masks import read_organ  # noqa: E402
from LiverFibrosisStagingLib.imaging.reading import read_ct  # noqa: E402
from LiverFibrosisStagingLib.model import MEMBERS, StagingModel  # noqa: E402
from LiverFibrosisStagingLib.resources import default_model_path  # noqa: E402
from LiverFibrosisStagingLib.stages import GROUPS, STAGES, median_stage, softmax  # noqa: E402

REPEATS = 2000
QUIET = Steps(None, None)


def logits_of(row: dict[str, str], folder: Path, model: StagingModel) -> np.ndarray:
    """Logits [members, 5] of a case, the means over its patches."""
    ct = read_ct(folder / row["ct"])
    liver, spleen = (read_organ(f"{folder / row[organ]}") for organ in ("liver", "spleen"))
    grid = working_grid(ct, liver > 0, spleen > 0, **model.card.preprocessing)
    found = [forward.tensors[MEMBERS][0] for forward in run_network(model, grid, QUIET).forwards]
    return np.mean(found, axis=0, dtype=np.float64)


def measured(manifest: Path, model: StagingModel, table: Path) -> tuple[np.ndarray, ...]:
    """Patients [n], stages [n] and logits [n, members, 5], from the table as far as it has them."""
    with manifest.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    done = {}
    if table.exists():
        with np.load(table) as kept:
            done = dict(kept)
    for row in tqdm(rows, "Networks", unit="CT"):
        if row["ct"] not in done:
            done[row["ct"]] = logits_of(row, manifest.parent, model)
            with unfinished(table) as part, part.open("wb") as file:
                np.savez(file, **done)
    stages = np.array([STAGES.index(row["stage"]) for row in rows])
    patients = np.array([row["patient"] for row in rows])
    return patients, stages, np.array([done[row["ct"]] for row in rows])


def calibrated(logits: np.ndarray, stages: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """Probabilities [n, 5]; each half of the patients with the temperature of the other."""
    half = np.unique(patients, return_inverse=True)[1] % 2
    found = np.empty(logits.shape)
    for own in (0, 1):
        temperature = fit_temperature(logits[half != own], stages[half != own])
        found[half == own] = softmax(logits[half == own], temperature)
    return found


def measures(probabilities: np.ndarray, stages: np.ndarray) -> dict[str, float]:
    """The measures of one network, or of the ensemble."""
    one = np.ones((1, len(stages)))
    scores = group_probabilities(probabilities)
    wrong = median_stage(probabilities) != stages
    entropy = -(probabilities * np.log(np.maximum(probabilities, 1e-12))).sum(axis=1)
    errors = [
        expected_calibration_error(stages >= first, scores[name]) for name, first in GROUPS.items()
    ]
    return {
        **{
            f"AUC {name}": auc(stages >= first, scores[name], one)[0]
            for name, first in GROUPS.items()
        },
        "log loss": -np.log(np.maximum(probabilities[range(len(stages)), stages], 1e-12)).mean(),
        "Brier score": ((probabilities - np.eye(len(STAGES))[stages]) ** 2).sum(axis=1).mean(),
        "calibration error": np.mean(errors),
        "wrong": wrong.mean(),
        "AUC of entropy for wrong": auc(wrong, entropy, one)[0],
    }


def spread_of(members: np.ndarray) -> np.ndarray:
    """Mean SD [n] of the members' cumulative probabilities; members: [members, n, 5]."""
    return np.cumsum(members, axis=2)[..., :-1].std(axis=0).mean(axis=1)


def seconds(models: dict[str, StagingModel]) -> dict[str, float]:
    """CPU seconds of each for one patch: the least of five runs, in turn."""
    found: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(5):
        for name, model in models.items():
            x = np.full((1, len(model.card.channels), *model.card.patch_size), 0.5, np.float32)
            before = time.process_time()
            model.run(x)
            found[name].append(time.process_time() - before)
    return {name: min(values) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifest", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--model", default="LFS_phantoms.onnx", help="the ensemble's file")
    parser.add_argument("--single", help="file of a single network, for its seconds")
    options = parser.parse_args()
    models = {
        name: StagingModel.load(default_model_path(name), threads=1)
        for name in (options.model, options.single)
        if name
    }
    options.output.mkdir(parents=True, exist_ok=True)
    table = options.output / f"{Path(options.model).stem}.npz"
    patients, stages, logits = measured(options.manifest, models[options.model], table)
    ensemble = calibrated(logits.mean(axis=1), stages, patients)
    members = np.array([calibrated(one, stages, patients) for one in np.moveaxis(logits, 1, 0)])
    each = [measures(one, stages) for one in members]
    count = np.bincount(stages, minlength=len(STAGES))
    print(f"{len(stages)} CTs of {len(set(patients))} patients, F0 to F4: {count}; {options.model}")
    print(f"{'':26s}{'members: mean (range)':>30s}{'ensemble':>10s}")
    for name, value in measures(ensemble, stages).items():
        values = [one[name] for one in each]
        shown = f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"
        print(f"{name:26s}{shown:>30s}{value:10.3f}")
    wrong = median_stage(ensemble) != stages
    told = auc(wrong, spread_of(members), np.ones((1, len(stages))))[0]
    print(f"{'AUC of spread for wrong':26s}{'':30s}{told:10.3f}")

    weights = draw_patients(patients, REPEATS, 0)
    for name, first in GROUPS.items():
        truth, score = stages >= first, group_probabilities(ensemble)[name]
        whole = auc(truth, score, weights)
        single = [auc(truth, group_probabilities(one)[name], weights) for one in members]
        gain = whole - np.mean(single, axis=0)
        low, high, gain_low, gain_high = (
            np.nanquantile(values, q) for values in (whole, gain) for q in (0.025, 0.975)
        )
        print(
            f"AUC {name}: 95 % {low:.3f} to {high:.3f}; "
            f"above the members' mean by {gain_low:+.3f} to {gain_high:+.3f}"
        )
    for name, value in seconds(models).items():
        print(f"{name}: {value:.3f} CPU s for a patch")


if __name__ == "__main__":
    main()
