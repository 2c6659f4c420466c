"""Checks of one CT and its masks that are part of the result, each with numbers and one sentence.

`checks` refuses what cannot be staged; most of what is checked here can be, with less reliability.
Refused are a scan with a small part of the liver and, unless the user wants any phase, a wrong
contrast phase by clear evidence. Sentences and values contain no text from the input, because they
are written to files. Values are in HU, lengths in mm, volumes in mL.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import SimpleITK as sitk

from ..errors import CancelToken, StagingError, WrongPhase, check_cancel
from .checks import body_axis, lowest_and_highest
from .coarse import STEP_MM, CoarseScan
from .dicom_files import DESCRIPTION, THICKNESS
from .dicom_series import PORTAL_VENOUS, named_phase
from .grid import BODY_THRESHOLD_HU
from .masks import eroded, volume_ml
from .phase import MIN_CORE_VOXELS, Phase, phase_by_hu
from .voxels import Voxels

PASS, WARN, REFUSE = "pass", "warn", "refuse"
PHASE = "phase"  # key of the check of the contrast phase
COVERAGE = "coverage"
LIVER_VOLUME = "liver_volume"

USUAL_LIVER_ML = (500.0, 4000.0)  # adults; partial scans and resected livers are below
THICK_SLICE_MM = 5.0  # in thicker slices the liver's surface is blurred
# Of a liver that is cut off: half of the height of a small one (13 to 24 cm in the CTs at hand).
MIN_CUT_LIVER_MM = 75.0
MIN_CUT_CM2 = 0.1  # of an organ in the scan's first or last slice
# A distance between slices that exceeds their thickness by more than this share leaves a gap.
GAP = 0.1
JUMP = 1.25  # see `_slices`
TILT_DEGREES = 20.0  # tables and gantries are turned by less; the slices are resampled anyway
# Share of the body's outline at the edge of the field of view. In the CTs at hand up to 5 %, where
# skin, arms or the table touch it.
CUT_OUTLINE = 0.1
# Vessels in the liver have at most 250 HU; Lipiodol, coils, clips and stents are above.
DENSE_HU = 350.0
MIN_DENSE_ML = 1.0  # less are calcifications
METAL_HU = 2000.0  # in 2 x 2 x 3 mm: no bone
MIN_METAL_ML = 0.5
# In the CTs at hand 4 to 12 HU at 2 x 2 x 3 mm.
NOISE_HU = 20.0
_NOISE_RADIUS = 2  # voxels in plane: squares of 10 mm, smaller than most distances between vessels
_EVERY = 4  # of the voxels in plane, for differences between slices
_REGIONS = 4  # along each axis in plane, for the same
_IN_BODY = 0.3  # of the mean difference: regions of air are below
_SOFT_TISSUE_HU = (-200.0, 300.0)
_SLAB_SLICES = 8


@dataclass(frozen=True)
class Check:
    """One check of the input.

    key: for tables and JSON; name: for people; outcome: PASS, WARN or REFUSE (a result contains a
    refusal only if it was overruled); sentence: what was found and, unless it passed, what is
    needed; values: the numbers behind it, by names with units such as "aorta_hu".
    """

    key: str
    name: str
    outcome: str
    sentence: str
    values: dict[str, float | str] = field(default_factory=dict)


def input_checks(
    ct: sitk.Image,
    liver: sitk.Image,
    spleen: sitk.Image | None,
    cancel: CancelToken | None = None,
    of_scan: tuple[Check, Check] | None = None,
) -> tuple[str, tuple[Check, ...]]:
    """The contrast phase ("" if unknown) and the checks, in the order in which they are shown.

    ct: HU, as checked by `checks.check_ct`; liver, spleen: masks on its grid, non-zero inside, as
    checked by `checks.check_organs`. of_scan: `scan_checks` of the CT, if they were begun before
    the masks were known. Raises Cancelled.
    """
    units, slices = of_scan or scan_checks(ct, cancel)
    scan = CoarseScan.of(ct, liver, spleen, cancel)
    check_cancel(cancel)
    phase, about_phase = _phase(ct, phase_by_hu(scan))
    return phase, (
        units,
        about_phase,
        _coverage(scan),
        _liver_volume(liver),
        _thickness(ct),
        slices,
        _tilt(ct),
        _field_of_view(ct, scan),
        _dense(scan),
        _noise(scan),
    )


def scan_checks(ct: sitk.Image, cancel: CancelToken | None = None) -> tuple[Check, Check]:
    """The checks of units and of slices, which look at the whole scan, but not at its masks.

    ct: as for `input_checks`. Raises Cancelled.
    """
    return _units(ct, cancel), _slices(ct, cancel)


def concerns(checks: Iterable[Check]) -> tuple[str, ...]:
    """The sentences of the checks that did not pass."""
    return tuple(check.sentence for check in checks if check.outcome != PASS)


def refuse(checks: Iterable[Check], name: str, strict: bool, any_phase: bool) -> None:
    """Raise StagingError for a refusal and, if strict, for a warning; name: of the CT.

    The refusal of a warning says that the option --strict is the reason.

    The refusal of a phase is a WrongPhase; with any_phase, the phase is not refused.
    """
    for check in checks:
        of_phase = check.key == PHASE
        if check.outcome == PASS or (of_phase and any_phase):
            continue
        if check.outcome == REFUSE or strict:
            error = WrongPhase if of_phase else StagingError
            found = f"{name}: {check.sentence[0].lower()}{check.sentence[1:]}"
            if check.outcome == WARN:
                found = f"{found.removesuffix('.')}; without --strict, this is only a warning."
            raise error(found)


def _phase(ct: sitk.Image, found: Phase) -> tuple[str, Check]:
    named = named_phase(ct.GetMetaData(DESCRIPTION)) if ct.HasMetaDataKey(DESCRIPTION) else ""
    values: dict[str, float | str] = {**found.values, **({"description": named} if named else {})}
    hu = ", ".join(
        f"{tissue.removesuffix('_hu').replace('_', ' ')} {value:.0f}"
        for tissue, value in found.values.items()
    )
    hu = f"HU: {hu}" if hu else "no organ is large enough to be measured"
    needed = "the model expects the portal-venous phase"
    outcome = WARN
    if found.clear:
        outcome = REFUSE
        sentence = (
            f"The HU are those of {_article(found.name)} CT ({hu}); the portal-venous phase is "
            "needed."
        )
    elif found.name == PORTAL_VENOUS and named in ("", PORTAL_VENOUS):
        outcome, sentence = PASS, f"The HU are those of the portal-venous phase ({hu})."
    elif named not in ("", PORTAL_VENOUS, found.name):
        shown = f"show the {found.name} phase" if found.name else "do not decide it"
        sentence = (
            f"The series description names the {named} phase, and the HU {shown} ({hu}); {needed}."
        )
    elif found.name:
        sentence = (
            f"The HU are probably those of {_article(found.name)} CT, but not clearly ({hu}); "
            f"{needed}."
        )
    elif named == PORTAL_VENOUS:
        outcome = PASS
        sentence = (
            f"The series description names the portal-venous phase; the HU do not decide it ({hu})."
        )
    else:
        sentence = f"The contrast phase is not clear from the HU ({hu}); {needed}."
    return found.name or named, Check(PHASE, "Contrast phase", outcome, sentence, values)


def _article(phase: str) -> str:
    return f"{'an' if phase[0] in 'aeiou' else 'a'} {phase}"


def _units(ct: sitk.Image, cancel: CancelToken | None) -> Check:
    lowest, highest = lowest_and_highest(sitk.GetArrayViewFromImage(ct), cancel)
    found = {"lowest_hu": lowest, "highest_hu": highest}
    sentence = "A CT in HU, {lowest_hu:.0f} to {highest_hu:.0f}.".format(**found)
    return _check("units", "Modality and units", "", sentence, found)


def _coverage(scan: CoarseScan) -> Check:
    """Whether an organ reaches the scan's first or last slice along the body.

    A liver that does, and of which less than MIN_CUT_LIVER_MM are in the scan, is refused.
    """
    values, reached = {}, {}
    for organ, mask in scan.organs.items():
        pixel_cm2 = mask.spacing[0] * mask.spacing[1] / 100.0
        areas = {
            end: np.count_nonzero(mask.array[index]) * pixel_cm2
            for end, index in (("lower", 0), ("upper", -1))
        }
        values |= {f"{organ}_{end}_cm2": area for end, area in areas.items()}
        cut = " and ".join(end for end, area in areas.items() if area >= MIN_CUT_CM2)
        if cut:
            reached[organ] = f"{organ} reaches the scan's {cut} end"
    levels = scan.boxes["liver"][0]
    liver_mm = (levels.stop - levels.start) * scan.organs["liver"].spacing[2]
    values["liver_mm"] = liver_mm
    concern = f"The {', the '.join(reached.values())}; part of it may be missing."
    passed = f"The scan covers {' and '.join(scan.organs)} from end to end."
    check = _check(COVERAGE, "Organs complete", concern if reached else "", passed, values)
    if "liver" not in reached or liver_mm >= MIN_CUT_LIVER_MM:
        return check
    sentence = (
        f"The {reached['liver']}, and {liver_mm:.0f} mm of it are in the scan; at least "
        f"{MIN_CUT_LIVER_MM:g} mm are needed."
    )
    return replace(check, outcome=REFUSE, sentence=sentence)


def _liver_volume(liver: sitk.Image) -> Check:
    volume, (low, high) = volume_ml(liver), USUAL_LIVER_ML
    found = f"The liver mask has a volume of {volume:.0f} mL"
    usual = f"adult livers have {low:g} to {high:g} mL."
    concern = "" if low <= volume <= high else f"{found}; {usual}"
    return _check(LIVER_VOLUME, "Liver volume", concern, f"{found}.", {"liver_ml": volume})


def _thickness(ct: sitk.Image) -> Check:
    """Thickness of the slices, by the header if it is given, and gaps between them."""
    spacing = ct.GetSpacing()[body_axis(ct)]
    given, concern = math.nan, ""
    if ct.HasMetaDataKey(THICKNESS):
        try:
            given = float(ct.GetMetaData(THICKNESS))
        except ValueError:
            given = math.nan
        if not math.isfinite(given):
            concern = "The slice thickness in the header is not a number."
    values = {"spacing_mm": spacing}
    if math.isfinite(given):
        values["thickness_mm"] = given
        if 0 < given < (1 - GAP) * spacing:
            concern = (
                f"The slices are {given:g} mm thick, {spacing:g} mm apart; slices without gaps are "
                "expected."
            )
    thickness = max([spacing, *values.values()])
    if thickness > THICK_SLICE_MM:
        concern = (
            f"The slices are {thickness:g} mm thick; up to {THICK_SLICE_MM:g} mm are expected."
        )
    return _check(
        "thickness", "Slice thickness", concern, f"The slices are {thickness:g} mm thick.", values
    )


def _slices(ct: sitk.Image, cancel: CancelToken | None) -> Check:
    """Number of slices, and whether some are missing or repeated.

    Missing slices make a step: two neighbours that differ more than the two pairs below and above
    them do. An organ's or the lungs' end makes one too, but not everywhere. So the mean differences
    are compared in 4 x 4 regions in plane, and `jump` is the median of their ratios.

    It is at most 1.06 in eleven CTs of patients with slices of 2 to 5 mm, 1.12 if these are
    resampled to 1, 2.5 and 5 mm, and 1.20 in 22 simulated CTs (Training/phantom.py), resampled or
    not. It exceeds JUMP at 60 % of the gaps where one slice was left out of the patients' CTs, and
    at 93 % where two were; with slices of 5 mm at 25 % and 84 %.
    """
    scan = Voxels.of(ct).lps()
    count, spacing = len(scan.array), float(scan.spacing[2])
    array = scan.array[:, ::_EVERY, ::_EVERY]
    # A few slices at a time, because the copies would take more memory than the CT; in 16 bits, if
    # it has them, which takes two thirds of the time.
    kind = np.int16 if array.dtype == np.int16 else np.float32
    limits = np.array(_SOFT_TISSUE_HU, kind)
    found_steps = []
    for first in range(0, count - 1, _SLAB_SLICES):
        check_cancel(cancel)
        slab = array[first : first + _SLAB_SLICES + 1].clip(*limits).astype(kind, copy=False)
        found_steps.append(_by_region(np.abs(np.diff(slab, axis=0)).astype(np.float32)))
    steps = np.concatenate(found_steps)
    repeated = sum(
        not step.any() and bool((each > BODY_THRESHOLD_HU).any())
        for step, each in zip(steps, array)
    )
    jump = _largest_jump(steps)
    found = f"{count} slices every {spacing:.3g} mm"
    concern = ""
    if repeated:
        concern = f"{found}: {repeated} of them repeat the one before."
    elif jump > JUMP:
        concern = (
            f"{found}: two neighbours differ {jump:.1f} times as much as those around them; slices "
            "may be missing."
        )
    values = {"slices": count, "length_mm": count * spacing, "repeated": repeated, "jump": jump}
    return _check("slices", "Slices", concern, f"{found}, none missing or repeated.", values)


def _by_region(values: np.ndarray) -> np.ndarray:
    """Means of an array [..., row, column] in regions of equal size, [..., region]."""
    total, counts = values, []
    for axis in (-2, -1):
        sizes = [len(part) for part in np.array_split(range(values.shape[axis]), _REGIONS)]
        total = np.add.reduceat(total, np.cumsum([0, *sizes[:-1]]), axis)
        counts.append(sizes)
    means = total / np.multiply.outer(*counts).astype(np.float32)
    return means.reshape(*values.shape[:-2], -1)


def _largest_jump(steps: np.ndarray) -> float:
    """steps: differences between neighbours [pair, region]. See `_slices`."""
    steps = steps[:, steps.mean(axis=0) > _IN_BODY * steps.mean()]
    largest = 0.0
    for k in range(1, len(steps) - 1):
        around = np.concatenate([steps[max(k - 2, 0) : k], steps[k + 1 : k + 3]]).max(axis=0)
        ratios = np.divide(steps[k], around, out=np.zeros_like(around), where=around > 0)
        largest = max(largest, float(np.median(ratios))) if ratios.size else largest
    return largest


def _tilt(ct: sitk.Image) -> Check:
    """Angle between the slices' normal and the patient's axis.

    The tilt of a gantry, which shears the voxels, is refused when a CT is read.
    """
    cosine = abs(ct.GetDirection()[6 + body_axis(ct)])
    tilt = math.degrees(math.acos(min(cosine, 1.0)))
    found = f"The slices are tilted by {tilt:.0f} degrees against the patient's axis"
    concern = f"{found}; up to {TILT_DEGREES:g} are expected." if tilt > TILT_DEGREES else ""
    return _check("tilt", "Tilt", concern, f"{found}.", {"tilt_degrees": tilt})


def _field_of_view(ct: sitk.Image, scan: CoarseScan) -> Check:
    """How much of the body's outline at the liver's level lies at the edge of the field of view."""
    scanned = Voxels.of(ct).lps()
    hu = scanned.array[scan.boxes["liver"][0]][::_EVERY]
    edge, is_round = _edge(hu)
    pixel = math.sqrt(scanned.spacing[0] * scanned.spacing[1])
    at_edge = np.count_nonzero(hu[:, edge] > BODY_THRESHOLD_HU) * pixel / len(hu)
    body = np.pad(scan.body[scan.liver.any(axis=(1, 2))], ((0, 0), (1, 1), (1, 1)))
    inner = eroded(body, STEP_MM[1], STEP_MM)
    outline = (np.count_nonzero(body) - np.count_nonzero(inner)) * STEP_MM[1]
    share = min(at_edge * max(len(body), 1) / max(outline, STEP_MM[1]), 1.0)

    touching = [
        organ
        for organ, box in scan.boxes.items()
        if box is not None and scan.organs[organ].array[box][:, edge[box[1:]]].any()
    ]
    shape = "round" if is_round else "rectangular"
    at_edge_of_field = (
        f"{100 * share:.0f} % of the body's outline lies at the edge of the {shape} field of view"
    )
    concern = ""
    if touching:
        concern = (
            f"The edge of the {shape} field of view cuts the {' and the '.join(touching)} in "
            "plane; part may be missing."
        )
    elif share > CUT_OUTLINE:
        concern = f"{at_edge_of_field}; the whole abdomen in plane is expected."
    passed = f"{at_edge_of_field}."
    values: dict[str, float | str] = {"outline_at_edge": share, "field": shape}
    return _check("field_of_view", "Field of view", concern, passed, values)


def _edge(hu: np.ndarray) -> tuple[np.ndarray, bool]:
    """Mask [row, column] of the edge of the field of view, and whether the field is round.

    It is if all voxels outside of the largest circle have one value.
    """
    rows, columns = hu.shape[1:]
    radius = min(rows, columns) / 2
    y, x = np.ogrid[:rows, :columns]
    square = (y - (rows - 1) / 2) ** 2 + (x - (columns - 1) / 2) ** 2
    outside = square > (radius + 1) ** 2
    # Slice by slice, because most fields are rectangular, as the first one shows.
    if not any(((each != hu[0, 0, 0]) & outside).any() for each in hu):
        return (square > (radius - 2.5) ** 2) & (square < (radius - 1.5) ** 2), True
    edge = np.zeros((rows, columns), bool)
    edge[[0, -1]] = edge[:, [0, -1]] = True
    return edge, False


def _dense(scan: CoarseScan) -> Check:
    """Lipiodol, coils or clips in the liver, and metal near it."""
    (inside, box), voxel_ml = scan.liver_core, math.prod(STEP_MM) / 1000.0
    found = np.count_nonzero(inside & (scan.hu[box] > DENSE_HU))
    dense, share = found * voxel_ml, found / max(np.count_nonzero(inside), 1)
    metal = np.count_nonzero(scan.body & (scan.hu > METAL_HU)) * voxel_ml
    concern = ""
    if dense >= MIN_DENSE_ML:
        concern = (
            f"{dense:.1f} mL of the liver ({share:.1%}) are above {DENSE_HU:g} HU, as Lipiodol, "
            "coils or stents are; the model was not trained for them."
        )
    elif metal >= MIN_METAL_ML:
        concern = (
            f"{metal:.1f} mL at the liver's level are above {METAL_HU:g} HU, as metal or dense "
            "oral contrast are; streaks may cross the liver."
        )
    values = {"dense_liver_ml": dense, "dense_liver_share": share, "metal_ml": metal}
    passed = "No Lipiodol or metal was found in or near the liver."
    return _check("dense", "Metal or Lipiodol", concern, passed, values)


def _noise(scan: CoarseScan) -> Check:
    """Noise in liver and spleen: the median standard deviation in squares of 10 mm.

    In most squares there is no large vessel, so that the median depends little on vessels. The
    lower of the two organs counts, because nodules and lesions add to the noise.
    """
    values = {}
    for organ, (inside, box) in (("liver", scan.liver_core), ("spleen", scan.spleen_core)):
        if np.count_nonzero(inside) >= MIN_CORE_VOXELS:
            hu = scan.hu[box]
            values[f"{organ}_noise_hu"] = np.median(_deviation(hu - hu[inside].mean())[inside])
    if not values:
        passed = "The noise was not measured; no organ is thick enough."
        return _check("noise", "Noise", "", passed, values)
    noise = min(values.values())
    size = " x ".join(f"{step:g}" for step in STEP_MM[::-1])
    found = f"The noise is {noise:.0f} HU in voxels of {size} mm"
    concern = f"{found}; up to {NOISE_HU:g} HU are expected." if noise > NOISE_HU else ""
    return _check("noise", "Noise", concern, f"{found}.", values)


def _deviation(hu: np.ndarray) -> np.ndarray:
    """Standard deviation in the square around each voxel, within its slice; as sitk.Noise.

    The smaller the HU, the smaller the rounding errors of their squares.
    """
    side = 2 * _NOISE_RADIUS + 1
    around = [(0, 0), (_NOISE_RADIUS, _NOISE_RADIUS), (_NOISE_RADIUS, _NOISE_RADIUS)]
    padded = np.pad(hu, around, "edge")
    total, squares = (_sums(_sums(each, side, 1), side, 2) for each in (padded, padded**2))
    return np.sqrt(np.maximum(squares - total**2 / side**2, 0.0) / (side**2 - 1))


def _sums(values: np.ndarray, side: int, axis: int) -> np.ndarray:
    """Sums of neighbours along an axis, without those that reach beyond the array."""
    along = np.moveaxis(values, axis, 0)
    count = len(along) - side + 1
    total = along[:count] + along[1 : count + 1]
    for k in range(2, side):
        total += along[k : k + count]
    return np.moveaxis(total, 0, axis)


def _check(
    key: str, name: str, concern: str, passed: str, values: Mapping[str, float | str]
) -> Check:
    """A check that passed unless there is a concern."""
    rounded = {k: v if isinstance(v, str) else round(float(v), 4) for k, v in values.items()}
    return Check(key, name, WARN if concern else PASS, concern or passed, rounded)
