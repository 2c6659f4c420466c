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

import numpy as np
import torch

from common.files import write_text
from common.tables import write_csv
from LiverFibrosisStagingLib.errors import StagingError
from LiverFibrosisStagingLib.stages import RESEARCH_USE, STAGES
from painted.cases import HELD_SEED, painter
from painted.check import Found, examine, summary
from painted.network import Input, OrganNetwork


def check(bodies: Path, run: Path, folder: Path, per_body: int, pairs: int) -> dict:
    """Measure and write; returns metrics.json. pairs: patients per body that are painted twice.

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
        network = OrganNetwork(given, len(state["signs"]))
        network.load_state_dict(weights)
        networks.append(network.to(device).eval())
    own = painter(bodies, device)
    common = networks, state["held"], own, state["signs"], state["spread"]
    found = examine(*common, per_body)
    metrics = {"research_use": RESEARCH_USE, "step": state["step"]}
    metrics |= summary(found, state["held"], state["signs"])
    folder.mkdir(parents=True, exist_ok=True)
    _write_cases(found, [body.name for body in own.bodies], folder / "cases.csv")
    write_text(folder / "metrics.json", json.dumps(metrics, indent=1) + "\n")
    if pairs:
        low, high = (
            examine(*common, pairs, stage=stage, first_seed=2 * HELD_SEED).expected()
            for stage in (0, 4)
        )
        metrics["same_patient_f0_to_f4"] = {
            "mean": float((high - low).mean()),
            "rising": float((high > low).mean()),
        }
        write_text(folder / "metrics.json", json.dumps(metrics, indent=1) + "\n")
    return metrics


def _write_cases(found: Found, bodies: Sequence[str], path: Path) -> None:
    keys = list(found.truth[0])
    rows: list[Sequence[object]] = [["body", *keys, *(f"p_{s}" for s in STAGES), "expected"]]
    for truth, body, p, expected in zip(
        found.truth, found.body, found.probabilities, found.expected()
    ):
        values = [*truth.values(), *p.tolist(), expected]
        rows.append([bodies[body], *(np.round(values, 4).tolist())])
    write_csv(path, rows)


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
