"""Location maps against a known truth: cases into which a single sign of F4 is painted.

The same patient is painted as F0 and with one sign of F4. The truth is the region that differs; the
measure is the density of the map in it over the density in the rest of liver and spleen. Networks
are those of the folds, on bodies that they have not seen; the control has the same maps and
normalisation, and untrained weights from the maps to the stage. A network is one observation: cases
of one network are not independent, and no p-values are given.
"""

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from common.files import write_text
from common.tables import write_csv
from insilico.paint import Case, Painter
from LiverFibrosisStagingLib.stages import RESEARCH_USE
from painted.cases import HELD_SEED
from painted.data import cut, network_input, smoothed
from painted.maps import LIVER_HU, SCALE
from painted.network import SPACING_MM, Input, SignNetwork

FIRST_SEED = 3 * HELD_SEED  # patients of no other measurement
SURFACE_MM = (6.0, 4.0)  # of the liver's shell, inside and outside
SIGNS = ("texture", "surface", "spleen", "lobes")
SCORES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "expected": lambda z: z.softmax(dim=1) @ torch.arange(5, device=z.device, dtype=z.dtype),
    "likeliest": lambda z: z.amax(dim=1),
    "F4": lambda z: z[:, 4],
}
MAPS = ("F4", "F4 - F0")
MOST = 1000.0  # ratio that is told
NETWORKS = ("trained", "untrained")


class Ratio(NamedTuple):
    """The maps of one patient.

    fold: of the network; moved: expected stage of F4 minus F0. ratio: density of the map in the
    sign's region over that in the rest of liver and spleen; surface_to_core: density in the liver's
    shell over its core. NaN where a map is empty.
    """

    sign: str
    network: str
    fold: int
    body: str
    seed: int
    score: str
    map: str
    moved: float
    ratio: float
    surface_to_core: float


def single_signs(
    networks: Sequence[SignNetwork],
    held: Sequence[Sequence[int]],
    painter: Painter,
    per_body: int,
) -> list[Ratio]:
    """`Ratio`s of `per_body` patients in every held-out body, for each of the SIGNS."""
    found = []
    bodies = [(fold, body) for fold, part in enumerate(held) for body in part]
    for fold, body in tqdm(bodies, "Single signs", unit="body"):
        name, given = painter.bodies[body].name, networks[fold].given
        for seed in range(FIRST_SEED, FIRST_SEED + per_body):
            healthy = painter.case(seed, body, 0, spacing=SPACING_MM)
            for sign in SIGNS:
                case = painter.case(seed, body, 4, {sign}, SPACING_MM)
                hu, masks = same_field([case, healthy], given)
                x = network_input(hu, masks, given)
                about = regions(masks[0], case.truth["measured_lsvr"])
                region = torch.stack([about[sign], rest(masks[0], about[sign])])
                shell = torch.stack([about["surface"], about["texture"]])
                control = untrained(networks[fold], fold)
                for kind, network in zip(NETWORKS, (networks[fold].eval(), control)):
                    maps, moved = _maps(network, x)
                    for (score, which), location in maps.items():
                        ratios = (_ratio(location, region), _ratio(location, shell))
                        key = sign, kind, fold, name, seed, score, which
                        found.append(Ratio(*key, moved, *ratios))
    return found


def same_field(cases: Sequence[Case], given: Input) -> tuple[torch.Tensor, torch.Tensor]:
    """HU [N, 1, ...] and masks [N, 2, ...] of cases of one patient, as for `network_input`.

    All have the field about the first one's organs.
    """
    places = torch.nonzero(cases[0].liver | cases[0].spleen)
    middle = (places.amin(dim=0) + places.amax(dim=0) + 1) / 2
    start = [round(m - n / 2) for m, n in zip(middle.tolist(), given.patch_size)]
    hu, masks = [], []
    for case in cases:
        volume = smoothed(case.hu.float(), given.smoothing_mm)
        volume = volume + (LIVER_HU - volume[case.liver].median())
        hu.append(cut(volume, start, given.patch_size, given.fill_hu))
        organs = (case.liver, case.spleen & ~case.liver)
        masks.append(torch.stack([cut(o.float(), start, given.patch_size, 0) for o in organs]))
    return torch.stack(hu)[:, None], torch.stack(masks)


def regions(masks: torch.Tensor, lsvr: float) -> dict[str, torch.Tensor]:
    """By sign, the region that it changes, 0 or 1, on the grid of the masks [2, ...].

    texture: the liver without its shell. surface: the shell, SURFACE_MM. lobes: the left lobe. A
    case has no mask of it; since the fissure is nearly sagittal, it is the leftmost part of the
    liver with the volume that `lsvr`, left over right lobe, gives.
    """
    liver, spleen = (mask.cpu().numpy() > 0 for mask in masks)
    inside = ndimage.distance_transform_edt(liver, SPACING_MM)
    outside = ndimage.distance_transform_edt(~liver, SPACING_MM)
    shell = np.where(liver, inside <= SURFACE_MM[0], outside <= SURFACE_MM[1]) & ~spleen
    columns = np.cumsum(liver.sum(axis=(0, 1))[::-1])[::-1]  # liver to the left of each column
    left = liver & (columns <= lsvr / (1 + lsvr) * columns[0])
    found = {"texture": liver & ~shell, "surface": shell, "spleen": spleen, "lobes": left}
    return {k: torch.as_tensor(v, dtype=masks.dtype, device=masks.device) for k, v in found.items()}


def rest(masks: torch.Tensor, region: torch.Tensor) -> torch.Tensor:
    """Liver and spleen without a region."""
    return masks.amax(dim=0) * (1 - region)


def untrained(network: SignNetwork, seed: int) -> SignNetwork:
    """The same maps and normalisation, with new random weights from the maps to the stage."""
    control = copy.deepcopy(network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in control.modules():
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
    control.separate()
    return control.eval()


def _maps(
    network: SignNetwork, x: torch.Tensor
) -> tuple[dict[tuple[str, str], torch.Tensor], float]:
    """By score and map, Grad-CAM on the target layer's grid; and how far the expected stage moves.

    x: the case with the sign, then the same patient as F0. The difference of both maps is where the
    sign adds weight; what it takes away does not count.
    """
    with torch.no_grad():
        features = network.features(x)
    features.requires_grad_()
    logits, _ = network.outputs(features)
    found = {}
    for name, score in SCORES.items():
        (gradient,) = torch.autograd.grad(score(logits).sum(), features, retain_graph=True)
        weights = gradient.mean(dim=(2, 3, 4), keepdim=True)
        with_sign, healthy = (weights * features).sum(dim=1).relu().detach()
        found[name, MAPS[0]] = with_sign
        found[name, MAPS[1]] = (with_sign - healthy).relu()
    high, low = SCORES["expected"](logits).tolist()
    return found, high - low


def _ratio(location: torch.Tensor, parts: torch.Tensor) -> float:
    """Density of a map in the first of two parts [2, ...] of the input's grid over the second's.

    At most MOST, where the second part has hardly any weight; NaN where both have none.
    """
    shares = functional.avg_pool3d(parts[:, None], SCALE)[:, 0]
    weight, size = (location * shares).sum((1, 2, 3)), shares.sum((1, 2, 3)).clamp_min(1e-6)
    first, second = (weight / size).tolist()
    return first / max(second, first / MOST) if first or second else float("nan")


def summary(found: Sequence[Ratio]) -> list[dict[str, Any]]:
    """One entry for each sign, network, score and map.

    ratio, surface_to_core, moved: median of the folds' medians, with the lowest and the highest of
    them. empty: maps without weight in the organs.
    """
    entries = []
    for key in dict.fromkeys((r.sign, r.network, r.score, r.map) for r in found):
        rows = [r for r in found if (r.sign, r.network, r.score, r.map) == key]
        entry: dict[str, Any] = dict(zip(("sign", "network", "score", "map"), key))
        entry |= {"cases": len(rows), "networks": len({r.fold for r in rows})}
        entry["empty"] = int(np.isnan([r.ratio for r in rows]).sum())
        for name in ("ratio", "surface_to_core", "moved"):
            by_fold = [
                [getattr(r, name) for r in rows if r.fold == fold]
                for fold in sorted({r.fold for r in rows})
            ]
            medians = [np.median(v) for v in (np.array(f)[~np.isnan(f)] for f in by_fold) if len(v)]
            if medians:
                low, middle, high = np.percentile(medians, (0, 50, 100)).round(4).tolist()
                entry[name] = {"median": middle, "lowest": low, "highest": high}
        entries.append(entry)
    return entries


def write_truth(found: Sequence[Ratio], folder: Path) -> list[dict[str, Any]]:
    """Write truth.csv, a row for each map, and truth.json, the `summary`; returns the latter."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [[f"{v:.4g}" if isinstance(v, float) else v for v in row] for row in found]
    write_csv(folder / "truth.csv", [Ratio._fields, *rows])
    entries = summary(found)
    about = {"research_use": RESEARCH_USE, "shell_mm": list(SURFACE_MM), "single_signs": entries}
    write_text(folder / "truth.json", json.dumps(about, indent=1) + "\n")
    return entries
