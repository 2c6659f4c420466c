"""Signs of liver and spleen, measured from a CT and its masks: volumes in mL, attenuation in HU,
volume ratios of the liver's parts, nodularity of its surface.

A sign that cannot be measured has no value but a reason. Reasons and sentences contain no text from
the input.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import SimpleITK as sitk

from ..errors import CancelToken, StagingError, check_cancel
from ..imaging.body import Body
from ..imaging.dicom_series import PORTAL_VENOUS
from ..imaging.grid import bounding_box, widened
from ..imaging.masks import eroded, same_grid, volume_ml
from ..imaging.segments import LiverSegments
from .nodularity import Nodularity, nodularity
from .published import Cutoff, published_signs

# HU are measured away from the organ's surface, where fat and lung share the voxels with it.
EROSION_MM = 5.0
# What is left needs to be more than a region of interest of 1 cm2 in a slice of 5 mm, and its mean
# needs a standard error of at most a tenth of the noise.
MIN_CORE_ML = 1.0
MIN_CORE_VOXELS = 100
# Without contrast a spleen has 40 to 60 HU, in the portal-venous phase usually 110 to 150.
# The liver is no evidence, because steatosis lowers it.
ENHANCED_SPLEEN_HU = 90.0
# Least share of the liver mask inside the segments, and of the segments inside the mask. Tumours
# and vessels may be missing in one of them; the segments of another scan match less.
MIN_OVERLAP = 0.8
# Ratio -> the Couinaud segments whose volumes are divided. LSVR: Furusato Hunt et al. 2016,
# doi 10.1097/RCT.0000000000000389. Caudate to right lobe: volumes of segment I and of the right
# hemiliver; Harbin et al. 1980, Radiology 135:273-283, measured widths in a slice, so their cutoff
# does not apply.
RATIOS = {
    "lsvr": (frozenset({1, 2, 3}), frozenset({4, 5, 6, 7, 8})),
    "caudate_right_ratio": (frozenset({1}), frozenset({5, 6, 7, 8})),
}
_NEEDED = {
    "lsvr": "Couinaud segments, or the caudate, left and right lobe divided by the falciform "
    "ligament",
    "caudate_right_ratio": "Couinaud segments, or the caudate lobe and the right hemiliver without "
    "segment IV",
}

UNITS = {
    "spleen_volume_ml": "mL",
    "liver_volume_ml": "mL",
    "spleen_liver_ratio": "",
    "spleen_ml_per_m2": "mL/m2",
    "liver_ml_per_m2": "mL/m2",
    "lsvr": "",
    "caudate_right_ratio": "",
    "nodularity_mm10": "tenths of a mm",
    "nodularity_edge_mm": "mm",
    "liver_mean_hu": "HU",
    "liver_sd_hu": "HU",
    "spleen_mean_hu": "HU",
    "spleen_sd_hu": "HU",
    "liver_minus_spleen_hu": "HU",
}


@dataclass(frozen=True)
class Measurement:
    """The value of a sign; None if it is not measurable, with the reason.

    at_least: lower bound of the volume of an organ that the scan's edge cuts off; otherwise None.
    basis: in words, what the value was measured on, where its reliability depends on it.
    """

    key: str
    value: float | None
    reason: str = ""
    at_least: float | None = None
    basis: str = ""

    @property
    def unit(self) -> str:
        """Of the value; "" for a ratio."""
        return UNITS[self.key]


@dataclass(frozen=True)
class SteatosisHint:
    """What the liver's HU say about moderate steatosis.

    cutoff: the lowest published threshold that the liver is below; None if it is below none, or if
    nothing can be said (`assessed` is False). The sentence names result or reason, and the source.
    """

    assessed: bool
    cutoff: Cutoff | None
    sentence: str


@dataclass(frozen=True)
class MeasuredSigns:
    """One measurement for each key of UNITS, in that order, and the hint of steatosis."""

    measurements: tuple[Measurement, ...]
    steatosis: SteatosisHint

    def __getitem__(self, key: str) -> Measurement:
        return next(found for found in self.measurements if found.key == key)

    def in_phase(self, phase: str) -> "MeasuredSigns":
        """The same with the hint of steatosis of another contrast phase; see `measure_signs`."""
        hint = _steatosis(self["liver_mean_hu"], self["spleen_mean_hu"], phase)
        return replace(self, steatosis=hint)


@dataclass(frozen=True)
class _Organ:
    """volume, mean, median and sd are None if not measurable, for the reason given."""

    volume: float | None
    volume_reason: str
    at_least: float | None
    mean: float | None
    median: float | None
    sd: float | None
    hu_reason: str


def measure_signs(
    ct: sitk.Image,
    liver: sitk.Image | None,
    spleen: sitk.Image | None,
    phase: str,
    segments: LiverSegments | None = None,
    body: Body | None = None,
    cancel: CancelToken | None = None,
) -> MeasuredSigns:
    """Measure the signs of UNITS and look for steatosis.

    ct: HU, as checked by `imaging.checks.check_ct`; liver, spleen: masks on its grid, non-zero
    inside, or None; phase: contrast phase as in `imaging.dicom_series`, "" if it is not known;
    segments: parts of the liver, on any grid in the same space, for the ratios of RATIOS; body:
    height and weight, for the volumes per body surface area (`Body.surface_m2`).

    Volumes are those of all voxels of a mask; they are not measurable for an organ at the edge of
    the image, of which only a lower bound is known. Mean and SD (of the population) of the HU are
    those of the voxels whose centre is more than EROSION_MM from that of the nearest voxel outside
    the organ; vessels and lesions inside are included. At least MIN_CORE_ML and MIN_CORE_VOXELS are
    needed. Nodularity is defined in `nodularity`; nodularity_edge_mm is the length of the edge it
    rests on. Raises StagingError for a mask on another grid, and Cancelled.
    """
    of_liver = _organ(ct, liver, "liver")
    check_cancel(cancel)
    of_spleen = _organ(ct, spleen, "spleen")
    check_cancel(cancel)
    volume_reason = of_spleen.volume_reason or of_liver.volume_reason
    hu_reason = of_liver.hu_reason or of_spleen.hu_reason
    ratio = difference = None
    if of_spleen.volume is not None and of_liver.volume is not None:
        ratio = of_spleen.volume / of_liver.volume
    if of_liver.mean is not None and of_spleen.mean is not None:
        difference = of_liver.mean - of_spleen.mean
    found = (
        Measurement(
            "spleen_volume_ml", of_spleen.volume, of_spleen.volume_reason, of_spleen.at_least
        ),
        Measurement("liver_volume_ml", of_liver.volume, of_liver.volume_reason, of_liver.at_least),
        Measurement("spleen_liver_ratio", ratio, volume_reason),
        _per_surface("spleen_ml_per_m2", of_spleen, body),
        _per_surface("liver_ml_per_m2", of_liver, body),
        *_ratios(of_liver, liver, segments),
        *_nodularity(ct, liver, of_liver, cancel),
        Measurement("liver_mean_hu", of_liver.mean, of_liver.hu_reason),
        Measurement("liver_sd_hu", of_liver.sd, of_liver.hu_reason),
        Measurement("spleen_mean_hu", of_spleen.mean, of_spleen.hu_reason),
        Measurement("spleen_sd_hu", of_spleen.sd, of_spleen.hu_reason),
        Measurement("liver_minus_spleen_hu", difference, hu_reason),
    )
    not_assessed = SteatosisHint(False, None, "")
    return MeasuredSigns(found, not_assessed).in_phase(phase)


def _organ(ct: sitk.Image, mask: sitk.Image | None, name: str) -> _Organ:
    if mask is not None and not same_grid(mask, ct):
        raise StagingError(
            f"The {name} mask is on another grid than the CT; a mask on the CT's grid is needed."
        )
    box = None if mask is None else bounding_box(sitk.GetArrayViewFromImage(mask))
    if box is None:
        reason = f"There is no mask of the {name}."
        return _Organ(None, reason, None, None, None, None, reason)
    shape = ct.GetSize()[::-1]
    array = sitk.GetArrayViewFromImage(mask)
    voxel_ml = float(np.prod(ct.GetSpacing())) / 1000
    volume, at_least, volume_reason = np.count_nonzero(array[box]) * voxel_ml, None, ""
    if any(part.start == 0 or part.stop == length for part, length in zip(box, shape)):
        volume, at_least = None, volume
        volume_reason = (
            f"The {name} reaches the edge of the scan; its volume is at least {at_least:.0f} mL."
        )
    # One voxel around the organ holds the nearest voxels outside.
    wide = widened(box, (1, 1, 1))
    core = eroded(array[wide], EROSION_MM, ct.GetSpacing()[::-1])
    hu = sitk.GetArrayViewFromImage(ct)[wide][core]
    count = len(hu)
    core_ml = count * voxel_ml
    if core_ml < MIN_CORE_ML or count < MIN_CORE_VOXELS:
        return _Organ(
            volume,
            volume_reason,
            at_least,
            None,
            None,
            None,
            f"Only {core_ml:.1f} mL ({count} voxels) of the {name} lie deeper than "
            f"{EROSION_MM:g} mm; at least {MIN_CORE_ML:g} mL and {MIN_CORE_VOXELS} voxels are "
            "needed to measure HU.",
        )
    mean, sd = (float(found(hu, dtype=np.float64)) for found in (np.mean, np.std))
    return _Organ(volume, volume_reason, at_least, mean, _median(hu), sd, "")


def _median(hu: np.ndarray) -> float:
    """As np.median; of the int16 of most CTs in a fifth of the time, from their histogram."""
    if hu.dtype != np.int16:
        return float(np.median(hu))
    low = int(hu.min())
    upto = np.bincount(np.subtract(hu, low, dtype=np.intp)).cumsum()
    middle = upto.searchsorted([(len(hu) - 1) // 2, len(hu) // 2], side="right")
    return low + float(middle.mean())


def _per_surface(key: str, organ: _Organ, body: Body | None) -> Measurement:
    if body is None:
        return Measurement(key, None, "Height and weight are needed.")
    at_least = None if organ.at_least is None else organ.at_least / body.surface_m2
    value = None if organ.volume is None else organ.volume / body.surface_m2
    return Measurement(key, value, organ.volume_reason, at_least)


def _ratios(
    of_liver: _Organ, liver: sitk.Image | None, segments: LiverSegments | None
) -> list[Measurement]:
    """The ratios of RATIOS."""
    if segments is None:
        end = "for instance from TotalSegmentator's task liver_segments."
        return [
            Measurement(key, None, f"Segments are needed: {_NEEDED[key]}, {end}") for key in RATIOS
        ]
    reason = of_liver.volume_reason or _other_liver(liver, segments)
    if reason:
        return [Measurement(key, None, reason) for key in RATIOS]
    found = []
    for key, parts in RATIOS.items():
        above, below = map(segments.volume_ml, parts)
        if above and below:
            found.append(Measurement(key, above / below))
        else:
            what = f"{_NEEDED[key]} are needed."
            reason = f"The segments given do not make up both parts of the ratio; {what}"
            found.append(Measurement(key, None, reason))
    return found


def _other_liver(liver: sitk.Image, segments: LiverSegments) -> str:
    """Why the segments are not those of this liver; "" if they are."""
    on_grid = sitk.Resample(segments.labels, liver, sitk.Transform(), sitk.sitkNearestNeighbor, 0)
    found, inside = (sitk.GetArrayViewFromImage(image) != 0 for image in (on_grid, liver))
    both = np.count_nonzero(found & inside) * math.prod(liver.GetSpacing()) / 1000
    of_liver = both / volume_ml(liver)
    of_segments = both / volume_ml(segments.labels)
    if min(of_liver, of_segments) >= MIN_OVERLAP:
        return ""
    return (
        f"The segments cover {100 * of_liver:.0f} % of the liver mask, and "
        f"{100 * of_segments:.0f} % of them lie inside it; segments of the same liver, with at "
        f"least {100 * MIN_OVERLAP:.0f} %, are needed."
    )


def _nodularity(
    ct: sitk.Image, liver: sitk.Image | None, organ: _Organ, cancel: CancelToken | None
) -> list[Measurement]:
    if liver is None or organ.median is None:
        found = Nodularity(None, 0.0, 0, organ.hu_reason)
    else:
        found = nodularity(ct, liver, organ.median, cancel)
    basis = f"on {found.edge_mm:.0f} mm of the liver's edge"
    return [
        Measurement("nodularity_mm10", found.mm10, found.reason, basis=basis),
        Measurement("nodularity_edge_mm", found.edge_mm),
    ]


def _steatosis(liver: Measurement, spleen: Measurement, phase: str) -> SteatosisHint:
    """The published thresholds of the liver's mean HU; they hold in the portal-venous phase.

    Means are compared as they are written, in whole HU.
    """
    cutoffs = sorted(
        (c for c in published_signs().cutoffs if c.sign.key == "liver_mean_hu"),
        key=lambda cutoff: cutoff.value,
    )
    reason = ""
    if phase != PORTAL_VENOUS:
        reason = "the thresholds hold in the portal-venous phase only"
        reason += f", and this is the {phase} phase." if phase else ", and the phase is not known."
    elif liver.value is None or spleen.value is None:
        # Without the spleen, a liver without contrast cannot be told from a steatotic one.
        reason = f"the HU of liver and spleen are needed. {liver.reason or spleen.reason}"
    elif round(spleen.value) < ENHANCED_SPLEEN_HU:
        reason = f"contrast is missing or weak, since the spleen has {spleen.value:.0f} HU."
    if reason or liver.value is None:
        return SteatosisHint(False, None, f"Steatosis not assessed: {reason}")
    start = f"Liver {liver.value:.0f} HU"
    below = next((cutoff for cutoff in cutoffs if round(liver.value) < cutoff.value), None)
    if below is None:
        highest = cutoffs[-1]
        return SteatosisHint(
            True,
            None,
            f"{start}: not below {highest.value:g} HU, the threshold for at least "
            f"{highest.finding} ({highest.source.name}).",
        )
    return SteatosisHint(
        True,
        below,
        f"{start}: below {below.value:g} HU, as in at least {below.finding} (sensitivity "
        f"{100 * below.sensitivity:.0f} %, specificity {100 * below.specificity:.0f} %; "
        f"{below.source.name}).",
    )
