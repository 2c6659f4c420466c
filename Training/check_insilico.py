"""Measure a run of `train_insilico.py` on further cases painted into each fold's unseen bodies.

    python Training/check_insilico.py --bodies BODIES --run RUN -o FOLDER [--per-body 30]

FOLDER receives metrics.json and cases.csv: AUCs of network, logistic regression on measured signs
and drawn signs (the ceiling), quadratic kappa, correlation of the signs, map shares,
counterfactuals, and the change of the expected stage when the same patient is painted as F0 and F4.

    python Training/check_insilico.py --bodies BODIES --run RUN -o FOLDER --single-signs N

writes truth.json and truth.csv instead: how much denser the location map is in the region of the
only painted sign than in the rest of liver and spleen (`painted/truth.py`).

    python Training/check_insilico.py --bodies BODIES --run RUN -o FOLDER --references N

paints N cases per body at the spacing of a CT instead, stages them with the library, and writes the
model with temperature, operating points and reference maps (`painted/references.py`). The same
command resumes.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from train_insilico import learned_from, metadata

from common.resume import digest
from LiverFibrosisStagingLib.errors import StagingError
from LiverFibrosisStagingLib.stages import RESEARCH_USE
from painted.cases import body_files, painter
from painted.check import report
from painted.network import Input, SignNetwork
from painted.references import calibrate
from painted.truth import single_signs, write_truth


def check(
    bodies: Path, run: Path, folder: Path, per_body: int, pairs: int, single: int = 0
) -> dict[str, Any] | list[dict[str, Any]]:
    """Measure the networks of a run, see `painted.check.report`; single: `painted.truth`, with so
    many patients per body.

    Raises StagingError if `run` has no checkpoint.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    networks, state = load_run(run, device)
    cases = painter(bodies, device)
    if single:
        return write_truth(single_signs(networks, state["held"], cases, single), folder)
    common = networks, state["held"], cases, state["signs"], state["spread"]
    return report(*common, folder, per_body, pairs)


def references(bodies: Path, run: Path, folder: Path, per_body: int, name: str) -> dict[str, Any]:
    """Calibrate the networks of a run, see `painted.references.calibrate`; name: of the model.

    Raises StagingError as `load_run` and `calibrate`, and if the bodies are not those of the run.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    networks, state = load_run(run, device)
    digests = {file.stem: digest(file) for file in body_files(bodies)}
    if digests != json.loads((run / "plan.json").read_text(encoding="utf-8"))["bodies"]:
        raise StagingError(f"{bodies}: not the bodies of {run}; the same files are needed.")
    described = metadata(name, len(digests), networks[0].given)
    cases = painter(bodies, device)
    learned = sorted(learned_from(body_files(bodies)))
    return calibrate(networks, state["held"], cases, described, learned, folder, per_body)


def load_run(run: Path, device: torch.device) -> tuple[list[SignNetwork], dict[str, Any]]:
    """The networks of a run's folds, and its checkpoint. Raises StagingError if there is none."""
    if not (run / "checkpoint.pt").is_file():
        raise StagingError(f"{run}: no checkpoint.pt; a run of train_insilico.py is needed.")
    plan = json.loads((run / "plan.json").read_text(encoding="utf-8"))
    given = Input(**{k: tuple(v) if isinstance(v, list) else v for k, v in plan["input"].items()})
    state = torch.load(run / "checkpoint.pt", map_location=device, weights_only=True)
    networks = []
    for weights in state["networks"]:
        network = SignNetwork(given)
        network.load_state_dict(weights)
        networks.append(network.to(device).eval())
    return networks, state


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=f"{__doc__.splitlines()[0]} {RESEARCH_USE}")
    parser.add_argument("--bodies", type=Path, required=True, help="folder of body files (.npz)")
    parser.add_argument("--run", type=Path, required=True, help="of train_insilico.py")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--per-body", type=int, default=30, help="cases per body; default: 30")
    parser.add_argument("--pairs", type=int, default=0, help="patients per body painted as F0, F4")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--single-signs",
        type=int,
        default=0,
        metavar="N",
        help="instead: location maps of N patients per body with a single sign of F4",
    )
    instead.add_argument(
        "--references",
        type=int,
        default=0,
        metavar="N",
        help="instead: calibrate on N cases per body",
    )
    parser.add_argument("--name", default="LFS", help="of the model with --references")
    options = parser.parse_args(arguments)
    where = options.bodies, options.run, options.output
    try:
        if options.references:
            found = references(*where, options.references, options.name)
        else:
            found = check(*where, options.per_body, options.pairs, options.single_signs)
    except (StagingError, OSError) as refusal:
        print(refusal, file=sys.stderr)
        return 1
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
