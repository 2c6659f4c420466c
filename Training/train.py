"""Train, cross-validate, export and evaluate a fibrosis staging model.

    python Training/train.py --manifest COHORT/manifest.csv -o RUN [--test OTHER/manifest.csv]
    python Training/train.py --phantoms 252 -o RUN

The second command first simulates two cohorts of phantoms (`phantom.py`), one for cross-validation
and one for testing. RUN receives folds.json (the cases of each fold), fold_K/ (checkpoint.pt,
log.csv, LFS.onnx), predictions.csv, metrics.json, tables/ and figures/ of the cross-validation, the
same for the test cohort in test/, LFS.onnx (the ensemble of the folds), LFS_single.onnx (the fold
with the best validation) and MODEL_CARD.md. Repeat the command to resume an interrupted run.

All measures are computed on the exported files with the library's `stage`.
With several GPUs: torchrun --nproc-per-node 4 Training/train.py ...

    python Training/train.py --manifest COHORT/manifest.csv -o RUN --start-from LFS.onnx

fine-tunes a network: a checkpoint.pt, or an exported file. Of an exported file, RUN also receives
the comparison with the start network and the measured signs. Of a `SignNetwork`, such as the
shipped LFS.onnx, only the layers behind its maps are trained, in seconds; the comparison then
includes networks trained anew, and neither checkpoints nor LFS_single.onnx are written.
"""

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cases import phantom_cohort
from cases.inputs import Patch
from cases.manifest import EVERYONE, Criteria, add_grades
from common.options import add_options, with_options
from common.processes import default_workers, join_processes
from common.resume import RunError
from finetuning.fit import Tuning
from finetuning.run import Plan, fine_tune_cohort
from finetuning.starts import Start
from lfs.build import FULL, SMALL, Build
from lfs.schedule import FULL_SCHEDULE, SMALL_SCHEDULE, Schedule, check_crop
from LiverFibrosisStagingLib.errors import StagingError
from LiverFibrosisStagingLib.stages import RESEARCH_USE
from runs.networks import cross_validate
from runs.reading import Source, begin, read_inputs

Metrics = dict[str, Any]
PAPER_CRITERIA = Criteria()


def train(
    source: Source,
    run: Path,
    *,
    build: Build = FULL,
    schedule: Schedule = FULL_SCHEDULE,
    name: str = "LFS",
    data: str = "Not stated.",
    workers: int = 1,
    seeds: int | None = None,
    anew: bool = False,
    tuning: Tuning | None = None,
    draws: int = Plan.draws,
) -> Metrics | None:
    """Cross-validate, export and report; returns metrics.json, or None if only one fold is trained.

    data: one sentence on the cohort, shown with every result. workers: processes that prepare CTs
    and patches. seeds: trainings with the seed of the schedule and those that follow; None for 1,
    or for `Plan.seeds` if the start is a SignNetwork. tuning, draws: for a SignNetwork, how it is
    fine-tuned, and see `Plan`; build is not used then, and of the schedule the seed only. Of any
    other start, the weights are used where the shapes match; anew: then also train without it, for
    the comparison, which needs an exported file and with a SignNetwork is always made.

    Raises ManifestError, RunError if `run` contains another run, and StagingError if a case cannot
    be staged.
    """
    check_crop(schedule, build)
    start = None if source.start_from is None else Start(source.start_from)
    signs = start is not None and start.signs
    tuning = dataclasses.replace(tuning or Tuning(), seed=schedule.seed)
    seeds = seeds if seeds is not None else Plan.seeds if signs else 1
    if signs and source.only is not None:
        raise RunError(
            f"--fold {source.only}: all folds of a SignNetwork are trained together, in seconds; "
            "the command without --fold is needed."
        )
    if anew and (start is None or not start.staged):
        raise RunError(
            "--anew: the comparison is with an exported file; one is needed for --start-from."
        )
    if seeds < 1:
        raise RunError(f"--seeds {seeds}: at least 1 is needed.")
    # The field of a SignNetwork is filled, without copies of slices.
    patch = None if signs else Patch(build.patch_size[0], build.spacing[0])
    inputs = read_inputs(source, run, patch, schedule)
    about = {"name": name, "data": data}
    if not signs:
        how = {"build": build, "schedule": schedule, "start": start, "workers": workers}
        return cross_validate(inputs, run, seeds=seeds, anew=anew, **how, **about)
    begin(inputs, run, {"schedule": dataclasses.asdict(tuning)})
    return fine_tune_cohort(
        source.start_from,
        inputs.cases,
        inputs.parts,
        inputs.test_cases,
        run,
        tuning=tuning,
        plan=Plan(seeds, draws),
        cts=inputs.training_cts,
        **about,
    )


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
        help="network to fine-tune: checkpoint.pt, or an exported LFS.onnx (for the shipped one, "
        "the options of grid and schedule other than --seed have no effect)",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        metavar="N",
        help="trainings with other initial weights and draws, for the variance between them "
        f"(default: 1; fine-tuning of the shipped network: {Plan.seeds}, also with other folds)",
    )
    parser.add_argument(
        "--anew",
        action="store_true",
        help="train also without the start network, for the comparison with it (takes as long; "
        "always done for the shipped network)",
    )
    parser.add_argument(
        "--curve-draws",
        type=int,
        default=Plan.draws,
        help="fine-tuning of the shipped network: draws of patients for each point of the learning "
        f"curve; 0 for no curve (default: {Plan.draws})",
    )
    parser.add_argument(
        "--readers",
        action="store_true",
        help="fine-tuning of the shipped network: also train the layers that read the signs",
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
        source = Source(
            manifest,
            test=test,
            grades=options.grades,
            criteria=PAPER_CRITERIA if options.paper_criteria else EVERYONE,
            folds=options.folds,
            only=options.fold,
            fold_seed=options.fold_seed,
            shuffle_labels=options.shuffle_labels,
            any_phase=options.any_phase,
            leave_one_site_out=options.leave_one_site_out,
            start_from=options.start_from,
        )
        found = train(
            source,
            options.output,
            build=build,
            schedule=schedule,
            name=options.name,
            data=options.data or data,
            workers=options.workers,
            seeds=options.seeds,
            anew=options.anew,
            tuning=Tuning(readers=options.readers),
            draws=options.curve_draws,
        )
    except (StagingError, OSError) as refusal:
        print(refusal, file=sys.stderr)
        return 1
    if found is not None:
        print((options.output / "MODEL_CARD.md").read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
