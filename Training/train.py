"""From a cohort to the model that the module loads: folds, figures, tables, export, in one command.

    python Training/train.py --manifest COHORT/manifest.csv -o RUN [--test OTHER/manifest.csv]
    python Training/train.py --phantoms 252 -o RUN

The second makes two phantom cohorts first (`phantom.py`), one to learn from and one to be tested
on. RUN receives folds.json (who is in which fold), fold_K/ (checkpoint.pt, log.csv, LFS.onnx),
predictions.csv, metrics.json, tables/ and figures/ of the cross-validation, the same of the test
cohort in test/, the ensemble of the folds LFS.onnx, the single network LFS_single.onnx and
MODEL_CARD.md. Called again after an interruption the command goes on where it stopped.

Whatever is measured is measured on the exported files through the library's own `stage`.
With several GPUs: torchrun --nproc-per-node 4 Training/train.py ...
"""

import argparse
import dataclasses
import datetime
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import PersistentDataset
from torch.utils.data import Subset

from cohort import phantom
from cohort import report as cohort_report
from cohort.folds import Fold, split
from cohort.manifest import Case, Criteria, ManifestError, apply, check_for_training, read_manifest
from common.resume import RunError, check_unseen, digest, keep
from evaluation import cohort_maps, model_card
from evaluation.evaluate import compare, report_cross_validation, report_test, write_metrics
from evaluation.staged import Staged, stage_cases
from lfs.data import PATCH_OVERLAP, WINDOW_HU, prepare
from lfs.export import describe, export
from lfs.fit import Schedule, fit, join_processes, process
from lfs.network import PATCH_SIZE, SMOOTHING_MM, SPACING_MM, LFSNetwork
from LiverFibrosisStagingLib import StagingModel, __version__
from LiverFibrosisStagingLib.errors import StagingError
from LiverFibrosisStagingLib.stages import RESEARCH_USE, STAGES

Figures = dict[str, Any]
PAPER_CRITERIA = Criteria()
EVERYONE = Criteria(min_age=None, phase=None, complete_liver=False, max_days=None)


@dataclasses.dataclass(frozen=True)
class Build:
    """How large the network is and what grid it sees; lengths in (slice, row, column)."""

    patch_size: tuple[int, int, int] = PATCH_SIZE
    spacing: tuple[float, float, float] = SPACING_MM
    channels: tuple[int, int, int, int] = (8, 16, 32, 64)
    dense: int = 64

    def network(self, seed: int) -> LFSNetwork:
        """An untrained network, the same for the same seed."""
        torch.manual_seed(seed)
        return LFSNetwork(self.patch_size, self.channels, dense=self.dense)


FULL, FULL_SCHEDULE = Build(), Schedule()
# Shows in minutes that everything works; far too coarse to stage anything.
SMALL = Build((16, 88, 112), (8.0, 4.0, 4.0), (4, 8, 16, 32), 32)
SMALL_SCHEDULE = Schedule(steps=24, batch=4, crop_steps=16, crop=40, check_every=8)


def train(
    manifest: Path,
    run: Path,
    *,
    test: Path | None = None,
    grades: str = "metavir",
    criteria: Criteria = EVERYONE,
    folds: int = 5,
    only: int | None = None,
    build: Build = FULL,
    schedule: Schedule = FULL_SCHEDULE,
    start_from: Path | None = None,
    shuffle_labels: bool = False,
    name: str = "LFS",
    data: str = "Not stated.",
    workers: int = 1,
) -> Figures | None:
    """Cross-validate, export and report; returns metrics.json, or None where nothing was measured.

    test: manifest of a cohort with other patients. criteria: who is included. only: train this fold
    alone, and measure nothing (folds may run on several machines). start_from: a checkpoint.pt
    whose weights are taken where they fit, and which has learned from no case that is held out or
    tested on. shuffle_labels: patients exchange their stages, which
    shows what AUCs chance gives. data: one sentence on the cohort, shown wherever a result is.
    workers: processes that prepare patches.

    Raises ManifestError, RunError where `run` holds another run, and StagingError where a case
    cannot be staged.
    """
    inclusion = apply(read_manifest(manifest, grades), criteria)
    check_for_training(inclusion.included, manifest, folds)
    cases = inclusion.included
    if shuffle_labels:
        cases = exchange_stages(cases, schedule.seed)
    tested = [] if test is None else _read_test(test, grades, criteria, cases)
    parts = split(cases, folds, schedule.seed)
    if only is not None and only not in range(folds):
        raise RunError(f"There is no fold {only}; there are 0 to {folds - 1}.")
    trained = range(folds) if only is None else [only]
    learned = {k: _learned_from(parts[k], cases, tested, start_from) for k in trained}
    first_process = process()[0] == 0
    if first_process:
        plan = _plan(cases, parts, build, schedule, start_from)
        made = [run / f"fold_{k}" / "checkpoint.pt" for k in range(folds)]
        keep(run / "folds.json", plan, made)
        cohort_report.report(inclusion, run)
    prepared = prepare(cases, run / "cache", build.patch_size, build.spacing)
    networks = {
        k: _fit_fold(
            k, parts[k], cases, prepared, build, schedule, start_from, run, workers, learned[k]
        )
        for k in trained
    }
    if not first_process:
        return None
    described = metadata(name, data, cases, build) | {"calibration": {"temperature": 1.0}}
    for k, network in networks.items():
        about = described | {"name": f"{name}, fold {k}"}
        export(network, run / f"fold_{k}" / "LFS.onnx", about, learned[k])
    if only is not None:
        return None

    held: dict[str, Staged] = {}
    fold_of: dict[str, int] = {}
    for k, part in enumerate(parts):
        file = run / f"fold_{k}" / "LFS.onnx"
        for case in stage_cases([cases[i] for i in part.held], file, run / "staged"):
            held[case.name], fold_of[case.name] = case, k
    out_of_fold = [held[case.name] for case in cases]
    found = report_cross_validation(out_of_fold, fold_of, run, data)

    about = f"{folds}-fold cross-validation, {_size(cases)}"
    described["training"] |= {"folds": folds, "auc": _aucs(found), "evaluated_on": about}
    described["calibration"] = {key: found[key] for key in ("temperature", "operating_points")}
    described["reference"] = cohort_maps.reference(out_of_fold, f"{about}: each fold's network")
    ensemble, single = run / "LFS.onnx", run / "LFS_single.onnx"
    export(list(networks.values()), ensemble, described, frozenset().union(*learned.values()))
    best = _lowest_validation_loss(run, folds)
    export(networks[best], single, described | {"name": f"{name}, fold {best}"}, learned[best])
    if tested:
        _test(tested, (ensemble, single), run, data, described)
    model_card.write(run)
    return found


def exchange_stages(cases: Sequence[Case], seed: int) -> list[Case]:
    """The cases with their patients' stages exchanged at random."""
    stage = {case.patient: case.stage for case in cases}
    exchanged = np.random.default_rng(seed).permutation(list(stage.values()))
    given = dict(zip(stage, exchanged.tolist()))
    return [dataclasses.replace(case, stage=given[case.patient]) for case in cases]


def metadata(name: str, data: str, cases: Sequence[Case], build: Build) -> dict[str, Any]:
    """What the contract says about a model, still without its evaluation and calibration."""
    return {
        "contract": 1,
        "name": name,
        "stages": list(STAGES),
        "window_hu": list(WINDOW_HU),
        "spacing_mm": list(build.spacing),
        "patch_size": list(build.patch_size),
        "patch_overlap": PATCH_OVERLAP,
        "smoothing_mm": SMOOTHING_MM,
        "reference": {},
        "training": {
            "data": data,
            "cases_per_stage": _counts(cases),
            "date": datetime.date.today().isoformat(),
            "code_version": __version__,
        },
        "intended_use": RESEARCH_USE,
    }


def _read_test(path: Path, grades: str, criteria: Criteria, learned: Sequence[Case]) -> list[Case]:
    cases = apply(read_manifest(path, grades), criteria).included
    both = sorted({case.patient for case in cases} & {case.patient for case in learned})
    if both:
        shown = ", ".join(both[:5]) + (" ..." if len(both) > 5 else "")
        raise ManifestError(
            path, [f"{len(both)} patients are also in the training cohort: {shown}."]
        )
    lines = {digest(case.ct): case.line for case in learned}
    same = [
        f"line {case.line}: the CT {case.ct.name} is that of line {lines[digest(case.ct)]} of the "
        "training cohort."
        for case in cases
        if digest(case.ct) in lines
    ]
    if same:
        raise ManifestError(path, same)
    missing = [f"line {case.line}: no liver mask." for case in cases if case.liver is None]
    if missing or not cases:
        raise ManifestError(path, missing or ["no case is left to test on."])
    return cases


def _learned_from(
    part: Fold, cases: Sequence[Case], tested: Sequence[Case], start_from: Path | None
) -> frozenset[str]:
    """Digests of the CTs that a fold's network will have learned from; RunError for one held."""
    before = frozenset()
    if start_from is not None:
        held = [*(cases[i] for i in part.held), *tested]
        before = check_unseen(start_from, {case.name: case.ct for case in held})
    return before.union(digest(cases[i].ct) for i in [*part.learned, *part.validated])


def _plan(
    cases: Sequence[Case],
    parts: Sequence[Fold],
    build: Build,
    schedule: Schedule,
    start_from: Path | None,
) -> dict[str, Any]:
    """What must not change while a run goes on; files as digests of CT, liver and spleen."""
    names = [case.name for case in cases]
    return {
        "stages": {case.name: STAGES[case.stage] for case in cases},
        "folds": [
            {part: [names[i] for i in indices] for part, indices in fold._asdict().items()}
            for fold in parts
        ],
        "files": {case.name: case.content() for case in cases},
        "build": dataclasses.asdict(build),
        "schedule": dataclasses.asdict(schedule),
        "start": start_from and digest(start_from),
        "software": __version__,
    }


def _fit_fold(
    k: int,
    part: Fold,
    cases: Sequence[Case],
    prepared: PersistentDataset,
    build: Build,
    schedule: Schedule,
    start_from: Path | None,
    run: Path,
    workers: int,
    learned_from: frozenset[str],
) -> LFSNetwork:
    network = build.network(schedule.seed)
    if start_from is not None:
        begun = torch.load(start_from, map_location="cpu", weights_only=True)["best"]
        own = network.state_dict()
        fits = {k: v for k, v in begun.items() if k in own and v.shape == own[k].shape}
        network.load_state_dict(own | fits)
    stages = np.array([case.stage for case in cases])
    learned, validated = ((Subset(prepared, i), stages[i]) for i in part[:2])
    folder = run / f"fold_{k}"
    return fit(network, learned, validated, schedule, folder, build.spacing, workers, learned_from)


def _lowest_validation_loss(run: Path, folds: int) -> int:
    """The single best fold, by the cases that decided when to stop, not by those held out."""
    files = [run / f"fold_{k}" / "checkpoint.pt" for k in range(folds)]
    lowest = [torch.load(f, map_location="cpu", weights_only=True)["lowest"] for f in files]
    return int(np.argmin(lowest))


def _test(
    cases: Sequence[Case],
    files: tuple[Path, Path],
    run: Path,
    data: str,
    described: dict[str, Any],
) -> None:
    """Measure ensemble and single network on the test cohort, and write that into the files."""
    about = f"test cohort, {_size(cases)}"
    staged, found = [], []
    for file, folder in zip(files, (run / "test", run / "test" / "single")):
        model = StagingModel.load(file)
        staged.append(stage_cases(cases, model, run / "staged"))
        found.append(report_test(staged[-1], model, folder, data))
    found[0]["compared_with_single"] = compare(*staged)
    write_metrics(found[0], run / "test")
    for file, measured, seen in zip(files, found, staged):
        evaluated = {"auc": _aucs(measured), "evaluated_on": about}
        reference = cohort_maps.reference(seen, about)
        describe(file, {"training": described["training"] | evaluated, "reference": reference})


def _aucs(found: Figures) -> dict[str, dict[str, float]]:
    """AUCs with their intervals, of the groups of which both sides have cases."""
    return {
        group: {key: round(value, 4) for key, value in measured["auc"].items()}
        for group, measured in found["groups"].items()
        if None not in measured["auc"].values()
    }


def _counts(cases: Sequence[Case]) -> list[int]:
    return np.bincount([case.stage for case in cases], minlength=len(STAGES)).tolist()


def _size(cases: Sequence[Case]) -> str:
    return f"{len(cases)} CTs of {len({case.patient for case in cases})} patients"


def _make_phantoms(count: int, run: Path) -> tuple[Path, Path, str]:
    """Manifests of a cohort to learn from and one to test on, and the sentence about the first."""
    made = [
        phantom.write_cohort(run / folder, count, seed, workers=os.cpu_count() or 1)
        for folder, seed in (("cohort", 1), ("test_cohort", 2))
    ]
    about = f"{count} simulated phantoms of the upper abdomen (Training/phantom.py), no patient."
    return made[0], made[1], about


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Train, cross-validate and export a fibrosis staging model. " + RESEARCH_USE
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--manifest", type=Path, help="the cohort (Training/docs/manifest.md)")
    source.add_argument("--phantoms", type=int, metavar="N", help="cohorts of N phantoms")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="RUN")
    parser.add_argument("--test", type=Path, help="manifest of a cohort to measure the result on")
    parser.add_argument("--grades", choices=("metavir", "ishak"), default="metavir")
    parser.add_argument(
        "--paper-criteria",
        action="store_true",
        help="include only: 16 or older, portal venous, complete liver, histology within 183 days",
    )
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--fold", type=int, metavar="K", help="train this fold alone")
    parser.add_argument("--small", action="store_true", help="try everything out in minutes")
    parser.add_argument("--start-from", type=Path, metavar="CHECKPOINT", help="another run's")
    parser.add_argument("--shuffle-labels", action="store_true", help="what does chance give?")
    for field in dataclasses.fields(Schedule):
        option = "--" + field.name.replace("_", "-")
        if isinstance(field.default, bool):
            action = argparse.BooleanOptionalAction
            parser.add_argument(option, action=action, default=None)
        else:
            parser.add_argument(option, type=type(field.default), default=None)
    parser.add_argument("--workers", type=int, default=1, help="processes that prepare patches")
    parser.add_argument("--name", default="LFS", help="the model's name in its metadata")
    parser.add_argument("--data", help="one sentence on the cohort, shown with every result")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = _parser().parse_args(arguments)
    own = {f.name: getattr(options, f.name) for f in dataclasses.fields(Schedule)}
    schedule = dataclasses.replace(
        SMALL_SCHEDULE if options.small else FULL_SCHEDULE,
        **{key: value for key, value in own.items() if value is not None},
    )
    manifest, test, data = options.manifest, options.test, "Not stated."
    try:
        if options.phantoms:
            manifest, made, data = _make_phantoms(options.phantoms, options.output)
            test = test or made
        join_processes()
        found = train(
            manifest,
            options.output,
            test=test,
            grades=options.grades,
            criteria=PAPER_CRITERIA if options.paper_criteria else EVERYONE,
            folds=options.folds,
            only=options.fold,
            build=SMALL if options.small else FULL,
            schedule=schedule,
            start_from=options.start_from,
            shuffle_labels=options.shuffle_labels,
            name=options.name,
            data=options.data or data,
            workers=options.workers,
        )
    except (ManifestError, StagingError, OSError) as refusal:
        print(refusal, file=sys.stderr)
        return 1
    if found is not None:
        print((options.output / "MODEL_CARD.md").read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
