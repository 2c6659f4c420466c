"""Is this a CT that can be staged, and do the masks lie on its liver and spleen?

Refusals are for what would make the result meaningless, warnings for what makes it less certain.
HU throughout; lengths in mm.
"""

import math

import numpy as np
import SimpleITK as sitk

from ..errors import StagingError
from .dicom_files import DESCRIPTION, MODALITY, THICKNESS, code
from .dicom_series import PORTAL_VENOUS, named_phase

MIN_SLICES = 10  # the liver spans 15 to 20 cm: fewer slices cannot show its shape
MIN_LENGTH_MM = 30.0
MIN_IN_PLANE = 32  # voxels; a body of 40 cm would have voxels of more than 12 mm
MAX_SPACING_MM = 20.0
THICK_SLICE_MM = 5.0  # beyond, the liver's surface blurs

# Where a CT's values lie. It shows air around the patient or gas in the bowel (-1000 HU), which MR
# and 8-bit pictures do not; scanners fill the corners outside a round field with less than air.
AIR_HU = -200.0
PADDING_HU = -1100.0
# Soft tissue: water is 0, muscle 50, enhanced liver 110 HU; contrast, bone and metal are above.
SOFT_TISSUE_HU = (-150.0, 300.0)
MIN_SOFT_TISSUE = 0.01  # share of the voxels; a patient fills 10 to 60 % of a scan
# Lung, fat and the rims of skin and gas: 7 % of a scan of the trunk and more, nothing where values
# carry an offset of 1000 or 1024.
LUNG_AND_FAT_HU = (-900.0, -80.0)
# Fat and soft tissue with such an offset. Dense bone and metal have values like these too: 12 % of
# what is above 250 HU at most in the scans at hand, where it is 80 % with the offset.
OFFSET_TISSUE_HU = (850.0, 1250.0)
DENSE_HU = 250.0
MAX_DENSE = 0.25  # of what is no air, in a picture without any
_SAMPLE_STEP = 3  # every third voxel along each axis is plenty for a share

# Liver in the portal-venous phase: 90 to 120 HU; without contrast 40 to 65; arterial up to 75.
LITTLE_ENHANCEMENT_HU = 75.0
STRONG_ENHANCEMENT_HU = 180.0
# No liver, fatty or full of contrast or iron, has a mean outside this range.
POSSIBLE_MEAN_HU = (-50.0, 300.0)
MIN_LIVER_ML = 50.0
USUAL_LIVER_ML = (500.0, 4000.0)  # adults; partial scans and resected livers lie below
_SHARED_SPLEEN = 0.5  # of the spleen also marked as liver: the same label was given twice


def check_ct(ct: sitk.Image, name: str) -> tuple[str, ...]:
    """Refuse what cannot be staged; returns warnings about what can.

    ct: as `reading.read_ct` or a scene gives it; name: of the file or node, for the messages.
    Raises StagingError for anything but a 3-D scalar CT in HU of at least MIN_SLICES slices and
    MIN_LENGTH_MM along the body.
    """
    if ct.HasMetaDataKey(MODALITY) and ct.GetMetaData(MODALITY) != "CT":
        modality = code(ct.GetMetaData(MODALITY))
        raise StagingError(f"{name}: the modality is {modality}; a CT is needed.")
    if ct.GetDimension() != 3 or ct.GetNumberOfComponentsPerPixel() != 1:
        raise StagingError(
            f"{name}: has {ct.GetDimension()} dimensions and {ct.GetNumberOfComponentsPerPixel()} "
            "values per voxel; a 3-D volume with one value per voxel is needed."
        )
    if "complex" in ct.GetPixelIDTypeAsString():
        raise StagingError(f"{name}: holds complex numbers; HU are needed.")
    _check_grid(ct, name)
    _check_values(sitk.GetArrayViewFromImage(ct), name)
    return tuple(_doubts(ct))


def check_organs(
    ct: sitk.Image, liver: sitk.Image, spleen: sitk.Image | None, name: str
) -> tuple[str, ...]:
    """Refuse masks that are not on the organs; returns warnings.

    liver, spleen: masks on the CT's own grid, non-zero inside. Raises StagingError for an empty
    mask, one of another size, one whose mean HU no liver or spleen can have, a liver below
    MIN_LIVER_ML, and a spleen that is mostly marked as liver as well.
    """
    hu = sitk.GetArrayViewFromImage(ct)
    inside, box = _marked(ct, liver, "liver", name)
    volume = float(np.prod(ct.GetSpacing())) * np.count_nonzero(inside) / 1000.0
    if volume < MIN_LIVER_ML:
        raise StagingError(
            f"{name}: the liver mask holds {volume:.1f} mL; at least {MIN_LIVER_ML:g} mL of liver "
            "are needed."
        )
    mean = _possible_mean(hu[box][inside], "liver", name)

    warnings = []
    low, high = USUAL_LIVER_ML
    if not low <= volume <= high:
        warnings.append(
            f"The liver mask holds {volume:.0f} mL; adult livers have {low:g} to {high:g} mL."
        )
    if mean < LITTLE_ENHANCEMENT_HU:
        warnings.append(
            f"The liver's mean is {mean:.0f} HU: little enhancement, as without contrast or in the "
            "arterial phase; the model expects the portal-venous phase."
        )
    elif mean > STRONG_ENHANCEMENT_HU:
        warnings.append(
            f"The liver's mean is {mean:.0f} HU: more than in any usual portal-venous phase."
        )
    warnings += _cut_off(ct, box)

    if spleen is not None:
        spleen_inside, spleen_box = _marked(ct, spleen, "spleen", name)
        _possible_mean(hu[spleen_box][spleen_inside], "spleen", name)
        shared = sitk.GetArrayViewFromImage(liver)[spleen_box][spleen_inside] != 0
        if shared.mean() > _SHARED_SPLEEN:
            raise StagingError(
                f"{name}: {shared.mean():.0%} of the spleen mask is marked as liver too; give each "
                "organ its own label."
            )
    return tuple(warnings)


def _body_axis(ct: sitk.Image) -> int:
    """The image axis that runs closest to the patient's foot-head direction."""
    return int(np.abs(np.array(ct.GetDirection()).reshape(3, 3)[2]).argmax())


def _check_grid(ct: sitk.Image, name: str) -> None:
    size, spacing, along = ct.GetSize(), ct.GetSpacing(), _body_axis(ct)
    if not all(0 < step <= MAX_SPACING_MM for step in spacing):
        raise StagingError(
            f"{name}: voxel spacing {' x '.join(f'{step:g}' for step in spacing)} mm; above 0 and "
            f"at most {MAX_SPACING_MM:g} mm are needed."
        )
    length = size[along] * spacing[along]
    if size[along] < MIN_SLICES or length < MIN_LENGTH_MM:
        raise StagingError(
            f"{name}: {size[along]} slices over {length:.0f} mm found along the body; at least "
            f"{MIN_SLICES} slices over {MIN_LENGTH_MM:g} mm are needed."
        )
    in_plane = [n for axis, n in enumerate(size) if axis != along]
    if min(in_plane) < MIN_IN_PLANE:
        raise StagingError(
            f"{name}: {in_plane[0]} x {in_plane[1]} voxels across the body; at least "
            f"{MIN_IN_PLANE} x {MIN_IN_PLANE} are needed."
        )


def _check_values(hu: np.ndarray, name: str) -> None:
    # NaN travels through minimum and maximum, so that both checks share one pass.
    low, high = float(hu.min()), float(hu.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        count = np.count_nonzero(~np.isfinite(hu))
        raise StagingError(f"{name}: {count} voxels are NaN or infinite; HU are needed everywhere.")
    sample = hu[(slice(None, None, _SAMPLE_STEP),) * 3].astype(np.float32)
    inside = sample[sample > PADDING_HU]
    if low <= PADDING_HU and inside.size:
        low = float(inside.min())

    def share_of(least: float, most: float = math.inf) -> float:
        return np.count_nonzero((inside >= least) & (inside < most)) / sample.size

    share, dense = share_of(*SOFT_TISSUE_HU), share_of(DENSE_HU)
    lung_and_fat, air = share_of(*LUNG_AND_FAT_HU), share_of(PADDING_HU, LUNG_AND_FAT_HU[0])
    lifted = share_of(*OFFSET_TISSUE_HU)
    # What looks like air may be padding, which has one value.
    low_ones = inside[inside < LUNG_AND_FAT_HU[0]]
    maybe_padding = bool(low_ones.size) and low_ones.min() == low_ones.max()
    found = f"{name}: values are not in HU: {low:g} to {high:g} found"
    if lifted > max(MIN_SOFT_TISSUE, 0.3 * dense, 10 * lung_and_fat) and (
        10 * air < lifted or (maybe_padding and lifted > 0.25 * share)
    ):
        raise StagingError(
            f"{found}, with soft tissue near 1064 as with an offset of 1024; apply the rescale "
            "intercept to get HU."
        )
    if low >= AIR_HU or (
        dense > MAX_DENSE * (share + dense) and air + lung_and_fat < MIN_SOFT_TISSUE
    ):
        raise StagingError(
            f"{found}, but a CT has air near -1000 HU; a CT in HU is needed (no MR, no 8-bit "
            "picture)."
        )
    if share < MIN_SOFT_TISSUE:
        raise StagingError(
            f"{name}: no patient found: {share:.1%} of the voxels lie between "
            f"{SOFT_TISSUE_HU[0]:g} and {SOFT_TISSUE_HU[1]:g} HU (values {low:g} to {high:g}); a "
            "CT of the abdomen in HU is needed."
        )


def _doubts(ct: sitk.Image) -> list[str]:
    warnings = []
    description = ct.GetMetaData(DESCRIPTION) if ct.HasMetaDataKey(DESCRIPTION) else ""
    named = named_phase(description)
    if named not in ("", PORTAL_VENOUS):
        warnings.append(
            f"The series description names the {named} phase; the model expects the "
            "portal-venous phase."
        )
    thickness = ct.GetSpacing()[_body_axis(ct)]
    if ct.HasMetaDataKey(THICKNESS):
        try:
            given = float(ct.GetMetaData(THICKNESS))
        except ValueError:
            given = math.nan
        if math.isfinite(given):
            thickness = max(thickness, given)
        else:
            warnings.append("The slice thickness in the header is no number.")
    if thickness > THICK_SLICE_MM:
        warnings.append(
            f"The slices are {thickness:g} mm thick; up to {THICK_SLICE_MM:g} mm are expected."
        )
    return warnings


def _marked(
    ct: sitk.Image, mask: sitk.Image, organ: str, name: str
) -> tuple[np.ndarray, tuple[slice, slice, slice]]:
    """The mask as bool within its bounding box, and that box in [slice, row, column]."""
    if mask.GetSize() != ct.GetSize():
        raise StagingError(
            f"{name}: the {organ} mask has {mask.GetSize()} voxels, the CT {ct.GetSize()}; the "
            "mask has to lie on the CT's grid."
        )
    array = sitk.GetArrayViewFromImage(mask)
    box: tuple[slice, ...] = ()
    for axis in range(3):
        # Each look is into the box that the axes before have left.
        others = tuple(other for other in range(3) if other != axis)
        held = np.flatnonzero(array[box].any(axis=others))
        if not held.size:
            raise StagingError(f"{name}: the {organ} mask is empty within the CT.")
        box += (slice(int(held[0]), int(held[-1]) + 1),)
    return array[box] != 0, box


def _possible_mean(hu: np.ndarray, organ: str, name: str) -> float:
    mean = float(hu.mean(dtype=np.float64))
    low, high = POSSIBLE_MEAN_HU
    if not low <= mean <= high:
        raise StagingError(
            f"{name}: the mean under the {organ} mask is {mean:.0f} HU; between {low:g} and "
            f"{high:g} HU are possible, so the mask does not lie on the {organ} or the CT is not "
            "in HU."
        )
    return mean


def _cut_off(ct: sitk.Image, box: tuple[slice, slice, slice]) -> list[str]:
    """Warnings where the liver reaches the scan's first or last slice along the body."""
    along = _body_axis(ct)
    held = box[2 - along]
    # LPS: the third coordinate grows towards the head.
    ends = ("lower", "upper") if ct.GetDirection()[6 + along] > 0 else ("upper", "lower")
    touched = [
        end
        for end, touches in zip(ends, (held.start == 0, held.stop == ct.GetSize()[along]))
        if touches
    ]
    if not touched:
        return []
    return [
        f"The liver reaches the scan's {' and '.join(touched)} end, so part of it may be missing."
    ]
