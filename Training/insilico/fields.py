"""Random fields, filters and sampling on regular grids, in PyTorch.

Tensors are [slice, row, column]; positions and spacings are in mm in the same order.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional

Spacing = Sequence[float]


def positions(shape: Sequence[int], spacing: Spacing, device: torch.device) -> torch.Tensor:
    """Positions of a grid's voxels, [slice, row, column, 3]."""
    axes = [torch.arange(n, device=device) * float(s) for n, s in zip(shape, spacing)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


def sample(maps: torch.Tensor, where: torch.Tensor, spacing: Spacing) -> torch.Tensor:
    """Linear interpolation of maps [c, ...] at positions [..., 3]; [c, ...]. Edges are repeated."""
    last = torch.tensor([(n - 1) * s for n, s in zip(maps.shape[1:], spacing)], device=maps.device)
    grid = (2 * where / last - 1).flip(-1)[None].to(maps.dtype)
    found = functional.grid_sample(
        maps[None], grid, mode="bilinear", padding_mode="border", align_corners=True
    )
    return found[0]


def resized(field: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """A field [c, ...] of which the corners stay in place, interpolated linearly."""
    return functional.interpolate(field[None], tuple(shape), mode="trilinear", align_corners=True)[
        0
    ]


def smooth(field: torch.Tensor, sigma_mm: Sequence[float], spacing: Spacing) -> torch.Tensor:
    """Gaussian filter; an axis with a sigma of 0 is left as it is."""
    found = field[None, None]
    for axis, (sigma, step) in enumerate(zip(sigma_mm, spacing)):
        width = float(sigma) / float(step)
        if width < 0.15:
            continue
        half = int(np.ceil(3 * width))
        offsets = torch.arange(-half, half + 1, device=field.device, dtype=field.dtype)
        kernel = torch.exp(-0.5 * (offsets / width) ** 2)
        kernel = kernel / kernel.sum()
        shape, pad = [1] * 5, [0] * 6
        shape[2 + axis] = len(kernel)
        pad[2 * (2 - axis)] = pad[2 * (2 - axis) + 1] = half
        found = functional.conv3d(
            functional.pad(found, pad, mode="replicate"), kernel.reshape(shape)
        )
    return found[0, 0]


def step(value: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """0 below `low`, 1 above `high`, smooth between."""
    share = ((value - low) / (high - low)).clamp(0, 1)
    return share * share * (3 - 2 * share)


def band_noise(
    size: Sequence[int],
    spacing: Spacing,
    sigmas_mm: tuple[float, float],
    generator: torch.Generator,
) -> torch.Tensor:
    """A periodic Gaussian field of mean 0 and SD 1 in the band between Gaussians of two sigmas."""
    axes = [torch.fft.fftfreq(n, s, device=generator.device) for n, s in zip(size, spacing)]
    axes[2] = torch.fft.rfftfreq(size[2], spacing[2], device=generator.device)
    squared = axes[0][:, None, None] ** 2 + axes[1][:, None] ** 2 + axes[2] ** 2
    low, high = (torch.exp(-2 * (np.pi * s) ** 2 * squared) for s in sorted(sigmas_mm))
    return _filtered(low - high, size, generator)


def noise_like(
    autocovariance: np.ndarray,
    lag_mm: Spacing,
    size: Sequence[int],
    spacing: Spacing,
    generator: torch.Generator,
) -> torch.Tensor:
    """A periodic Gaussian field of SD 1 with the correlation of `autocovariance`.

    autocovariance: at lags of 0, 1, .. times `lag_mm` along each axis, symmetric along each; it is
    tapered to 0 at the last lag.
    """
    device = generator.device
    stored = torch.as_tensor(autocovariance / autocovariance[0, 0, 0], device=device)
    taper = [
        0.5 + 0.5 * torch.cos(np.pi * torch.arange(n, device=device) / n) for n in stored.shape
    ]
    stored = stored * taper[0][:, None, None] * taper[1][:, None] * taper[2]
    index, lags = [], []
    for n, wide, known, step_mm in zip(size, stored.shape, lag_mm, spacing):
        reach = min(int(wide * known / step_mm), (n - 1) // 2)
        index.append(torch.arange(-reach, reach + 1, device=device))
        lags.append(index[-1].abs() * float(step_mm))
    where = torch.stack(torch.meshgrid(*lags, indexing="ij"), dim=-1)
    values = sample(functional.pad(stored, (0, 1, 0, 1, 0, 1))[None], where, lag_mm)[0]
    kernel = torch.zeros(tuple(size), device=device)
    z, y, x = (i % n for i, n in zip(index, size))
    kernel[z[:, None, None], y[:, None], x] = values
    return _filtered(torch.fft.rfftn(kernel).real.clamp_min(0).sqrt(), size, generator)


def _filtered(
    response: torch.Tensor, size: Sequence[int], generator: torch.Generator
) -> torch.Tensor:
    white = torch.randn(tuple(size), generator=generator, device=generator.device)
    field = torch.fft.irfftn(torch.fft.rfftn(white) * response, s=tuple(size))
    field = field - field.mean()
    return field / field.std()


def coarse_noise(
    shape: Sequence[int], spacing: Spacing, knots_mm: float, generator: torch.Generator, count: int
) -> torch.Tensor:
    """Smooth fields [count, ...] of unit SD at knots `knots_mm` apart."""
    knots = [max(int(np.ceil((n - 1) * s / knots_mm)) + 1, 2) for n, s in zip(shape, spacing)]
    field = torch.randn((count, *knots), generator=generator, device=generator.device)
    middle = [max(2 * k - 1, 4) for k in knots]
    kernel = torch.tensor([0.25, 0.5, 0.25], device=field.device)
    field = resized(field, middle)
    for axis in range(3):
        kernel_shape, pad = [1] * 5, [0] * 6
        kernel_shape[2 + axis] = 3
        pad[2 * (2 - axis)] = pad[2 * (2 - axis) + 1] = 1
        field = functional.conv3d(
            functional.pad(field[:, None], pad, mode="replicate"), kernel.reshape(kernel_shape)
        )[:, 0]
    return resized(field, shape)
