"""Training of one `SignNetwork` per fold of bodies on painted cases.

1. Cases are painted, and the means of their maps are kept: nothing before them is trained.
2. The readers of the signs are trained on these means, those of each fold without its bodies.
3. The layers from signs to stage are trained on drawn patients, which need no CT: signs from
   `insilico.effects`, with the reading errors that the folds' readers make on unseen bodies.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import cohen_kappa_score, roc_auc_score
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from common.files import unfinished
from insilico.effects import draw
from LiverFibrosisStagingLib.stages import GROUPS, STAGES, median_stage
from painted.cases import Source
from painted.data import Pool, scaled_sign
from painted.network import READERS, SIGNS, Input, SignNetwork

Spread = tuple[torch.Tensor, torch.Tensor]
WRITE_EVERY = 25  # cases
# Of a reader's squared weights in the loss. The ratio of the lobes is read from the liver's shape,
# which differs more between bodies than between stages.
PENALTY = {"measured_lsvr": 0.01}


@dataclass(frozen=True)
class Schedule:
    """Hyperparameters.

    versions: of each case, the first as it is, the others with another contrast, noise and errors
    of the masks. reader_steps, stage_steps: of AdamW with a cosine decay. patients: that are drawn
    for the layers from signs to stage. batch: of them in a step.
    """

    versions: int = 2
    reader_steps: int = 600
    stage_steps: int = 1500
    learning_rate: float = 1e-2
    weight_decay: float = 0.01
    patients: int = 50_000
    batch: int = 2000
    seed: int = 0


@dataclass
class Readings:
    """Means of the maps of painted cases.

    means: [cases, versions, maps]; signs: drawn [cases, signs]; stages, bodies: [cases].
    """

    means: np.ndarray
    signs: np.ndarray
    stages: np.ndarray
    bodies: np.ndarray

    def __len__(self) -> int:
        return len(self.stages)


def read_cases(
    source: Source, file: Path, count: int, given: Input, schedule: Schedule
) -> Readings:
    """The readings of `count` cases; kept in `file`, from which an interrupted run resumes."""
    rows: list[tuple] = []
    if file.exists():
        with np.load(file) as kept:
            rows = [*zip(*(kept[key] for key in ("means", "signs", "stages", "bodies")))]
    maps = SignNetwork(given).to(source.device)
    remaining = max(0, count - len(rows))
    for case, body in tqdm(source.take(remaining), "Painting", remaining, unit="case"):
        pool = Pool(1, given, tuple(SIGNS), source.device)
        pool.add(case)
        means = versions(maps, pool, schedule, len(rows))
        signs = pool.signs[0].cpu().numpy()
        rows.append((means, signs, int(pool.stages[0]), body))
        if len(rows) % WRITE_EVERY == 0 or len(rows) == count:
            _write(file, rows)
    return Readings(*(np.stack(column) for column in zip(*rows[:count])))


def versions(network: SignNetwork, pool: Pool, schedule: Schedule, number: int) -> np.ndarray:
    """Means of the maps [versions, maps] of the only case in `pool`."""
    device, found = pool.device, []
    for version in range(schedule.versions):
        generator = None
        if version:
            seed = np.random.SeedSequence([schedule.seed, number, version]).generate_state(1)[0]
            generator = torch.Generator(device).manual_seed(int(seed))
        with torch.no_grad():
            features = network.features(pool.inputs(np.array([0]), generator))
        found.append(features.mean(dim=(0, 2, 3, 4)).cpu().numpy())
    return np.stack(found)


def _write(file: Path, rows: Sequence[tuple]) -> None:
    means, signs, stages, bodies = (np.stack(column) for column in zip(*rows))
    file.parent.mkdir(parents=True, exist_ok=True)
    with unfinished(file) as partial, partial.open("wb") as stream:
        np.savez(stream, means=means, signs=signs, stages=stages, bodies=bodies)


def fit(
    readings: Readings, held: Sequence[Sequence[int]], given: Input, schedule: Schedule
) -> tuple[list[SignNetwork], Spread]:
    """A network for each fold, which has not seen the bodies that it holds out; and the signs'
    mean and standard deviation, in which they are read.
    """
    signs = torch.as_tensor(readings.signs, dtype=torch.float32)
    spread = signs.mean(dim=0), signs.std(dim=0).clamp(min=1e-3)
    truth = (signs - spread[0]) / spread[1]
    networks = []
    read = torch.zeros_like(truth)
    for fold, bodies in enumerate(held):
        unseen = torch.as_tensor(np.isin(readings.bodies, list(bodies)))
        torch.manual_seed(schedule.seed + fold)
        network = SignNetwork(given)
        means = torch.as_tensor(readings.means, dtype=torch.float32)
        _fit_readers(network, means[~unseen], truth[~unseen], schedule)
        with torch.no_grad():
            read[unseen] = network.signs(means[unseen, 0])
        networks.append(network)
    for fold, (network, bodies) in enumerate(zip(networks, held)):
        seen = torch.as_tensor(~np.isin(readings.bodies, list(bodies)))
        drawn, stages = drawn_readings(read[seen], truth[seen], spread, schedule, fold)
        _fit_stages(network, drawn, stages, schedule, fold)
    return networks, spread


def _fit_readers(
    network: SignNetwork, means: torch.Tensor, truth: torch.Tensor, schedule: Schedule
) -> None:
    """means: [cases, versions, maps]; each step takes another version of each case."""
    norm, readers = network.signs[0], network.signs[1:]
    every = means.flatten(0, 1)
    norm.running_mean.copy_(every.mean(dim=0))
    norm.running_var.copy_(every.var(dim=0))
    network.eval()  # the normalisation stays as it is
    norm.requires_grad_(False)
    cases = torch.arange(len(means))
    penalty = torch.tensor([PENALTY.get(name, 0.0) for name in SIGNS]).repeat_interleave(READERS)

    def loss() -> torch.Tensor:
        chosen = means[cases, torch.randint(means.shape[1], (len(means),))]
        size = (readers[0].weight ** 2).sum(dim=1) + (readers[2].weight ** 2).sum(dim=0)
        return functional.smooth_l1_loss(network.signs(chosen), truth) + penalty @ size

    _minimise(loss, readers, schedule.reader_steps, schedule, network.separate)


def drawn_readings(
    read: torch.Tensor, truth: torch.Tensor, spread: Spread, schedule: Schedule, fold: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Readings [patients, signs] of drawn patients, and their stages.

    read, truth: signs as read and as drawn of cases with unseen bodies [cases, signs]. A reading is
    a linear function of the sign, and the errors of one of these cases are added.
    """
    rng = np.random.default_rng([schedule.seed, fold])
    slope = ((read - read.mean(dim=0)) * (truth - truth.mean(dim=0))).mean(dim=0)
    slope = slope / truth.var(dim=0, correction=0).clamp(min=1e-6)  # 0 for a sign that none has
    offset = read.mean(dim=0) - slope * truth.mean(dim=0)
    errors = read - (offset + slope * truth)
    stages = rng.integers(len(STAGES), size=schedule.patients)
    rows = []
    for stage in stages.tolist():
        signs = draw(stage, rng)
        drawn = (getattr(signs, name.removeprefix("measured_")) for name in SIGNS)
        rows.append([scaled_sign(name, value) for name, value in zip(SIGNS, drawn)])
    values = (torch.tensor(rows, dtype=torch.float32) - spread[0]) / spread[1]
    chosen = torch.as_tensor(rng.integers(len(errors), size=len(values)))
    return offset + slope * values + errors[chosen], torch.as_tensor(stages)


def _fit_stages(
    network: SignNetwork,
    readings: torch.Tensor,
    stages: torch.Tensor,
    schedule: Schedule,
    fold: int,
) -> None:
    generator = torch.Generator().manual_seed(schedule.seed + fold)

    def loss() -> torch.Tensor:
        chosen = torch.randint(len(readings), (schedule.batch,), generator=generator)
        return ordered_loss(network.stages(readings[chosen]), stages[chosen])

    _minimise(loss, network.stages, schedule.stage_steps, schedule)


def _minimise(
    loss: Callable[[], torch.Tensor],
    layers: nn.Module,
    steps: int,
    schedule: Schedule,
    after: Callable[[], None] = lambda: None,
) -> None:
    optimizer = torch.optim.AdamW(
        layers.parameters(), schedule.learning_rate, weight_decay=schedule.weight_decay
    )
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        value = loss()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        after()
    if not math.isfinite(float(value.detach())):
        raise FloatingPointError(f"The loss is {float(value.detach())} after {steps} steps.")


def ordered_loss(logits: torch.Tensor, stages: torch.Tensor) -> torch.Tensor:
    """Mean over the four cumulative links of the cross-entropy of P(stage >= k).

    A cumulative probability is the sum of the softmax's. Its minimum puts the median, not the most
    frequent stage, at the right place. logits [N, 5], stages [N].
    """
    total = logits.logsumexp(dim=1)
    loss = logits.new_zeros(len(logits))
    for k in range(1, logits.shape[1]):
        above = logits[:, k:].logsumexp(dim=1) - total
        below = logits[:, :k].logsumexp(dim=1) - total
        loss = loss - torch.where(stages >= k, above, below)
    return loss.mean() / (logits.shape[1] - 1)


def unseen(
    networks: Sequence[SignNetwork], held: Sequence[Sequence[int]], readings: Readings
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities [cases, 5] and signs of the folds' held-out cases, as they are painted."""
    means = torch.as_tensor(readings.means[:, 0], dtype=torch.float32)
    probabilities, signs = (
        torch.zeros(len(readings), len(STAGES)),
        torch.zeros(len(means), len(SIGNS)),
    )
    for network, bodies in zip(networks, held):
        chosen = torch.as_tensor(np.isin(readings.bodies, list(bodies)))
        with torch.no_grad():
            logits, signs[chosen] = network.eval().of_means(means[chosen])
        probabilities[chosen] = logits.softmax(dim=1)
    return probabilities.numpy(), signs.numpy()


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
    said = median_stage(probabilities)
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
