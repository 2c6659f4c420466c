"""Measures on painted cases of unseen bodies: stages, signs, location maps, counterfactuals.

Each case goes to the network of the fold that left its body out.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn import functional

from common.calibration import fit_temperature
from common.files import write_text
from common.tables import write_csv
from insilico.effects import Signs, log_likelihoods
from insilico.paint import Painter
from LiverFibrosisStagingLib.card import Checks
from LiverFibrosisStagingLib.explanation_check import ORGANS, SURROUNDINGS, TEXTURE, movement
from LiverFibrosisStagingLib.imaging.changes import CORE_MM, FAT_HU
from LiverFibrosisStagingLib.stages import GROUPS, RESEARCH_USE
from painted.cases import HELD_SEED
from painted.data import Pool, disturbed, network_input, smoothed, widened
from painted.fit import Spread, correlations, measures
from painted.maps import LIVER_HU, SCALE
from painted.network import SPACING_MM, Input, SignNetwork

STAGES = np.arange(5)
AROUND_MM = 10.0  # of the liver: the region in which its surface is explained
CORE = tuple(round(CORE_MM / s) for s in SPACING_MM)


@dataclass
class Found:
    """Results by case, in one order. Arrays are [cases, ...]."""

    truth: list[dict[str, float]] = field(default_factory=list)
    body: list[int] = field(default_factory=list)
    probabilities: list[np.ndarray] = field(default_factory=list)
    signs: list[np.ndarray] = field(default_factory=list)
    drawn: list[np.ndarray] = field(default_factory=list)
    features: list[np.ndarray] = field(default_factory=list)
    shares: list[dict[str, float]] = field(default_factory=list)
    changed: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def stages(self) -> np.ndarray:
        """Painted stage of each case."""
        return np.array([int(truth["stage"]) for truth in self.truth])

    def expected(self) -> np.ndarray:
        """Expected stage of each case."""
        return np.stack(self.probabilities) @ STAGES


def examine(
    networks: Sequence[SignNetwork],
    held: Sequence[Sequence[int]],
    painter: Painter,
    names: Sequence[str],
    spread: Spread,
    per_body: int,
    stage: int | None = None,
    only: Sequence[str] | None = None,
    first_seed: int = HELD_SEED,
) -> Found:
    """Paint `per_body` cases into every held-out body and measure its fold's network on them.

    stage, only: as for `Painter.case`. The same seeds give the same patients in every stage.
    """
    found, device = Found(), painter.device
    for network, bodies in zip(networks, held):
        network.eval()
        for body in bodies:
            pool = Pool(per_body, network.given, names, device)
            for seed in range(first_seed, first_seed + per_body):
                case = painter.case(seed, body, stage, only, SPACING_MM)
                pool.add(case)
                found.truth.append(case.truth)
                found.body.append(body)
            for chosen in np.array_split(np.arange(per_body), -(-per_body // 8)):
                _measure(network, pool, chosen, spread, found)
    return found


def _measure(
    network: SignNetwork, pool: Pool, chosen: np.ndarray, spread: Spread, found: Found
) -> None:
    hu, masks = pool.volumes(chosen)
    x = network_input(hu, masks, network.given)
    with torch.no_grad():
        logits, signs = network(x)
    found.probabilities += [*logits.softmax(dim=1).cpu().numpy()]
    found.signs += [*signs.cpu().numpy()]
    drawn = (pool.signs[torch.as_tensor(chosen, device=pool.device)] - spread[0]) / spread[1]
    found.drawn += [*drawn.cpu().numpy()]
    found.features += [organ_features(h[0], m) for h, m in zip(hu, masks)]
    found.shares += map_shares(network, x, masks)
    generator = torch.Generator(pool.device).manual_seed(int(chosen[0]))
    for name, change in COUNTERFACTUALS.items():
        with torch.no_grad():
            logits, _ = network(change(hu, masks, network.given, generator))
        found.changed.setdefault(name, []).extend(logits.softmax(dim=1).cpu().numpy())


# ------------------------------------------------------------------------------- counterfactuals

Change = Callable[[torch.Tensor, torch.Tensor, Input, torch.Generator], torch.Tensor]


def _surroundings(
    hu: torch.Tensor, masks: torch.Tensor, given: Input, _: torch.Generator
) -> torch.Tensor:
    near = widened(masks.amax(dim=1, keepdim=True), (1, 1, 1))
    return network_input(torch.where(near > 0, hu, FAT_HU), masks, given)


def _blanked(
    hu: torch.Tensor, masks: torch.Tensor, given: Input, _: torch.Generator
) -> torch.Tensor:
    near = widened(masks.amax(dim=1, keepdim=True), (1, 1, 1))
    return network_input(torch.where(near > 0, FAT_HU, hu), torch.zeros_like(masks), given)


def _texture(
    hu: torch.Tensor, masks: torch.Tensor, given: Input, _: torch.Generator
) -> torch.Tensor:
    core = -widened(-masks[:, :1], CORE)
    return network_input(torch.where(core > 0, LIVER_HU, hu), masks, given)


def _vnet(
    hu: torch.Tensor, masks: torch.Tensor, given: Input, generator: torch.Generator
) -> torch.Tensor:
    return network_input(hu, disturbed(masks, generator), given)


def _no_spleen(
    hu: torch.Tensor, masks: torch.Tensor, given: Input, _: torch.Generator
) -> torch.Tensor:
    return network_input(hu, torch.cat([masks[:, :1], 0 * masks[:, 1:]], dim=1), given)


# The names that the library has too are the same changes, there of CTs.
COUNTERFACTUALS: dict[str, Change] = {
    SURROUNDINGS: _surroundings,
    ORGANS: _blanked,
    TEXTURE: _texture,
    "masks with errors": _vnet,
    "no spleen mask": _no_spleen,
}


# ------------------------------------------------------------------------------- location maps


def map_shares(
    network: SignNetwork, x: torch.Tensor, masks: torch.Tensor
) -> list[dict[str, float]]:
    """Share of the Grad-CAM map by region, of the expected stage and of the likeliest stage."""
    with torch.no_grad():
        features = network.features(x)
    features.requires_grad_()
    logits, _ = network.outputs(features)
    stages = torch.arange(5, device=x.device, dtype=logits.dtype)
    scores = {"expected": logits.softmax(dim=1) @ stages, "likeliest": logits.amax(dim=1)}
    around = widened(masks[:, :1], [int(AROUND_MM / s) for s in SPACING_MM])
    organs = torch.cat([masks, torch.maximum(around, masks[:, 1:])], dim=1)
    regions = functional.avg_pool3d(organs, SCALE)
    found: list[dict[str, float]] = [{} for _ in x]
    for name, score in scores.items():
        (gradient,) = torch.autograd.grad(score.sum(), features, retain_graph=True)
        weights = gradient.mean(dim=(2, 3, 4), keepdim=True)
        location = (weights * features).sum(dim=1, keepdim=True).relu().detach()
        total = location.sum(dim=(1, 2, 3, 4))
        shares = (location * regions).sum(dim=(2, 3, 4)) / total[:, None]
        for case, (liver, spleen, about) in zip(found, shares.tolist()):
            case |= {f"{name} liver": liver, f"{name} spleen": spleen, f"{name} organs": about}
    return found


# ------------------------------------------------------------------------------- baseline


def organ_features(hu: torch.Tensor, masks: torch.Tensor) -> np.ndarray:
    """Seven measured signs of one case: volumes, left part, texture in two bands, surface, shape.

    hu: [slices, rows, columns]; masks [2, ...].
    """
    liver, spleen = masks
    voxel = float(np.prod(SPACING_MM)) / 1000
    volume = float(liver.sum()) * voxel + 1
    columns = liver.sum(dim=(0, 1))
    where = torch.nonzero(columns)[:, 0]
    middle = int((where.min() + where.max()) / 2)
    left = float(columns[middle:].sum()) * voxel / volume
    core = -widened(-liver[None, None], CORE)[0, 0] > 0
    bands = [
        float((smoothed(hu, a) - smoothed(hu, b))[core].std() + 1e-3)
        for a, b in ((1.5, 4.0), (4.0, 8.0))
    ]
    soft = smoothed(liver, 6.0)
    differs = float(((soft > 0.5) != (liver > 0.5)).sum())
    inner = -widened(-liver[None, None], (1, 1, 1))[0, 0]
    border = float((liver - inner).sum()) + 1
    values = [
        np.log(volume),
        np.log(float(spleen.sum()) * voxel + 10),
        left,
        *np.log(bands),
        differs / border,
        np.log(border) - 2 / 3 * np.log(volume),
    ]
    return np.array(values, np.float64)


def baseline(found: Found, held: Sequence[Sequence[int]]) -> np.ndarray:
    """Probabilities [cases, 5] of a logistic regression on `organ_features`, bodies left out."""
    features, body = np.stack(found.features), np.array(found.body)
    stages = found.stages()
    probabilities = np.zeros((len(body), 5))
    for bodies in held:
        test = np.isin(body, bodies)
        if len(np.unique(stages[~test])) < 2:  # nothing to learn from so few cases
            probabilities[test] = 0.2
            continue
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        model.fit(features[~test], stages[~test])
        probabilities[np.ix_(test, model[-1].classes_)] = model.predict_proba(features[test])
    return probabilities


def ceiling(found: Found) -> np.ndarray:
    """Probabilities [cases, 5] by the drawn signs' own distributions."""
    signs = [Signs(**{key: t[key] for key in Signs._fields}) for t in found.truth]
    log = log_likelihoods(signs)
    likelihood = np.exp(log - log.max(axis=1, keepdims=True))
    return likelihood / likelihood.sum(axis=1, keepdims=True)


# ------------------------------------------------------------------------------- summary


def report(
    networks: Sequence[SignNetwork],
    held: Sequence[Sequence[int]],
    painter: Painter,
    names: Sequence[str],
    spread: Spread,
    folder: Path,
    per_body: int,
    pairs: int,
) -> dict[str, Any]:
    """Measure, and write metrics.json and cases.csv; returns the metrics.

    per_body: cases per body. pairs: patients per body that are painted as F0 and as F4.
    """
    common = networks, held, painter, names, spread
    found = examine(*common, per_body)
    metrics = {"research_use": RESEARCH_USE, **summary(found, names)}
    metrics["logistic_regression"] = _measures(baseline(found, held), found)
    metrics["drawn_signs"] = _measures(ceiling(found), found)
    scores = np.log(np.maximum(found.probabilities, 1e-12))
    metrics["temperature"] = fit_temperature(scores, found.stages())
    folder.mkdir(parents=True, exist_ok=True)
    _write_cases(found, [body.name for body in painter.bodies], folder / "cases.csv")
    write_text(folder / "metrics.json", json.dumps(metrics, indent=1) + "\n")
    if pairs:
        low, high = (
            examine(*common, pairs, stage=stage, first_seed=2 * HELD_SEED).expected()
            for stage in (0, 4)
        )
        change = high - low
        metrics["same_patient_f0_to_f4"] = {
            "patients": len(change),
            "mean": float(change.mean()),
            "rising": float((change > 0).mean()),
        }
        write_text(folder / "metrics.json", json.dumps(metrics, indent=1) + "\n")
    return metrics


def summary(found: Found, names: Sequence[str]) -> dict[str, Any]:
    """The networks' results as plain numbers."""
    stages, expected = found.stages(), found.expected()
    changes = {}
    for name, rows in found.changed.items():
        moved = np.stack(rows) @ STAGES - expected
        of_groups = _measures(np.stack(rows), found)
        changes[name] = movement(moved) | {group: of_groups[group] for group in GROUPS}
    low = expected < 1.5
    shares = {}
    for key in found.shares[0]:
        values = np.array([share[key] for share in found.shares])
        shares[key] = {"median": float(np.nanmedian(values)), "lowest": float(np.nanmin(values))}
        if low.any():
            shares[key]["median_below_1.5"] = float(np.nanmedian(values[low]))
    signs = correlations(np.stack(found.signs), np.stack(found.drawn))
    return {
        "cases": len(stages),
        "network": _measures(np.stack(found.probabilities), found),
        "expected_by_stage": [float(expected[stages == s].mean()) for s in STAGES],
        "signs_r": dict(zip(names, map(float, signs))),
        "map_shares": shares,
        "counterfactuals": changes,
    }


def model_checks(metrics: Mapping[str, Any]) -> Checks:
    """The entry `checks` of a model's metadata, from the `summary` of its networks."""
    moved = {
        name: {key: change[key] for key in movement([0.0])}
        for name, change in metrics["counterfactuals"].items()
    }
    return {"source": f"{metrics['cases']} cases painted into unseen bodies", "moved": moved}


def _measures(probabilities: np.ndarray, found: Found) -> dict[str, float]:
    measured = measures(probabilities, found.stages(), np.stack(found.signs), np.stack(found.drawn))
    measured.pop("signs")  # those of the network
    return measured


def _write_cases(found: Found, bodies: Sequence[str], path: Path) -> None:
    keys = list(found.truth[0])
    rows: list[Sequence[object]] = [["body", *keys, *(f"p_F{s}" for s in STAGES), "expected"]]
    for truth, body, p, expected in zip(
        found.truth, found.body, found.probabilities, found.expected()
    ):
        values = [*truth.values(), *p.tolist(), expected]
        rows.append([bodies[body], *np.round(values, 4).tolist()])
    write_csv(path, rows)
