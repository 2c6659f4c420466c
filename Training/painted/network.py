"""SignNetwork: maps of the signs of fibrosis, readings of the signs, and the stage.

Input: CT, and masks of liver and spleen. The target layer is `maps.sign_maps`, at 8 mm; the means
of its maps go through two layers that read the drawn signs, each sign from maps of its own, and two
layers from the signs to the stage. All signs are known for every painted case.
"""

from dataclasses import dataclass

import torch
from torch import nn

from LiverFibrosisStagingLib.stages import STAGES
from painted.maps import NAMES, SHELLS, SLABS, sign_maps

SPACING_MM = (4.0, 2.0, 2.0)
READERS = 8  # units that read one sign
HIDDEN = 16  # units between signs and stage
SLOPE = 0.1
# Signs that are read, and the maps that each is read from. Volumes are read as logarithms.
SIGNS = {
    "measured_spleen_ml": ("spleen",),
    "measured_lsvr": ("liver", *(f"liver, part {n}" for n in range(1, len(SLABS) + 2))),
    "texture_hu": ("coarse parenchyma", "fine parenchyma"),
    "ascites_mm": (*SHELLS, "fat"),
}


@dataclass(frozen=True)
class Input:
    """What the network is given.

    patch_size: (slices, rows, columns), centred on liver and spleen. fill_mm: beyond this distance
    from the organs the CT is set to fill_hu. smoothing_mm: SD of a Gaussian.
    """

    patch_size: tuple[int, int, int] = (64, 120, 168)
    fill_mm: float = 16.0
    fill_hu: float = -100.0
    window_hu: tuple[float, float] = (-125.0, 225.0)
    smoothing_mm: float = 1.0


class SignNetwork(nn.Module):
    """Logits [N, 5] of the stages F0..F4, and `SIGNS` [N, signs] in units of their spread.

    x: [N, 3, slices, rows, columns], the window as 0..1, then the masks as 0 or 1; sizes are
    multiples of (2, 4, 4).
    """

    def __init__(self, given: Input) -> None:
        super().__init__()
        self.given = given
        count = len(SIGNS)
        self.signs = nn.Sequential(
            nn.BatchNorm1d(len(NAMES)),
            nn.Linear(len(NAMES), READERS * count),
            nn.LeakyReLU(SLOPE),
            nn.Linear(READERS * count, count),
        )
        self.stages = nn.Sequential(
            nn.Linear(count, HIDDEN), nn.LeakyReLU(SLOPE), nn.Linear(HIDDEN, len(STAGES))
        )
        own = torch.tensor([[name in names for name in NAMES] for names in SIGNS.values()])
        readers = torch.eye(count).repeat_interleave(READERS, dim=1)
        self.register_buffer("own_maps", own.repeat_interleave(READERS, dim=0).float(), False)
        self.register_buffer("own_readers", readers, False)

    def separate(self) -> None:
        """Set the weights to 0 that lead from one sign's maps to another sign."""
        with torch.no_grad():
            self.signs[1].weight *= self.own_maps
            self.signs[3].weight *= self.own_readers

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """The target layer [N, maps, slices / 2, rows / 4, columns / 4]."""
        low, high = self.given.window_hu
        return sign_maps(x[:, :1] * (high - low) + low, x[:, 1:])

    def outputs(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and signs from the target layer."""
        return self.of_means(features.mean(dim=(2, 3, 4)))

    def of_means(self, means: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and signs from the maps' means [N, maps]."""
        signs = self.signs(means)
        return self.stages(signs), signs

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and signs."""
        return self.outputs(self.features(x))
