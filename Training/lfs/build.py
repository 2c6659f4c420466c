"""What a network is built for: its grid, HU and size."""

import dataclasses
from math import isfinite, prod

import torch

from lfs.network import PATCH_SIZE, SMOOTHING_MM, SPACING_MM, LFSNetwork
from LiverFibrosisStagingLib.card import MAX_PATCH_VOXELS
from LiverFibrosisStagingLib.errors import StagingError

# Pooling up to the last maps: patches that are no multiples would lose voxels at their edges.
MULTIPLES = (4, 8, 8)
SPREAD = 2.0  # the input is clipped to so many of the network's standard deviations


@dataclasses.dataclass(frozen=True)
class Build:
    """Grid, HU and size of a network; lengths in (slice, row, column).

    patch_size: voxels. spacing: mm. window: HU that are stored, as 0 to 1. limits: HU to which the
    network clips its input, within the window; the parenchyma's range, since it differs by few HU.
    smoothing: sigma, in mm, of the Gaussian over the grid. channels: of the four convolutions.
    dense: units of the first dense layer.

    Raises StagingError if a network cannot be built or staged with like this.
    """

    patch_size: tuple[int, int, int] = PATCH_SIZE
    spacing: tuple[float, float, float] = SPACING_MM
    channels: tuple[int, int, int, int] = (8, 16, 32, 64)
    dense: int = 64
    window: tuple[float, float] = (-125.0, 225.0)
    limits: tuple[float, float] = (46.5, 158.5)
    smoothing: float = SMOOTHING_MM

    def __post_init__(self) -> None:
        low, high = self.window
        multiples = zip(self.patch_size, MULTIPLES)
        if any(size < n or size % n for size, n in multiples) or (
            prod(self.patch_size) > MAX_PATCH_VOXELS
        ):
            raise StagingError(
                f"patch size {_shown(self.patch_size)}: multiples of {_shown(MULTIPLES)} voxels "
                f"(slices, rows, columns), {MAX_PATCH_VOXELS} in all at most, are needed."
            )
        if not all(0.5 <= step <= 50 for step in self.spacing):
            raise StagingError(f"spacing {_shown(self.spacing)}: 0.5 to 50 mm are needed.")
        if not (isfinite(high - low) and -1e5 <= low < high <= 1e5):
            raise StagingError(f"window {_shown(self.window)}: the lower HU first is needed.")
        if not low <= self.limits[0] < self.limits[1] <= high:
            raise StagingError(
                f"limits {_shown(self.limits)}: two HU within the window {_shown(self.window)}, "
                "the lower first, are needed."
            )
        if not 0 <= self.smoothing <= 10:
            raise StagingError(f"smoothing {self.smoothing:g}: 0 to 10 mm are needed.")
        if min(*self.channels, self.dense) < 1:
            raise StagingError(
                f"channels {_shown(self.channels)}, dense {self.dense}: 1 or more of each are "
                "needed."
            )

    def network(self, seed: int) -> LFSNetwork:
        """An untrained network, the same for the same seed."""
        torch.manual_seed(seed)
        low, high = self.window
        middle, half = sum(self.limits) / 2, (self.limits[1] - self.limits[0]) / 2
        return LFSNetwork(
            self.patch_size,
            self.channels,
            dense=self.dense,
            mean=(middle - low) / (high - low),
            std=half / SPREAD / (high - low),
            limit=SPREAD,
        )


def _shown(sizes: tuple[float, ...]) -> str:
    return " ".join(f"{size:g}" for size in sizes)


FULL = Build()
# For trying out the command in minutes; too coarse for staging.
SMALL = Build((16, 88, 112), (8.0, 4.0, 4.0), (4, 8, 16, 32), 32)
