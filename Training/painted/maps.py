"""Maps of the signs of fibrosis in a CT with masks of liver and spleen: a network's target layer.

The filters are set, not trained: networks with trained convolutions learned the sizes of the organs
from eight bodies, but not the texture of the parenchyma (Training/results/README.md). Every map is
scaled so that its mean over the field is the measured sign; a map shows where the sign comes from.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch.nn import functional

SCALE = (2, 4, 4)  # voxels of the input in a voxel of the maps
LIVER_HU = 105.0  # to which the liver's median is shifted
# Texture: energy of two bands, each the difference of means over two boxes in plane, within the
# organ's core. Noise is nearly all of the fine band.
CORE = {"liver": (5, 9, 9), "spleen": (3, 7, 7)}  # boxes, in voxels, that must lie in the organ
FINE, COARSE = ((1, 1, 1), (1, 3, 3)), ((1, 3, 3), (1, 7, 7))
VESSEL_HU = 12.0  # differences from the organ are cut off there,
OTHER_HU = 24.0  # and larger ones do not count: vessels, lesions and errors of the mask
OUTLIER = 1.5  # deviations of more than so many SD are cut off
# The energy of a normal distribution that is cut off at 1.5 SD, repeatedly, is 1 / 1.25 of its own.
CUT_OFF = 1.25
NOISE_VOXELS = 20.0  # weight, beside the spleen, of noise with which the texture is typical
TYPICAL_HU2 = 0.9  # energy beyond noise that separates coarse from fine; median of painted livers
SLABS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)  # borders, in shares of the liver's width from the right
SLAB_EDGE = 0.1
LIVER_VOXELS, SPLEEN_VOXELS = 2900.0, 490.0  # of the maps: 1500 and 250 mL
# Shells around the organs, as boxes that widen their mask, in voxels.
SHELLS = {"fluid": ((3, 5, 5), (5, 9, 9)), "fluid at the organs": ((1, 3, 3), (5, 9, 9))}
FAT_HU, FLUID_HU, SOFT_HU = (-150.0, -50.0), (80.0, 140.0), 10.0  # fluid: above the patient's fat
FAT_ASSUMED, FAT_VOXELS = -100.0, 50.0

NAMES = (
    *("coarse parenchyma", "fine parenchyma", "spleen", "liver"),
    *(f"liver, part {number}" for number in range(1, len(SLABS) + 2)),
    *(*SHELLS, "fat"),
)


def sign_maps(hu: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """`NAMES` as maps [N, maps, slices / 2, rows / 4, columns / 4].

    hu: [N, 1, slices, rows, columns], shifted to the liver's median, at 4 x 2 x 2 mm. masks: of
    liver and spleen [N, 2, ...].
    """
    liver, spleen = masks[:, :1], masks[:, 1:]
    parts = [*_texture(hu, liver, spleen), *_sizes(liver, spleen), *_around(hu, masks)]
    return torch.cat(parts, dim=1)


def _texture(hu: torch.Tensor, liver: torch.Tensor, spleen: torch.Tensor) -> list[torch.Tensor]:
    """Parenchyma that is coarser, and finer, than `TYPICAL_HU2` beyond the noise.

    The noise of the coarse band is that of the liver's fine band, times the ratio of both bands in
    the spleen, which fibrosis does not make coarse: the ratio is that of the scan's kernel, and the
    noise may differ between the organs.
    """
    fine, coarse, inside = _energies(hu, _shrunk(liver, CORE["liver"]))
    of_spleen = _energies(hu, _shrunk(spleen, CORE["spleen"]))
    means = [_total(energy) / (_total(inside) + 1e-3) for energy in (fine, coarse)]
    ratio = _total(of_spleen[1]) + NOISE_VOXELS * (means[1] - TYPICAL_HU2)
    ratio = ratio / (_total(of_spleen[0]) + NOISE_VOXELS * means[0] + 1e-3)
    around = (3, 3, 3)
    near = _box(inside, around) + 1e-3
    beyond = (_box(coarse, around) - ratio * _box(fine, around)) / near - TYPICAL_HU2
    share = _mean_one(inside)
    return [beyond.relu() * share, (-beyond).clamp(0, TYPICAL_HU2) * share]


def _energies(hu: torch.Tensor, core: torch.Tensor) -> list[torch.Tensor]:
    """Energy of the fine and of the coarse band in an organ's core, and the part that counts.

    Without vessels, lesions and outliers, and 0 outside of that part; on the grid of the maps.
    """
    above = hu - LIVER_HU
    level = _total(above.clamp(-60, 60) * core) / (_total(core) + 1e-3)
    level = level + _total((above - level).clamp(-15, 15) * core) / (_total(core) + 1e-3)
    above = above - level
    core = core * ((OTHER_HU - above.abs()) / SOFT_HU).clamp(0, 1)
    cut = above.clamp(-VESSEL_HU, VESSEL_HU) * core
    means = {size: _box(cut, size) / (_box(core, size) + 1e-3) for size in (*FINE[1:], *COARSE)}
    found = []
    for small, large in (FINE, COARSE):
        deviation = core * (means.get(small, cut) - means[large])
        energy = deviation * deviation
        variance = _total(energy) / (_total(core) + 1e-3)
        for _ in range(3):
            limited = torch.minimum(energy, OUTLIER**2 * variance)
            variance = CUT_OFF * _total(limited) / (_total(core) + 1e-3)
        found.append(_blocks(torch.minimum(energy, OUTLIER**2 * variance)))
    return [*found, _blocks(core)]


def _sizes(liver: torch.Tensor, spleen: torch.Tensor) -> list[torch.Tensor]:
    """Volumes, and the liver's distribution from the patient's right to left."""
    share, of_spleen = _blocks(liver), _blocks(spleen)
    count = share.shape[2] * share.shape[3] * share.shape[4]
    present = (share.amax(dim=(2, 3), keepdim=True) > 0.2).to(share.dtype)
    along = present.cumsum(4)
    along = along / (along.amax(4, keepdim=True) + 1e-3)
    to_left = [torch.ones_like(along)]
    to_left += [((along - slab) / SLAB_EDGE + 0.5).clamp(0, 1) for slab in SLABS]
    to_left += [torch.zeros_like(along)]
    parts = [right - left for right, left in pairwise(to_left)]
    whole = _mean_one(share)
    return [
        of_spleen * (count / SPLEEN_VOXELS),
        share * (count / LIVER_VOXELS),
        *(whole * part for part in parts),
    ]


def _around(hu: torch.Tensor, masks: torch.Tensor) -> list[torch.Tensor]:
    """Shares of fluid and of fat within 8 mm of the organs."""
    organs = masks.amax(dim=1, keepdim=True)
    shells = [_grown(organs, outer) - _grown(organs, inner) for inner, outer in SHELLS.values()]
    fat = _between(hu, *FAT_HU)
    of_patient = _total(hu * fat * shells[0]) + FAT_VOXELS * FAT_ASSUMED
    of_patient = of_patient / (_total(fat * shells[0]) + FAT_VOXELS)
    fluid = _between(hu - of_patient, *FLUID_HU)
    found = [*((fluid, shell) for shell in shells), (fat, shells[0])]
    return [_blocks(tissue * shell) / _mean(_blocks(shell)) for tissue, shell in found]


def _between(hu: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """1 between two values, 0 outside, with soft edges."""
    return ((hu - low) / SOFT_HU).clamp(0, 1) * ((high - hu) / SOFT_HU).clamp(0, 1)


def _blocks(x: torch.Tensor) -> torch.Tensor:
    """Means over the voxels of the maps."""
    return functional.avg_pool3d(x, SCALE)


def _total(x: torch.Tensor) -> torch.Tensor:
    return x.sum(dim=(2, 3, 4), keepdim=True)


def _mean(x: torch.Tensor) -> torch.Tensor:
    """Mean over the field of a map that is at least as large as one voxel."""
    count = x.shape[2] * x.shape[3] * x.shape[4]
    return (_total(x) + 1) / count


def _mean_one(x: torch.Tensor) -> torch.Tensor:
    """A map with a mean of 1 over the field; nearly 0 where nothing is found."""
    return x / _mean(x)


def _box(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Means over boxes, with zeros beyond the field; one axis after the other."""
    for axis, n in enumerate(size):
        kernel, padding = _line(axis, n)
        x = functional.avg_pool3d(x, kernel, 1, padding)
    return x


def _grown(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Maxima over boxes."""
    for axis, n in enumerate(size):
        kernel, padding = _line(axis, n)
        x = functional.max_pool3d(x, kernel, 1, padding)
    return x


def _shrunk(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Minima over boxes."""
    return -_grown(-x, size)


def _line(axis: int, length: int) -> tuple[list[int], list[int]]:
    kernel, padding = [1, 1, 1], [0, 0, 0]
    kernel[axis], padding[axis] = length, length // 2
    return kernel, padding
