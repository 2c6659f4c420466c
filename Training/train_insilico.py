"""Train a staging network on fibrosis painted into real bodies, one network per fold of bodies.

    python Training/insilico_bodies.py RECIPE.json -o BODIES
    python Training/train_insilico.py --bodies BODIES -o RUN [--cases 600] [--workers 8]

Every body appears in all stages. Each fold leaves bodies out and is measured on cases painted into
them. RUN receives plan.json, readings.npz, checkpoint.pt, metrics.json, LFS.onnx (the ensemble of
the folds) and fold_K.onnx. The same command resumes an interrupted run.
"""

import argparse
import dataclasses
import datetime
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.calibration import fit_temperature
from common.files import unfinished, write_text
from common.options import add_options, with_options
from common.resume import check_plan, digest
from LiverFibrosisStagingLib import __version__
from LiverFibrosisStagingLib.errors import StagingError
from LiverFibrosisStagingLib.evaluation.measures import group_probabilities, youden
from LiverFibrosisStagingLib.stages import GROUPS, RESEARCH_USE, STAGES, softmax
from painted.cases import Source, body_files, origins
from painted.check import report
from painted.export import export
from painted.fit import (
    Readings,
    Schedule,
    Spread,
    correlations,
    fit,
    measures,
    read_cases,
    unseen,
)
from painted.maps import LIVER_HU, NAMES
from painted.network import SIGNS, SPACING_MM, Input, SignNetwork

SCHEDULE = Schedule()


def train(
    bodies: Path,
    run: Path,
    *,
    cases: int = 600,
    folds: int = 0,
    schedule: Schedule = SCHEDULE,
    workers: int = 0,
    per_body: int = 0,
    given: Input | None = None,
    name: str = "LFS",
) -> dict[str, Any]:
    """Train, export and measure; returns the measures on the cases of unseen bodies.

    bodies: folder of body files. cases: that are painted for training. folds: groups of bodies that
    are left out in turn; 0 for each body alone. workers: processes that paint on the CPU as well.
    per_body: further cases per body for `painted.check.report`.

    Raises StagingError if `run` contains another run or there are fewer than two bodies.
    """
    files = body_files(bodies)
    if len(files) < 2:
        raise StagingError(f"{bodies}: {len(files)} body files; at least 2 are needed.")
    given = given or Input()
    folds = min(folds, len(files)) or len(files)
    held = [[*range(fold, len(files), folds)] for fold in range(folds)]
    digests = {file.stem: digest(file) for file in files}
    plan = {
        "bodies": digests,
        "held": [[files[body].stem for body in part] for part in held],
        "input": dataclasses.asdict(given),
        "maps": list(NAMES),
        "signs": list(SIGNS),
        "schedule": dataclasses.asdict(schedule),
        "software": __version__,
    }
    kept = run / "readings.npz"
    check_plan(run / "plan.json", plan, [kept])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    source = Source(bodies, device, workers, cases_read(kept))
    try:
        readings = read_cases(source, kept, cases, given, schedule)
    finally:
        source.close()
    networks, spread = fit(readings, held, given, schedule)
    with unfinished(run / "checkpoint.pt") as file:
        weights = [network.state_dict() for network in networks]
        names = list(SIGNS)
        torch.save({"networks": weights, "spread": spread, "signs": names, "held": held}, file)
    found: dict[str, Any] = {"research_use": RESEARCH_USE, "cases": len(readings)}
    found |= of_unseen(networks, held, readings, spread)
    order = np.random.default_rng(schedule.seed).permutation(len(readings))
    shuffled, _ = fit(
        dataclasses.replace(readings, signs=readings.signs[order]), held, given, schedule
    )
    found["shuffled_signs"] = of_unseen(shuffled, held, readings, spread)
    write_text(run / "metrics.json", json.dumps(found, indent=1) + "\n")

    described = metadata(name, len(files), given)
    described["calibration"] = {key: found[key] for key in ("temperature", "operating_points")}
    for fold, network in enumerate(networks):
        seen = [file for file in files if file.stem not in plan["held"][fold]]
        about = described | {"name": f"{name}, fold {fold}"}
        export(network, run / f"fold_{fold}.onnx", about, learned_from(seen))
    if per_body:
        checked = [network.to(device) for network in networks]
        common = checked, held, source.painter, list(SIGNS), spread
        report(*common, run / "check", per_body, per_body // 6)
    export(networks, run / "LFS.onnx", described, learned_from(files))
    return found


def learned_from(files: Sequence[Path]) -> set[str]:
    """Digests by which the bodies are recognised (`painted.cases.origins`)."""
    return set().union(*map(origins, files))


def of_unseen(
    networks: Sequence[SignNetwork],
    held: Sequence[Sequence[int]],
    readings: Readings,
    spread: Spread,
) -> dict[str, Any]:
    """`measures` of the folds' networks on the bodies that they have not seen, and calibration."""
    probabilities, signs = unseen(networks, held, readings)
    drawn = (readings.signs - spread[0].numpy()) / spread[1].numpy()
    found: dict[str, Any] = measures(probabilities, readings.stages, signs, drawn)
    found["signs_r"] = dict(zip(SIGNS, correlations(signs, drawn).tolist()))
    scores = np.log(np.maximum(probabilities, 1e-12))
    found["temperature"] = temperature = fit_temperature(scores, readings.stages)
    groups = group_probabilities(softmax(scores, temperature))
    found["operating_points"] = {
        name: youden(readings.stages >= first, groups[name]) for name, first in GROUPS.items()
    }
    return found


def cases_read(file: Path) -> int:
    """How many cases an interrupted run has painted; 0 for a new one."""
    if not file.exists():
        return 0
    with np.load(file) as kept:
        return len(kept["stages"])


def metadata(name: str, bodies: int, given: Input) -> dict[str, Any]:
    """The metadata of an exported model, without evaluation and calibration."""
    return {
        "contract": 2,
        "name": name,
        "stages": list(STAGES),
        "window_hu": list(given.window_hu),
        "spacing_mm": list(SPACING_MM),
        "patch_size": list(given.patch_size),
        "patch_overlap": 0.5,
        "smoothing_mm": given.smoothing_mm,
        "channels": ["ct", "liver", "spleen"],
        "field": "organs",
        "fill": {"beyond_mm": given.fill_mm, "hu": given.fill_hu},
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


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=f"{__doc__.splitlines()[0]} {RESEARCH_USE}")
    parser.add_argument("--bodies", type=Path, required=True, help="folder of body files (.npz)")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="RUN")
    parser.add_argument("--cases", type=int, default=600, help="for training; default: 600")
    parser.add_argument("--folds", type=int, default=0, help="default: one for each body")
    parser.add_argument("--workers", type=int, default=0, help="processes that paint as well")
    parser.add_argument(
        "--per-body", type=int, default=0, help="further cases to measure, see check_insilico.py"
    )
    parser.add_argument("--name", default="LFS")
    add_options(parser, SCHEDULE)
    options = parser.parse_args(arguments)
    try:
        found = train(
            options.bodies,
            options.output,
            cases=options.cases,
            folds=options.folds,
            schedule=with_options(SCHEDULE, options),
            workers=options.workers,
            per_body=options.per_body,
            name=options.name,
        )
    except (StagingError, OSError) as refusal:
        print(refusal, file=sys.stderr)
        return 1
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
