"""Training of one LFS network: loss, schedule, checkpoints, early stopping, several GPUs.

Imbalance: rare stages are drawn more often than they occur (`data.Draws`). Order of the stages: the
loss uses soft ordinal labels, so that predicting F0 for an F4 costs more than predicting F3.
"""

import copy
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import distributed, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from common.files import unfinished, write_text
from common.processes import on_gpu, process
from common.resume import TRAINING_CTS_KEY, UNKNOWN
from lfs.build import FULL, Build
from lfs.data import Draws, Patches, sections
from lfs.loss import ordinal_loss, range_loss
from lfs.network import LFSNetwork
from lfs.schedule import Course, Schedule
from lfs.validation import Loss, criterion, few, improved, measures
from LiverFibrosisStagingLib.stages import GROUPS, decided, softmax


class _Trained(nn.Module):
    """Logits and the target layer's mean absolute activation in one forward pass, as DDP needs."""

    def __init__(self, network: LFSNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.network.features(patches)
        return self.network.tail(features).float(), features.float().abs().mean()


def fit(
    network: LFSNetwork,
    train: tuple[Sequence[dict[str, torch.Tensor]], np.ndarray],
    validation: tuple[Sequence[dict[str, torch.Tensor]], np.ndarray],
    schedule: Schedule,
    run: Path,
    build: Build = FULL,
    workers: int = 1,
    training_cts: Collection[str] = (UNKNOWN,),
) -> LFSNetwork:
    """Train `network` and return it with the weights of the best validation.

    train, validation: prepared cases (`data.prepare`) and their stages [n] or [n, 2]. Resumes from
    RUN/checkpoint.pt if it exists, also with more steps or patience than before; RUN/log.csv has a
    line for each validation. build: with which the cases were prepared. training_cts: digests of
    the CTs (`resume`), saved in the checkpoint. Under torchrun each process computes a part of
    every step, on its own GPU if there are any; the first process validates and writes the files.
    """
    run.mkdir(parents=True, exist_ok=True)
    rank, ranks = process()
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu() else torch.device("cpu")
    # A copy, because its normalisations may become synchronised ones, which have no ONNX operator.
    learner = copy.deepcopy(network).to(device, memory_format=torch.channels_last_3d)
    if synchronised():
        synchronise(learner)
    trained: nn.Module = _Trained(learner)
    if ranks > 1:
        trained = nn.parallel.DistributedDataParallel(trained)
    optimizer = torch.optim.AdamW(learner.parameters(), weight_decay=0.01)
    course = schedule.course(len(train[1]))
    progress = _Progress(learner, optimizer, run, device, training_cts, course, schedule)
    if rank == 0 and (sentence := few(train[1], validation[1])):
        print(f"{run.name}: {sentence}", file=sys.stderr)
    remaining = range(progress.step, 0 if progress.stopped else progress.course.total)
    draws = Draws(
        train[1],
        remaining,
        schedule.batch,
        course.crops,
        schedule.crop,
        schedule.temper,
        schedule.seed,
        rank,
        ranks,
    )
    patches = Patches(train[0], train[1], network.patch_size[0], build)
    loader = (
        DataLoader(
            patches,
            batch_sampler=draws,
            num_workers=workers,
            pin_memory=on_gpu(),
            prefetch_factor=4,
        )
        if workers
        else DataLoader(patches, batch_sampler=draws)
    )
    compute_loss = ordinal_loss if schedule.ordinal else range_loss
    half = schedule.mixed_precision and device.type == "cuda"
    bar = tqdm(
        zip(remaining, loader),
        run.name,
        initial=progress.step,
        total=progress.course.total,
        unit="step",
        disable=rank > 0,
    )
    for step, (batch, truth) in bar:
        if step == progress.course.stable:
            progress.keep_stable()
        learner.train()
        batch = batch.to(device, memory_format=torch.channels_last_3d, non_blocking=True)
        truth = truth.to(device, non_blocking=True)
        torch.manual_seed(schedule.seed + step)  # dropout
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step, progress.course)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            logits, activation = trained(batch)
        loss = compute_loss(logits, truth)
        sparsity = 0.0 if step < course.crops else schedule.sparsity
        optimizer.zero_grad()
        (loss + sparsity * activation).backward()
        optimizer.step()
        keep_normalisations_positive(learner)
        progress.losses.append(loss.item())
        bar.set_postfix(loss=f"{np.mean(progress.losses[-50:]):.3f}")
        progress.step = step + 1
        on_sections = progress.step > course.crops
        ended = progress.step == progress.course.total
        if ended or (on_sections and progress.step % schedule.check_every == 0):
            found = _by_first_process(case_logits, learner, validation[0], device)
            progress.validate(found, validation[1], compute_loss)
            bar.total = progress.course.total
            if ended or progress.stopped:
                break
        elif progress.step % schedule.check_every == 0:
            progress.save()
    network.load_state_dict(progress.best)
    return network.eval()


def synchronised() -> bool:
    """Whether normalisations use the patches of all processes: PyTorch can on GPUs only."""
    return process()[1] > 1 and on_gpu()


def synchronise(network: nn.Module) -> None:
    """Make the normalisations synchronised ones, but for those of `lfs.imported`.

    These are fixed identities, without statistics of the batches.
    """
    for part in [*network.modules()]:
        for name, layer in part.named_children():
            if type(layer) in (nn.BatchNorm1d, nn.BatchNorm3d):
                part.add_module(name, nn.SyncBatchNorm.convert_sync_batchnorm(layer))


def _by_first_process(compute: Any, *arguments: Any) -> Any:
    """What the first process computes, for all: they must not differ in when to stop."""
    rank, ranks = process()
    found = [compute(*arguments) if rank == 0 else None]
    if ranks > 1:
        distributed.broadcast_object_list(found)
    return found[0]


class _Progress:
    """State of a run, saved on disk: weights, optimiser, best weights so far, log."""

    def __init__(
        self,
        network: LFSNetwork,
        optimizer: torch.optim.Optimizer,
        run: Path,
        device: torch.device,
        training_cts: Collection[str],
        course: Course,
        schedule: Schedule,
    ) -> None:
        self.network, self.optimizer, self.schedule = network, optimizer, schedule
        self.training_cts = sorted(training_cts)
        self.checkpoint, self.log = run / "checkpoint.pt", run / "log.csv"
        self.course, self.planned = course, [course.total, schedule.patience]
        self.step, self.waited, self.stopped = 0, 0, False
        self.losses: list[float] = []  # of the steps since the last validation
        self.values: list[list[float]] = []
        self.lowest: list[float] = [float("inf")]
        self.best: dict[str, torch.Tensor] = {}
        self.stable: dict[str, Any] | None = None  # the state when the rate began to fall
        self.began = time.monotonic()
        if self.checkpoint.exists():
            state = torch.load(self.checkpoint, map_location=device, weights_only=True)
            extended = state["planned"] != self.planned
            self._restore((extended and state["stable"]) or state)
            if not extended:
                self.course, self.stable = Course(*state["course"]), state["stable"]
            self._fall_if_stalled()
        if process()[0] == 0:
            self._begin_log()

    def validate(self, logits: np.ndarray, stages: np.ndarray, compute_loss: Loss) -> None:
        """Measure the validation, keep the best weights, write log and checkpoint."""
        loss, self.losses = np.mean(self.losses), []
        found = measures(logits, stages, compute_loss)
        self.values.append(criterion(found, self.schedule.stop_on))
        if (smoothed := improved(self.values, self.lowest)) is not None:
            self.lowest, self.waited = smoothed, 0
            self.best = _copied(self.network.state_dict())
        else:
            self.waited += 1
            falling = self.step > self.course.stable
            self.stopped = falling and self.waited >= self.schedule.patience
        self._fall_if_stalled()
        if process()[0] == 0:
            row = [time.monotonic() - self.began, loss, *found.values()]
            row += aucs(softmax(logits), stages).values()
            with self.log.open("a", encoding="utf-8") as stream:
                print(self.step, *(f"{value:.4f}" for value in row), sep=",", file=stream)
        self.save()

    def keep_stable(self) -> None:
        """Keep the state from which a longer run would go on."""
        if self.stable is None:
            self.stable = copy.deepcopy(self._state())

    def save(self) -> None:
        """Write the checkpoint, if this is the first process."""
        if process()[0] > 0:
            return
        state = {
            **self._state(),
            "course": list(self.course),
            "planned": self.planned,
            "stable": self.stable,
            TRAINING_CTS_KEY: self.training_cts,
        }
        with unfinished(self.checkpoint) as file:
            torch.save(state, file)

    def _fall_if_stalled(self) -> None:
        """Let the rate fall from here on if nothing improves at a high one."""
        if self.stable is None and self.waited >= self.schedule.patience:
            self.keep_stable()
            self.course, self.waited = self.course.falling_from(self.step), 0

    def _state(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            **{name: getattr(self, name) for name in _STATE},
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name in _STATE:
            setattr(self, name, state[name])

    def _begin_log(self) -> None:
        """Write the log's header, and keep its lines up to this step; the others are repeated."""
        columns = ["step", "seconds", "loss", "validation_loss", "balanced_loss", "kappa", *GROUPS]
        before = self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []
        kept = [line for line in before[1:] if int(line.split(",")[0]) <= self.step]
        write_text(self.log, "\n".join([",".join(columns), *kept]) + "\n")


_STATE = ("step", "losses", "values", "lowest", "waited", "stopped", "best")


def _copied(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: values.detach().clone() for name, values in weights.items()}


def keep_normalisations_positive(network: LFSNetwork) -> None:
    """Keep their weights positive, so that `export` can fold them through the max pooling."""
    with torch.no_grad():
        for layer in network.head:
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.weight.clamp_(min=1e-3)


def case_logits(
    network: LFSNetwork, prepared: Sequence[dict[str, torch.Tensor]], device: torch.device
) -> np.ndarray:
    """Logits [cases, 5]: the mean over a case's patches, without overlap."""
    network.eval()
    found = []
    with torch.no_grad():
        for case in prepared:
            patches = torch.from_numpy(sections(case, network.patch_size[0], 0.0)).to(device)
            found.append(network(patches).float().mean(dim=0).cpu().numpy())
    return np.stack(found)


def aucs(probabilities: np.ndarray, stages: np.ndarray) -> dict[str, float]:
    """Area under the ROC curve of every group of stages; NaN if one class has no case.

    Of the cases whose `stages` [n] or [n, 2] say whether they belong to the group.
    """
    found = dict.fromkeys(GROUPS, float("nan"))
    for name, first in GROUPS.items():
        known, truth = decided(stages, first)
        if 0 < truth.sum() < len(truth):
            score = probabilities[known, first:].sum(axis=1)
            found[name] = float(roc_auc_score(truth, score))
    return found
