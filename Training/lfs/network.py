"""LFSNetwork: the liver fibrosis staging network of Yin et al. 2021, as PyTorch modules.

Four convolutions with 5x5x5 kernels, three max-poolings, two fully connected layers. Differences
from the paper: the input is standardised and clipped to the HU range of the liver; every
convolution has batch normalisation (the first two after their pooling, where there are fewer
voxels); the activations are leaky ReLUs; the last feature maps are averaged and normalised before
the first dense layer. Without these changes the network stayed at chance level on phantoms, whose
averaged features differ little between patients. At export the normalisations are folded into the
weights of the neighbouring layers.
"""

import torch
from torch import nn

PATCH_SIZE = (32, 168, 216)
SPACING_MM = (4.0, 2.0, 2.0)
# Noise depends on the kernel, the slice thickness and the grid's orientation; smoothing reduces the
# differences (standard deviation in a liver on an axial and on an oblique grid: 14.2 and 12.6 HU
# before, 8.4 and 8.2 HU after smoothing).
SMOOTHING_MM = 2.0


class LFSNetwork(nn.Module):
    """Logits [N, 5] of the stages F0..F4 for `volume` [N, 1, slices, rows, columns], 0..1.

    At the target layer (the third convolution's activation) the resolution is 1/2 of the input's
    along the slices and 1/4 in plane: 8 mm in each direction at 4 x 2 x 2 mm.

    patch_size: (slices, rows, columns), multiples of (4, 8, 8). channels: of the four convolutions.
    pooled: size (slices, rows, columns) of the averaged maps, a divisor of the last maps' size. By
    default the whole map is averaged: in a part of the map that is always empty, the variance is
    near 0; normalisation would make its gradient very large, and the location map would show it.
    mean, std, limit: the windowed volume becomes (volume - mean) / std, clipped to +-limit; by
    default 102 +- 28 HU, clipped to 46 to 158 HU, since the parenchyma differs by few HU.
    """

    def __init__(
        self,
        patch_size: tuple[int, int, int] = PATCH_SIZE,
        channels: tuple[int, int, int, int] = (8, 16, 32, 64),
        pooled: tuple[int, int, int] = (1, 1, 1),
        dense: int = 64,
        dropout: float = 0.1,
        mean: float = 0.65,
        std: float = 0.08,
        limit: float = 2.0,
    ) -> None:
        super().__init__()
        last = (patch_size[0] // 4, patch_size[1] // 8, patch_size[2] // 8)
        if any(size % 4 for size in patch_size) or any(n % p for n, p in zip(last, pooled)):
            raise ValueError(
                f"patch size {patch_size}: its last maps, {last}, cannot be pooled to {pooled}."
            )
        self.patch_size = tuple(patch_size)
        self.mean, self.std, self.limit = mean, std, limit
        first, second, third, fourth = channels
        # Up to the target layer.
        self.head = nn.Sequential(
            *_convolution(1, first, nn.MaxPool3d(2)),
            *_convolution(first, second, nn.MaxPool3d((1, 2, 2))),
            *_convolution(second, third),
        )
        averages = fourth * pooled[0] * pooled[1] * pooled[2]
        # From there to the logits; the library computes the gradient of this part in numpy.
        self.tail = nn.Sequential(
            nn.MaxPool3d(2),
            *_convolution(third, fourth),
            _Average(pooled, tuple(n // p for n, p in zip(last, pooled))),
            nn.Flatten(),
            nn.BatchNorm1d(averages),
            nn.Dropout(dropout),
            nn.Linear(averages, dense),
            nn.LeakyReLU(0.01),
            nn.Dropout(dropout),
            nn.Linear(dense, 5),
        )

    def features(self, volume: torch.Tensor) -> torch.Tensor:
        """The target layer's maps [N, channels, slices / 2, rows / 4, columns / 4]."""
        standardised = (volume - self.mean) / self.std
        return self.head(standardised.clamp(-self.limit, self.limit))

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        """Logits [N, 5]."""
        return self.tail(self.features(volume))


class _Average(nn.AdaptiveAvgPool3d):
    """Average pooling to a fixed size for crops too; `kernel_size` is that of a whole patch."""

    def __init__(self, pooled: tuple[int, int, int], kernel_size: tuple[int, int, int]) -> None:
        super().__init__(pooled)
        self.kernel_size = kernel_size


def _convolution(
    inputs: int, outputs: int, pooling: nn.Module | None = None
) -> tuple[nn.Module, ...]:
    # No bias, because the normalisation has one.
    return (
        nn.Conv3d(inputs, outputs, 5, padding=2, bias=False),
        *([pooling] if pooling else []),
        nn.BatchNorm3d(outputs),
        nn.LeakyReLU(0.01),
    )
