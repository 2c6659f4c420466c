"""Train a staging network on fibrosis painted into real bodies, one network per fold of bodies.

    python Training/insilico_bodies.py RECIPE.json -o BODIES
    python Training/train_insilico.py --bodies BODIES -o RUN [--steps 1500] [--workers 8]

Every body appears in all stages. Each fold leaves bodies out and is measured on cases painted into
them. RUN receives plan.json, checkpoint.pt, log.csv, LFS.onnx (the ensemble of the folds) and
fold_K.onnx. The same command resumes an interrupted run.
"""

import argparse
import dataclasses
import datetime
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from common.files import write_text
from common.options import add_options, with_options
from common.resume import check_plan, digest
from LiverFibrosisStagingLib import __version__
from LiverFibrosisStagingLib.errors import StagingError
from LiverFibrosisStagingLib.stages import RESEARCH_USE, STAGES
from painted.cases import Source, body_files
from painted.check import of_pool, report
from painted.data import Pool
from painted.export import export
from painted.fit import Schedule, Training, cases_taken
from painted.network import INPUTS, LIVER_HU, SPACING_MM, Input, OrganNetwork

SCHEDULE = Schedule()
# The drawn signs that are regressed.
SIGNS = (
    *("severity", "measured_spleen_ml", "measured_liver_ml", "measured_lsvr"),
    *("nodularity", "texture_hu", "portal_mm", "ascites_mm"),
)


def train(
    bodies: Path,
    run: Path,
    *,
    kind: str = "organs",
    folds: int = 5,
    schedule: Schedule = SCHEDULE,
    first: int = 400,
    pool: int = 1500,
    workers: int = 0,
    per_body: int = 0,
    start_from: Path | None = None,
    compare: float = 0.0,
    given: Input | None = None,
    name: str = "LFS",
) -> Training:
    """Train, export and measure; returns the finished training.

    bodies: folder of body files. kind: the input, a key of `INPUTS`; given: another input. folds:
    groups of bodies that are left out in turn. first: cases before the first step; pool: cases that
    are kept. workers: processes that paint on the CPU as well. per_body: cases per body on which
    the networks are measured. start_from: checkpoint.pt of a run with the same folds. compare:
    seconds for which two folds of each of the `INPUTS` are trained on the same cases; 0 for none.

    Raises StagingError if `run` contains another run or there are fewer than two bodies.
    """
    files = body_files(bodies)
    if len(files) < 2:
        raise StagingError(f"{bodies}: {len(files)} body files; at least 2 are needed.")
    given = given or INPUTS[kind]
    folds = min(folds, len(files))
    held = [[*range(fold, len(files), folds)] for fold in range(folds)]
    plan = {
        "bodies": {file.stem: digest(file) for file in files},
        "held": [[files[body].stem for body in part] for part in held],
        "input": dataclasses.asdict(given),
        "signs": list(SIGNS),
        "schedule": dataclasses.asdict(dataclasses.replace(schedule, steps=0, seconds=0)),
        "start": start_from and digest(start_from),
        "software": __version__,
    }
    check_plan(run / "plan.json", plan, [run / "checkpoint.pt"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if start_from is not None:
        _check_start(start_from, plan["held"])
    source = Source(bodies, device, workers, cases_taken(run))
    cases = Pool(pool, given, SIGNS, device)
    training = Training(
        run,
        cases,
        held,
        source,
        lambda: OrganNetwork(given, len(SIGNS)),
        schedule,
        first,
        start_from,
    )
    training.fit()
    described = metadata(name, len(files), given)
    digests = {file.stem: digest(file) for file in files}
    for fold, network in enumerate(training.networks):
        learned = {d for body, d in digests.items() if body not in plan["held"][fold]}
        about = described | {"name": f"{name}, fold {fold}"}
        export(network, run / f"fold_{fold}.onnx", about, learned)
    if per_body:
        common = training.networks, held, source.painter, SIGNS, training.spread
        found = report(*common, run / "check", per_body, per_body // 6)
        described["calibration"] = {"temperature": found["temperature"]}
    export(training.networks, run / "LFS.onnx", described, set(digests.values()))
    if compare:
        _compare(training, dataclasses.replace(schedule, painting=0, seconds=compare))
    source.close()
    return training


def _check_start(checkpoint: Path, held: Sequence[Sequence[str]]) -> None:
    """Raise StagingError unless the run of a checkpoint left the same bodies out."""
    plan = checkpoint.with_name("plan.json")
    try:
        before = json.loads(plan.read_text(encoding="utf-8"))["held"]
    except (OSError, ValueError, KeyError):
        raise StagingError(f"{plan}: it cannot be read as the plan of a run.") from None
    if before != [list(part) for part in held]:
        raise StagingError(f"{checkpoint}: its folds leave other bodies out; the same are needed.")


def _compare(training: Training, schedule: Schedule) -> None:
    """Train two folds of each input on the cases of a finished training; writes compare.json."""
    found = {}
    for kind, given in INPUTS.items():
        folder = training.run / f"compare_{kind}"
        other = Training(
            folder,
            training.pool.seen_as(given),
            training.held[:2],
            training.source,
            lambda given=given: OrganNetwork(given, len(SIGNS)),
            schedule,
            first=0,
        )
        other.fit()
        found[kind] = {"steps": other.step, **of_pool(other)}
        write_text(training.run / "compare.json", json.dumps(found, indent=1) + "\n")


def metadata(name: str, bodies: int, given: Input) -> dict[str, Any]:
    """The metadata of an exported model, without evaluation and calibration."""
    found: dict[str, Any] = {
        "contract": 2,
        "name": name,
        "stages": list(STAGES),
        "window_hu": list(given.window_hu),
        "spacing_mm": list(SPACING_MM),
        "patch_size": list(given.patch_size),
        "patch_overlap": 0.5,
        "smoothing_mm": given.smoothing_mm,
        "channels": list(given.channels),
        "field": given.field,
        "liver_hu": LIVER_HU,
        "calibration": {"temperature": 1.0},
        "reference": {},
        "training": {
            "data": f"Signs of published size, painted into {bodies} real bodies "
            "(Training/train_insilico.py); no patient with a known stage.",
            "date": datetime.date.today().isoformat(),
            "code_version": __version__,
        },
        "intended_use": RESEARCH_USE,
    }
    if given.fill_mm is not None:
        found["fill"] = {"beyond_mm": given.fill_mm, "hu": given.fill_hu}
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=f"{__doc__.splitlines()[0]} {RESEARCH_USE}")
    parser.add_argument("--bodies", type=Path, required=True, help="folder of body files (.npz)")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="RUN")
    parser.add_argument("--input", choices=INPUTS, default="organs", help="default: organs")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--first", type=int, default=400, help="cases before the first step")
    parser.add_argument("--pool", type=int, default=1500, help="cases that are kept in memory")
    parser.add_argument("--workers", type=int, default=0, help="processes that paint as well")
    parser.add_argument("--per-body", type=int, default=30, help="cases to measure; default: 30")
    parser.add_argument(
        "--compare", type=float, default=0.0, metavar="SECONDS", help="compare inputs, for so long"
    )
    parser.add_argument(
        "--start-from", type=Path, metavar="CHECKPOINT", help="checkpoint.pt with initial weights"
    )
    parser.add_argument("--name", default="LFS")
    add_options(parser, SCHEDULE)
    options = parser.parse_args(arguments)
    try:
        train(
            options.bodies,
            options.output,
            kind=options.input,
            folds=options.folds,
            schedule=with_options(SCHEDULE, options),
            first=options.first,
            pool=options.pool,
            workers=options.workers,
            per_body=options.per_body,
            start_from=options.start_from,
            compare=options.compare,
            name=options.name,
        )
    except (StagingError, OSError) as refusal:
        print(refusal, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
