"""An ensemble of networks against its members: seconds, discrimination, calibration, spread.

    python Testing/benchmarks/ensemble_price.py COHORT/manifest.csv ... -o FOLDER
        [--model LFS_phantoms.onnx] [--single LFS_single.onnx] [--painted]

The cases of one or several manifests (`Training/phantom.py`, `Training/insilico_cohort.py`), with
their masks, go through the ensemble once; its file gives the members' logits too. Printed for each
member (mean, lowest, highest), and for the ensemble, with the 95 % interval of its difference from
the members' mean (bootstrap of patients):

- AUC for F1-F4, F2-F4, F3-F4 and F4
- log loss and Brier score over the five stages, and, without an interval, the expected calibration
  error, mean of the three groups. Every network has a temperature of its own, chosen on one half of
  the patients and applied to the other (`common.calibration`)
- share of cases whose predicted stage (`median_stage`) is wrong, and the AUC with which that is
  told by the entropy of the probabilities. For the ensemble's wrong stages also the AUC of the
  members' spread (mean SD of the cumulative probabilities) and of the share of members that predict
  another stage, which users see, with their intervals above that of the ensemble's entropy

and the CPU seconds of ensemble and single network for one patch, least of five, in turn. FOLDER
receives the results of each case; the same command goes on with an interrupted run.

--painted is for cohorts of `Training/insilico_cohort.py` and a file of `train_insilico.py`, on the
bodies that the networks were trained with. Bodies take the place of patients. Each member has seen
all bodies but one, and the ensemble all of them, so the same is printed for

- the networks that have not seen the case's body, one for each case
- ensembles of networks that are trained in the same way on these cases: for each body one ensemble,
  whose networks each leave out this body and another one. Only these show what an ensemble adds on
  new bodies.
"""

import argparse
import csv
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "Training"), str(ROOT / "LiverFibrosisStaging")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from tqdm import tqdm  # noqa: E402

from common.calibration import fit_temperature  # noqa: E402
from common.files import unfinished  # noqa: E402
from LiverFibrosisStagingLib.ensemble import MIN_AGREEMENT  # noqa: E402
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
from painted.data import scaled_sign  # noqa: E402
from painted.fit import Readings, Schedule, fit  # noqa: E402
from painted.network import SIGNS, Input  # noqa: E402

CUT_OFFS = {"F1-F4": 1, "F2-F4": 2, "F3-F4": 3, "F4": 4}
REPEATS = 2000
QUIET = Steps(None, None)
Measured = tuple[np.ndarray, np.ndarray]


def rows_of(manifests: list[Path], painted: bool) -> list[dict[str, str]]:
    """The rows of all manifests, with full paths; of painted cases with their signs and body."""
    rows = []
    for manifest in manifests:
        listed = _table(manifest.with_name("signs.csv")) if painted else []
        signs = {row["patient"]: row for row in listed}
        for row in _table(manifest):
            files = {kind: f"{manifest.parent / row[kind]}" for kind in ("ct", "liver", "spleen")}
            rows.append(signs.get(row["patient"], {}) | row | files)
    return rows


def _table(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def measure_case(row: dict[str, str], model: StagingModel) -> Measured:
    """Logits [members, 5] and means [maps] of the target layer of a case, over its patches."""
    ct = read_ct(row["ct"])
    liver, spleen = (read_organ(row[organ]) for organ in ("liver", "spleen"))
    grid = working_grid(ct, liver > 0, spleen > 0, **model.card.preprocessing)
    found = [forward.tensors for forward in run_network(model, grid, QUIET).forwards]
    logits = [tensors[MEMBERS][0] for tensors in found]
    means = [tensors[model.card.target_layer][0].mean(axis=(1, 2, 3)) for tensors in found]
    return np.mean(logits, axis=0, dtype=np.float64), np.mean(means, axis=0)


def measured(rows: list[dict[str, str]], model: StagingModel, table: Path) -> Measured:
    """Logits [n, members, 5] and means [n, maps], from the table as far as it has them."""
    done: dict[str, Measured] = {}
    if table.exists():
        with np.load(table) as kept:
            done = dict(zip(kept["cts"].tolist(), zip(kept["logits"], kept["means"])))
    for row in tqdm(rows, "Networks", unit="CT"):
        if row["ct"] not in done:
            done[row["ct"]] = measure_case(row, model)
            logits, means = (np.stack(column) for column in zip(*done.values()))
            with unfinished(table) as part, part.open("wb") as file:
                np.savez(file, cts=[*done], logits=logits, means=means)
    logits, means = (np.stack(column) for column in zip(*(done[row["ct"]] for row in rows)))
    return logits, means


def refitted(means: np.ndarray, rows: list[dict[str, str]], stages: np.ndarray) -> np.ndarray:
    """Logits [n, bodies - 1, 5] of networks that have not seen the case's body.

    means: of the maps [n, maps]. They are trained as `train_insilico.py` does it, with no versions
    of a case but the one in its CT.
    """
    bodies = np.unique([row["body"] for row in rows], return_inverse=True)[1]
    signs = np.array([[scaled_sign(name, float(row[name])) for name in SIGNS] for row in rows])
    found = np.empty((len(rows), bodies.max(), len(STAGES)))
    for body in tqdm(range(bodies.max() + 1), "Training", unit="body"):
        own = bodies == body
        seen = Readings(means[~own, None], signs[~own], stages[~own], bodies[~own])
        others = [[other] for other in np.unique(seen.bodies)]
        networks, _ = fit(seen, others, Input(), Schedule())
        for number, network in enumerate(networks):
            with torch.no_grad():
                found[own, number] = network.eval().of_means(torch.as_tensor(means[own]))[0]
    return found


def calibrated(logits: np.ndarray, stages: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """Probabilities [n, 5]; each half of the patients with the temperature of the other."""
    half = np.unique(patients, return_inverse=True)[1] % 2
    found = np.empty(logits.shape)
    for own in (0, 1):
        temperature = fit_temperature(logits[half != own], stages[half != own])
        found[half == own] = softmax(logits[half == own], temperature)
    return found


def measures(
    probabilities: np.ndarray, stages: np.ndarray, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """The measures [repeats] of one network, or of the ensemble; weights: [repeats, n]."""
    likelihood = np.maximum(probabilities[range(len(stages)), stages], 1e-12)
    squares = ((probabilities - np.eye(len(STAGES))[stages]) ** 2).sum(axis=1)
    wrong = median_stage(probabilities) != stages
    means = {"log loss": -np.log(likelihood), "Brier score": squares, "wrong": wrong}
    return {
        **{
            f"AUC {name}": auc(stages >= first, probabilities[:, first:].sum(axis=1), weights)
            for name, first in CUT_OFFS.items()
        },
        **{name: weights @ each / weights.sum(axis=1) for name, each in means.items()},
        "AUC of entropy for wrong": auc(wrong, entropy_of(probabilities), weights),
    }


def calibration_error(probabilities: np.ndarray, stages: np.ndarray) -> float:
    """Mean over the groups of the expected calibration error."""
    scores = group_probabilities(probabilities)
    errors = [
        expected_calibration_error(stages >= first, scores[name]) for name, first in GROUPS.items()
    ]
    return float(np.mean(errors))


def entropy_of(probabilities: np.ndarray) -> np.ndarray:
    """Entropy [n] of probabilities [n, 5]."""
    return -(probabilities * np.log(np.maximum(probabilities, 1e-12))).sum(axis=1)


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


def compare(
    logits: np.ndarray, whole: np.ndarray, stages: np.ndarray, patients: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Print the measures of members, logits [n, members, 5], and of another network, [n, 5].

    Returns their probabilities, [members, n, 5] and [n, 5].
    """
    members = np.array([calibrated(one, stages, patients) for one in np.moveaxis(logits, 1, 0)])
    other = calibrated(whole, stages, patients)
    weights = weights_of(patients)
    each = [measures(one, stages, weights) for one in members]
    for name, values in measures(other, stages, weights).items():
        single = np.array([one[name] for one in each])
        print(line(name, single[:, 0], values[0]), interval_of(values - single.mean(axis=0)))
    errors = np.array([calibration_error(one, stages) for one in members])
    print(line("calibration error", errors, calibration_error(other, stages)))
    return members, other


def compare_ensemble(logits: np.ndarray, stages: np.ndarray, patients: np.ndarray) -> None:
    """`compare` with the ensemble of these members, and what their spread tells."""
    print(f"{'':26s}{'members: mean (range)':>30s}{'ensemble':>10s}  difference, 95 %")
    members, ensemble = compare(logits, logits.mean(axis=1), stages, patients)
    predicted = median_stage(ensemble)
    wrong, weights = predicted != stages, weights_of(patients)
    agreeing = np.mean([median_stage(one) == predicted for one in members], axis=0)
    entropy = auc(wrong, entropy_of(ensemble), weights)
    for name, sign in {"spread": spread_of(members), "disagreement": 1 - agreeing}.items():
        found = auc(wrong, sign, weights)
        above = interval_of(found - entropy)
        print(f"AUC of {name} for wrong: {found[0]:.3f}, above that of the entropy by {above}")
    warned = agreeing < MIN_AGREEMENT
    print(
        f"warned of disagreement: {warned.mean():.0%}; wrong of these {wrong[warned].mean():.0%}, "
        f"of the others {wrong[~warned].mean():.0%}"
    )


def weights_of(patients: np.ndarray) -> np.ndarray:
    """Weights of cases [1 + REPEATS, n]: 1, which gives a measure's value, then the bootstrap's."""
    return np.vstack([np.ones(len(patients)), draw_patients(patients, REPEATS, 0)])


def line(name: str, single: np.ndarray, whole: float) -> str:
    """A measure of the members [members] and of the ensemble."""
    shown = f"{single.mean():.3f} ({single.min():.3f} to {single.max():.3f})"
    return f"{name:26s}{shown:>30s}{whole:10.3f}  "


def interval_of(values: np.ndarray) -> str:
    """A value and, of the repeats after it, the 95 % interval."""
    low, high = np.nanquantile(values[1:], (0.025, 0.975))
    return f"{values[0]:+.3f} ({low:+.3f} to {high:+.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifests", type=Path, nargs="+", metavar="MANIFEST")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--model", default="LFS_phantoms.onnx", help="the ensemble's file")
    parser.add_argument("--single", help="file of a single network, for its seconds")
    parser.add_argument("--painted", action="store_true", help="cases on bodies of the training")
    options = parser.parse_args()
    models = {
        name: StagingModel.load(default_model_path(name), threads=1)
        for name in (options.model, options.single)
        if name
    }
    options.output.mkdir(parents=True, exist_ok=True)
    rows = rows_of(options.manifests, options.painted)
    table = options.output / f"{Path(options.model).stem}.npz"
    logits, means = measured(rows, models[options.model], table)
    stages = np.array([STAGES.index(row["stage"]) for row in rows])
    patients = np.array([row["body" if options.painted else "patient"] for row in rows])
    count = np.bincount(stages, minlength=len(STAGES))
    who = "bodies" if options.painted else "patients"
    print(f"{len(stages)} CTs of {len(set(patients))} {who}, F0 to F4: {count}; {options.model}")
    compare_ensemble(logits, stages, patients)
    if options.painted:
        own = np.unique(patients, return_inverse=True)[1] % logits.shape[1]
        unseen = np.eye(logits.shape[1], dtype=bool)[own]
        seen = logits[~unseen].reshape(len(rows), -1, len(STAGES))
        print("Of the same file, members that have seen the case's body, and the one that has not")
        compare(seen, logits[unseen], stages, patients)
        print(f"Ensembles of {logits.shape[1] - 1} that have not seen the case's body")
        compare_ensemble(refitted(means, rows, stages), stages, patients)
    for name, value in seconds(models).items():
        print(f"{name}: {value:.3f} CPU s for a patch")


if __name__ == "__main__":
    main()
