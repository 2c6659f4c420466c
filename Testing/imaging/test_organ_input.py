"""The input of networks that are given organ masks: field about the organs, fill, liver's HU."""

import re

import numpy as np
import pytest
import SimpleITK as sitk

from LiverFibrosisStagingLib.imaging.grid import patch_array, working_grid

SPACING, PATCH = (4.0, 2.0, 2.0), (32, 56, 72)
INPUT = {
    "spacing": SPACING,
    "patch_size": PATCH,
    "channels": ("ct", "liver", "spleen"),
    "field": "organs",
    "fill": (16.0, -100.0),
    "liver_hu": 105.0,
}


def image(array):
    made = sitk.GetImageFromArray(array)
    made.SetSpacing((2.0, 2.0, 4.0))
    made.SetOrigin((-7.0, 11.0, -300.0))
    return made


@pytest.fixture(scope="module")
def scan():
    """A cylinder of 20 HU, 280 x 200 mm, with a liver of 90 HU on one side and a spleen."""
    z, y, x = np.meshgrid(np.arange(20), np.arange(120), np.arange(160), indexing="ij")
    body = ((x - 80) / 70) ** 2 + ((y - 60) / 50) ** 2 < 1
    liver = (x > 30) & (x < 60) & (y > 40) & (y < 80) & (z > 2) & (z < 16)
    spleen = (x > 80) & (x < 92) & (y > 60) & (y < 76) & (z > 6) & (z < 14)
    noise = np.random.default_rng(0).normal(0, 5, body.shape)
    hu = np.where(body, 20 + noise, -1000) + 70 * liver + 100 * spleen
    return [image(a) for a in (np.int16(hu), np.uint8(liver), np.uint8(spleen))]


@pytest.fixture(scope="module")
def grid(scan):
    return working_grid(*scan, **INPUT)


def test_channels_are_ct_and_masks_about_the_organs(grid):
    patch = patch_array(grid, 0, PATCH[0])
    assert patch.shape == (1, 3, *PATCH) and patch.dtype == np.float32
    assert set(np.unique(patch[0, 1:])) == {0.0, 1.0}
    box = np.argwhere(patch[0, 1:].any(axis=0))
    middle = (box.min(axis=0) + box.max(axis=0)) / 2
    assert np.abs(middle - (np.array(PATCH) - 1) / 2).max() <= 1
    assert patch[0, 1].sum() == pytest.approx(29 * 39 * 13, rel=0.02)


def test_the_livers_median_is_shifted_and_the_rest_with_it(grid, scan):
    patch = patch_array(grid, 0, PATCH[0])[0]
    hu = patch[0] * 350 - 125
    assert np.median(hu[patch[1] > 0]) == pytest.approx(105, abs=0.1)
    assert np.median(hu[patch[2] > 0]) == pytest.approx(120 + 15, abs=1)
    other = sitk.Cast(scan[0], sitk.sitkInt16) + 30
    shifted = working_grid(other, *scan[1:], **INPUT)
    # Away from air, which is clipped, 30 HU more everywhere make no difference.
    inside = patch[1:].max(axis=0) > 0
    assert np.abs(patch_array(shifted, 0, PATCH[0])[0, 0] - patch[0])[inside].max() < 1e-5


def test_nothing_beyond_the_fill_reaches_the_network(grid, scan):
    patch = patch_array(grid, 0, PATCH[0])[0]
    near = sitk.GetArrayFromImage(
        sitk.BinaryDilate(sitk.Or(grid.liver, grid.spleen), [8, 8, 4], sitk.sitkBox)
    )
    fill = np.float32((-100 + 125) / 350)
    assert (patch[0][near == 0] == fill).all() and (patch[0][near > 0] != fill).mean() > 0.9
    # Other surroundings, 40 mm or more from the organs: the same input.
    distance = sitk.SignedMaurerDistanceMap(
        sitk.Or(scan[1], scan[2]), squaredDistance=False, useImageSpacing=True
    )
    hu = sitk.GetArrayFromImage(scan[0])
    hu[sitk.GetArrayViewFromImage(distance) > 40] = -90
    other = working_grid(image(hu), *scan[1:], **INPUT)
    np.testing.assert_allclose(patch_array(other, 0, PATCH[0])[0], patch, atol=1e-4)


def test_slices_beyond_the_scan_are_filled_without_a_warning(grid):
    assert grid.warnings == () and grid.starts == (0,)
    outside = sitk.GetArrayViewFromImage(grid.body).max(axis=(1, 2)) == 0
    assert outside.sum() == PATCH[0] - 20
    assert not patch_array(grid, 0, PATCH[0])[0, 1:, outside].any()


def test_without_a_spleen_its_channel_is_empty(scan):
    grid = working_grid(scan[0], scan[1], **INPUT)
    patch = patch_array(grid, 0, PATCH[0])[0]
    assert grid.spleen is None and not patch[2].any() and patch[1].any()


def test_organs_wider_than_the_field_are_reported(scan):
    grid = working_grid(*scan, **INPUT | {"patch_size": (32, 24, 40)})
    (warning,) = grid.warnings  # 122 mm in a field of 80 mm, without the outermost voxels
    words = (
        "Liver and spleen are wider than the network's field of view: (19|20|21) mm are cut off."
    )
    assert re.fullmatch(words, warning)
