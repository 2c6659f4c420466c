"""Refusal of CTs and masks that would make the result meaningless: geometry, HU, position.

What makes a result less reliable is found by `input_checks`. Values are in HU, lengths in mm.
"""

import math

import numpy as np
import SimpleITK as sitk

from ..errors import CancelToken, StagingError, check_cancel
from .dicom_files import MODALITY, code
from .grid import bounding_box, slices_in

MIN_SLICES = 10  # the liver spans 15 to 20 cm: fewer slices cannot show its shape
MIN_LENGTH_MM = 30.0
MIN_IN_PLANE = 32  # voxels; a body of 40 cm would have voxels of more than 12 mm
MAX_SPACING_MM = 20.0

# A CT contains air around the patient or gas in the bowel (-1000 HU); MR and 8-bit images do not.
# Scanners pad the corners outside a round field of view with values below air.
AIR_HU = -200.0
PADDING_HU = -1100.0
# Soft tissue: water is 0, muscle 50, enhanced liver 110 HU; contrast, bone and metal are above.
SOFT_TISSUE_HU = (-150.0, 300.0)
MIN_SOFT_TISSUE = 0.01  # share of the voxels; a patient fills 10 to 60 % of a scan
# Lung, fat and partial volume at skin and gas: at least 7 % of a scan of the trunk, 0 % if values
# have an offset of 1000 or 1024.
LUNG_AND_FAT_HU = (-900.0, -80.0)
# Fat and soft tissue with such an offset. Dense bone and metal have such values too: in the CTs at
# hand at most 12 % of the voxels above 250 HU, compared with 80 % with the offset.
OFFSET_TISSUE_HU = (850.0, 1250.0)
DENSE_HU = 250.0
MAX_DENSE = 0.25  # share of the tissue voxels, for an image without air
_SAMPLE_STEP = 3  # every third voxel along each axis suffices to estimate a share

# No liver has a mean outside this range, whether steatotic, enhanced or loaded with iron.
POSSIBLE_MEAN_HU = (-50.0, 300.0)
MIN_LIVER_ML = 50.0
_SHARED_SPLEEN = 0.5  # share of the spleen mask also in the liver mask: the same label given twice


def check_ct(ct: sitk.Image, name: str) -> None:
    """Refuse a CT that cannot be staged.

    ct: as from `reading.read_ct` or a scene; name: of the file or node, for messages. Raises
    StagingError for anything but a 3-D scalar CT in HU with at least MIN_SLICES slices and
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
        raise StagingError(f"{name}: contains complex numbers; HU are needed.")
    _check_grid(ct, name)
    _check_values(sitk.GetArrayViewFromImage(ct), name)


def check_copies(ct: sitk.Image, name: str, slices: int, step: float) -> None:
    """Refuse a scan if more than half of a patch would be copies of its first and last slice.

    ct, name: as for `check_ct`. slices, step: of the patch, and their distance along the body in
    mm, of a model whose patches are padded with copies (`grid.working_grid` without a fill). Raises
    StagingError.
    """
    available = slices_in(ct, step)
    if 2 * available < slices:
        raise StagingError(
            f"{name}: the scan spans {available * step:g} mm along the body; at least "
            f"{slices * step / 2:g} mm are needed, because the model is given {slices * step:g} mm "
            "and more than half of them would be copies of the first and last slice."
        )


def check_organs(ct: sitk.Image, liver: sitk.Image, spleen: sitk.Image | None, name: str) -> None:
    """Refuse masks that do not lie on liver and spleen.

    liver, spleen: masks on the CT's own grid, non-zero inside. Raises StagingError for an empty
    mask, another size, a mean HU that no liver or spleen can have, a liver below MIN_LIVER_ML, and
    a spleen mask that mostly overlaps the liver mask.
    """
    hu = sitk.GetArrayViewFromImage(ct)
    inside, box = _mask_in_box(ct, liver, "liver", name)
    volume = float(np.prod(ct.GetSpacing())) * np.count_nonzero(inside) / 1000.0
    if volume < MIN_LIVER_ML:
        raise StagingError(
            f"{name}: the liver mask has a volume of {volume:.1f} mL; at least {MIN_LIVER_ML:g} mL "
            "of liver are needed."
        )
    _check_mean(hu[box][inside], "liver", name)
    if spleen is not None:
        spleen_inside, spleen_box = _mask_in_box(ct, spleen, "spleen", name)
        _check_mean(hu[spleen_box][spleen_inside], "spleen", name)
        shared = sitk.GetArrayViewFromImage(liver)[spleen_box][spleen_inside] != 0
        if shared.mean() > _SHARED_SPLEEN:
            raise StagingError(
                f"{name}: {100 * shared.mean():.0f} % of the spleen mask is also in the liver "
                "mask; each organ needs its own label."
            )


def body_axis(ct: sitk.Image) -> int:
    """The image axis closest to the patient's foot-head direction."""
    return int(np.abs(np.array(ct.GetDirection()).reshape(3, 3)[2]).argmax())


def lowest_and_highest(hu: np.ndarray, cancel: CancelToken | None = None) -> tuple[float, float]:
    """The ends of the values, NaN if one of them is. Raises Cancelled."""
    ends = []
    # Slice by slice, each is read from memory once.
    for each in hu:
        check_cancel(cancel)
        ends.append((each.min(), each.max()))
    low, high = np.transpose(ends)
    return float(low.min()), float(high.max())


def _check_grid(ct: sitk.Image, name: str) -> None:
    size, spacing, along = ct.GetSize(), ct.GetSpacing(), body_axis(ct)
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
    low, high = lowest_and_highest(hu)
    if not (np.isfinite(low) and np.isfinite(high)):
        count = np.count_nonzero(~np.isfinite(hu))
        raise StagingError(f"{name}: {count} voxels are NaN or infinite; HU are needed everywhere.")
    sample = hu[(slice(None, None, _SAMPLE_STEP),) * 3]
    inside = sample[sample > PADDING_HU].astype(np.float32)
    if low <= PADDING_HU and inside.size:
        low = float(inside.min())

    def share_of(least: float, most: float = math.inf) -> float:
        return np.count_nonzero((inside >= least) & (inside < most)) / sample.size

    share, dense = share_of(*SOFT_TISSUE_HU), share_of(DENSE_HU)
    lung_and_fat, air = share_of(*LUNG_AND_FAT_HU), share_of(PADDING_HU, LUNG_AND_FAT_HU[0])
    offset_tissue = share_of(*OFFSET_TISSUE_HU)
    # Apparent air of a single value may be padding.
    low_values = inside[inside < LUNG_AND_FAT_HU[0]]
    maybe_padding = bool(low_values.size) and low_values.min() == low_values.max()
    found = f"{name}: values are not in HU: {low:g} to {high:g} found"
    if offset_tissue > max(MIN_SOFT_TISSUE, 0.3 * dense, 10 * lung_and_fat) and (
        10 * air < offset_tissue or (maybe_padding and offset_tissue > 0.25 * share)
    ):
        raise StagingError(
            f"{found}, with soft tissue near 1064, as with an offset of 1024; apply the rescale "
            "intercept to get HU."
        )
    if low >= AIR_HU or (
        dense > MAX_DENSE * (share + dense) and air + lung_and_fat < MIN_SOFT_TISSUE
    ):
        raise StagingError(
            f"{found}, but a CT has air near -1000 HU; a CT in HU is needed, not MR or an 8-bit "
            "image."
        )
    if share < MIN_SOFT_TISSUE:
        raise StagingError(
            f"{name}: no patient found: {share:.1%} of the voxels lie between "
            f"{SOFT_TISSUE_HU[0]:g} and {SOFT_TISSUE_HU[1]:g} HU (values {low:g} to {high:g}); a "
            "CT of the abdomen in HU is needed."
        )


def _mask_in_box(
    ct: sitk.Image, mask: sitk.Image, organ: str, name: str
) -> tuple[np.ndarray, tuple[slice, slice, slice]]:
    """The mask as bool within its bounding box, and that box in [slice, row, column]."""
    if mask.GetSize() != ct.GetSize():
        raise StagingError(
            f"{name}: the {organ} mask has {mask.GetSize()} voxels, the CT {ct.GetSize()}; a mask "
            "on the CT's grid is needed."
        )
    array = sitk.GetArrayViewFromImage(mask)
    box = bounding_box(array)
    if box is None:
        raise StagingError(f"{name}: the {organ} mask is empty within the CT.")
    return array[box] != 0, box


def _check_mean(hu: np.ndarray, organ: str, name: str) -> None:
    mean = float(hu.mean(dtype=np.float64))
    low, high = POSSIBLE_MEAN_HU
    if not low <= mean <= high:
        raise StagingError(
            f"{name}: the mean in the {organ} mask is {mean:.0f} HU; only {low:g} to {high:g} HU "
            f"are possible, so the mask is not on the {organ} or the CT is not in HU."
        )
