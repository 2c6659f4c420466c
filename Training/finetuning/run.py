"""Fine-tuning of a `SignNetwork` on a cohort: folds, comparison, export, evaluation."""

import dataclasses
import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cases.folds import Fold as CaseFold
from cases.folds import split
from cases.manifest import Case, size
from cases.report import stage_counts
from evaluation import cohort_maps, model_card
from evaluation.evaluate import aucs, compare, report_cross_validation, report_test, write_metrics
from evaluation.staged import stage_cases, stage_out_of_fold
from finetuning import report
from finetuning.cohort import read_cohort
from finetuning.compare import compare as compare_methods
from finetuning.fit import UNCHANGED, Fitted, Tuning, fine_tune
from finetuning.methods import Fold, cross_validate
from finetuning.power import learning_curve
from lfs.export import METADATA_KEY, describe
from LiverFibrosisStagingLib import StagingModel, __version__
from LiverFibrosisStagingLib.fingerprint import sha256_of
from LiverFibrosisStagingLib.gradcam_onnx.onnx_file import read_onnx
from painted.export import export
from painted.imported import load


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is computed besides the folds. seeds: trainings with other folds and initial weights.

    draws: of patients, for each point of the learning curve; 0 for none.
    """

    seeds: int = 3
    draws: int = 2


def fine_tune_cohort(
    start: Path,
    cases: Sequence[Case],
    parts: Sequence[CaseFold],
    test_cases: Sequence[Case],
    run: Path,
    *,
    tuning: Tuning,
    plan: Plan,
    cts: dict[int, frozenset[str]],
    name: str,
    data: str,
) -> dict[str, Any]:
    """Fine-tune, compare, export and report; returns metrics.json.

    cts: by fold, what its network was trained on (`resume`). RUN receives what train.py writes, but
    no checkpoints, and the comparison. LFS.onnx is trained on all cases, with a strength chosen on
    them; its temperature and operating points are from the predictions of the folds.
    """
    starts, temperature = load(start), StagingModel.load(start).card.temperature
    cohort = read_cohort(cases, start, run / "staged")
    found, fitted = [], []
    for number in range(plan.seeds):
        seeded = dataclasses.replace(tuning, seed=tuning.seed + number)
        folds = parts if number == 0 else split(cases, len(parts), seeded.seed)
        predictions, networks = cross_validate(
            cohort, starts, as_arrays(folds), seeded, temperature=temperature
        )
        found.append(predictions)
        fitted.append(networks)
    curve = []
    if plan.draws:
        curve = learning_curve(cohort, starts, as_arrays(parts), tuning, plan.draws, found[0])
    compared = compare_methods(cohort, found)
    compared["strengths"] = [[_strength(each.strength) for each in networks] for networks in fitted]
    described = metadata(start, name, data, cases)
    trained_on = described["training"]["data"]
    section = report.write(run, compared, curve, cohort, trained_on)

    for k, each in enumerate(fitted[0]):
        file = run / f"fold_{k}" / "LFS.onnx"
        file.parent.mkdir(parents=True, exist_ok=True)
        export(each.networks, file, described | {"name": f"{name}, fold {k}"}, cts[k])
    out_of_fold, fold_of = stage_out_of_fold(cases, [part.test for part in parts], run)
    measured = report_cross_validation(out_of_fold, fold_of, run, trained_on)
    measured["comparison"] = compared
    write_metrics(measured, run)

    about = f"{len(parts)}-fold cross-validation, {size(cases)}"
    described["training"] |= {"folds": len(parts), "auc": aucs(measured), "evaluated_on": about}
    described["calibration"] = {key: measured[key] for key in ("temperature", "operating_points")}
    described["reference"] = cohort_maps.reference(out_of_fold, f"{about}: each fold's networks")
    whole = fine_tune(starts, cohort, np.arange(len(cohort)), tuning)
    export(whole.networks, run / "LFS.onnx", described, frozenset().union(*cts.values()))
    if test_cases:
        _test(test_cases, start, run, trained_on, described)
    sections = _model_section(start, whole, tuning), _training_section(described["training"], run)
    model_card.write(run, sections, section)
    return measured


def as_arrays(parts: Sequence[CaseFold]) -> list[Fold]:
    """The folds; there is no early stopping, so that the validation part is trained on as well."""
    return [Fold(np.array([*each.train, *each.validation]), np.array(each.test)) for each in parts]


def metadata(start: Path, name: str, data: str, cases: Sequence[Case]) -> dict[str, Any]:
    """The metadata of the start model with another name and training, without evaluation."""
    described = json.loads(read_onnx(start).metadata[METADATA_KEY])
    before = described.get("training", {}).get("data", "Not stated.")
    described.pop("checks", None)  # of the start model
    return described | {
        "name": name,
        "calibration": {"temperature": 1.0},
        "reference": {},
        "training": {
            "data": f"Fine-tuned on: {data.rstrip('.')}. Before: {before}",
            **stage_counts(cases),
            "date": datetime.date.today().isoformat(),
            "code_version": __version__,
        },
    }


def _test(
    cases: Sequence[Case],
    start: Path,
    run: Path,
    trained_on: str,
    described: dict[str, Any],
) -> None:
    """Evaluate the fine-tuned and the start network on the test cohort."""
    file = run / "LFS.onnx"
    model = StagingModel.load(file)
    staged, before = (stage_cases(cases, m, run / "staged") for m in (model, start))
    found = report_test(staged, model, run / "test", trained_on)
    found["compared_with_start"] = compare(staged, before)
    write_metrics(found, run / "test")
    about = f"test cohort, {size(cases)}"
    evaluated = {"auc": aucs(found), "evaluated_on": about}
    reference = cohort_maps.reference(staged, about)
    describe(file, {"training": described["training"] | evaluated, "reference": reference})


def _model_section(start: Path, whole: Fitted, tuning: Tuning) -> str:
    layers = (
        "from the maps' means to the stage" if tuning.readers else "from the signs to the stage"
    )
    return (
        "## Model\n\n"
        f"- `LFS.onnx`: an ensemble of {len(whole.networks)} networks, fine-tuned from "
        f"{StagingModel.load(start).card.name} (SHA-256 {sha256_of(start)[:12]}). The maps of the "
        f"signs are those of the start network; the layers {layers} were trained, with their "
        "weights pulled towards those of the start network (L2-SP, Li et al. 2018).\n"
        f"- Strength of the pull, chosen inside the training part: {_strength(whole.strength)}.\n"
        "- `fold_K/LFS.onnx`: the networks that the cross-validation measured, each trained "
        "without the fold K."
    )


def _training_section(training: Mapping[str, Any], run: Path) -> str:
    plan = model_card.read_plan(run)
    return (
        "## Training\n\n"
        f"{model_card.cohort_lines(training, plan)}"
        f"- {training['folds']} folds, {plan['split']}. A range counts as the probability of its "
        "stages.\n"
        f"- Trained on {training['date']} with version {training['code_version']}."
    )


def _strength(strength: float) -> str:
    return "start weights kept" if strength == UNCHANGED else f"{strength:g}"
