"""Train the V-Net that segments liver and spleen, and export it to ONNX.

    python Training/train_vnet.py --phantoms COHORT/manifest.csv -o PRETRAINED
    python Training/train_vnet.py cases.csv --phantoms COHORT/manifest.csv \\
        --start-from PRETRAINED/checkpoint.pt -o RUN

The second command fine-tunes on CTs mixed with phantoms; --start-from also accepts the shipped
VNet.onnx. cases.csv has the columns ct, liver and optionally spleen and case. A mask is a file,
FILE:LABEL for one label of it, or a label image with 1 liver and 2 spleen. A folder in the layout
of the Medical Segmentation Decathlon can be given instead. RUN receives run.json (cases and
schedule), checkpoint.pt, log.csv and VNet.onnx. Repeat the command to resume an interrupted run; it
is refused if the cases, the schedule or the initial weights have changed.
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

from common.files import unfinished
from common.options import add_options, with_options
from common.processes import default_workers
from common.resume import (
    TRAINING_CTS_KEY,
    RunError,
    check_not_trained_on,
    check_plan,
    digest,
    digests,
)
from LiverFibrosisStagingLib import StagingError, __version__
from LiverFibrosisStagingLib.imaging.segmentation import CLASSES, CONTRACT
from LiverFibrosisStagingLib.stages import RESEARCH_USE
from vnet.data import (
    SPACING_MM,
    WINDOW_HU,
    Labelled,
    Patches,
    check_names,
    prepare,
    read_cases,
)
from vnet.network import VNet, export, load_weights

SAVE_EVERY = 25


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Hyperparameters of AdamW with a one-cycle schedule.

    phantom_share: share of the patches, if there are CTs and phantoms. frozen: share of the steps,
    at the end, in which batch normalisation uses its running statistics, as at inference, instead
    of those of the two patches of the step.
    """

    steps: int = 600
    batch: int = 2
    learning_rate: float = 3e-3
    phantom_share: float = 0.3
    frozen: float = 0.4
    seed: int = 0


def loss(logits: torch.Tensor, labels: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Dice loss (Milletari 2016, equation 3) plus cross-entropy, for partially labelled cases.

    logits [N, 3, ...], labels [N, 1, ...], known [N, 3]. A class without a mask may be anywhere in
    the case's background, so its probability is added to that of the background.
    """
    probabilities = logits.float().softmax(dim=1)
    weight = known.float()[..., None, None, None]
    hidden = (probabilities * (1 - weight)).sum(dim=1, keepdim=True)
    merged = torch.cat([probabilities[:, :1] + hidden, probabilities[:, 1:] * weight[:, 1:]], dim=1)
    entropy = -merged.gather(1, labels.long()).clamp_min(1e-6).log().mean()
    truth = functional.one_hot(labels[:, 0].long(), logits.shape[1]).movedim(-1, 1).float()
    axes = (2, 3, 4)
    both = 2 * (merged * truth).sum(axes) + 1.0
    dice = both / ((merged**2).sum(axes) + truth.sum(axes) + 1.0)
    counted = known[:, 1:].float()
    return entropy + ((1 - dice[:, 1:]) * counted).sum() / counted.sum().clamp_min(1.0)


def _freeze_statistics(network: VNet, frozen: bool) -> None:
    """Let batch normalisation use its running statistics, without updating them, if `frozen`."""
    for part in network.modules():
        if isinstance(part, torch.nn.BatchNorm3d):
            part.train(not frozen)


def train(
    cases: Sequence[Labelled],
    phantoms: Sequence[Labelled],
    run: Path,
    schedule: Schedule,
    start_from: Path | None = None,
    workers: int = 1,
    name: str = "VNet",
    data: str = "Not stated.",
    left_out: Sequence[Labelled] = (),
) -> Path:
    """Train on cases, phantoms or both; returns RUN/VNet.onnx.

    left_out: cases for testing. Raises RunError if they are among the cases or `start_from` was
    trained on them, and if RUN contains another run.
    """
    training_cts = _training_cts([*cases, *phantoms], start_from, left_out)
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
    check_plan(run / "run.json", plan, outputs=[checkpoint])
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
        prepare(part, run.parent / "vnet_cache", workers) if part else None
        for part in (cases, phantoms)
    ]
    numbers = range(first * schedule.batch, schedule.steps * schedule.batch)
    patches = Patches(*prepared, schedule.phantom_share, numbers, schedule.seed)
    loader = DataLoader(patches, schedule.batch, num_workers=workers)
    recent: list[float] = []
    began = time.monotonic()
    bar = tqdm(loader, run.name, initial=first, total=schedule.steps, unit="step")
    for done, (volume, labels, known) in enumerate(bar, start=first + 1):
        _freeze_statistics(network, done > (1 - schedule.frozen) * schedule.steps)
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
            with unfinished(checkpoint) as file:
                torch.save({**state, "step": done, TRAINING_CTS_KEY: sorted(training_cts)}, file)
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
    export(network, run / "VNet.onnx", about, training_cts)
    return run / "VNet.onnx"


def _training_cts(
    cases: Sequence[Labelled], start_from: Path | None, left_out: Sequence[Labelled]
) -> frozenset[str]:
    """Digests of all CTs used for training; RunError if any of them is left out for testing."""
    test_cts = {case.name: case.ct for case in left_out}
    tested = {digest(ct) for ct in test_cts.values()}
    twice = [case.name for case in cases if digest(case.ct) in tested]
    if twice:
        raise RunError(
            f"The CT of a case in --leave-out has the same content as {', '.join(twice)}; leave "
            "out both."
        )
    before = frozenset() if start_from is None else check_not_trained_on(start_from, test_cts)
    return before.union(*(digests(case.ct) for case in cases))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, nargs="*", help="CSVs or Decathlon folders of CTs")
    parser.add_argument("--phantoms", type=Path, help="CSV of phantoms (phantom.py)")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="RUN")
    parser.add_argument(
        "--leave-out", nargs="+", default=[], metavar="CASE", help="cases for testing"
    )
    parser.add_argument(
        "--start-from",
        type=Path,
        metavar="FILE",
        help="initial weights: checkpoint.pt or VNet.onnx",
    )
    add_options(parser, Schedule())
    workers = default_workers()
    parser.add_argument(
        "--workers",
        type=int,
        default=workers,
        help=f"processes that prepare CTs and patches; default: {workers}",
    )
    parser.add_argument("--name", default="VNet", help="the model's name in its metadata")
    parser.add_argument("--about", default="Not stated.", help="one sentence on the CTs")
    options = parser.parse_args(arguments)
    try:
        cases = [case for source in options.data for case in read_cases(source)]
        phantoms = read_cases(options.phantoms) if options.phantoms else []
        check_names(cases)
        unknown = set(options.leave_out) - {case.name for case in cases}
        if unknown:
            raise StagingError(
                f"--leave-out: there is no case {', '.join(sorted(unknown))} in the list of CTs."
            )
        left_out = [case for case in cases if case.name in options.leave_out]
        cases = [case for case in cases if case not in left_out]
        if not cases and not phantoms:
            raise StagingError("There are no training cases: CTs or --phantoms are needed.")
        file = train(
            cases,
            phantoms,
            options.output,
            with_options(Schedule(), options),
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
