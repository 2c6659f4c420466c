"""Cross-validation of LFS networks: training of the folds, export, evaluation, model card."""

import dataclasses
import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from monai.data import PersistentDataset
from torch.utils.data import Subset

from cases.folds import Fold
from cases.manifest import Case, size
from cases.report import stage_counts
from common.processes import process
from evaluation import cohort_maps, model_card
from evaluation.evaluate import (
    aucs,
    compare,
    report_cross_validation,
    report_test,
    write_metrics,
)
from evaluation.staged import stage_cases, stage_out_of_fold
from evaluation.trainings import areas_by_group
from finetuning.networks import compare_networks
from finetuning.starts import Start
from lfs.build import Build
from lfs.data import PATCH_OVERLAP, prepare
from lfs.export import describe, export
from lfs.fit import fit
from lfs.network import LFSNetwork
from lfs.schedule import Schedule
from LiverFibrosisStagingLib import StagingModel, __version__
from LiverFibrosisStagingLib.stages import RESEARCH_USE, STAGES, stage_array
from runs.reading import Inputs, begin


def cross_validate(
    inputs: Inputs,
    run: Path,
    *,
    build: Build,
    schedule: Schedule,
    start: Start | None,
    name: str,
    data: str,
    workers: int,
    seeds: int = 1,
    anew: bool = False,
) -> dict[str, Any] | None:
    """Train the folds, export and report; returns metrics.json, or None if one fold is trained.

    Under torchrun, the first process alone exports and reports; the others return None. Arguments
    as for `train.train`. What is exported and reported is the first training; RUN/seed_N/fold_K
    has the networks of the others, for the variance between trainings. If the start is an exported
    file, it is compared with the fine-tuned networks and the signs, and with `anew` also with
    networks trained without it, in RUN/anew/fold_K.
    """
    cases, parts, cts = inputs.cases, inputs.parts, inputs.training_cts
    first_process = process()[0] == 0
    if first_process:
        begin(inputs, run, _settings(parts, build, schedule))
    compared = start is not None and start.staged and inputs.source.only is None
    if first_process and compared:  # before hours of training, as a case may be refused
        before = stage_cases(cases, start.path, run / "staged")
    prepared = prepare(cases, run / "cache", build, workers)
    described = metadata(name, data, cases, build) | {"calibration": {"temperature": 1.0}}

    def train_folds(folder: Path, number: int, start: Start | None) -> dict[int, LFSNetwork]:
        seeded = dataclasses.replace(schedule, seed=schedule.seed + number)
        how = build, seeded, start, folder, workers
        networks = {k: _fit_fold(k, parts[k], cases, prepared, *how, cts[k]) for k in cts}
        for k, network in networks.items() if first_process else ():
            about = described | {"name": f"{name}, fold {k}"}
            export(network, folder / f"fold_{k}" / "LFS.onnx", about, cts[k])
        return networks

    networks = train_folds(run, 0, start)
    others = [run / f"seed_{number}" for number in range(1, seeds)]
    for number, folder in enumerate(others, 1):
        train_folds(folder, number, start)
    if anew:
        train_folds(run / "anew", 0, None)
    if not first_process or inputs.source.only is not None:
        return None

    tests = [part.test for part in parts]
    out_of_fold, fold_of = stage_out_of_fold(cases, tests, run)
    found = report_cross_validation(out_of_fold, fold_of, run, data)
    again = [stage_out_of_fold(cases, tests, folder)[0] for folder in others]
    trainings, comparison = [out_of_fold, *again], ""
    if seeds > 1:
        found["trainings"] = areas_by_group(trainings, fold_of)
    if compared:
        unrelated = stage_out_of_fold(cases, tests, run / "anew")[0] if anew else None
        found["comparison"], comparison = compare_networks(
            before, trainings, unrelated, fold_of, run, data
        )
    write_metrics(found, run)

    about = f"{len(parts)}-fold cross-validation, {size(cases)}"
    described["training"] |= {"folds": len(parts), "auc": aucs(found), "evaluated_on": about}
    described["calibration"] = {key: found[key] for key in ("temperature", "operating_points")}
    described["reference"] = cohort_maps.reference(out_of_fold, f"{about}: each fold's network")
    ensemble, single = run / "LFS.onnx", run / "LFS_single.onnx"
    export(list(networks.values()), ensemble, described, inputs.all_cts)
    best = _best_validation(run, len(parts))
    export(networks[best], single, described | {"name": f"{name}, fold {best}"}, cts[best])
    if inputs.test_cases:
        _test(inputs.test_cases, (ensemble, single), run, data, described)
    model_card.write(run, comparison=comparison)
    return found


def metadata(name: str, data: str, cases: Sequence[Case], build: Build) -> dict[str, Any]:
    """The metadata of an exported model, without evaluation and calibration."""
    return {
        "contract": 1,
        "name": name,
        "stages": list(STAGES),
        "window_hu": list(build.window),
        "spacing_mm": list(build.spacing),
        "patch_size": list(build.patch_size),
        "patch_overlap": PATCH_OVERLAP,
        "smoothing_mm": build.smoothing,
        "reference": {},
        "training": {
            "data": data,
            **stage_counts(cases),
            "date": datetime.date.today().isoformat(),
            "code_version": __version__,
        },
        "intended_use": RESEARCH_USE,
    }


def _settings(parts: Sequence[Fold], build: Build, schedule: Schedule) -> dict[str, Any]:
    """Build and schedule in the plan: of the latter, the steps that result for each fold."""
    courses = [schedule.course(len(part.train)) for part in parts]
    lengths = ("epochs", "crop_epochs", "epoch_patches", "steps", "crop_steps", "patience")
    return {
        "build": dataclasses.asdict(build),
        "schedule": {k: v for k, v in dataclasses.asdict(schedule).items() if k not in lengths},
        "crop_steps": [course.crops for course in courses],
        "steps": [course.total for course in courses],
        "patience": schedule.patience,
    }


def _fit_fold(
    k: int,
    part: Fold,
    cases: Sequence[Case],
    prepared: PersistentDataset,
    build: Build,
    schedule: Schedule,
    start: Start | None,
    run: Path,
    workers: int,
    training_cts: frozenset[str],
) -> LFSNetwork:
    network = build.network(schedule.seed)
    if start is not None:
        network = start.network(k, network)
    stages = stage_array([case.stages for case in cases])
    training, validation = ((Subset(prepared, i), stages[i]) for i in (part.train, part.validation))
    folder = run / f"fold_{k}"
    return fit(network, training, validation, schedule, folder, build, workers, training_cts)


def _best_validation(run: Path, folds: int) -> int:
    """The fold with the best validation; the test cases are not used for this choice."""
    files = [run / f"fold_{k}" / "checkpoint.pt" for k in range(folds)]
    lowest = [torch.load(f, map_location="cpu", weights_only=True)["lowest"] for f in files]
    return min(range(folds), key=lowest.__getitem__)


def _test(
    cases: Sequence[Case],
    files: tuple[Path, Path],
    run: Path,
    data: str,
    described: dict[str, Any],
) -> None:
    """Evaluate ensemble and single network on the test cohort; add the results to both files."""
    about = f"test cohort, {size(cases)}"
    staged, found = [], []
    for file, folder in zip(files, (run / "test", run / "test" / "single")):
        model = StagingModel.load(file)
        staged.append(stage_cases(cases, model, run / "staged"))
        found.append(report_test(staged[-1], model, folder, data))
    found[0]["compared_with_single"] = compare(*staged)
    write_metrics(found[0], run / "test")
    for file, measured, cases_staged in zip(files, found, staged):
        evaluated = {"auc": aucs(measured), "evaluated_on": about}
        reference = cohort_maps.reference(cases_staged, about)
        describe(file, {"training": described["training"] | evaluated, "reference": reference})
