"""Painted cases as inputs of the network, with random shifts, contrast, noise and mask errors.

Everything is PyTorch on one device, a GPU if there is one.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional

from insilico.paint import Case
from painted.maps import LIVER_HU
from painted.network import SPACING_MM, Input

MARGIN = (4, 16, 16)  # voxels (slice, row, column) stored beyond the patch, for shifts


class Pool:
    """Up to `size` cases.

    given: what the network is given. names: of the signs.
    """

    def __init__(
        self, size: int, given: Input, names: Sequence[str], device: torch.device | str
    ) -> None:
        self.given, self.names, self.device = given, tuple(names), torch.device(device)
        self.shape = tuple(n + m for n, m in zip(given.patch_size, MARGIN))
        self.hu = torch.empty((size, *self.shape), dtype=torch.float16, device=device)
        self.organs = torch.empty((size, *self.shape), dtype=torch.uint8, device=device)
        self.signs = torch.full((size, len(self.names)), math.nan, device=device)
        self.stages = torch.zeros(size, dtype=torch.long, device=device)
        self.added = 0

    def add(self, case: Case) -> None:
        """Store a case: smoothed, shifted to the liver's median, centred on the field."""
        place = self.added
        hu = smoothed(case.hu.to(self.device, torch.float32), self.given.smoothing_mm)
        liver, spleen = (mask.to(self.device) > 0 for mask in (case.liver, case.spleen))
        hu = hu + (LIVER_HU - hu[liver].median())
        start = self._start(liver | spleen)
        self.hu[place] = cut(hu, start, self.shape, self.given.fill_hu).half()
        labels = liver.to(torch.uint8) + 2 * (spleen & ~liver).to(torch.uint8)
        self.organs[place] = cut(labels, start, self.shape, 0)
        values = [scaled_sign(name, case.truth[name]) for name in self.names]
        self.signs[place] = torch.tensor(values, device=self.device)
        self.stages[place] = int(case.truth["stage"])
        self.added += 1

    def inputs(self, places: np.ndarray, generator: torch.Generator | None = None) -> torch.Tensor:
        """The network's input for the cases at `places`; augmented if there is a generator."""
        hu, masks = self.volumes(places, generator)
        given = masks
        if generator is not None:
            given = disturbed(masks, generator)
            hu = surrounded(contrasted(hu, generator), masks, generator)
        return network_input(hu, given, self.given)

    def volumes(
        self, places: np.ndarray, generator: torch.Generator | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """HU [N, 1, ...] and masks [N, 2, ...] of the field; shifted at random with a generator."""
        offsets = np.tile(np.array(MARGIN) // 2, (len(places), 1))
        if generator is not None:
            random = torch.rand(len(places), 3, generator=generator, device=self.device)
            offsets = (random.cpu().numpy() * (np.array(MARGIN) + 1)).astype(int)
        parts = [
            tuple(slice(o, o + n) for o, n in zip(offset, self.given.patch_size))
            for offset in offsets.tolist()
        ]
        hu = torch.stack([self.hu[i][part] for i, part in zip(places, parts)]).float()[:, None]
        organs = torch.stack([self.organs[i][part] for i, part in zip(places, parts)])
        return hu, torch.stack([organs == 1, organs == 2], dim=1).float()

    def _start(self, organs: torch.Tensor) -> list[int]:
        found = torch.nonzero(organs)
        middle = (found.amin(dim=0) + found.amax(dim=0) + 1) / 2
        return [round(m - n / 2) for m, n in zip(middle.tolist(), self.shape)]


def network_input(hu: torch.Tensor, masks: torch.Tensor, given: Input) -> torch.Tensor:
    """The network's input [N, channels, ...] from HU [N, 1, ...] and masks [N, 2, ...].

    hu: smoothed and shifted to the liver's median.
    """
    radius = [round(given.fill_mm / s) for s in SPACING_MM]
    hu = torch.where(widened(masks.amax(dim=1, keepdim=True), radius) > 0, hu, given.fill_hu)
    low, high = given.window_hu
    return torch.cat([((hu - low) / (high - low)).clamp(0, 1), masks], dim=1)


def widened(mask: torch.Tensor, radius: Sequence[int]) -> torch.Tensor:
    """A mask [N, 1, ...] grown by `radius` voxels along each axis, as a box."""
    for axis, r in enumerate(radius):
        size, padding = [1, 1, 1], [0, 0, 0]
        size[axis], padding[axis] = 2 * r + 1, r
        mask = functional.max_pool3d(mask, size, 1, padding)
    return mask


def smoothed(hu: torch.Tensor, sigma_mm: float) -> torch.Tensor:
    """A volume [slices, rows, columns] after a Gaussian with this sigma; its edges are repeated."""
    volume = hu[None, None]
    for axis, spacing in enumerate(SPACING_MM):
        sigma = sigma_mm / spacing
        reach = math.ceil(4 * sigma)
        if not reach:
            continue
        steps = torch.arange(-reach, reach + 1, device=hu.device, dtype=hu.dtype)
        weights = torch.exp(-0.5 * (steps / sigma) ** 2)
        shape, padding = [1, 1, 1, 1, 1], [0] * 6
        shape[axis + 2] = 2 * reach + 1
        padding[4 - 2 * axis] = padding[5 - 2 * axis] = reach
        padded = functional.pad(volume, padding, mode="replicate")
        volume = functional.conv3d(padded, (weights / weights.sum()).reshape(shape))
    return volume[0, 0]


def cut(
    volume: torch.Tensor, start: Sequence[int], size: Sequence[int], outside: float
) -> torch.Tensor:
    """Part of a volume, which may reach beyond it; there it has the value `outside`."""
    part = torch.full(tuple(size), outside, dtype=volume.dtype, device=volume.device)
    source, target = [], []
    for first, n, available in zip(start, size, volume.shape):
        low, high = max(first, 0), min(first + n, available)
        source.append(slice(low, max(high, low)))
        target.append(slice(low - first, max(high, low) - first))
    part[tuple(target)] = volume[tuple(source)]
    return part


def contrasted(hu: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Random contrast about the liver's HU (SD 8 %), shift (3 HU) and noise (up to 6 HU).

    The noise of every second case is smoothed over 3 x 3 x 3 voxels.
    """
    device, size = hu.device, (len(hu), 1, 1, 1, 1)
    scale, shift = torch.randn(2, *size, generator=generator, device=device)
    level = torch.rand(size, generator=generator, device=device)
    noise = torch.randn(hu.shape, generator=generator, device=device)
    coarse = functional.avg_pool3d(noise, 3, 1, 1) * 27**0.5
    noise = torch.where(torch.rand(size, generator=generator, device=device) < 0.5, coarse, noise)
    changed = LIVER_HU + (hu - LIVER_HU) * torch.exp(0.08 * scale) + 3 * shift
    return changed + 6 * level**2 * noise


def surrounded(hu: torch.Tensor, masks: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """In one case of three, a constant between -125 and -75 HU in place of the surroundings.

    It begins 4 mm from the organs, so that stages are not told by what lies farther away.
    """
    size = (len(hu), 1, 1, 1, 1)
    chosen, level = torch.rand(2, *size, generator=generator, device=hu.device)
    near = widened(masks.amax(dim=1, keepdim=True), (1, 2, 2))
    return torch.where((near > 0) | (chosen > 1 / 3), hu, 50 * level - 125)


def disturbed(masks: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Masks [N, 2, slices, rows, columns] with the errors of a segmentation.

    The surface is smoothed and moved by a random field with a wavelength of 3 cm (0 to about 4 mm);
    in one case of five a ball of 12 to 32 mm is added to or cut from an organ's border; one in five
    is unchanged.
    """
    count, device = len(masks), masks.device

    def random(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, device=device)

    soft = masks
    for _ in range(2):
        soft = functional.avg_pool3d(soft, (3, 5, 5), 1, (1, 2, 2), count_include_pad=False)
    coarse = [max(2, n // s) for n, s in zip(masks.shape[2:], (4, 8, 8))]
    field = torch.randn(count, 2, *coarse, generator=generator, device=device)
    field = functional.interpolate(field, masks.shape[2:], mode="trilinear")
    moved = (soft + 0.35 * random(count, 2, 1, 1, 1) * field > 0.5).float()
    steps = [torch.arange(n, device=device) * s for n, s in zip(masks.shape[2:], SPACING_MM)]
    for organ in range(2):
        chosen = random(count) < 0.2
        border = (soft[:, organ] - 0.5).abs() < 0.1
        for case in torch.nonzero(chosen)[:, 0].tolist():
            places = torch.nonzero(border[case])
            if not len(places):
                continue
            which = int(random(1) * len(places))
            centre = places[which] * places.new_tensor(SPACING_MM)
            radius = 12 + 20 * random(1)
            z, y, x = (line - c for line, c in zip(steps, centre))
            ball = z[:, None, None] ** 2 + y[:, None] ** 2 + x**2 < radius**2
            moved[case, organ][ball] = float(random(1) < 0.5)
    unchanged = (random(count, 1, 1, 1, 1) < 0.2).float()
    found = unchanged * masks + (1 - unchanged) * moved
    liver = found[:, 0]
    return torch.stack([liver, found[:, 1] * (1 - liver)], dim=1)


def scaled_sign(name: str, value: float) -> float:
    """A sign on the scale that is regressed: volumes and their ratio as logarithms."""
    return math.log(value) if name.endswith(("_ml", "_lsvr")) and value > 0 else float(value)
