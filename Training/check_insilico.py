"""Measure a run of `train_insilico.py` on further cases painted into each fold's unseen bodies.

    python Training/check_insilico.py --bodies BODIES --run RUN -o FOLDER [--per-body 30]
    python Training/check_insilico.py --bodies BODIES --run RUN -o FOLDER --single-signs 3

FOLDER receives metrics.json and cases.csv: AUCs of network, logistic regression on measured signs
and drawn signs (the ceiling), quadratic kappa, correlation of the signs, map shares,
counterfactuals, and the change of the expected stage when the same patient is painted as F0 and F4.
With --single-signs it receives truth.json and truth.csv instead: how much denser the location map
is in the region of the only painted sign than in the rest of liver and spleen (painted.truth).
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from LiverFibrosisStagingLib.errors import StagingError
from LiverFibrosisStagingLib.stages import RESEARCH_USE
from painted.cases import painter
from painted.check import report
from painted.network import Input, OrganNetwork
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


def load_run(run: Path, device: torch.device) -> tuple[list[OrganNetwork], dict[str, Any]]:
    """The networks of a run's folds, and its checkpoint. Raises StagingError if there is none."""
    if not (run / "checkpoint.pt").is_file():
        raise StagingError(f"{run}: no checkpoint.pt; a run of train_insilico.py is needed.")
    plan = json.loads((run / "plan.json").read_text(encoding="utf-8"))
    given = Input(**{k: tuple(v) if isinstance(v, list) else v for k, v in plan["input"].items()})
    state = torch.load(run / "checkpoint.pt", map_location=device, weights_only=True)
    networks = []
    for weights in state["networks"]:
        network = OrganNetwork(given, len(state["signs"]))
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
    parser.add_argument(
        "--single-signs",
        type=int,
        default=0,
        metavar="N",
        help="instead: location maps of N patients per body with a single sign of F4",
    )
    options = parser.parse_args(arguments)
    counts = options.per_body, options.pairs, options.single_signs
    try:
        found = check(options.bodies, options.run, options.output, *counts)
    except (StagingError, OSError) as refusal:
        print(refusal, file=sys.stderr)
        return 1
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
