"""Bodies: CTs of real patients with liver and spleen, as the painter needs them.

A body file (.npz, written by insilico/prepare.py) contains

hu        uint8 [slice, row, column], codes of `LEVELS_HU`; 0 outside of the patient
labels    uint8, 1 liver, 2 spleen
spacing   mm, in the same order
medians   HU of the parenchyma of liver and spleen
noise     autocovariance of the liver's noise in HU^2, lags 0 .. n along each axis in voxels

Positions are in mm from the centre of the first voxel of the body, with `AROUND` voxels of air
about what is stored; [z, y, x]: towards the head, the back and the patient's left.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

# Fine steps for soft tissue, coarse ones for lung and bone.
LEVELS_HU = np.concatenate(
    [
        [-1000.0],
        np.arange(-1000, -200, 40),
        np.arange(-200, -150, 10),
        np.arange(-150, 250, 2.5),
        np.arange(250, 450, 10),
        np.arange(450, 1450, 20),
    ]
).astype(np.float32)
HEALING_MM = 4.0  # sigma that smooths the liver's surface
HEALED_BY_MM = 2.5  # by how much at most
FAT_HU = -100.0
EDGE_SIGMA_MM = 0.8  # of the Gaussian before the edge is sought
EDGE_MM = 0.6  # of an organ's partial-volume edge, in the distance's logistic function
REACH_MM = 12.0  # how far a displaced surface moves its neighbourhood
HEALTHY_LSVR = 0.26  # the published mean of F0: a healed body has it by definition
FAR_MM = 50.0  # distances to an organ are exact up to here
SPINE_MM = 32.0  # radius of a vertebra with its arch
AROUND = 12  # voxels of air on either side of the patient, for poses and the table
RIM_MM = 5.0  # sigma of the means that level the organs' rims


def coded(hu: np.ndarray) -> np.ndarray:
    """The codes, 1 or more, of HU."""
    middle = (LEVELS_HU[1:-1] + LEVELS_HU[2:]) / 2
    return (np.searchsorted(middle, hu) + 1).astype(np.uint8)


@dataclass(frozen=True, eq=False)
class Body:
    """A body on a device. Tensors are float32 [slice, row, column].

    hu: healed: the means of the organs' rims are their medians. liver, spleen: signed distance in
    mm to the surface, negative inside. healing: by how much the smooth surface lies farther inside.
    normal: [3, slice, row, column], gradient of the liver's distance. free: 0 at skin, spine and
    the ends of the scan, 1 where tissue is free to move. depth: distance to the skin.
    """

    name: str
    spacing: tuple[float, float, float]
    hu: torch.Tensor
    liver: torch.Tensor
    spleen: torch.Tensor
    healing: torch.Tensor
    normal: torch.Tensor
    free: torch.Tensor
    depth: torch.Tensor
    medians: tuple[float, float]
    noise: np.ndarray

    @property
    def size_mm(self) -> np.ndarray:
        """Distance of the last voxel's centre from the first's, [z, y, x]."""
        return (np.array(self.hu.shape) - 1) * np.array(self.spacing)

    @cached_property
    def fissure(self) -> float:
        """The column, in mm, with segments I to III on its left, by the volume ratio of F0."""
        columns = (self.liver < 0).sum((0, 1)).cpu().numpy()
        share = np.cumsum(columns[::-1])[::-1] / columns.sum()
        return float(
            np.interp(-HEALTHY_LSVR / (1 + HEALTHY_LSVR), -share, range(len(share)))
            * self.spacing[2]
        )

    @cached_property
    def spine(self) -> float:
        """The column, in mm, of the spine's middle."""
        rigid = (self.free < 0.01) & (self.depth > 30)
        return float(torch.nonzero(rigid)[:, 2].float().median()) * self.spacing[2]

    @cached_property
    def liver_points(self) -> np.ndarray:
        """Positions of voxels more than 3 mm inside the liver, float32 [n, 3]."""
        inside = torch.nonzero(self.liver < -3).cpu().numpy()
        return (inside * np.array(self.spacing)).astype(np.float32)

    @cached_property
    def wall_mm(self) -> float:
        """Thickness of the abdominal wall where the liver is nearest to the skin."""
        return float(np.quantile(self.depth[self.liver < -1].cpu().numpy(), 0.01))

    @cached_property
    def bowel_points(self) -> np.ndarray:
        """Positions in soft tissue in front, away from liver, spleen and skin, float32 [n, 3]."""
        apart = torch.minimum(self.liver, self.spleen) > 15
        soft = (self.hu > -10) & (self.hu < 60) & (self.depth > 35) & (self.free > 0.95) & apart
        soft[:, self.hu.shape[1] // 2 :] = False
        return (torch.nonzero(soft).cpu().numpy() * np.array(self.spacing)).astype(np.float32)

    @cached_property
    def spleen_points(self) -> np.ndarray:
        """Positions of the spleen's voxels, float32 [n, 3]."""
        inside = torch.nonzero(self.spleen < 0).cpu().numpy()
        return (inside * np.array(self.spacing)).astype(np.float32)


def load_bodies(folder: Path, device: str | torch.device = "cpu") -> list[Body]:
    """All bodies of a folder, by name."""
    return [load_body(path, device) for path in sorted(Path(folder).glob("*.npz"))]


def load_body(path: Path, device: str | torch.device = "cpu") -> Body:
    """Read a body file and compute the maps that the painter samples."""
    with np.load(path) as stored:
        content = {key: stored[key] for key in stored.files if key != "origin"}
    return body(Path(path).stem, device=device, **content)


def body(
    name: str,
    *,
    hu: np.ndarray,
    labels: np.ndarray,
    spacing: np.ndarray,
    medians: np.ndarray,
    noise: np.ndarray,
    device: str | torch.device = "cpu",
) -> Body:
    """The body with this content of a file; see the head of this module."""
    spacing = tuple(float(s) for s in spacing)
    around = ((0, 0), (AROUND, AROUND), (AROUND, AROUND))
    hu, labels = np.pad(hu, around), np.pad(labels, around)
    values = LEVELS_HU[hu]
    distance = [
        _at_fat(signed_distance(labels == label, spacing), values, float(median), spacing)
        for label, median in zip((1, 2), medians)
    ]
    for organ, median in zip(distance, medians):
        values = _levelled(values, organ, float(median), spacing)
    liver = distance[0]
    smooth = ndimage.gaussian_filter(np.clip(liver, -8, 8), _voxels(HEALING_MM, spacing))
    near = np.exp(-((liver / REACH_MM) ** 2) * 2)
    healing = np.clip(smooth - liver, -HEALED_BY_MM, HEALED_BY_MM) * near
    normal = np.stack(np.gradient(ndimage.gaussian_filter(liver, _voxels(2.0, spacing)), *spacing))
    normal /= np.maximum(np.linalg.norm(normal, axis=0), 0.3)
    patient = np.pad(hu > 0, ((1, 1), (0, 0), (0, 0)), "edge")
    depth = _coarse_distance(patient, spacing)[1:-1]
    to_spine = _coarse_distance(~_spine(values, hu > 0, spacing), spacing)
    to_end = spacing[0] * np.minimum(np.arange(len(hu)), np.arange(len(hu))[::-1])
    free = _step(depth, 4, 22) * _step(to_spine, 2, 20) * _step(to_end, 0, 15)[:, None, None]
    tensors = [
        torch.as_tensor(np.ascontiguousarray(array, np.float32), device=device)
        for array in (values, *distance, healing, normal, free, depth)
    ]
    return Body(name, spacing, *tensors, tuple(map(float, medians)), noise)


def signed_distance(inside: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """Distance in mm to the surface of a mask, negative inside; smooth at the scale of a voxel.

    Farther than `FAR_MM` from the mask's box it is a little too large.
    """
    (box,) = ndimage.find_objects(inside.astype(np.uint8))
    margins = [int(FAR_MM / step) for step in spacing]
    wide = tuple(
        slice(max(part.start - margin, 0), part.stop + margin) for part, margin in zip(box, margins)
    )
    outer = ndimage.distance_transform_edt(~inside[wide], sampling=spacing)
    inner = np.zeros_like(outer)
    own = tuple(
        slice(max(part.start - around.start - 1, 0), part.stop - around.start + 1)
        for part, around in zip(box, wide)
    )
    inner[own] = ndimage.distance_transform_edt(inside[wide][own], sampling=spacing)
    half = min(spacing) / 2
    found = outer - inner + np.where(inside[wide], half, -half)
    near = ndimage.gaussian_filter(found, 0.7).astype(np.float32)
    ends = [(part.start, n - min(part.stop, n)) for part, n in zip(wide, inside.shape)]
    beyond = [
        np.maximum(np.maximum(part.start - np.arange(n), np.arange(n) - min(part.stop, n) + 1), 0)
        for part, n in zip(wide, inside.shape)
    ]
    z, y, x = ((steps * step) ** 2 for steps, step in zip(beyond, spacing))
    to_box = np.sqrt(z[:, None, None] + y[:, None] + x).astype(np.float32)
    return np.pad(near, ends, "edge") + to_box


def _at_fat(
    distance: np.ndarray, hu: np.ndarray, median: float, spacing: tuple[float, float, float]
) -> np.ndarray:
    """The distance with its zero at the edge that the HU have, where the organ borders on fat.

    A mask follows the edge only to about a voxel, more than the nodules of a cirrhotic liver. The
    edge is the middle between organ and fat; HU over their slope are the distance to it.
    """
    (box,) = ndimage.find_objects((distance < 8).astype(np.uint8))
    near, part = distance[box], ndimage.gaussian_filter(hu[box], _voxels(EDGE_SIGMA_MM, spacing))
    around = [2 * int(np.ceil(4.0 / step)) + 1 for step in spacing]
    lowest = ndimage.minimum_filter(part, around)
    highest = ndimage.maximum_filter(part, around)
    fat = (lowest < -40) & (lowest > -220) & (np.abs(highest - median) < 60)
    slope = np.sqrt(sum(change**2 for change in np.gradient(part, *spacing)))
    by_hu = ((median + FAT_HU) / 2 - part) / np.maximum(slope, 12.0)
    trusted = fat & (np.abs(near) < 3) & (np.abs(by_hu) < 3)
    weight = ndimage.gaussian_filter(trusted.astype(np.float32), 0.8)
    shift = ndimage.gaussian_filter(np.where(trusted, by_hu - near, 0).astype(np.float32), 0.8)
    found = distance.copy()
    found[box] += shift / (weight + 0.1)
    return found


def _coarse_distance(where: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """Distance in mm to the nearest voxel outside, computed at every second row and column."""
    coarse = where[:, ::2, ::2]
    step = (spacing[0], 2 * spacing[1], 2 * spacing[2])
    found = ndimage.distance_transform_edt(coarse, sampling=step).astype(np.float32)
    found = found.repeat(2, axis=1).repeat(2, axis=2)[:, : where.shape[1], : where.shape[2]]
    return ndimage.uniform_filter(found, (1, 3, 3))


def _levelled(
    hu: np.ndarray, distance: np.ndarray, median: float, spacing: tuple[float, float, float]
) -> np.ndarray:
    """HU of which the local mean is the median in the organ, up to its partial-volume edge."""
    (box,) = ndimage.find_objects((distance < 6).astype(np.uint8))
    inside = (distance[box] < -1.5).astype(np.float32)
    sigma = _voxels(RIM_MM, spacing)
    weight = ndimage.gaussian_filter(inside, sigma)
    mean = ndimage.gaussian_filter((hu[box] - median) * inside, sigma) / np.maximum(weight, 1e-3)
    levelled = hu.copy()
    levelled[box] -= mean / (1 + np.exp(np.clip(distance[box] / EDGE_MM, -30, 30)))
    return levelled


def _spine(hu: np.ndarray, patient: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """Bone near the middle of the body, in its back half, and a cylinder about its centre."""
    smooth = ndimage.gaussian_filter(hu, _voxels(2.0, spacing))
    rows, columns = (np.flatnonzero(patient.any(axis=axis)) for axis in ((0, 2), (0, 1)))
    middle, width = (columns[0] + columns[-1]) / 2, columns[-1] - columns[0]
    bone = smooth > 180
    bone[:, : int((rows[0] + rows[-1]) / 2)] = False
    bone[:, :, : int(middle - 0.12 * width)] = False
    bone[:, :, int(middle + 0.12 * width) :] = False
    if not bone.any():
        return bone
    centre = [float(np.median(found)) for found in np.nonzero(bone)[1:]]
    y, x = np.ogrid[: hu.shape[1], : hu.shape[2]]
    apart = np.hypot((y - centre[0]) * spacing[1], (x - centre[1]) * spacing[2])
    return bone | (apart < SPINE_MM)


def _voxels(mm: float, spacing: tuple[float, float, float]) -> list[float]:
    return [mm / step for step in spacing]


def _step(value: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 below `low`, 1 above `high`, smooth between."""
    share = np.clip((value - low) / (high - low), 0, 1)
    return share * share * (3 - 2 * share)
