"""CTs that are changed to see what a stage depends on: exactly what is meant changes."""

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from LiverFibrosisStagingLib.imaging import changes
from LiverFibrosisStagingLib.imaging.grid import working_grid
from LiverFibrosisStagingLib.imaging.masks import volume_ml

SPACING = (2.0, 2.0, 3.0)
Z, Y, X = np.meshgrid(
    *(s * np.arange(n) for s, n in zip(SPACING[::-1], (44, 90, 130))), indexing="ij"
)
BODY = ((Y - 90) / 80) ** 2 + ((X - 130) / 115) ** 2 < 1
RADIUS = np.sqrt((Z - 66) ** 2 + (Y - 90) ** 2 + (X - 90) ** 2)
BUMPS = 2.5 * np.cos(X / 2.5) * np.cos(Y / 2.5) * np.cos(Z / 2.5)
LIVER = RADIUS < 45 + BUMPS
SPLEEN = ((Z - 66) / 40) ** 2 + ((Y - 95) / 35) ** 2 + ((X - 190) / 25) ** 2 < 1
HU = np.where(BODY, 40.0, -1000.0) + np.random.default_rng(0).normal(0, 5, BODY.shape)
HU = np.where(LIVER, HU + 70, np.where(SPLEEN, HU + 80, HU)).astype(np.int16)


def image(array, orientation="LPS"):
    made = sitk.GetImageFromArray(array)
    made.SetSpacing(SPACING)
    return sitk.DICOMOrient(made, orientation)


def values(found):
    return sitk.GetArrayFromImage(sitk.DICOMOrient(found, "LPS"))


@pytest.fixture(scope="module", params=["LPS", "PIR"])
def given(request):
    return [image(a, request.param) for a in (HU, LIVER.astype(np.uint8), SPLEEN.astype(np.uint8))]


def test_surroundings_become_fat_up_to_the_skin(given):
    hu = values(changes.surroundings_as_fat(*given))
    away = ndimage.distance_transform_edt(~(LIVER | SPLEEN), SPACING[::-1])
    depth = ndimage.distance_transform_edt(BODY, SPACING[::-1])
    height = ndimage.distance_transform_edt(~BODY, SPACING[::-1])
    np.testing.assert_array_equal(hu[away <= 3], HU[away <= 3])
    assert (hu[(away > 3) & (depth > 7)] == -100).all()
    np.testing.assert_array_equal(hu[height > 7], HU[height > 7])
    assert (values(given[0]) == HU).all()  # the CT itself is not changed


def test_the_core_has_the_median_and_nothing_else_changes(given):
    hu = values(changes.uniform_core(*given[:2]))
    core = ndimage.distance_transform_edt(LIVER, SPACING[::-1]) > 8
    assert core.any() and (hu[core] == np.median(HU[LIVER])).all()
    np.testing.assert_array_equal(hu[~core], HU[~core])


def test_the_spleen_shrinks_about_its_centre_to_the_volume(given):
    ct, small = changes.smaller_spleen(*given, 80.0)
    hu, mask = values(ct), values(small) > 0
    assert volume_ml(given[2]) > 140 and volume_ml(small) == pytest.approx(80, rel=0.02)
    centres = [np.argwhere(where).mean(axis=0) for where in (mask, SPLEEN)]
    np.testing.assert_allclose(*centres, atol=0.3)
    assert hu[mask].mean() == pytest.approx(HU[SPLEEN].mean(), abs=4)
    assert (hu[SPLEEN & ~mask] == -100).all()
    away = ndimage.distance_transform_edt(~SPLEEN, SPACING[::-1])
    np.testing.assert_array_equal(hu[(away > 2) | LIVER], HU[(away > 2) | LIVER])
    assert changes.smaller_spleen(*given, 400.0) is None


def test_a_nodular_surface_becomes_smooth_in_ct_and_mask(given):
    ct, liver = changes.smooth_surface(*given[:2])
    hu, mask = values(ct), values(liver) > 0

    def roughness(where):
        border = where & ~ndimage.binary_erosion(where)
        return RADIUS[border].var()

    voxels = roughness(RADIUS < 45)  # of a sphere
    assert roughness(mask) - voxels < 0.5 * (roughness(LIVER) - voxels)
    assert mask.sum() == pytest.approx(LIVER.sum(), rel=0.02)
    for depth, low, high in ((mask, 95, 125), (~mask & BODY & ~SPLEEN, 25, 60)):
        inside = ndimage.distance_transform_edt(depth, SPACING[::-1])
        shell = (inside > 3) & (inside < 8) & (np.abs(RADIUS - 45) < 10)
        assert low < hu[shell].mean() < high
    far = (np.abs(RADIUS - 45) > 25) & (RADIUS > 45)
    np.testing.assert_array_equal(hu[far], HU[far])


def test_without_organs_the_input_has_no_masks_and_keeps_the_surroundings(given):
    window = (-125.0, 225.0)
    grid = working_grid(*given, spacing=(4, 4, 4), patch_size=(32, 48, 64), window=window)
    changed = changes.without_organs(grid, window)
    before, after = (sitk.GetArrayFromImage(g.volume) for g in (grid, changed))
    organs = sitk.GetArrayFromImage(sitk.Or(grid.liver, grid.spleen)) > 0
    near = ndimage.binary_dilation(organs, np.ones((3, 3, 3)))
    np.testing.assert_allclose(after[near], 25 / 350)
    np.testing.assert_array_equal(after[~near], before[~near])
    assert not sitk.GetArrayFromImage(changed.liver).any() and changed.starts == grid.starts
    assert not sitk.GetArrayFromImage(changed.spleen).any()
