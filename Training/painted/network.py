"""OrganNetwork: a staging network whose features lie on liver and spleen and their surroundings.

Four convolutions as in Yin et al. 2021; the target layer is the third one's activation, at 8 mm.
Differences from `lfs.network`: masks of liver and spleen are input channels; features farther than
8 to 16 mm from the organs are set to 0; the maps are pooled over liver, liver surface and spleen
instead of the whole field; strided convolutions replace the poolings; a second head regresses the
drawn signs. Signs are known for every painted case, and regressing them made the network learn.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

SPACING_MM = (4.0, 2.0, 2.0)
STRIDES = ((2, 2, 2), (1, 2, 2), (1, 1, 1))
SCALE = (2, 4, 4)  # voxels of the input in a voxel of the target layer
# Divisors of the organs' summed maps, in voxels of the target layer (0.512 mL).
TYPICAL_VOXELS = (2900.0, 490.0)  # a liver of 1500 mL, a spleen of 250 mL
REGIONS = 5  # means over liver, surface and spleen; sums over liver and spleen
# The CT is shifted so that the liver's median is here, and seen at two scales (HU).
LIVER_HU, NARROW_HU, WIDE_HU = 105.0, 12.0, 100.0
LIMIT = 4.0
SLOPE = 0.1


@dataclass(frozen=True)
class Input:
    """What a network is given; `card` describes it for the model's metadata.

    patch_size: (slices, rows, columns). channels: "ct", or "ct", "liver", "spleen". field: what the
    patch is centred on in plane, "body" or "organs". fill_mm: beyond this distance from the organs
    the CT is set to fill_hu; None keeps it.
    """

    patch_size: tuple[int, int, int] = (64, 120, 168)
    channels: tuple[str, ...] = ("ct", "liver", "spleen")
    field: str = "organs"
    fill_mm: float | None = 16.0
    fill_hu: float = -100.0
    window_hu: tuple[float, float] = (-125.0, 225.0)
    smoothing_mm: float = 2.0

    @property
    def masked(self) -> bool:
        """Whether the masks are channels of the input."""
        return len(self.channels) > 1


# "sections" is nearest to the paper's input; the field is the same, so that they can be compared.
INPUTS = {
    "organs": Input(),
    "sections": Input(channels=("ct",), fill_mm=None),
    "filled": Input(channels=("ct",)),
}


class OrganNetwork(nn.Module):
    """Logits [N, 5] of the stages F0..F4, and signs [N, signs] in units of their spread.

    x: [N, channels, slices, rows, columns], the window as 0..1, then the masks as 0 or 1; sizes
    are multiples of (2, 4, 4). Without masks the maps are averaged over the whole field.
    """

    def __init__(
        self,
        given: Input,
        signs: int,
        channels: tuple[int, int, int, int] = (16, 32, 48, 64),
        dense: int = 64,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.given, self.signs_count = given, signs
        first, second, third, fourth = channels
        low, high = given.window_hu
        centre, span = (LIVER_HU - low) / (high - low), high - low
        inputs = 2 + len(given.channels) - 1
        # Two scalings of the CT, and the masks as they are.
        weight = torch.zeros(inputs, len(given.channels), 1, 1, 1)
        weight[0, 0], weight[1, 0] = span / NARROW_HU, span / WIDE_HU
        for mask in range(1, len(given.channels)):
            weight[mask + 1, mask] = 1.0
        self.register_buffer("scaling", weight, persistent=False)
        self.register_buffer("offset", -centre * weight[:, 0, 0, 0, 0], persistent=False)
        self.head = nn.Sequential(
            _FromContrast(inputs, first, 5, stride=STRIDES[0], padding=2, bias=False),
            nn.BatchNorm3d(first),
            nn.LeakyReLU(SLOPE),
            nn.Conv3d(first, second, 3, stride=STRIDES[1], padding=1, bias=False),
            nn.BatchNorm3d(second),
            nn.LeakyReLU(SLOPE),
            nn.Conv3d(second, third, 3, stride=STRIDES[2], padding=1, bias=False),
            nn.BatchNorm3d(third),
            nn.LeakyReLU(SLOPE),
        )
        self.last = nn.Sequential(
            nn.Conv3d(third, fourth, 3, padding=1, bias=False),
            nn.BatchNorm3d(fourth),
            nn.LeakyReLU(SLOPE),
        )
        pooled = fourth * (REGIONS if given.masked else 1)
        self.dense = nn.Sequential(
            nn.BatchNorm1d(pooled),
            nn.Dropout(dropout),
            nn.Linear(pooled, dense),
            nn.LeakyReLU(SLOPE),
            nn.Dropout(dropout),
        )
        self.stages, self.signs = nn.Linear(dense, 5), nn.Linear(dense, signs)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """The target layer [N, maps, slices / 2, rows / 4, columns / 4]; 0 far from the organs."""
        with torch.autocast(x.device.type, enabled=False):  # bfloat16 has steps of 0.7 HU
            scaled = functional.conv3d(x, self.scaling, self.offset).clamp(-LIMIT, LIMIT)
        found = self.head(scaled)
        return found * near(x[:, 1:]) if self.given.masked else found

    def pooled(self, features: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The last maps' means and sums over the regions [N, maps * regions]."""
        maps = self.last(features).float().flatten(2)
        if not self.given.masked:
            return maps.mean(dim=2)
        with torch.autocast(x.device.type, enabled=False):
            return (maps @ region_weights(x[:, 1:]).transpose(1, 2)).flatten(1)

    def outputs(self, features: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and signs from the target layer."""
        hidden = self.dense(self.pooled(features, x))
        return self.stages(hidden), self.signs(hidden)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and signs."""
        return self.outputs(self.features(x), x)


class _FromContrast(nn.Conv3d):
    """A convolution whose filters of the CT have zero mean, so that a constant CT gives 0.

    The first two input channels are the CT; the masks' filters are not changed.
    """

    def contrast(self) -> torch.Tensor:
        """The weights that are applied."""
        ct = self.weight[:, :2]
        return torch.cat([ct - ct.mean(dim=(2, 3, 4), keepdim=True), self.weight[:, 2:]], dim=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The convolution."""
        return functional.conv3d(x, self.contrast(), None, self.stride, self.padding)


def near(masks: torch.Tensor) -> torch.Tensor:
    """1 within one voxel of the target layer from liver or spleen, else 0 [N, 1, ...].

    masks: [N, 2, slices, rows, columns]. A voxel of the target layer is 8 mm wide: it is kept if
    it or a neighbour contains a voxel of an organ.
    """
    organs = torch.maximum(masks[:, :1], masks[:, 1:])
    return functional.max_pool3d(functional.max_pool3d(organs, SCALE), 3, 1, 1)


def region_weights(masks: torch.Tensor) -> torch.Tensor:
    """Weights of the target layer's voxels in each pooled region [N, REGIONS, voxels].

    masks: [N, 2, slices, rows, columns]. Means over the liver, its surface (within one voxel on
    either side) and the spleen, then sums over liver and spleen divided by typical sizes. An
    absent organ has the weights 0.
    """
    share = functional.avg_pool3d(masks.float(), SCALE)
    liver = share[:, :1]
    grown = functional.max_pool3d(liver, 3, 1, 1)
    shrunk = -functional.max_pool3d(-liver, 3, 1, 1)
    regions = torch.cat([liver, grown - shrunk, share[:, 1:]], dim=1).flatten(2)
    means = regions / (regions.sum(dim=2, keepdim=True) + 1)
    sums = share.flatten(2) / share.new_tensor(TYPICAL_VOXELS)[:, None]
    return torch.cat([means, sums], dim=1)
