"""Automatic segmentation of liver and spleen with a V-Net, for CTs without masks.

The network (Training/vnet/network.py, after Milletari et al. 2016, 3DV, and Yin et al. 2021, "Liver
segmentation") processes the CT at a spacing of a few millimetres; of a long scan, the slabs near
liver and spleen. Its probabilities, not its labels, are resampled to the CT's grid (refinement.py),
which gives smooth boundaries.

Model file: input `volume` float32 [N, 1, slices, rows, columns], the CT windowed to 0..1; output
`probabilities` [N, 3, slices, rows, columns]; the metadata entry `liver_segmentation` is JSON with
the fields of `SegmentationCard`.
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from ..errors import CancelToken, StagingError, check_cancel
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
from ..gradcam_onnx.session import CPU, check_weights, described, open_session, run_session
from ..resources import default_model_path
from ..training_record import TRAINING, Training
from .checks import check_ct, check_organs
from .components import largest
from .grid import body_bounds, lps_grid, paste, patch_starts, resample_ct
from .input_checks import concerns, input_checks
from .masks import empty_mask
from .organs import SPLEEN_LABEL
from .plausibility import GAS_HU, LUNG_HU, landmarks, without_heart
from .reading import NAME_KEY, notes, read_ct
from .refinement import organs_on_ct, refine_em_mrf
from .voxels import Voxels

METADATA_KEY = "liver_segmentation"
CONTRACT = 1
CLASSES = ("background", "liver", "spleen")
SLAB_SLICES = 96  # longer scans are processed in slabs of this size
SLAB_OVERLAP = 0.25
MIN_NETWORK_SLICES = 32  # on the network's grid: shorter scans are padded with air, as in training
# Of a long scan, slabs farther than NEAR_ORGANS_MM from liver and spleen are left out, once so much
# liver is found. Smaller sections are the organs' ends; what lies beyond is a false detection.
FOUND_LIVER_ML = 600.0
MIN_SECTION_MM2 = 500.0
NEAR_ORGANS_MM = 40.0
LIVER_BELOW_LUNGS_MM = 80.0  # its middle below the slice with half of the lungs' largest area
LUNG_SQUARE = 4  # voxels
MIN_LUNG_MM2 = 5000.0  # more than of a table's foam
MIN_ORGAN_ML = {"liver": 300.0, "spleen": 15.0}  # anything smaller is a false detection

SEGMENTING = "Segmenting liver and spleen"  # the step's name for the user

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class SegmentationCard:
    """The network's metadata, as read from the file.

    window_hu: (low, high) HU mapped to 0 and 1. spacing_mm: (slice, row, column). multiple_of: each
    input axis must be a multiple of this. training: what it was trained and evaluated on.
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
    """A segmentation network, read from a model file and checked.

    path: the model file. threads, device: as for `StagingModel`. Raises StagingError for a file
    that does not follow the format above, and a device that cannot be used.
    """

    def __init__(self, path: str | Path, threads: int = 0, device: str = CPU) -> None:
        self.path = Path(path)
        file = read_onnx(self.path)
        self.card = _card(file.metadata.get(METADATA_KEY), self.path)
        self.sha256 = file.sha256
        check_weights(file, self.path)
        self._session = open_session(file, self.path, threads, device)
        self._check_signature()

    def run(self, volume: np.ndarray, cancel: CancelToken | None = None) -> np.ndarray:
        """Probabilities float32 [3, slices, rows, columns] of a volume [slices, rows, columns].

        Raises StagingError if the network fails or its output is not finite or has another shape,
        and Cancelled.
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

    liver, spleen: masks, uint8 on the CT's grid; spleen is None if none was found. volumes_ml: by
    organ. warnings: for the user. provenance: the network used, as in staging.json.
    """

    liver: sitk.Image
    spleen: sitk.Image | None
    volumes_ml: dict[str, float]
    warnings: tuple[str, ...]
    provenance: dict[str, Any]

    @cached_property
    def labels(self) -> sitk.Image:
        """Label image, uint8 on the CT's grid, 1 liver, 2 spleen; made when first needed."""
        if self.spleen is None:
            return sitk.Image(self.liver)
        return self.liver + self.spleen * SPLEEN_LABEL


@lru_cache(maxsize=1)
def shipped_network(threads: int = 0, device: str = CPU) -> SegmentationModel:
    """The shipped segmentation network, cached. threads, device: as for `StagingModel`."""
    return SegmentationModel(default_model_path("VNet.onnx"), threads, device)


def segment_organs(ct: sitk.Image | str | Path) -> sitk.Image:
    """Label image of a portal-venous CT, on its grid: 1 liver, 2 spleen. See `segment`."""
    return segment(ct).labels


def segment(
    ct: sitk.Image | str | Path,
    model: SegmentationModel | str | Path | None = None,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> Segmentation:
    """Segment liver and spleen on a CT.

    ct: in HU, an image or a path, as for `stage`. model: a model file, the shipped one by default.
    progress: called with a fraction 0..1 and the step's name. cancel: asked several times a second,
    also while the file is read (`read_ct`) and while the network runs. The warnings include those
    of `input_checks`.

    Raises StagingError if the input is not a usable CT or no liver is found, and Cancelled.
    """
    if progress is not None:
        progress(0.0, "Reading")
    if isinstance(ct, sitk.Image):
        name = ct.GetMetaData(NAME_KEY) if ct.HasMetaDataKey(NAME_KEY) else "The CT"
    else:
        name, ct = str(ct), read_ct(ct, cancel)
    check_ct(ct, name)
    if not isinstance(model, SegmentationModel):
        model = shipped_network() if model is None else SegmentationModel(model)
    found = segment_checked(ct, name, model, progress, cancel)
    check_organs(ct, found.liver, found.spleen, name)
    _, checks = input_checks(ct, found.liver, found.spleen, cancel)
    return replace(found, warnings=(*notes(ct), *found.warnings, *concerns(checks)))


def segment_checked(
    ct: sitk.Image,
    name: str,
    model: SegmentationModel,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> Segmentation:
    """`segment` for a CT that has already passed `check_ct`; name: of the CT, for messages."""

    def begin(fraction: float, step: str) -> None:
        check_cancel(cancel)
        if progress is not None:
            progress(fraction, step)

    begin(0.1, SEGMENTING)
    card = model.card
    grid = network_grid(ct, card.spacing_mm, card.multiple_of, cancel)
    probabilities = _run(model, grid, begin, cancel)
    refining = "Refining the segmentation"
    begin(0.8, refining)
    # Zeros for a long scan take as long as the refinement: made beside it, now that the network's
    # memory is free again.
    making = ThreadPoolExecutor(1)
    empty = [making.submit(empty_mask, ct) for _ in MIN_ORGAN_ML]
    making.shutdown(wait=False)  # the thread ends with the work, also if the user cancels
    marks = landmarks(probabilities, grid)
    probabilities = without_heart(probabilities, marks)
    begin(0.83, refining)
    clamped = sitk.Clamp(grid, lowerBound=card.window_hu[0], upperBound=card.window_hu[1])
    probabilities = without_heart(refine_em_mrf(probabilities, clamped), marks)
    begin(0.87, refining)
    parts = organs_on_ct(probabilities, grid, ct, cancel)
    begin(0.95, refining)
    voxel_ml = math.prod(ct.GetSpacing()) / 1000.0
    volumes = {
        organ: float(np.count_nonzero(part.inside) * voxel_ml)
        for organ, part in zip(MIN_ORGAN_ML, parts)
    }
    if volumes["liver"] < MIN_ORGAN_ML["liver"]:
        raise StagingError(
            f"{name}: no liver was found ({volumes['liver']:.0f} mL segmented, at least "
            f"{MIN_ORGAN_ML['liver']:g} mL expected); a CT of the abdomen, or a liver mask, is "
            "needed."
        )
    spleen: sitk.Image | None
    liver, spleen = masks = [mask.result() for mask in empty]
    for part, mask in zip(parts, masks):
        paste(part.inside.view(np.uint8), mask, part.box)
    if volumes["spleen"] < MIN_ORGAN_ML["spleen"]:
        spleen, volumes["spleen"] = None, 0.0
    begin(1.0, "Done")
    provenance = {"name": card.name, "sha256": model.sha256, "edited": False}
    return Segmentation(liver, spleen, volumes, segmentation_warnings(volumes), provenance)


def segmentation_warnings(volumes_ml: dict[str, float]) -> tuple[str, ...]:
    """Warnings for the organs that were segmented automatically, 0 mL if one was not found."""
    missing = ("No spleen was found; it is not measured.",) if volumes_ml.get("spleen") == 0 else ()
    found = ", ".join(f"{organ} {volume:.0f} mL" for organ, volume in volumes_ml.items())
    return *missing, f"The organs were segmented automatically ({found}); check the masks."


def network_grid(
    ct: sitk.Image,
    spacing: tuple[float, float, float],
    multiple: int,
    cancel: CancelToken | None = None,
) -> sitk.Image:
    """A CT at the network's spacing (slice, row, column; mm), HU as float32.

    Covers the whole scanned body, padded with air to a multiple of `multiple` voxels along each
    axis and to at least MIN_NETWORK_SLICES slices. The axes are the CT's own, reordered and flipped
    towards LPS but not rotated: in a CT whose header was rotated, by a registration for instance,
    the patient still lies along the voxel axes. Raises Cancelled.
    """
    scan = Voxels.of(ct).lps()
    straight = scan.straight()
    low, high = body_bounds(straight, cancel=cancel)
    step = np.array(spacing[::-1])
    least = np.maximum((high - low) / step, (1, 1, MIN_NETWORK_SLICES))
    size = np.ceil(least / multiple - 1e-6) * multiple
    reference = lps_grid((low + high) / 2, size, step)
    grid = sitk.GetImageFromArray(resample_ct(straight, reference, cancel=cancel))
    grid.SetSpacing(reference.GetSpacing())
    first = straight.indices(np.array(reference.GetOrigin())[:, None])
    grid.SetOrigin(scan.places(first)[:, 0].tolist())
    grid.SetDirection(scan.direction.ravel().tolist())
    return grid


def _run(
    model: SegmentationModel,
    grid: sitk.Image,
    begin: Callable[[float, str], None],
    cancel: CancelToken | None,
) -> np.ndarray:
    """Probabilities of the whole grid, of HU; long scans slab by slab, with overlaps averaged.

    Slabs are left out, as background, if others have found a liver and they are not near the organs
    found: the time grows with the organs, not with the scan.
    """
    windowed = sitk.IntensityWindowing(grid, *model.card.window_hu, 0.0, 1.0)
    volume = sitk.GetArrayViewFromImage(windowed)
    if len(volume) <= SLAB_SLICES:
        begin(0.2, SEGMENTING)
        return model.run(volume, cancel)
    total = np.zeros((len(CLASSES), *volume.shape), np.float32)
    count = np.zeros((len(volume), 1, 1), np.float32)
    # Predictions are better in a slab's middle, where there is more context.
    upwards = np.arange(1, SLAB_SLICES + 1, dtype=np.float32)
    weight = np.minimum(upwards, upwards[::-1])[:, None, None]
    starts = patch_starts(len(volume), SLAB_SLICES, SLAB_OVERLAP)
    guess = _middle_of_liver(grid)
    waiting = sorted(starts, key=lambda start: abs(start + SLAB_SLICES / 2 - guess))
    first, last = 0.0, math.inf  # slices that may contain organs
    while needed := [start for start in waiting if start <= last and start + SLAB_SLICES > first]:
        begin(0.2 + 0.6 * (1 - len(waiting) / len(starts)), SEGMENTING)
        start = needed[0]
        waiting.remove(start)
        slab = slice(start, start + SLAB_SLICES)
        total[:, slab] += weight * model.run(volume[slab], cancel)
        count[slab] += weight
        if waiting:
            first, last = _near_organs(total[1:] > 0.5 * count, grid.GetSpacing())
    total[0][count[:, 0, 0] == 0] = 1.0
    total /= np.maximum(count, 1.0)
    return total


def _middle_of_liver(grid: sitk.Image) -> float:
    """A slice, near which the liver is looked for first: below the base of the lungs.

    Without lungs, the scan's upper end. Lungs are counted in squares of LUNG_SQUARE voxels, since
    the skin's voxels have the same HU.
    """
    hu = sitk.GetArrayViewFromImage(grid)
    rows, columns = (length // LUNG_SQUARE * LUNG_SQUARE for length in hu.shape[1:])
    lungs = ((hu > GAS_HU) & (hu < LUNG_HU))[:, :rows, :columns]
    squares = lungs.reshape(len(hu), rows // LUNG_SQUARE, LUNG_SQUARE, -1, LUNG_SQUARE)
    count = np.count_nonzero(squares.all(axis=(2, 4)), axis=(1, 2))
    area = count * LUNG_SQUARE**2 * grid.GetSpacing()[0] * grid.GetSpacing()[1]
    wide = area >= max(area.max() / 2, MIN_LUNG_MM2)
    base = np.argmax(wide) if wide.any() else len(wide)
    return base - LIVER_BELOW_LUNGS_MM / grid.GetSpacing()[2]


def _near_organs(organs: np.ndarray, spacing: tuple[float, ...]) -> tuple[float, float]:
    """First and last slice that may contain organs, given those found, [organ, slice, row, column].

    Without a liver, all slices may contain one. spacing: x, y, z in mm.
    """
    section_mm2 = spacing[0] * spacing[1]
    liver = np.count_nonzero(largest(organs[0]), axis=(1, 2)) * section_mm2
    if liver.sum() * spacing[2] < 1000 * FOUND_LIVER_ML:
        return 0.0, math.inf
    area = np.count_nonzero(organs, axis=(0, 2, 3)) * section_mm2
    ends, middle = np.flatnonzero(area < MIN_SECTION_MM2), np.argmax(liver)
    first = ends[ends < middle].max(initial=-1)
    last = ends[ends > middle].min(initial=len(area))
    margin = NEAR_ORGANS_MM / spacing[2]
    return first - margin, last + margin


def _card(text: str | None, path: Path) -> SegmentationCard:
    advice = "it is not a segmentation model: export one with Training/train_vnet.py"
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
