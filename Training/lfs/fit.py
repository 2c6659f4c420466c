"""Training of one LFS network: loss, schedule, checkpoints, early stopping, several GPUs.

Imbalance: rare stages are drawn more often than they occur (`data.Draws`). Order of the stages: the
loss uses soft ordinal labels, so that predicting F0 for an F4 costs more than predicting F3.
"""

import os
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import distributed, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from common.files import unfinished
from common.resume import TRAINING_CTS_KEY, UNKNOWN
from lfs.data import Draws, Patches, sections
from lfs.loss import ordinal_loss, range_loss
from lfs.network import SPACING_MM, LFSNetwork
from LiverFibrosisStagingLib.stages import GROUPS, decided, softmax


@dataclass(frozen=True)
class Schedule:
    """Hyperparameters.

    steps, batch, learning_rate: of AdamW with a one-cycle schedule. crop_steps: number of steps at
    the start that use crops of `crop` x `crop` voxels (`data.Draws`). sparsity: weight, after these
    steps, of the target layer's mean absolute activation in the loss; without it, features are
    active everywhere, and Grad-CAM shows the background instead of organs. temper: see
    `data.Draws`. ordinal: soft ordinal labels instead of plain cross-entropy. check_every: steps
    between validations. patience: validations without a lower loss after which training stops; not
    counted during the steps with crops. mixed_precision: bfloat16 on GPUs. It is not used on CPUs,
    where it saves a fifth of the time but can give NaN gradients of convolutions (PyTorch 2.13).
    """

    steps: int = 260
    batch: int = 8
    learning_rate: float = 4e-3
    crop_steps: int = 180
    crop: int = 80
    sparsity: float = 0.4
    temper: float = 0.5
    ordinal: bool = True
    check_every: int = 20
    patience: int = 3
    mixed_precision: bool = True
    seed: int = 0


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
    spacing: tuple[float, float, float] = SPACING_MM,
    workers: int = 1,
    training_cts: Collection[str] = (UNKNOWN,),
) -> LFSNetwork:
    """Train `network` in place and return it with the weights of the lowest validation loss.

    train, validation: prepared cases (`data.prepare`) and their stages [n] or [n, 2]. Resumes from
    RUN/checkpoint.pt if it exists; RUN/log.csv has a line for each validation. training_cts:
    digests of the CTs (`resume`), saved in the checkpoint. Under torchrun each process computes a
    part of every step, on its own GPU if there are any; the first process writes the files.
    """
    run.mkdir(parents=True, exist_ok=True)
    rank, ranks = process()
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu() else torch.device("cpu")
    network.to(device, memory_format=torch.channels_last_3d)
    if ranks > 1 and on_gpu():
        nn.SyncBatchNorm.convert_sync_batchnorm(network)
    trained: nn.Module = _Trained(network)
    if ranks > 1:
        trained = nn.parallel.DistributedDataParallel(trained)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.01)
    progress = _Progress(network, optimizer, run, device, training_cts)
    rates = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, schedule.learning_rate, total_steps=schedule.steps, last_epoch=progress.step - 1
    )
    remaining = range(progress.step, 0 if progress.stopped else schedule.steps)
    draws = Draws(
        train[1],
        remaining,
        schedule.batch,
        schedule.crop_steps,
        schedule.crop,
        schedule.temper,
        schedule.seed,
        rank,
        ranks,
    )
    patches = Patches(train[0], train[1], network.patch_size[0], spacing)
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
    recent: list[float] = []
    bar = tqdm(
        zip(remaining, loader),
        run.name,
        initial=progress.step,
        total=schedule.steps,
        unit="step",
        disable=rank > 0,
    )
    for step, (batch, truth) in bar:
        network.train()
        batch = batch.to(device, memory_format=torch.channels_last_3d, non_blocking=True)
        truth = truth.to(device, non_blocking=True)
        torch.manual_seed(schedule.seed + step)  # dropout
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            logits, activation = trained(batch)
        loss = compute_loss(logits, truth)
        sparsity = 0.0 if step < schedule.crop_steps else schedule.sparsity
        optimizer.zero_grad()
        (loss + sparsity * activation).backward()
        optimizer.step()
        keep_normalisations_positive(network)
        rates.step()
        recent.append(loss.item())
        bar.set_postfix(loss=f"{np.mean(recent[-50:]):.3f}")
        done = step + 1
        on_sections = done > schedule.crop_steps
        if done == schedule.steps or (on_sections and done % schedule.check_every == 0):
            found = case_logits(network, validation[0], device)
            progress.validate(done, float(np.mean(recent)), found, validation[1], schedule, rank)
            recent = []
            if progress.stopped:
                break
        elif done % schedule.check_every == 0 and rank == 0:
            progress.save(done)
    network.load_state_dict(progress.best)
    return network.to("cpu", memory_format=torch.contiguous_format).eval()


class _Progress:
    """State of a run, saved on disk: weights, optimiser, best weights so far, log."""

    def __init__(
        self,
        network: LFSNetwork,
        optimizer: torch.optim.Optimizer,
        run: Path,
        device: torch.device,
        training_cts: Collection[str],
    ) -> None:
        self.network, self.optimizer = network, optimizer
        self.training_cts = sorted(training_cts)
        self.checkpoint, self.log = run / "checkpoint.pt", run / "log.csv"
        self.step, self.lowest, self.waited, self.stopped = 0, float("inf"), 0, False
        self.best: dict[str, torch.Tensor] = {}
        self.began = time.monotonic()
        if self.checkpoint.exists():
            state = torch.load(self.checkpoint, map_location=device, weights_only=True)
            network.load_state_dict(state["network"])
            optimizer.load_state_dict(state["optimizer"])
            for name in ("step", "lowest", "waited", "stopped", "best"):
                setattr(self, name, state[name])
        elif process()[0] == 0:
            columns = ["step", "seconds", "loss", "validation_loss", *GROUPS]
            self.log.write_text(",".join(columns) + "\n", encoding="utf-8")

    def validate(
        self,
        step: int,
        loss: float,
        logits: np.ndarray,
        stages: np.ndarray,
        schedule: Schedule,
        rank: int,
    ) -> None:
        """Compute the validation loss, keep the best weights, write log and checkpoint."""
        compute_loss = ordinal_loss if schedule.ordinal else range_loss
        validation_loss = float(compute_loss(torch.from_numpy(logits), torch.from_numpy(stages)))
        if validation_loss < self.lowest:
            self.lowest, self.waited = validation_loss, 0
            self.best = {k: v.detach().clone() for k, v in self.network.state_dict().items()}
        else:
            self.waited += 1
            self.stopped = self.waited >= schedule.patience
        if rank == 0:
            row = [time.monotonic() - self.began, loss, validation_loss]
            row += aucs(softmax(logits), stages).values()
            with self.log.open("a", encoding="utf-8") as stream:
                print(step, *(f"{value:.4f}" for value in row), sep=",", file=stream)
            self.save(step)

    def save(self, step: int) -> None:
        """Write the checkpoint."""
        self.step = step
        state = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            **{n: getattr(self, n) for n in ("step", "lowest", "waited", "stopped", "best")},
            TRAINING_CTS_KEY: self.training_cts,
        }
        with unfinished(self.checkpoint) as file:
            torch.save(state, file)


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


def on_gpu() -> bool:
    """Whether training runs on a GPU."""
    return torch.cuda.is_available()


def process() -> tuple[int, int]:
    """Rank of this process and number of processes; (0, 1) without torchrun."""
    if not distributed.is_initialized():
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def join_processes() -> None:
    """Under torchrun, initialise the process group; each process has its own GPU, if any."""
    if "WORLD_SIZE" in os.environ and not distributed.is_initialized():
        if on_gpu():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        distributed.init_process_group("nccl" if on_gpu() else "gloo")
