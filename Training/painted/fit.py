"""Training of one network per fold on painted cases, all folds at once from one pool.

Folds leave bodies out. A case is painted once and used by every fold that does not leave its body
out, so that the cases of a fold's bodies are unseen by its network.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import cohen_kappa_score, roc_auc_score
from torch import nn
from torch.nn import functional

from common.files import unfinished
from LiverFibrosisStagingLib.stages import GROUPS
from painted.cases import Source
from painted.data import Batch, Pool
from painted.network import OrganNetwork, near

Spread = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Schedule:
    """Hyperparameters.

    steps, batch, learning_rate, weight_decay: of AdamW with a warm-up and a cosine decay. seconds:
    time, with that of the first cases, after which the decay ends even if fewer steps were made; 0
    for no limit. sign_weight: of the signs' error in the loss. far_weight: of the mean activation
    farther than 8 to 16 mm from the organs, without masks as channels. painting: share of the time
    in which the training process paints further cases. check_every: steps between looks at unseen
    bodies, which are only logged, and checkpoints. recalibration: batches for the batch
    normalisations' statistics.
    """

    steps: int = 1500
    batch: int = 24
    learning_rate: float = 3e-3
    weight_decay: float = 0.02
    seconds: float = 0.0
    sign_weight: float = 1.0
    far_weight: float = 6.0
    painting: float = 0.4
    check_every: int = 100
    recalibration: int = 10
    seed: int = 0


def ordered_loss(logits: torch.Tensor, stages: torch.Tensor) -> torch.Tensor:
    """Mean over the four cumulative links of the cross-entropy of P(stage >= k).

    A cumulative probability is the sum of the softmax's. Its minimum puts the median, not the most
    frequent stage, at the right place. logits [N, 5], stages [N].
    """
    logits = logits.float()
    total = logits.logsumexp(dim=1)
    loss = logits.new_zeros(len(logits))
    for k in range(1, logits.shape[1]):
        above = logits[:, k:].logsumexp(dim=1) - total
        below = logits[:, :k].logsumexp(dim=1) - total
        loss = loss - torch.where(stages >= k, above, below)
    return loss.mean() / (logits.shape[1] - 1)


def sign_loss(found: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Mean smooth absolute error of the signs that are known (not NaN)."""
    known = torch.isfinite(truth)
    return functional.smooth_l1_loss(found.float()[known], truth[known])


def total_loss(network: OrganNetwork, batch: Batch, schedule: Schedule, half: bool) -> torch.Tensor:
    """Loss of one batch. half: bfloat16 for the convolutions."""
    x = batch.x.contiguous(memory_format=torch.channels_last_3d)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=half):
        features = network.features(x)
        logits, signs = network.outputs(features, x)
    loss = ordered_loss(logits, batch.stages)
    loss = loss + schedule.sign_weight * sign_loss(signs, batch.signs)
    if schedule.far_weight and not network.given.masked:
        far = 1 - near(batch.masks)
        loss = loss + schedule.far_weight * (features.float().abs() * far).mean()
    return loss


class Training:
    """The folds' networks in training; resumes from RUN/checkpoint.pt if it exists.

    pool: empty. held: bodies that each fold leaves out. source: of the cases, `first` of them
    before the first step. make: an untrained network. start_from: checkpoint.pt of another run with
    the same bodies left out, whose weights are the initial ones.
    """

    def __init__(
        self,
        run: Path,
        pool: Pool,
        held: Sequence[Sequence[int]],
        source: Source,
        make: Callable[[], OrganNetwork],
        schedule: Schedule,
        first: int,
        start_from: Path | None = None,
    ) -> None:
        self.run, self.pool, self.source, self.schedule = run, pool, source, schedule
        self.held = [list(bodies) for bodies in held]
        self.step, self.elapsed, self._painting = 0, 0.0, 0.0
        started = time.monotonic()
        self.networks = []
        for fold in range(len(self.held)):
            torch.manual_seed(schedule.seed + fold)
            self.networks.append(make().to(pool.device, memory_format=torch.channels_last_3d))
        self.optimizers = [
            torch.optim.AdamW(network.parameters(), weight_decay=schedule.weight_decay)
            for network in self.networks
        ]
        self.checkpoint, self.log = run / "checkpoint.pt", run / "log.csv"
        run.mkdir(parents=True, exist_ok=True)
        resumed = self.checkpoint.exists()
        if resumed:
            self._restore()
        elif start_from is not None:
            self._load(start_from)
        self._began = started - self.elapsed
        for case, body in source.take(first, wait=True):
            pool.add(case, body)
        if not resumed:
            if start_from is None:
                self.spread: Spread = pool.spread()
            names = ("step", "seconds", "painted", "loss", *GROUPS, "kappa", "middle", "signs")
            self.log.write_text(",".join(names) + "\n", encoding="utf-8")

    def fit(self) -> None:
        """Train to the schedule's end."""
        schedule, began = self.schedule, self._began
        half = self.pool.device.type == "cuda"
        recent: list[torch.Tensor] = []
        while (part := self._part(time.monotonic() - began)) < 1:
            self._refresh(time.monotonic() - began)
            rate = schedule.learning_rate * _rate(part)
            for fold, (network, optimizer) in enumerate(zip(self.networks, self.optimizers)):
                batch = self._batch(fold, schedule.batch)
                torch.manual_seed(schedule.seed + self.step)  # dropout
                network.train()
                loss = total_loss(network, batch, schedule, half)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(network.parameters(), 5.0)
                optimizer.step()
                recent.append(loss.detach())
            if self.pool.device.type == "cuda":
                torch.cuda.synchronize()  # so that the time is that of the step
            self.step += 1
            self.elapsed = time.monotonic() - began
            if self.step % schedule.check_every == 0 or self._part(self.elapsed) >= 1:
                mean = float(torch.stack(recent).mean())
                if not np.isfinite(mean):
                    raise FloatingPointError(f"The loss is {mean} at step {self.step}.")
                recent = []
                self.look(mean)

    def _refresh(self, elapsed: float) -> None:
        """Add the cases that are ready, and paint for the schedule's share of the time."""
        began = time.monotonic()
        for case, body in self.source.take(len(self.pool.bodies)):
            self.pool.add(case, body)
        while self._painting + time.monotonic() - began < self.schedule.painting * elapsed:
            for case, body in self.source.take(1, wait=True):
                self.pool.add(case, body)
            if self.pool.device.type == "cuda":
                torch.cuda.synchronize()
        self._painting += time.monotonic() - began

    def look(self, loss: float) -> dict[str, float]:
        """Recalibrate, measure the networks on their unseen bodies, log and save."""
        for fold in range(len(self.held)):
            self.recalibrate(fold)
        found = measures(*self.unseen())
        row = [self.step, self.elapsed, self.pool.added, loss, *found.values()]
        with self.log.open("a", encoding="utf-8") as stream:
            print(*(f"{value:.4g}" for value in row), sep=",", file=stream)
        print(*(f"{k} {v:.3f}" for k, v in found.items()), f"step {self.step} loss {loss:.3f}")
        self.save()
        return found

    def recalibrate(self, fold: int) -> None:
        """Batch normalisation statistics from training cases, with the present weights.

        Running averages lag behind the weights: before this, 55 of 60 cases were F0.
        """
        network = self.networks[fold]
        layers = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        kept = [layer.momentum for layer in layers]
        network.eval()
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # cumulative average
            layer.train()
        with torch.no_grad():
            for _ in range(self.schedule.recalibration):
                network(self._batch(fold, self.schedule.batch).x)
        for layer, momentum in zip(layers, kept):
            layer.momentum = momentum
        network.eval()

    def unseen(self, at_most: int = 120) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Probabilities, stages, signs found and signs drawn of the folds' unseen cases."""
        parts = []
        for network, bodies in zip(self.networks, self.held):
            places = self.pool.of_bodies(bodies)[-at_most:]
            network.eval()
            for chosen in np.array_split(places, max(1, len(places) // self.schedule.batch)):
                if not len(chosen):
                    continue
                batch = self.pool.batch(chosen, self.spread)
                with torch.no_grad():
                    logits, signs = network(batch.x)
                parts.append((logits.softmax(dim=1), batch.stages, signs, batch.signs))
        return tuple(torch.cat(part).float().cpu().numpy() for part in zip(*parts))

    def save(self) -> None:
        """Write the checkpoint."""
        state = {
            "networks": [network.state_dict() for network in self.networks],
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "spread": self.spread,
            "signs": self.pool.names,
            "held": self.held,
            "step": self.step,
            "elapsed": self.elapsed,
            "taken": self.source.taken,
        }
        with unfinished(self.checkpoint) as file:
            torch.save(state, file)

    def _load(self, checkpoint: Path) -> dict[str, Any]:
        """Weights and the signs' scale of a checkpoint with the same folds; returns its content."""
        state = torch.load(checkpoint, map_location=self.pool.device, weights_only=True)
        for network, weights in zip(self.networks, state["networks"], strict=True):
            network.load_state_dict(weights)
        self.spread = tuple(state["spread"])
        return state

    def _restore(self) -> None:
        state = self._load(self.checkpoint)
        for optimizer, moments in zip(self.optimizers, state["optimizers"]):
            optimizer.load_state_dict(moments)
        self.step, self.elapsed = state["step"], state["elapsed"]

    def _part(self, elapsed: float) -> float:
        """How much of the schedule is done, 0..1."""
        limit = self.schedule.seconds
        return max(self.step / self.schedule.steps, elapsed / limit if limit else 0.0)

    def _batch(self, fold: int, size: int) -> Batch:
        """Augmented training cases of a fold; the painter draws stages with equal frequency."""
        rng = np.random.default_rng([self.schedule.seed, self.step, fold, size])
        others = sorted({*self.pool.bodies[: len(self.pool)].tolist()} - {*self.held[fold]})
        places = rng.choice(self.pool.of_bodies(others), size)
        generator = torch.Generator(self.pool.device).manual_seed(int(rng.integers(2**31)))
        return self.pool.batch(places, self.spread, generator)


def cases_taken(run: Path) -> int:
    """How many cases an interrupted run has taken; 0 for a new one."""
    checkpoint = run / "checkpoint.pt"
    if not checkpoint.exists():
        return 0
    return int(torch.load(checkpoint, map_location="cpu", weights_only=True)["taken"])


def _rate(part: float, warm_up: float = 0.05) -> float:
    if part < warm_up:
        return (part + 0.01) / (warm_up + 0.01)
    return 0.5 * (1 + math.cos(math.pi * (part - warm_up) / (1 - warm_up))) + 1e-3


def medians(probabilities: np.ndarray) -> np.ndarray:
    """The median stage of each row: the first with a cumulative probability of at least 1/2."""
    return (np.cumsum(probabilities, axis=1) < 0.5 - 1e-9).sum(axis=1)


def measures(
    probabilities: np.ndarray, stages: np.ndarray, signs: np.ndarray, drawn: np.ndarray
) -> dict[str, float]:
    """AUC of each group, quadratic kappa, middle stages found, mean correlation of the signs."""
    found = {}
    for name, first in GROUPS.items():
        truth = stages >= first
        both = 0 < truth.sum() < len(truth)
        score = probabilities[:, first:].sum(axis=1)
        found[name] = float(roc_auc_score(truth, score)) if both else float("nan")
    said = medians(probabilities)
    found["kappa"] = float(cohen_kappa_score(said, stages.astype(int), weights="quadratic"))
    middle = (stages > 0) & (stages < 4)
    found["middle"] = float(((said > 0) & (said < 4))[middle].mean()) if middle.any() else 0.0
    found["signs"] = float(np.nanmean(correlations(signs, drawn)))
    return found


def correlations(signs: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Pearson's r of each sign over the cases where it is known; NaN for fewer than three."""
    found = []
    for ours, truth in zip(signs.T, drawn.T):
        known = np.isfinite(truth)
        varies = known.sum() > 2 and truth[known].std() > 0 and ours[known].std() > 0
        found.append(np.corrcoef(ours[known], truth[known])[0, 1] if varies else np.nan)
    return np.array(found)
