"""Measure a run of `train_insilico.py` on further cases painted into each fold's unseen bodies.

    python Training/check_insilico.py --bodies BODIES --run RUN -o FOLDER [--per-body 30]

FOLDER receives metrics.json and cases.csv: AUCs of network, logistic regression on measured signs
and drawn signs (the ceiling), quadratic kappa, correlation of the signs, map shares,
counterfactuals, and the change of the expected stage when the same patient is painted as F0 and F4.
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
from painted.network import Input, SignNetwork


def check(bodies: Path, run: Path, folder: Path, per_body: int, pairs: int) -> dict[str, Any]:
    """Measure the networks of a run, see `painted.check.report`.

    Raises StagingError if `run` has no checkpoint.
    """
    if not (run / "checkpoint.pt").is_file():
        raise StagingError(f"{run}: no checkpoint.pt; a run of train_insilico.py is needed.")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    plan = json.loads((run / "plan.json").read_text(encoding="utf-8"))
    given = Input(**{k: tuple(v) if isinstance(v, list) else v for k, v in plan["input"].items()})
    state = torch.load(run / "checkpoint.pt", map_location=device, weights_only=True)
    networks = []
    for weights in state["networks"]:
        network = SignNetwork(given)
        network.load_state_dict(weights)
        networks.append(network.to(device).eval())
    return report(
        networks,
        state["held"],
        painter(bodies, device),
        state["signs"],
        state["spread"],
        folder,
        per_body,
        pairs,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=f"{__doc__.splitlines()[0]} {RESEARCH_USE}")
    parser.add_argument("--bodies", type=Path, required=True, help="folder of body files (.npz)")
    parser.add_argument("--run", type=Path, required=True, help="of train_insilico.py")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--per-body", type=int, default=30, help="cases per body; default: 30")
    parser.add_argument("--pairs", type=int, default=0, help="patients per body painted as F0, F4")
    options = parser.parse_args(arguments)
    try:
        found = check(options.bodies, options.run, options.output, options.per_body, options.pairs)
    except (StagingError, OSError) as refusal:
        print(refusal, file=sys.stderr)
        return 1
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
