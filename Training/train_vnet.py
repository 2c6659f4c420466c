"""Train the V-Net that finds liver and spleen, from nothing or from a checkpoint, to ONNX.

    python Training/train_vnet.py --phantoms COHORT/manifest.csv -o PRETRAINED
    python Training/train_vnet.py cases.csv --phantoms COHORT/manifest.csv \\
        --start-from PRETRAINED/checkpoint.pt -o RUN

The second fine-tunes on CTs, with phantoms mixed in; --start-from also takes the shipped VNet.onnx.
cases.csv has the columns ct, liver and, where
wanted, spleen and case (FILE:LABEL takes one label; a label image may hold 1 liver and 2 spleen); a
folder in Medical Segmentation Decathlon layout will do too. RUN receives run.json (what is learned
from, and how), checkpoint.pt, log.csv, VNet.onnx. Called again after an interruption the command
goes on where it stopped; with other cases, another schedule or another start it is refused.
"""

import argparse
import dataclasses
import datetime
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import DataLoader
from tqdm import tqdm

from common.resume import LEARNED_KEY, RunError, check_unseen, digest, keep
from LiverFibrosisStagingLib import StagingError, __version__
from LiverFibrosisStagingLib.imaging.segmentation import CLASSES, CONTRACT
from LiverFibrosisStagingLib.stages import RESEARCH_USE
from vnet.data import (
    SPACING_MM,
    WINDOW_HU,
    Outlined,
    Patches,
    check_names,
    prepare,
    read_cases,
)
from vnet.network import VNet, export, load_weights

SAVE_EVERY = 25


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How long and how fast to learn, with AdamW under a one-cycle rate.

    phantom_share: of the patches, where there are CTs and phantoms. settled: share of the steps at
    the end in which batch normalisation uses the statistics that it will use for users, instead of
    those of the two patches at hand.
    """

    steps: int = 600
    batch: int = 2
    learning_rate: float = 3e-3
    phantom_share: float = 0.3
    settled: float = 0.4
    seed: int = 0


def loss(logits: torch.Tensor, labels: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Dice (Milletari 2016, equation 3) plus cross-entropy, of what was outlined.

    logits [N, 3, ...], labels [N, 1, ...], known [N, 3]. A class that was not outlined may be
    anywhere in a case's background: there the two count as one.
    """
    probabilities = logits.float().softmax(dim=1)
    weight = known.float()[..., None, None, None]
    hidden = (probabilities * (1 - weight)).sum(dim=1, keepdim=True)
    seen = torch.cat([probabilities[:, :1] + hidden, probabilities[:, 1:] * weight[:, 1:]], dim=1)
    entropy = -seen.gather(1, labels.long()).clamp_min(1e-6).log().mean()
    truth = functional.one_hot(labels[:, 0].long(), logits.shape[1]).movedim(-1, 1).float()
    axes = (2, 3, 4)
    both = 2 * (seen * truth).sum(axes) + 1.0
    dice = both / ((seen**2).sum(axes) + truth.sum(axes) + 1.0)
    counted = known[:, 1:].float()
    return entropy + ((1 - dice[:, 1:]) * counted).sum() / counted.sum().clamp_min(1.0)


def _settle(network: VNet, settled: bool) -> None:
    """Whether batch normalisation keeps the statistics that it has gathered."""
    for part in network.modules():
        if isinstance(part, torch.nn.BatchNorm3d):
            part.train(not settled)


def train(
    cases: Sequence[Outlined],
    phantoms: Sequence[Outlined],
    run: Path,
    schedule: Schedule,
    start_from: Path | None = None,
    workers: int = 1,
    name: str = "VNet",
    data: str = "Not stated.",
    left_out: Sequence[Outlined] = (),
) -> Path:
    """Train on Outlined cases, phantoms among them or alone; returns RUN/VNet.onnx.

    left_out: cases that must not have been learned from. Raises RunError where they were, by the
    cases or by start_from, and where RUN holds another run.
    """
    learned = _learned_from([*cases, *phantoms], start_from, left_out)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(schedule.seed)
    network = VNet()
    if start_from is not None:
        load_weights(network, start_from)
    checkpoint, log, first = run / "checkpoint.pt", run / "log.csv", 0
    plan = {
        "cases": [case.content() for case in cases],
        "phantoms": [case.content() for case in phantoms],
        "schedule": dataclasses.asdict(schedule),
        "start": start_from and digest(start_from),
        "contract": [CONTRACT, list(CLASSES), list(WINDOW_HU), list(SPACING_MM)],
        "software": __version__,
    }
    keep(run / "run.json", plan, made=[checkpoint])
    network.to(device, memory_format=torch.channels_last_3d).train()
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=1e-4)
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    else:
        log.write_text("step,seconds,loss\n", encoding="utf-8")
    rates = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, schedule.learning_rate, total_steps=schedule.steps, last_epoch=first - 1
    )
    prepared = [
        prepare(part, run.parent / "vnet_cache") if part else None for part in (cases, phantoms)
    ]
    numbers = range(first * schedule.batch, schedule.steps * schedule.batch)
    patches = Patches(*prepared, schedule.phantom_share, numbers, schedule.seed)
    loader = DataLoader(patches, schedule.batch, num_workers=workers)
    recent: list[float] = []
    began = time.monotonic()
    bar = tqdm(loader, run.name, initial=first, total=schedule.steps, unit="step")
    for done, (volume, labels, known) in enumerate(bar, start=first + 1):
        _settle(network, done > (1 - schedule.settled) * schedule.steps)
        volume = volume.to(device, memory_format=torch.channels_last_3d)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = network(volume)
        step_loss = loss(logits, labels.to(device), known.to(device))
        optimizer.zero_grad()
        step_loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        rates.step()
        recent.append(step_loss.item())
        bar.set_postfix(loss=f"{np.mean(recent[-25:]):.3f}")
        if done % SAVE_EVERY == 0 or done == schedule.steps:
            state = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
            partial = checkpoint.with_suffix(".part")
            torch.save({**state, "step": done, LEARNED_KEY: sorted(learned)}, partial)
            partial.replace(checkpoint)
            with log.open("a", encoding="utf-8") as stream:
                seconds = time.monotonic() - began
                print(done, f"{seconds:.1f},{np.mean(recent):.4f}", sep=",", file=stream)
            recent = []
    about = {
        "contract": CONTRACT,
        "name": name,
        "classes": list(CLASSES),
        "window_hu": list(WINDOW_HU),
        "spacing_mm": list(SPACING_MM),
        "multiple_of": network.multiple,
        "intended_use": RESEARCH_USE,
        "training": {
            "data": data,
            "cases": len(cases),
            "phantoms": len(phantoms),
            "steps": schedule.steps,
            "date": datetime.date.today().isoformat(),
            "code_version": __version__,
        },
    }
    export(network, run / "VNet.onnx", about, learned)
    return run / "VNet.onnx"


def _learned_from(
    cases: Sequence[Outlined], start_from: Path | None, left_out: Sequence[Outlined]
) -> frozenset[str]:
    """Digests of the CTs that the network will have learned from; RunError for one left out."""
    held = {case.name: case.ct for case in left_out}
    tested = {digest(ct) for ct in held.values()}
    twice = [case.name for case in cases if digest(case.ct) in tested]
    if twice:
        raise RunError(
            f"The CT of a case to leave out is there a second time, as {', '.join(twice)}; leave "
            "that out too."
        )
    before = frozenset() if start_from is None else check_unseen(start_from, held)
    return before.union(digest(case.ct) for case in cases)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, nargs="*", help="CSVs or Decathlon folders of CTs")
    parser.add_argument("--phantoms", type=Path, help="CSV of phantoms (phantom.py)")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="RUN")
    parser.add_argument("--leave-out", nargs="+", default=[], metavar="CASE", help="to test on")
    parser.add_argument(
        "--start-from", type=Path, metavar="FILE", help="fine-tune: checkpoint.pt or VNet.onnx"
    )
    for field in dataclasses.fields(Schedule):
        option = "--" + field.name.replace("_", "-")
        parser.add_argument(option, type=type(field.default), default=field.default)
    parser.add_argument("--workers", type=int, default=1, help="processes that prepare patches")
    parser.add_argument("--name", default="VNet", help="the model's name in its metadata")
    parser.add_argument("--about", default="Not stated.", help="one sentence on the CTs")
    options = parser.parse_args(arguments)
    schedule = Schedule(**{f.name: getattr(options, f.name) for f in dataclasses.fields(Schedule)})
    try:
        cases = [case for source in options.data for case in read_cases(source)]
        phantoms = read_cases(options.phantoms) if options.phantoms else []
        check_names(cases)
        strangers = set(options.leave_out) - {case.name for case in cases}
        if strangers:
            raise StagingError(f"There is no case {', '.join(sorted(strangers))} to leave out.")
        left_out = [case for case in cases if case.name in options.leave_out]
        cases = [case for case in cases if case not in left_out]
        if not cases and not phantoms:
            raise StagingError("Nothing to learn from: give CTs or --phantoms.")
        file = train(
            cases,
            phantoms,
            options.output,
            schedule,
            options.start_from,
            options.workers,
            options.name,
            options.about,
            left_out,
        )
    except (StagingError, ValueError, OSError) as refusal:
        print(refusal, file=sys.stderr)
        return 1
    print(f"{file} ({file.stat().st_size / 1e6:.1f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
