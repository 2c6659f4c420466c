"""Training of the layers behind the maps, many networks at once.

Fine-tuning pulls the weights towards those of the start model: the loss has the term strength *
|w - w_start|^2 (L2-SP; Li, Grandvalet and Davoine 2018, ICML, "Explicit inductive bias for transfer
learning with convolutional networks", equation 3). The strength is chosen on patients who are left
out of the training part in turn; leaving the network as it is is one of the choices. A network that
is trained anew is pulled towards 0 in the same way.

All members, inner folds and strengths are trained in one batch: the optimiser works on each weight
alone, so that this changes no result.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.func import stack_module_state

from common.calibration import fit_temperature
from finetuning.cohort import Cohort
from lfs.loss import range_loss
from painted.network import SignNetwork

UNCHANGED = float("inf")  # the strength of a network that keeps its start weights


@dataclass(frozen=True)
class Tuning:
    """How a network is fine-tuned.

    steps, learning_rate: of Adam with cosine decay, each step on all cases. inner_folds: of the
    training part, to choose the strength with the least calibrated loss. readers: also train the
    layers that read the signs from the maps, not only those from the signs to the stage. decays:
    the strengths for networks that are trained anew.
    """

    steps: int = 150
    learning_rate: float = 0.02
    strengths: tuple[float, ...] = (UNCHANGED, 1.0, 0.1, 0.01, 0.001)
    decays: tuple[float, ...] = (0.01, 0.001, 0.0001)
    inner_folds: int = 4
    readers: bool = False
    seed: int = 0


class Fitted(NamedTuple):
    """Networks trained on a part of the cases, and predictions for all cases.

    logits: float64 [n, 5]; those of the training part are of networks that have not seen the
    patient.
    """

    networks: list[SignNetwork]
    strength: float
    logits: np.ndarray


def fine_tune(
    starts: Sequence[SignNetwork], cohort: Cohort, train: np.ndarray, tuning: Tuning
) -> Fitted:
    """Fine-tune an ensemble on the cases `train` (indices)."""
    return _fit(starts, cohort, train, tuning, pulled=True)


def train_anew(
    starts: Sequence[SignNetwork], cohort: Cohort, train: np.ndarray, tuning: Tuning
) -> Fitted:
    """Train networks with the layers of `starts` and random weights on the cases `train`."""
    torch.manual_seed(tuning.seed)
    networks = [SignNetwork(start.given) for start in starts]
    means = torch.as_tensor(cohort.means[np.isin(cohort.case, train)])
    for network in networks:  # as in painted.fit: the normalisation is set, not trained
        network.separate()
        network.signs[0].running_mean.copy_(means.mean(dim=0))
        network.signs[0].running_var.copy_(means.var(dim=0).clamp(min=1e-12))
    return _fit(networks, cohort, train, tuning, pulled=False)


def logits_of(networks: Sequence[SignNetwork], cohort: Cohort) -> np.ndarray:
    """Logits float64 [n, 5] of an ensemble: means over its members and each case's patches."""
    with torch.no_grad():
        means = torch.as_tensor(cohort.means)
        found = torch.stack([network.eval().of_means(means)[0] for network in networks])
    return _of_cases(found.mean(dim=0), torch.as_tensor(cohort.case)).double().numpy()


def _fit(
    starts: Sequence[SignNetwork], cohort: Cohort, train: np.ndarray, tuning: Tuning, pulled: bool
) -> Fitted:
    batch = _Batch(starts, cohort, tuning, tuning.readers or not pulled, pulled)
    choices = tuning.strengths if pulled else tuning.decays
    strengths = [s for s in choices if s != UNCHANGED]
    parts = cohort.splits(train, tuning.inner_folds, tuning.seed)
    used = np.zeros((len(parts), len(cohort)), np.float32)
    for row, (rest, _) in zip(used, parts):
        row[rest] = 1
    inner = batch.logits(batch.train(used, strengths), len(parts))
    held = np.zeros(inner.shape[1:])
    for found, (_, part) in zip(inner, parts):
        held[:, part] = found[:, part]
    unchanged = logits_of(starts, cohort)
    if UNCHANGED in choices:
        held, strengths = np.concatenate([held, unchanged[None]]), [*strengths, UNCHANGED]
    best = int(np.argmin([_calibrated_loss(each[train], batch.stages[train]) for each in held]))
    if strengths[best] == UNCHANGED:
        return Fitted(list(starts), UNCHANGED, unchanged)
    whole = np.zeros((1, len(cohort)), np.float32)
    whole[0, train] = 1
    networks = batch.networks(batch.train(whole, [strengths[best]]))
    logits = logits_of(networks, cohort)
    logits[train] = held[best, train]
    return Fitted(networks, strengths[best], logits)


def _calibrated_loss(logits: np.ndarray, stages: torch.Tensor) -> float:
    """Loss of logits [n, 5] over the temperature that suits them best.

    A trained file has a temperature of its own; without one, networks that order the cases well,
    but are too certain, would lose to those that are pulled to the same answer for all.
    """
    scaled = logits / fit_temperature(logits, stages.numpy())
    return float(range_loss(torch.as_tensor(scaled), stages))


Weights = dict[str, torch.Tensor]


class _Batch:
    """The trained layers of all members for several jobs (cases to train on) and strengths.

    Their first axis is jobs * strengths * members. everything: from the maps' means on, instead of
    from the signs.
    """

    def __init__(
        self,
        starts: Sequence[SignNetwork],
        cohort: Cohort,
        tuning: Tuning,
        everything: bool,
        pulled: bool,
    ) -> None:
        self.starts, self.tuning = starts, tuning
        self.everything, self.pulled = everything, pulled
        self.stages = torch.as_tensor(cohort.stages)
        self.case = torch.as_tensor(cohort.case)
        self.layers = self._trained(starts[0])
        means = torch.as_tensor(cohort.means)
        with torch.no_grad():
            given = [n.eval().signs[0](means) if everything else n.signs(means) for n in starts]
        self.given = torch.stack(given)
        # Each sign is read from its own maps (SignNetwork.separate).
        first = starts[0]
        masks = {"0.weight": first.own_maps, "2.weight": first.own_readers}
        self.masks = masks if everything else {}

    def train(self, used: np.ndarray, strengths: Sequence[float]) -> Weights:
        """The weights trained on the cases used, float32 [jobs, n], 1 or 0."""
        members = len(self.starts)
        start, _ = stack_module_state([self._trained(network) for network in self.starts])
        repeats = len(used) * len(strengths)
        start = {k: v.detach().repeat(repeats, *[1] * (v.dim() - 1)) for k, v in start.items()}
        goal = start if self.pulled else {k: torch.zeros_like(v) for k, v in start.items()}
        weights = {k: v.clone().requires_grad_() for k, v in start.items()}
        pull = torch.tensor(strengths).repeat_interleave(members).repeat(len(used))
        share = torch.as_tensor(used / used.sum(axis=1, keepdims=True))
        share = share.repeat_interleave(len(strengths) * members, dim=0)
        optimizer = torch.optim.Adam(weights.values(), self.tuning.learning_rate)
        rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.tuning.steps)
        for _ in range(self.tuning.steps):
            optimizer.zero_grad()
            loss = (share * range_loss(self._forward(weights), self.stages, "none")).sum()
            for name, values in weights.items():
                distance = ((values - goal[name]) ** 2).flatten(1).sum(dim=1)
                loss = loss + (pull * distance).sum()
            loss.backward()
            optimizer.step()
            rates.step()
        return {k: v.detach() for k, v in weights.items()}

    def logits(self, weights: Weights, jobs: int) -> np.ndarray:
        """The ensembles' logits, float64 [jobs, strengths, n, 5]."""
        with torch.no_grad():
            found = self._forward(weights)
        members = len(self.starts)
        return found.unflatten(0, (jobs, -1, members)).mean(dim=2).double().numpy()

    def networks(self, weights: Weights) -> list[SignNetwork]:
        """The members with the weights of one job and one strength."""
        networks = copy.deepcopy(list(self.starts))
        for number, network in enumerate(networks):
            self._trained(network).load_state_dict({k: v[number] for k, v in weights.items()})
            if self.everything:
                network.separate()
        return [network.eval() for network in networks]

    def _trained(self, network: SignNetwork) -> nn.Sequential:
        readers = network.signs[1:] if self.everything else []
        return nn.Sequential(*readers, *network.stages)

    def _forward(self, weights: Weights) -> torch.Tensor:
        """Logits [jobs * strengths * members, n, 5]."""
        masked = {k: v * self.masks[k] if k in self.masks else v for k, v in weights.items()}
        repeats = len(next(iter(weights.values()))) // len(self.given)
        x = self.given.repeat(repeats, 1, 1)
        for name, layer in self.layers.named_children():
            if isinstance(layer, nn.Linear):
                weight, bias = masked[f"{name}.weight"], masked[f"{name}.bias"]
                x = torch.baddbmm(bias[:, None], x, weight.transpose(1, 2))
            else:
                x = layer(x)
        return _of_cases(x, self.case)


def _of_cases(logits: torch.Tensor, case: torch.Tensor) -> torch.Tensor:
    """Means [..., n, 5] over the patches [..., p, 5] of each case."""
    count = torch.bincount(case)
    if len(count) == len(case):
        return logits
    sums = logits.new_zeros(*logits.shape[:-2], len(count), logits.shape[-1])
    return sums.index_add(-2, case, logits) / count[:, None]
