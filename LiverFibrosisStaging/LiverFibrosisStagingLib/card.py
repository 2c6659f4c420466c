"""The model card of a staging model: its metadata, validated field by field."""

import dataclasses
from dataclasses import dataclass
from math import prod
from typing import Any, TypedDict

from .gradcam_onnx.metadata import (
    MISSING,
    InvalidValue,
    as_arguments,
    entries,
    exactly,
    fields,
    items,
    line,
    number,
    read_fields,
    spacing_mm,
    version,
    whole,
    window_hu,
)
from .report.summary import REGION_NAMES
from .stages import GROUPS, STAGES
from .training_record import TRAINING, Training

METADATA_KEY = "liver_fibrosis_staging"
# 2 added `channels`, `field`, `fill` and `liver_hu`; a file without them is the same in both.
CONTRACTS = (1, 2)
CHANNELS = ("ct", "liver", "spleen")
MAX_PATCH_VOXELS = 1 << 26  # larger patches would take gigabytes
MAX_WEIGHT = 1e6  # of a region in the reference; 1 is the mean over the body
CENTRAL_95 = (2.5, 97.5)  # percentiles of the range in which a location map is usual


class Calibration(TypedDict, total=False):
    """`temperature` divides the logits; `operating_points` are by group the lowest probability of a
    positive case, chosen by Youden's index on cases held out in training.
    """

    temperature: float
    operating_points: dict[str, float]


class Checks(TypedDict):
    """How far the expected stage moves when the CT is changed (`explanation_check.CHANGES`).

    source: on which cases. moved: by change, `cases`, and `mean`, `mean_absolute` and `largest`
    movement.
    """

    source: str
    moved: dict[str, dict[str, float]]


class Fill(TypedDict):
    """The CT farther than `beyond_mm` from liver and spleen is set to `hu`."""

    beyond_mm: float
    hu: float


class Reference(TypedDict, total=False):
    """Mean weights in reference cases. stages: by predicted stage, the number of `cases` and, by
    region, the weights at the `percentiles`; `joint`, if present, gives each region's lowest and
    highest usual weight, with 5 % of such cases outside of them in any region.
    """

    source: str
    percentiles: list[float]
    stages: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Card:
    """The model's metadata, as read from the file.

    window_hu: (low, high) HU mapped to 0 and 1. spacing_mm and patch_size: (slice, row, column).
    smoothing_mm: sigma of the Gaussian applied to the working grid. patch_overlap: minimum overlap
    of neighbouring patches, as a fraction. target_layer: tensor explained by the location map.
    tail: operators between it and the logits.

    channels: of the input, "ct" or "ct", "liver", "spleen" (masks as 0 and 1; without a spleen mask
    its channel is 0). field: what the patch is centred on, "body" or "organs". fill: what replaces
    the CT far from the organs; None keeps it. liver_hu: the CT is shifted so that the liver's
    median is here; None keeps the HU. checks: the model's own explanation check; None if there was
    none.
    """

    contract: int
    name: str
    stages: tuple[str, ...]
    window_hu: tuple[float, float]
    spacing_mm: tuple[float, float, float]
    patch_size: tuple[int, int, int]
    patch_overlap: float
    target_layer: str
    tail: tuple[str, ...]
    intended_use: str
    smoothing_mm: float = 0.0
    channels: tuple[str, ...] = ("ct",)
    field: str = "body"
    fill: Fill | None = None
    liver_hu: float | None = None
    calibration: Calibration = dataclasses.field(default_factory=Calibration)
    reference: Reference = dataclasses.field(default_factory=Reference)
    checks: Checks | None = None
    training: Training = dataclasses.field(default_factory=Training)

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Keyword arguments for `grid.working_grid`."""
        return {
            "spacing": self.spacing_mm,
            "patch_size": self.patch_size,
            "window": self.window_hu,
            "overlap": self.patch_overlap,
            "smoothing_mm": self.smoothing_mm,
            "channels": self.channels,
            "field": self.field,
            "fill": self.fill and (self.fill["beyond_mm"], self.fill["hu"]),
            "liver_hu": self.liver_hu,
        }

    @property
    def temperature(self) -> float:
        """Divisor of the logits before the softmax (Guo 2017, temperature scaling)."""
        return self.calibration.get("temperature", 1.0)

    @property
    def operating_points(self) -> dict[str, float]:
        """Group -> lowest probability of a positive case; without the groups that have none."""
        points = self.calibration.get("operating_points", {})
        return {name: float(points[name]) for name in GROUPS if name in points}

    @property
    def trained_on(self) -> str:
        """One sentence on the training data."""
        return self.training.get("data", "Training data not stated.")


def parse_card(text: str | None, name: str) -> Card:
    """The card in a model's metadata; `name` is used in messages.

    Raises StagingError with the field that is missing or invalid.
    """
    advice = "its window, spacing and stages are unknown: export it with Training/lfs/export.py"
    found = read_fields(text, METADATA_KEY, _CARD, name, advice)
    return Card(**as_arguments(Card, found))


def _patch_size(value: Any) -> list[int]:
    size = items(whole(1, 2048), 3)(value)
    if prod(size) > MAX_PATCH_VOXELS:
        raise InvalidValue(value, f"a patch of at most {MAX_PATCH_VOXELS} voxels")
    return size


def _reference(value: Any) -> Reference:
    found = fields({"source": line, "percentiles": items(number(0, 100), ascending=True)})(value)
    if "stages" not in found:
        return found
    percentiles = found.get("percentiles", [])
    if not set(CENTRAL_95) <= set(percentiles):
        raise InvalidValue(
            percentiles or MISSING, "a list with {:g} and {:g}".format(*CENTRAL_95), "percentiles"
        )
    weights = items(number(0, MAX_WEIGHT), len(percentiles), ascending=True)
    regions = {region: weights for region in REGION_NAMES}
    bounds = items(number(0, MAX_WEIGHT), 2, ascending=True)
    joint = fields({region: bounds for region in REGION_NAMES})
    usual = fields(
        {"cases": whole(0, 10**9), "joint": joint, **regions}, optional=("joint", *regions)
    )
    return fields({"stages": fields({stage: usual for stage in STAGES})})(found)


_MOVEMENT = fields(
    {
        "cases": whole(1, 10**9),
        "mean": number(-4, 4),
        "mean_absolute": number(0, 4),
        "largest": number(0, 4),
    },
    optional=(),
)
_CARD = fields(
    {
        "contract": version(*CONTRACTS),
        "name": line,
        "stages": exactly(list(STAGES)),
        "window_hu": window_hu,
        "spacing_mm": spacing_mm,
        "patch_size": _patch_size,
        "patch_overlap": number(0, 0.9),
        "target_layer": line,
        "tail": items(line),
        "intended_use": line,
        "smoothing_mm": number(0, 10),
        "channels": exactly(["ct"], list(CHANNELS)),
        "field": exactly("body", "organs"),
        "fill": fields({"beyond_mm": number(0, 200), "hu": number(-1024, 1024)}, optional=()),
        "liver_hu": number(-1024, 1024),
        "calibration": fields(
            {
                "temperature": number(0.001, 1000),
                "operating_points": fields({group: number(0, 1) for group in GROUPS}),
            }
        ),
        "reference": _reference,
        "checks": fields({"source": line, "moved": entries(_MOVEMENT)}, optional=()),
        "training": TRAINING,
    },
    optional=(
        *("smoothing_mm", "channels", "field", "fill", "liver_hu"),
        *("calibration", "reference", "checks", "training"),
    ),
)
