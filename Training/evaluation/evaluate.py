"""Evaluate an exported model on a cohort that it was not trained on.

    python Training/evaluate.py --model LFS.onnx --manifest TEST/manifest.csv -o FOLDER

FOLDER receives predictions.csv, metrics.json, tables/ (Table 2 beside the paper's, confusion
matrix, weights by region, patterns) and figures/ (the paper's Fig. 3a, 3b and 5, reliability,
confusion matrix, weights by region; PNG and PDF). With --compare OTHER.onnx, the AUCs of the two
models are compared by DeLong's test.

The cases are staged with the library's `stage`, as by users. Repeat the command to resume an
interrupted run.
"""

import argparse
import json
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cases.inputs import Checked, Patch, check_inputs, check_some, write_tables
from cases.manifest import (
    EVERYONE,
    Inclusion,
    add_grades,
    apply,
    read_manifest,
)
from common.files import write_text
from common.resume import digest, refuse_known, training_cts, warn_of_unknown
from common.tables import MISSING, write_csv, write_table
from evaluation import by_site, cohort_maps
from evaluation.figures import save
from evaluation.metrics import (
    Calibrated,
    Predictions,
    calibrate,
    calibrate_folds,
    cross_validated,
    tested,
)
from evaluation.staged import Staged, stage_cases
from LiverFibrosisStagingLib import StagingModel
from LiverFibrosisStagingLib.errors import StagingError
from LiverFibrosisStagingLib.evaluation import figures
from LiverFibrosisStagingLib.evaluation.comparing import delong
from LiverFibrosisStagingLib.evaluation.measures import group_probabilities
from LiverFibrosisStagingLib.evaluation.tables import (
    comparison_table,
    confusion_table,
    region_table,
    table_2,
)
from LiverFibrosisStagingLib.model import Card
from LiverFibrosisStagingLib.stages import (
    GROUPS,
    RESEARCH_USE,
    STAGES,
    StageRange,
    decided,
    median_stage,
    stage_array,
    stage_bounds,
)

PATTERN_NAMES = {
    "surface_over_core": "Liver surface over its core",
    "organs_over_rest": "Liver core and spleen over the rest",
}


def report_cross_validation(
    staged: Sequence[Staged], folds: Mapping[str, int], run: Path, trained_on: str
) -> dict[str, Any]:
    """Evaluate out-of-fold predictions and write the results to `run`; returns metrics.json.

    staged: every case once, staged by the network of the fold that tests it. folds: case name ->
    fold. trained_on: one sentence, shown on every figure and table.
    """
    predictions = Predictions.of(staged, folds)
    found = cross_validated(predictions)
    return _report(staged, predictions, calibrate_folds(predictions)[0], found, run, trained_on)


def report_test(
    staged: Sequence[Staged], model: StagingModel, folder: Path, trained_on: str
) -> dict[str, Any]:
    """Evaluate a model on a test cohort and write the results to `folder`; returns metrics.json.

    Temperature and operating points are taken from the model's metadata.
    """
    predictions = Predictions.of(staged)
    temperature, points = model.card.temperature, operating_points(model.card)
    found = tested(predictions, temperature, points)
    calibrated = calibrate(predictions, temperature, points)
    return _report(staged, predictions, calibrated, found, folder, trained_on)


def checked_cases(
    inclusion: Inclusion,
    manifest: Path,
    folder: Path,
    model: StagingModel,
    any_phase: bool = False,
    workers: int = -1,
) -> Checked:
    """The included cases that `model` can stage, with their masks; tables of the others.

    See `cases.inputs`, also for any_phase and workers. Raises ManifestError if there is none.
    """
    card = model.card
    patch = Patch(card.patch_size[0], card.spacing_mm[0]) if card.fill is None else None
    checked = check_inputs(inclusion, folder, patch, any_phase, workers)
    check_some(checked, manifest)
    write_tables(checked, folder)
    return checked


def operating_points(card: Card) -> dict[str, float]:
    """Group -> lowest probability of a positive case, from the model's `calibration`.

    0.5 if the model has none.
    """
    return {**dict.fromkeys(GROUPS, 0.5), **card.operating_points}


def aucs(found: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """AUCs with their intervals, of the groups for which both classes have cases."""
    return {
        group: {key: round(value, 4) for key, value in measured["auc"].items()}
        for group, measured in found["groups"].items()
        if None not in measured["auc"].values()
    }


def compare(
    staged: Sequence[Staged], other: Sequence[Staged]
) -> dict[str, dict[str, float] | None]:
    """DeLong's comparison of two models on the same cases in the same order, by group.

    Of the cases whose stages decide the group; None with fewer than two of them in a class. Raises
    ValueError for different cases.
    """
    if [case.name for case in staged] != [case.name for case in other]:
        raise ValueError("Two models can only be compared on the same cases.")
    stage = stage_array([case.stages for case in staged])
    first, second = (
        group_probabilities(np.array([case.probabilities for case in cases]))
        for cases in (staged, other)
    )
    found = {}
    for name, lowest in GROUPS.items():
        known, truth = decided(stage, lowest)
        enough = min(truth.sum(), (~truth).sum()) >= 2
        scores = first[name][known], second[name][known]
        found[name] = delong(truth, *scores)._asdict() if enough else None
    return found


def _report(
    staged: Sequence[Staged],
    predictions: Predictions,
    calibrated: Calibrated,
    found: dict[str, Any],
    folder: Path,
    trained_on: str,
) -> dict[str, Any]:
    found = {
        "research_use": RESEARCH_USE,
        "trained_on": trained_on,
        **found,
        "location_maps": cohort_maps.analyse(staged),
    }
    tables = folder / "tables"
    tables.mkdir(parents=True, exist_ok=True)
    for path, rows in (
        (folder / "predictions.csv", _prediction_rows(predictions, calibrated)),
        (tables / "weights.csv", cohort_maps.rows(staged)),
    ):
        write_csv(path, [list(rows[0]), *(list(row.values()) for row in rows)])
    for name, lines in (
        ("table_2", table_2({"this model": found})),
        ("confusion", confusion_table(found)),
        ("regions", region_table(found["location_maps"])),
        ("patterns", _pattern_table(found["location_maps"])),
    ):
        write_table(tables / name, lines, trained_on)
    by_site.report(staged, calibrated, folder, trained_on)
    drawn_from = predictions.stage, calibrated.probabilities, found
    weights = cohort_maps.grouped(staged)
    temperature = f"temperature {found['temperature']:.2f}"
    if "folds" in found:
        temperature = "temperature fitted on the other folds"
    drawn = {
        "fig_3a_roc_groups": figures.roc_groups(*drawn_from),
        "fig_3b_roc_averages": figures.roc_averages(*drawn_from),
        "fig_5_liver_weights": figures.liver_weights(weights["liver"]),
        "region_weights": figures.region_weights(weights),
        "reliability": figures.reliability(found, temperature),
        "confusion": figures.confusion(found),
    }
    for name, figure in drawn.items():
        save(figure, folder / "figures", name, trained_on)
    write_metrics(found, folder)
    return found


def write_metrics(found: dict[str, Any], folder: Path) -> None:
    """Write `folder`/metrics.json, last of all: if it exists, the results are complete."""
    write_text(folder / "metrics.json", json.dumps(found, indent=2, allow_nan=False) + "\n")


def _pattern_table(maps: dict[str, Any]) -> list[list[str]]:
    lines = [["Pattern shown (%) [95 % interval]", "Cases by", *STAGES, "Yin et al. 2021"]]
    for name, found in maps["patterns"].items():
        stage, frequency = cohort_maps.PAPER_PATTERNS[name]
        paper = f"{100 * frequency:.1f} in {stage} (three readers)"
        for key, title in (("by_histology", "histology"), ("by_predicted_stage", "prediction")):
            cells = [
                MISSING
                if one["frequency"] is None
                else f"{100 * one['frequency']:.1f} [{100 * one['low']:.1f}, "
                f"{100 * one['high']:.1f}], n={one['cases']}"
                for one in found[key].values()
            ]
            lines.append([PATTERN_NAMES[name], title, *cells, paper])
    return lines


def _prediction_rows(predictions: Predictions, calibrated: Calibrated) -> list[dict[str, Any]]:
    scores = group_probabilities(calibrated.probabilities)
    predicted = median_stage(calibrated.probabilities)
    stages = [str(StageRange(*one)) for one in np.transpose(stage_bounds(predictions.stage))]
    return [
        {
            "name": predictions.name[i],
            "patient": predictions.patient[i],
            "fold": predictions.fold[i] if predictions.fold[i] >= 0 else "test",
            "stage": stages[i],
            "predicted": STAGES[predicted[i]],
            **{f"logit_{s}": f"{x:.6g}" for s, x in zip(STAGES, predictions.logits[i])},
            **{f"p_{s}": f"{x:.6f}" for s, x in zip(STAGES, calibrated.probabilities[i])},
            **{f"p_{name}": f"{scores[name][i]:.6f}" for name in GROUPS},
            **{f"positive_{name}": int(calibrated.positive[name][i]) for name in GROUPS},
        }
        for i in range(len(stages))
    ]


def _refuse_known(
    training: Mapping[Path, Collection[str]], cases: Mapping[str, Collection[str]]
) -> None:
    """RunError if a model was trained on one of the cases.

    training: model file -> `training_cts`. cases: name -> digests of its CT.
    """
    for file, known in training.items():
        refuse_known(file, known, cases)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="exported model file")
    parser.add_argument("--manifest", type=Path, required=True, help="the cohort, CSV or TSV")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument(
        "--compare", type=Path, metavar="MODEL", help="compare AUCs with this model"
    )
    add_grades(parser)
    parser.add_argument(
        "--any-phase", action="store_true", help="also evaluate CTs not in the portal-venous phase"
    )
    parser.add_argument("--workers", type=int, default=-1, help="processes (default: one per core)")
    options = parser.parse_args(arguments)
    try:
        model = StagingModel.load(options.model)
        other = None if options.compare is None else StagingModel.load(options.compare)
        inclusion = apply(read_manifest(options.manifest, options.grades), EVERYONE)
        files = [file for file in (options.model, options.compare) if file is not None]
        training = {file: training_cts(file) for file in files}
        for file, known in training.items():
            warn_of_unknown(file, known)
        # By their files now, by their voxels when these have been read.
        _refuse_known(training, {case.name: {digest(case.ct)} for case in inclusion.included})
        checked = checked_cases(
            inclusion, options.manifest, options.output, model, options.any_phase, options.workers
        )
        cases = checked.inclusion.included
        _refuse_known(training, {case.name: checked.digests(case) for case in cases})
        folder = options.output / "staged"
        staged = stage_cases(cases, model, folder, options.workers)
        found = report_test(staged, model, options.output, model.card.trained_on)
        if other is not None:
            compared = compare(staged, stage_cases(cases, other, folder, options.workers))
            found["compared_with"] = {"model": other.sha256, **compared}
            lines = comparison_table(compared, "this model", "the other")
            write_table(options.output / "tables" / "comparison", lines, model.card.trained_on)
            write_metrics(found, options.output)
    except (StagingError, OSError) as refusal:
        print(refusal, file=sys.stderr)
        return 1
    print((options.output / "tables" / "table_2.md").read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
