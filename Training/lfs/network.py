"""LFSNetwork: the liver fibrosis staging network of Yin et al. 2021, as PyTorch modules.

Four convolutions with 5x5x5 kernels, three max-poolings, two fully connected layers. What differs
from the paper, and why: the input is standardised to what livers look like and cut off beyond,
every convolution is batch-normalised (the first two after their pooling, where there are fewer
voxels), the activations leak, and the last maps are averaged and normalised before the first dense
layer. Without these the network stayed at chance on phantoms:
patients differ in the averages by little next to what all have in common. At export the
normalisations disappear in the weights of their neighbours.
"""

import torch
from torch import nn

PATCH_SIZE = (32, 168, 216)
SPACING_MM = (4.0, 2.0, 2.0)
# Noise differs with kernel, slice thickness and oblique grids; smoothed by so much it hardly does
# (standard deviation in a real liver: 14.2 and 12.6 HU upright and oblique, then 8.4 and 8.2).
SMOOTHING_MM = 2.0


class LFSNetwork(nn.Module):
    """Logits [N, 5] of the stages F0..F4 for `volume` [N, 1, slices, rows, columns], 0..1.

    At the target layer (the third convolution's activation) the maps are half as fine as the input
    along the slices and a quarter in plane: 8 mm in each direction at 4 x 2 x 2 mm.

    patch_size: (slices, rows, columns), multiples of (4, 8, 8). channels: of the four convolutions.
    pooled: (slices, rows, columns) of the averaged maps; the last maps must divide by it. One
    average for the whole map is the default: in a part of the map that is always empty nothing
    varies, so that normalising there blows the gradient up and the location map shows that part.
    mean, std, limit: the windowed volume becomes (volume - mean) / std, cut off at +-limit: by
    default 102 +- 28 HU, of which 46 to 158 HU are kept, since parenchyma differs by a few HU.
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
            raise ValueError(f"The maps of a patch {patch_size}, {last}, do not pool to {pooled}.")
        self.patch_size = tuple(patch_size)
        self.mean, self.std, self.limit = mean, std, limit
        first, second, third, fourth = channels
        # Up to the target layer, whose maps Grad-CAM weighs ...
        self.head = nn.Sequential(
            *_convolution(1, first, nn.MaxPool3d(2)),
            *_convolution(first, second, nn.MaxPool3d((1, 2, 2))),
            *_convolution(second, third),
        )
        averages = fourth * pooled[0] * pooled[1] * pooled[2]
        # ... and from there to the logits, which the library differentiates in numpy.
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
    """Averages to a fixed size whatever the patch's; `kernel_size` is that of a whole patch."""

    def __init__(self, pooled: tuple[int, int, int], kernel_size: tuple[int, int, int]) -> None:
        super().__init__(pooled)
        self.kernel_size = kernel_size


def _convolution(
    inputs: int, outputs: int, pooling: nn.Module | None = None
) -> tuple[nn.Module, ...]:
    # The normalisation brings its own offset.
    return (
        nn.Conv3d(inputs, outputs, 5, padding=2, bias=False),
        *([pooling] if pooling else []),
        nn.BatchNorm3d(outputs),
        nn.LeakyReLU(0.01),
    )
