"""Vessel trees and single veins as tubes in a body, which do not depend on the stage."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch

REACH_MM = 4.0  # a tube's value is 1/2 at its surface, 1 this far inside, 0 this far outside
STEP_MM = 2.0


def tree(
    inside: np.ndarray,
    root: np.ndarray,
    radius_mm: float,
    leaves: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Points [n, 3] and radii [n] of a tree from `root` to random points of `inside` [m, 3].

    Each leaf is joined to the nearest branch; radii follow Murray's law (the cube of a parent's
    radius is the sum of those of its children, 1926, J Gen Physiol 9:835-841).
    """
    ends = inside[rng.choice(len(inside), leaves)]
    ends = ends[np.argsort(np.linalg.norm(ends - root, axis=1))]
    nodes, parents = [root], [-1]
    for end in ends:
        known = np.asarray(nodes)
        # Branches leave in the direction of the flow: nearer to the root is preferred.
        cost = np.linalg.norm(known - end, axis=1) + 0.25 * np.linalg.norm(known - root, axis=1)
        start = int(np.argmin(cost))
        way = end - known[start]
        length = float(np.linalg.norm(way))
        count = max(int(length / 6.0), 1)
        bend = np.cross(way, rng.normal(size=3)) * (0.12 / max(length, 1.0)) * length**0.5 * 2
        for share in np.arange(1, count + 1) / count:
            nodes.append(known[start] + way * share + bend * np.sin(np.pi * share))
            parents.append(start if share == 1 / count else len(nodes) - 2)
    below = np.zeros(len(nodes))
    has_child = np.zeros(len(nodes), bool)
    has_child[[p for p in parents if p >= 0]] = True
    below[~has_child] = 1
    for node in range(len(nodes) - 1, 0, -1):
        below[parents[node]] += below[node]
    radius = radius_mm * (below / below[0]) ** (1 / 3)
    points, radii = [], []
    for node in range(1, len(nodes)):
        a, b = nodes[parents[node]], nodes[node]
        shares = np.arange(0, 1, STEP_MM / max(float(np.linalg.norm(b - a)), STEP_MM))
        points.append(a + (b - a) * shares[:, None])
        radii.append(np.full(len(shares), radius[node]))
    return np.concatenate(points), np.concatenate(radii)


def tube(points: Sequence[np.ndarray], radius_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """Points and radii of a tube along a polyline."""
    found = []
    for a, b in pairwise(points):
        shares = np.arange(0, 1, STEP_MM / max(float(np.linalg.norm(b - a)), STEP_MM))
        found.append(a + (b - a) * shares[:, None])
    found = np.concatenate([*found, np.asarray(points[-1])[None]])
    return found, np.full(len(found), radius_mm)


def splat(
    points: np.ndarray,
    radii: np.ndarray,
    shape: Sequence[int],
    spacing: Sequence[float],
    device: torch.device,
) -> torch.Tensor:
    """The tubes' value on a grid: linear in the distance to their surface, see `REACH_MM`."""
    grid = torch.zeros(int(np.prod(shape)), device=device)
    step = torch.tensor(list(spacing), device=device)
    limits = torch.tensor(list(shape), device=device)
    for low, high in ((0.0, 2.5), (2.5, 6.0), (6.0, 20.0), (20.0, 60.0)):
        chosen = (radii >= low) & (radii < high)
        if not chosen.any():
            continue
        where = torch.as_tensor(points[chosen], dtype=torch.float32, device=device)
        radius = torch.as_tensor(radii[chosen], dtype=torch.float32, device=device)
        reach = float(radius.max()) + REACH_MM
        half = [int(np.ceil(reach / s)) for s in spacing]
        offsets = torch.stack(
            torch.meshgrid(*(torch.arange(-h, h + 1, device=device) for h in half), indexing="ij"),
            dim=-1,
        ).reshape(-1, 3)
        offsets = offsets[torch.linalg.norm(offsets * step, dim=1) < reach + max(spacing)]
        voxels = torch.round(where / step).long()[:, None] + offsets
        distance = torch.linalg.norm(voxels * step - where[:, None], dim=-1) - radius[:, None]
        value = (0.5 - distance / (2 * REACH_MM)).clamp(0, 1)
        valid = ((voxels >= 0) & (voxels < limits)).all(-1) & (value > 0)
        index = (voxels[..., 0] * shape[1] + voxels[..., 1]) * shape[2] + voxels[..., 2]
        grid.scatter_reduce_(0, index[valid], value[valid], "amax")
    return grid.reshape(tuple(shape))


def occupancy(value: torch.Tensor, blur_mm: float = 1.5) -> torch.Tensor:
    """Share of a voxel inside the tubes, from `splat`'s value."""
    return (0.5 + (value - 0.5) * (2 * REACH_MM / blur_mm)).clamp(0, 1)
