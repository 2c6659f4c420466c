"""Values in HU are accepted; values with an offset, MR and 8-bit images are refused."""

import numpy as np
import pytest
import SimpleITK as sitk
from bad_inputs import hu_array, image

from LiverFibrosisStagingLib.errors import StagingError
from LiverFibrosisStagingLib.imaging.checks import check_ct
from LiverFibrosisStagingLib.imaging.reading import read_ct

MOSTLY_AIR = ("whole body in a large field", "chest in a lung kernel")
# mean, standard deviation in HU
TISSUES = {
    "air": (-1000, 15),
    "lung": (-850, 60),
    "fat": (-100, 20),
    "muscle": (50, 25),
    "liver": (110, 20),
    "contrast": (420, 60),
    "bone": (600, 300),
    "skull": (1050, 250),
    "metal": (3000, 100),
    "rim": (-500, 250),
}

SCANS = {
    "abdomen": {"air": 50, "fat": 12, "muscle": 20, "liver": 10, "bone": 4, "rim": 3},
    "chest angiogram": {"air": 40, "lung": 20, "fat": 6, "muscle": 13, "contrast": 18, "rim": 2},
    "heart, cropped": {"lung": 8, "fat": 15, "muscle": 42, "contrast": 34, "rim": 1},
    "head": {"air": 60, "fat": 2, "muscle": 25, "skull": 10, "rim": 2},
    "head, cropped": {"air": 6, "fat": 3, "muscle": 60, "skull": 30, "rim": 1},
    "pelvis with hips of metal": {"air": 45, "fat": 15, "muscle": 20, "bone": 12, "metal": 6},
    "whole body in a large field": {"air": 92, "lung": 1, "fat": 2, "muscle": 4, "bone": 1},
    "child, little fat": {"air": 60, "lung": 5, "fat": 1, "muscle": 30, "bone": 3, "rim": 1},
    "very heavy": {"air": 15, "fat": 50, "muscle": 25, "liver": 5, "bone": 4, "rim": 1},
    "chest in a lung kernel": {"air": 35, "lung": 45, "fat": 4, "muscle": 12, "bone": 4},
    "oral contrast": {"air": 50, "fat": 10, "muscle": 22, "contrast": 14, "bone": 4},
    "trunk, cropped": {"fat": 20, "muscle": 60, "liver": 17, "bone": 2, "rim": 1},
}


def scan(parts):
    """Voxels int16 with these shares (percent) of each tissue."""
    rng = np.random.default_rng(7)
    count = 40 * 64 * 64
    shares = np.array(list(parts.values()), float)
    kinds = rng.choice(len(parts), count, p=shares / shares.sum())
    means, deviations = np.array([TISSUES[name] for name in parts], float).T
    values = rng.normal(means[kinds], deviations[kinds])
    return np.clip(np.rint(values), -1024, 3071).astype(np.int16).reshape(40, 64, 64)


def padded(values, padding):
    """With a round field of view."""
    values = values.copy()
    y, x = np.ogrid[-1 : 1 : values.shape[1] * 1j, -1 : 1 : values.shape[2] * 1j]
    values[:, y**2 + x**2 > 1] = padding
    return values


@pytest.mark.parametrize("padding", [None, -2000, -3024, -1024, 0])
@pytest.mark.parametrize("name", SCANS)
def test_values_in_hu_pass(name, padding):
    values = scan(SCANS[name])
    check_ct(image(values if padding is None else padded(values, padding)), name)


@pytest.mark.parametrize("offset", [1000, 1024])
@pytest.mark.parametrize("padding", [None, -2000, -3024, -1024, -1000, 0])
@pytest.mark.parametrize("name", SCANS)
def test_an_offset_is_recognised_by_the_tissues(name, padding, offset):
    values = scan(SCANS[name]) + np.int16(offset)
    if padding is not None:
        values = padded(values, padding)
    if padding in (-1000, -1024) and name in MOSTLY_AIR:
        return  # with padding that looks like air, this cannot be told from dense bone
    with pytest.raises(StagingError, match=r"not in HU: .* offset of 1024"):
        check_ct(image(values), name)
    if padding is None:
        with pytest.raises(StagingError, match=r"not in HU: .* offset of 1024"):
            check_ct(image(values.clip(0).astype(np.uint16)), name)


@pytest.mark.parametrize("dense", [300, 400, 1000, 1100, 3071])
def test_dense_tissue_is_not_taken_for_an_offset(dense):
    hu = hu_array()  # without any fat
    hu[:, 10:30, 10:60] = dense
    check_ct(image(hu), "dense")


def test_an_image_without_air_is_refused_with_any_padding():
    rng = np.random.default_rng(7)
    mr = rng.gamma(2.0, 150.0, (40, 64, 64)).astype(np.int16)
    for values in (mr, padded(mr, -2000), mr - np.int16(100)):
        with pytest.raises(StagingError, match=r"not in HU: .*air near -1000"):
            check_ct(image(values), "mr")


REAL = (
    *("coad_ay4070a_pv", "crlm1004_pv", "hcc002_cirrA_pv", "hcc011_cirrA_art"),
    *("hcc048_cirrA_pv", "ts_example_ct_nc_masks"),
)


@pytest.mark.parametrize("folder", REAL)
def test_real_scans_whole_cropped_and_with_an_offset(folder, shared_data):
    hu = sitk.GetArrayFromImage(read_ct(shared_data / folder / "ct.nii.gz")).astype(np.int16)
    hu = hu[:, ::2, ::2] if hu.shape[1] > 300 else hu
    rows, columns = hu.shape[1] // 3, hu.shape[2] // 3
    middle = hu[:, rows : 2 * rows, columns : 2 * columns]
    for values in (hu, middle):
        lifted = np.where(values < -1100, values, values + 1024).astype(np.int16)
        for given in (values, padded(values, -2000)):
            check_ct(image(given), folder)
        for given in (lifted, padded(lifted, -2000), padded(lifted, 0)):
            with pytest.raises(StagingError, match="offset of 1024"):
                check_ct(image(given), folder)
