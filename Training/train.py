"""Train, cross-validate, export and evaluate a fibrosis staging model.

    python Training/train.py --manifest COHORT/manifest.csv -o RUN [--test OTHER/manifest.csv]
    python Training/train.py --phantoms 252 -o RUN

The second command first simulates two cohorts of phantoms (`phantom.py`), one for cross-validation
and one for testing. RUN receives folds.json (the cases of each fold), fold_K/ (checkpoint.pt,
log.csv, LFS.onnx), predictions.csv, metrics.json, tables/ and figures/ of the cross-validation, the
same for the test cohort in test/, LFS.onnx (the ensemble of the folds), LFS_single.onnx (the fold
with the lowest validation loss) and MODEL_CARD.md. Repeat the command to resume an interrupted run.

All measures are computed on the exported files with the library's `stage`.
With several GPUs: torchrun --nproc-per-node 4 Training/train.py ...

    python Training/train.py --manifest COHORT/manifest.csv -o RUN --start-from LFS.onnx

fine-tunes a network: a checkpoint.pt, or an exported file. For the shipped LFS.onnx, only the
layers behind its maps are trained, in seconds, and RUN also receives the comparison with the
shipped network, networks trained anew and the measured signs (finetuning/).
"""

import argparse
import dataclasses
import datetime
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import PersistentDataset
from torch.utils.data import Subset

from cases import phantom_cohort
from cases import report as cohort_report
from cases.folds import Fold, fold_names, split
from cases.inputs import Checked, Patch, check_inputs, check_some, refusals, write_tables
from cases.manifest import (
    EVERYONE,
    Case,
    Criteria,
    Inclusion,
    ManifestError,
    add_grades,
    apply,
    read_manifest,
    size,
)
from cases.requirements import check_for_training, one_fold_per_site
from common.options import add_options, with_options
from common.processes import default_workers, join_processes, process
from common.resume import RunError, check_not_trained_on, check_plan, digest, digests
from evaluation import cohort_maps, model_card
from evaluation.cohort_acquisition import check_acquisition
from evaluation.evaluate import (
    aucs,
    compare,
    report_cross_validation,
    report_sites,
    report_test,
    write_metrics,
)
from evaluation.staged import stage_cases, stage_out_of_fold
from finetuning.fit import Tuning
from finetuning.run import Plan, fine_tune_cohort
from finetuning.starts import Start
from lfs.build import FULL, SMALL, Build
from lfs.data import PATCH_OVERLAP, prepare
from lfs.export import describe, export
from lfs.fit import fit
from lfs.network import LFSNetwork
from lfs.schedule import FULL_SCHEDULE, SMALL_SCHEDULE, Schedule, check_crop
from LiverFibrosisStagingLib import StagingModel, __version__
from LiverFibrosisStagingLib.errors import StagingError
from LiverFibrosisStagingLib.stages import RESEARCH_USE, STAGES, stage_array

Metrics = dict[str, Any]
PAPER_CRITERIA = Criteria()


def train(
    manifest: Path,
    run: Path,
    *,
    test: Path | None = None,
    grades: str = "metavir",
    criteria: Criteria = EVERYONE,
    folds: int = 5,
    only: int | None = None,
    fold_seed: int = 0,
    build: Build = FULL,
    schedule: Schedule = FULL_SCHEDULE,
    start_from: Path | None = None,
    shuffle_labels: bool = False,
    name: str = "LFS",
    data: str = "Not stated.",
    workers: int = 1,
    any_phase: bool = False,
    leave_one_site_out: bool = False,
    tuning: Tuning | None = None,
    further: Plan | None = None,
) -> Metrics | None:
    """Cross-validate, export and report; returns metrics.json, or None if only one fold is trained.

    test: manifest of a test cohort with other patients. criteria: inclusion criteria. only: train
    this fold only, without evaluation (folds can be trained on several machines). fold_seed: of the
    folds (and of shuffle_labels), so that the same folds can be trained with other seeds of the
    schedule. start_from: a file that `finetuning.starts.Start` reads; its weights are used where
    the shapes match. It must not have been trained on cases that are tested. shuffle_labels:
    permute the stages among the patients, as a control at chance level. data: one sentence on the
    cohort, shown with every result. workers: processes that prepare CTs and patches. any_phase:
    also use CTs that are not in the portal-venous phase. leave_one_site_out: every site is a fold.
    tuning, further: for a SignNetwork, how it is fine-tuned and what is computed besides.

    Raises ManifestError, RunError if `run` contains another run, and StagingError if a case cannot
    be staged.
    """
    check_crop(schedule, build)
    start = None if start_from is None else Start(start_from)
    inclusion = apply(read_manifest(manifest, grades), criteria)
    if leave_one_site_out:
        included = one_fold_per_site(inclusion.included, manifest)
        inclusion = dataclasses.replace(inclusion, included=included)
    check_for_training(inclusion.included, manifest, folds, inclusion.excluded)
    schedule.course(len(inclusion.included))  # refuses impossible numbers before any CT is read
    test_inclusion = Inclusion([], [])
    if test is not None:
        test_inclusion = _read_test(test, grades, criteria, inclusion.included)
    patch = Patch(build.patch_size[0], build.spacing[0])
    checked = _checked(inclusion, run, patch, any_phase)
    inclusion = checked.inclusion
    check_for_training(inclusion.included, manifest, folds, refusals(checked))
    test_checked = _checked(test_inclusion, run / "test", patch, any_phase)
    test_cases = test_checked.inclusion.included
    if test is not None:
        check_some(test_checked, test)
    cases = inclusion.included
    if shuffle_labels:
        cases = permute_stages(cases, fold_seed)
    parts = split(cases, folds, fold_seed)
    folds = len(parts)
    if only is not None and only not in range(folds):
        raise RunError(f"--fold {only}: a fold from 0 to {folds - 1} is needed.")
    trained = range(folds) if only is None else [only]
    training_cts = {k: _training_cts(parts[k], cases, test_cases, start_from) for k in trained}
    signs = start is not None and start.signs
    further = further or Plan()
    if signs:
        tuning = dataclasses.replace(tuning or Tuning(), seed=schedule.seed)
        if only is not None:
            raise RunError("--fold: all folds of this network are trained together, in seconds.")
        if further.seeds < 1:
            raise RunError(f"--seeds {further.seeds}: at least 1 is needed.")
    first_process = process()[0] == 0
    if first_process:
        settings = _settings(parts, build, schedule)
        if signs:
            settings = {"schedule": dataclasses.asdict(tuning)}
        plan = _plan(cases, parts, settings, start_from, leave_one_site_out)
        checkpoints = [run / f"fold_{k}" / "checkpoint.pt" for k in range(folds)]
        check_plan(run / "folds.json", plan, checkpoints, growing=("steps", "patience"))
        cohort_report.report(inclusion, run)
        write_tables(checked, run)
        if test is not None:
            write_tables(test_checked, run / "test")
        for sentence in check_acquisition(cases, run):
            print(sentence, file=sys.stderr)
    if signs:
        about = {"cts": training_cts, "name": name, "data": data}
        how = {"tuning": tuning, "plan": further}
        return fine_tune_cohort(start_from, cases, parts, test_cases, run, **how, **about)
    prepared = prepare(cases, run / "cache", build, workers)
    networks = {
        k: _fit_fold(
            k, parts[k], cases, prepared, build, schedule, start, run, workers, training_cts[k]
        )
        for k in trained
    }
    if not first_process:
        return None
    described = metadata(name, data, cases, build) | {"calibration": {"temperature": 1.0}}
    for k, network in networks.items():
        about = described | {"name": f"{name}, fold {k}"}
        export(network, run / f"fold_{k}" / "LFS.onnx", about, training_cts[k])
    if only is not None:
        return None

    out_of_fold, fold_of = stage_out_of_fold(cases, [part.test for part in parts], run)
    report_sites(cases, out_of_fold, run, data, fold_of)
    found = report_cross_validation(out_of_fold, fold_of, run, data)

    about = f"{folds}-fold cross-validation, {size(cases)}"
    described["training"] |= {"folds": folds, "auc": aucs(found), "evaluated_on": about}
    described["calibration"] = {key: found[key] for key in ("temperature", "operating_points")}
    described["reference"] = cohort_maps.reference(out_of_fold, f"{about}: each fold's network")
    ensemble, single = run / "LFS.onnx", run / "LFS_single.onnx"
    all_cts = frozenset().union(*training_cts.values())
    export(list(networks.values()), ensemble, described, all_cts)
    best = _best_validation(run, folds)
    export(networks[best], single, described | {"name": f"{name}, fold {best}"}, training_cts[best])
    if test_cases:
        _test(test_cases, (ensemble, single), run, data, described)
    model_card.write(run)
    return found


def permute_stages(cases: Sequence[Case], seed: int) -> list[Case]:
    """The cases with their stages permuted at random among the patients."""
    stages = {case.patient: case.stages for case in cases}
    order = np.random.default_rng(seed).permutation(len(stages))
    given = dict(zip(stages, [list(stages.values())[i] for i in order]))
    return [dataclasses.replace(case, stages=given[case.patient]) for case in cases]


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
            **cohort_report.stage_counts(cases),
            "date": datetime.date.today().isoformat(),
            "code_version": __version__,
        },
        "intended_use": RESEARCH_USE,
    }


def _checked(inclusion: Inclusion, folder: Path, patch: Patch, any_phase: bool) -> Checked:
    """`check_inputs` by the first process; the others then read what it has written."""
    first, several = process()[0] == 0, process()[1] > 1
    if several and not first:
        torch.distributed.barrier()
    checked = check_inputs(inclusion, folder, patch, any_phase)
    if several and first:
        torch.distributed.barrier()
    return checked


def _read_test(path: Path, grades: str, criteria: Criteria, others: Sequence[Case]) -> Inclusion:
    """The cases of a test cohort; ManifestError if any is also among the others."""
    inclusion = apply(read_manifest(path, grades), criteria)
    cases = inclusion.included
    both = sorted({case.patient for case in cases} & {case.patient for case in others})
    if both:
        shown = ", ".join(both[:5]) + (" ..." if len(both) > 5 else "")
        raise ManifestError(
            path, [f"{len(both)} patients are also in the training cohort: {shown}."]
        )
    lines = {digest(case.ct): case.line for case in others}
    same = [
        f"line {case.line}: the CT {case.ct.name} is also in line {lines[digest(case.ct)]} of the "
        "training cohort."
        for case in cases
        if digest(case.ct) in lines
    ]
    if same:
        raise ManifestError(path, same)
    return inclusion


def _training_cts(
    part: Fold, cases: Sequence[Case], test_cases: Sequence[Case], start_from: Path | None
) -> frozenset[str]:
    """Digests of all CTs used to train a fold's network; RunError if any of them is for testing."""
    before = frozenset()
    if start_from is not None:
        held_out = {cases[i].name: cases[i].ct for i in part.test}
        before = check_not_trained_on(start_from, held_out, "patients that a fold holds out")
        check_not_trained_on(start_from, {case.name: case.ct for case in test_cases})
    return before.union(*(digests(cases[i].ct) for i in [*part.train, *part.validation]))


def _plan(
    cases: Sequence[Case],
    parts: Sequence[Fold],
    settings: dict[str, Any],
    start_from: Path | None,
    leave_one_site_out: bool,
) -> dict[str, Any]:
    """The inputs of a run, which must be the same when it is resumed; files as digests."""
    names = [case.name for case in cases]
    how = "split by patient, with balanced stages"
    if leave_one_site_out:
        how = "one for each site"
    elif fold_names(cases):
        how = "those of the manifest"
    return {
        "stages": {case.name: str(case.stages) for case in cases},
        "folds": [
            {part: [names[i] for i in indices] for part, indices in fold._asdict().items()}
            for fold in parts
        ],
        "files": {case.name: case.content() for case in cases},
        "split": how,
        "labels": Counter(case.label for case in cases if case.label),
        "outlined": sum(case.outlined for case in cases),
        **settings,
        "start": start_from and digest(start_from),
        "software": __version__,
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
        report_sites(cases, staged[-1], folder, data, model.card)
        found.append(report_test(staged[-1], model, folder, data))
    found[0]["compared_with_single"] = compare(*staged)
    write_metrics(found[0], run / "test")
    for file, measured, cases_staged in zip(files, found, staged):
        evaluated = {"auc": aucs(measured), "evaluated_on": about}
        reference = cohort_maps.reference(cases_staged, about)
        describe(file, {"training": described["training"] | evaluated, "reference": reference})


def _make_phantoms(count: int, run: Path) -> tuple[Path, Path, str]:
    """Manifests of a training and a test cohort, and a sentence about the training cohort."""
    made = [
        phantom_cohort.write_cohort(run / folder, count, seed, workers=os.cpu_count() or 1)
        for folder, seed in (("cohort", 1), ("test_cohort", 2))
    ]
    about = f"{count} simulated phantoms of the upper abdomen (Training/phantom.py), no patient."
    return made[0], made[1], about


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=f"{__doc__.splitlines()[0]} {RESEARCH_USE}")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--manifest", type=Path, help="the cohort (Training/docs/manifest.md)")
    source.add_argument("--phantoms", type=int, metavar="N", help="simulate cohorts of N phantoms")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="RUN")
    parser.add_argument("--test", type=Path, help="manifest of a test cohort")
    add_grades(parser)
    parser.add_argument(
        "--paper-criteria",
        action="store_true",
        help="include only: 16 or older, portal venous, complete liver, histology within 183 days",
    )
    parser.add_argument(
        "--any-phase", action="store_true", help="also use CTs not in the portal-venous phase"
    )
    parser.add_argument("--folds", type=int, default=5, help="unless the manifest has folds")
    parser.add_argument(
        "--leave-one-site-out", action="store_true", help="each site of the manifest is a fold"
    )
    parser.add_argument("--fold", type=int, metavar="K", help="train this fold only")
    parser.add_argument(
        "--small", action="store_true", help="small network and schedule, to try out the command"
    )
    parser.add_argument(
        "--start-from",
        type=Path,
        metavar="FILE",
        help="network to fine-tune: checkpoint.pt, or an exported LFS.onnx",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        default=Plan.seeds,
        help="fine-tuning of the shipped network: trainings with other folds and initial weights",
    )
    parser.add_argument(
        "--curve-draws",
        type=int,
        default=Plan.draws,
        help="draws of patients for each point of its learning curve; 0 for no curve (default: 2)",
    )
    parser.add_argument(
        "--readers", action="store_true", help="also train its layers that read the signs"
    )
    parser.add_argument(
        "--shuffle-labels", action="store_true", help="permute the stages, as a control"
    )
    parser.add_argument(
        "--fold-seed", type=int, default=0, help="of the folds; --seed is that of the training"
    )
    add_options(parser.add_argument_group("schedule (see README.md)"), FULL_SCHEDULE)
    add_options(parser.add_argument_group("network and grid (see README.md)"), FULL)
    workers = default_workers()
    parser.add_argument(
        "--workers",
        type=int,
        default=workers,
        help=f"processes that prepare CTs and patches, for each GPU; default: {workers}",
    )
    parser.add_argument("--name", default="LFS", help="the model's name in its metadata")
    parser.add_argument("--data", help="one sentence on the cohort, shown with every result")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = _parser().parse_args(arguments)
    manifest, test, data = options.manifest, options.test, "Not stated."
    try:
        schedule = with_options(SMALL_SCHEDULE if options.small else FULL_SCHEDULE, options)
        build = with_options(SMALL if options.small else FULL, options)
        if options.workers < 0:
            raise StagingError(f"workers {options.workers}: 0 or more is needed.")
        if options.phantoms:
            manifest, other, data = _make_phantoms(options.phantoms, options.output)
            test = test or other
        join_processes()
        found = train(
            manifest,
            options.output,
            test=test,
            grades=options.grades,
            criteria=PAPER_CRITERIA if options.paper_criteria else EVERYONE,
            folds=options.folds,
            only=options.fold,
            fold_seed=options.fold_seed,
            build=build,
            schedule=schedule,
            start_from=options.start_from,
            shuffle_labels=options.shuffle_labels,
            name=options.name,
            data=options.data or data,
            workers=options.workers,
            any_phase=options.any_phase,
            leave_one_site_out=options.leave_one_site_out,
            tuning=Tuning(readers=options.readers),
            further=Plan(options.seeds, options.curve_draws),
        )
    except (ManifestError, StagingError, OSError) as refusal:
        print(refusal, file=sys.stderr)
        return 1
    if found is not None:
        print((options.output / "MODEL_CARD.md").read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
