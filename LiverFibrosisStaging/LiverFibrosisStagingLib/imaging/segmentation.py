"""Liver and spleen by themselves: a V-Net finds them where the user brings no mask.

The network (Training/vnet/network.py, after Milletari et al. 2016, 3DV, and Yin et al. 2021, "Liver
segmentation") sees the whole CT at a few millimetres. Its probabilities, not its labels, are
carried back to the CT's grid (outlining.py), so that outlines are as smooth as the organs.

The file is a contract as the staging model's: input `volume` float32 [N, 1, slices, rows, columns],
the CT windowed to 0..1; output `probabilities` [N, 3, slices, rows, columns]; the metadata entry
`liver_segmentation` is JSON; `SegmentationCard` lists what it holds.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from ..errors import Cancelled, CancelToken, StagingError
from ..gradcam_onnx.metadata import (
    as_arguments,
    exactly,
    fields,
    line,
    read_fields,
    spacing_mm,
    version,
    whole,
    window_hu,
)
from ..gradcam_onnx.onnx_file import read_onnx
from ..gradcam_onnx.session import check_weights, described, open_session, run_session
from ..resources import default_model_path
from ..training_record import TRAINING, Training
from .checks import check_ct, check_organs
from .grid import body_bounds, lps_grid, patch_starts, resample_ct, upright
from .organs import LIVER_LABEL, SPLEEN_LABEL
from .outlining import judged_by_hu, on_ct
from .reading import NAME_KEY, notes, read_ct

METADATA_KEY = "liver_segmentation"
CONTRACT = 1
CLASSES = ("background", "liver", "spleen")
SLAB_SLICES = 96  # of a longer scan that the network sees at once
SLAB_OVERLAP = 0.25
FEW_SLICES = 32  # of the network's: shorter scans get air around them, as in training
MIN_FOUND_ML = {"liver": 300.0, "spleen": 15.0}  # less is no organ but a mistake

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class SegmentationCard:
    """The network's own metadata, as read from the file.

    window_hu: (low, high) HU that become 0 and 1. spacing_mm: (slice, row, column). multiple_of:
    what each length of the input has to be a multiple of. training: what it was trained and
    evaluated on.
    """

    contract: int
    name: str
    classes: tuple[str, ...]
    window_hu: tuple[float, float]
    spacing_mm: tuple[float, float, float]
    multiple_of: int
    intended_use: str
    training: Training = field(default_factory=Training)


class SegmentationModel:
    """The network in its file. path: a contract file. threads: as for `StagingModel`.

    Raises StagingError, with the reason, for a file that breaks the contract.
    """

    def __init__(self, path: str | Path, threads: int = 0) -> None:
        self.path = Path(path)
        file = read_onnx(self.path)
        self.card = _card(file.metadata.get(METADATA_KEY), self.path)
        self.sha256 = file.sha256
        check_weights(file, self.path)
        self._session = open_session(file, self.path, threads)
        self._check_signature()

    @classmethod
    def load(cls, path: str | Path, threads: int = 0) -> "SegmentationModel":
        """The network in a file."""
        return cls(path, threads)

    def run(self, volume: np.ndarray, cancel: CancelToken | None = None) -> np.ndarray:
        """Probabilities float32 [3, slices, rows, columns] of a volume of the last three axes.

        Raises StagingError where the network fails or gives anything else, and Cancelled.
        """
        given = np.ascontiguousarray(volume, np.float32)[None, None]
        (found,) = run_session(self._session, ["probabilities"], given, self.path, cancel)
        if found.shape != (1, len(CLASSES), *volume.shape) or not np.isfinite(found).all():
            raise StagingError(
                f"The model {self.path} gave probabilities of shape {list(found.shape)}; needed "
                f"are finite numbers of shape {[1, len(CLASSES), *volume.shape]}."
            )
        return found[0]

    def _check_signature(self) -> None:
        given, made = self._session.get_inputs(), self._session.get_outputs()
        for named, name, needed in ((given, "volume", "one input, "), (made, "probabilities", "")):
            item = next((item for item in named if item.name == name), None)
            fits = item is not None and item.type == "tensor(float)" and len(item.shape) == 5
            if not fits or (named is given and len(given) != 1):
                found = described(item, [other.name for other in named])
                raise StagingError(
                    f"The model {self.path} has {found}; needed is {needed}{name} tensor(float) of "
                    "five axes."
                )


@dataclass(frozen=True, eq=False)
class Segmentation:
    """Liver and spleen of one CT.

    labels: uint8 image on the CT's grid, 1 liver, 2 spleen. volumes_ml: by organ. warnings:
    sentences for the reader. provenance: which network made it, as in staging.json.
    """

    labels: sitk.Image
    volumes_ml: dict[str, float]
    warnings: tuple[str, ...]
    provenance: dict[str, Any]

    @property
    def liver(self) -> sitk.Image:
        """Mask on the CT's grid."""
        return self.labels == LIVER_LABEL

    @property
    def spleen(self) -> sitk.Image | None:
        """Mask on the CT's grid; None where no spleen was found."""
        return self.labels == SPLEEN_LABEL if self.volumes_ml["spleen"] else None


@lru_cache(maxsize=1)
def shipped(threads: int = 0) -> SegmentationModel:
    """The shipped network, loaded once for a whole cohort. threads: as for `StagingModel`."""
    return SegmentationModel(default_model_path("VNet.onnx"), threads)


def segment_organs(ct: sitk.Image | str | Path) -> sitk.Image:
    """Label image of a portal-venous CT, on its grid: 1 liver, 2 spleen. See `segment`."""
    return segment(ct).labels


def segment(
    ct: sitk.Image | str | Path,
    model: SegmentationModel | str | Path | None = None,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> Segmentation:
    """Find liver and spleen on a CT.

    ct: in HU, an image or a path, as for `stage`. model: a contract file, the shipped one by
    default. progress: called with a fraction 0..1 and the step's name. cancel: asked between steps
    and while the network runs. The warnings are also those about the CT and about an organ that is
    cut off or of an unusual volume. Raises StagingError for what is no CT and where no liver is
    found, and Cancelled.
    """
    if progress is not None:
        progress(0.0, "Reading")
    if isinstance(ct, sitk.Image):
        name = ct.GetMetaData(NAME_KEY) if ct.HasMetaDataKey(NAME_KEY) else "The CT"
    else:
        name, ct = str(ct), read_ct(ct)
    doubts = (*notes(ct), *check_ct(ct, name))
    if not isinstance(model, SegmentationModel):
        model = shipped() if model is None else SegmentationModel(model)
    found = outline(ct, name, model, progress, cancel)
    about_organs = check_organs(ct, found.liver, found.spleen, name)
    return replace(found, warnings=(*doubts, *found.warnings, *about_organs))


def outline(
    ct: sitk.Image,
    name: str,
    model: SegmentationModel,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> Segmentation:
    """`segment` for a CT that `check_ct` has seen; name: of it, for the refusal."""

    def begin(fraction: float, step: str) -> None:
        if cancel is not None and cancel.is_set():
            raise Cancelled("Segmentation was cancelled.")
        if progress is not None:
            progress(fraction, step)

    begin(0.1, "Segmenting liver and spleen")
    card = model.card
    grid = network_grid(ct, card.spacing_mm, card.multiple_of)
    windowed = sitk.IntensityWindowing(grid, *card.window_hu, 0.0, 1.0)
    probabilities = _run(model, windowed, begin, cancel)
    begin(0.8, "Outlining liver and spleen")
    seen = sitk.Clamp(grid, lowerBound=card.window_hu[0], upperBound=card.window_hu[1])
    labels = on_ct(judged_by_hu(probabilities, seen), grid, ct)
    volumes = _volumes_ml(labels)
    if volumes["liver"] < MIN_FOUND_ML["liver"]:
        raise StagingError(
            f"{name}: no liver was found: {volumes['liver']:.0f} mL look like one, less than "
            f"{MIN_FOUND_ML['liver']:g} mL; needed is a CT of the abdomen, or a liver mask."
        )
    if volumes["spleen"] < MIN_FOUND_ML["spleen"]:
        labels = sitk.ChangeLabel(labels, {SPLEEN_LABEL: 0})
        volumes["spleen"] = 0.0
    begin(1.0, "Done")
    provenance = {"name": card.name, "sha256": model.sha256, "edited": False}
    return Segmentation(labels, volumes, about_outlines(volumes), provenance)


def about_outlines(volumes_ml: dict[str, float]) -> tuple[str, ...]:
    """Warnings that go with organs as a network outlined them; a volume of 0: not found."""
    missing = () if volumes_ml["spleen"] else ("No spleen was found, so nothing is said about it.",)
    found = ", ".join(f"{organ} {volume:.0f} mL" for organ, volume in volumes_ml.items())
    return *missing, f"The organs were outlined automatically ({found}): look whether they fit."


def network_grid(ct: sitk.Image, spacing: tuple[float, float, float], multiple: int) -> sitk.Image:
    """A CT at the network's spacing (slice, row, column; mm), HU as float32.

    All of the patient that was scanned, with air around up to a multiple of `multiple` voxels along
    each axis and to FEW_SLICES slices. Its axes are those of the CT, turned towards LPS by quarters
    only: a scan whose header was turned, by a registration for instance, still shows the patient as
    scanners do.
    """
    ct = upright(ct)
    straight = sitk.Image(ct)
    straight.SetOrigin((0.0, 0.0, 0.0))
    straight.SetDirection(np.eye(3).ravel().tolist())
    low, high = body_bounds(straight)
    step = np.array(spacing[::-1])
    least = np.maximum((high - low) / step, (1, 1, FEW_SLICES))
    size = np.ceil(least / multiple - 1e-6) * multiple
    grid = resample_ct(straight, lps_grid((low + high) / 2, size, step))
    first = straight.TransformPhysicalPointToContinuousIndex(grid.GetOrigin())
    grid.SetOrigin(ct.TransformContinuousIndexToPhysicalPoint(first))
    grid.SetDirection(ct.GetDirection())
    return grid


def _run(
    model: SegmentationModel,
    grid: sitk.Image,
    begin: Callable[[float, str], None],
    cancel: CancelToken | None,
) -> np.ndarray:
    """Probabilities of the whole grid; of long scans, slab by slab, their overlaps averaged."""
    volume = sitk.GetArrayViewFromImage(grid)
    slices = min(len(volume), SLAB_SLICES)
    total = np.zeros((len(CLASSES), *volume.shape), np.float32)
    count = np.zeros((len(volume), 1, 1), np.float32)
    # A slab's middle knows more than its ends.
    ramp = np.minimum(np.arange(1, slices + 1), np.arange(slices, 0, -1), dtype=np.float32)
    weight = ramp[:, None, None]
    starts = patch_starts(len(volume), slices, SLAB_OVERLAP)
    for number, start in enumerate(starts):
        begin(0.2 + 0.6 * number / len(starts), "Segmenting liver and spleen")
        slab = slice(start, start + slices)
        total[:, slab] += weight * model.run(volume[slab], cancel)
        count[slab] += weight
    return total / count


def _volumes_ml(labels: sitk.Image) -> dict[str, float]:
    voxels = sitk.GetArrayViewFromImage(labels)
    each = math.prod(labels.GetSpacing()) / 1000.0
    return {o: float(np.count_nonzero(voxels == n) * each) for n, o in enumerate(CLASSES) if n}


def _card(text: str | None, path: Path) -> SegmentationCard:
    advice = "it is none that segments: export one with Training/train_vnet.py"
    found = read_fields(text, METADATA_KEY, _CARD, str(path), advice)
    return SegmentationCard(**as_arguments(SegmentationCard, found))


_CARD = fields(
    {
        "contract": version(CONTRACT),
        "name": line,
        "classes": exactly(list(CLASSES)),
        "window_hu": window_hu,
        "spacing_mm": spacing_mm,
        "multiple_of": whole(1, 256),
        "intended_use": line,
        "training": TRAINING,
    },
    optional=("training",),
)
