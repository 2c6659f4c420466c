"""The location map on the CT's grid: the same as without slabs and boxes, and nothing outside."""

import numpy as np
import pytest
import SimpleITK as sitk
from small_scene import make_abdomen, rotation

from LiverFibrosisStagingLib import location_map
from LiverFibrosisStagingLib.imaging.grid import working_grid
from LiverFibrosisStagingLib.imaging.resampling import nearest
from LiverFibrosisStagingLib.location_map import LocationMap, on_ct


@pytest.mark.parametrize("degrees", [0, 35])
@pytest.mark.parametrize("slab", [1, 5, 1000])
def test_slabs_and_boxes_do_not_change_the_map(degrees, slab, model, monkeypatch):
    monkeypatch.setattr(location_map, "SLAB_SLICES", slab)
    ct, liver, spleen = make_abdomen(rotation(degrees))
    grid = working_grid(ct, liver, spleen, **model.card.preprocessing)
    values = np.random.default_rng(3).random(grid.volume.GetSize()[::-1], np.float32)
    values[sitk.GetArrayViewFromImage(grid.body) == 0] = 0
    image = sitk.GetImageFromArray(values)
    image.CopyInformation(grid.volume)

    relative, labels = on_ct(LocationMap(image, 1.0), grid, ct)

    body = nearest(grid.body, ct)
    whole = sitk.Mask(sitk.Resample(image, ct, sitk.Transform(), sitk.sitkLinear, 0.0), body)
    expected = sitk.GetArrayViewFromImage(whole)
    assert expected.any()
    np.testing.assert_allclose(sitk.GetArrayViewFromImage(relative), expected, atol=1e-5)
    found = sitk.GetArrayViewFromImage(labels)
    np.testing.assert_array_equal(found > 0, sitk.GetArrayViewFromImage(relative) > 0)
    assert found.max() == 10
    for image in (relative, labels):
        assert image.GetOrigin() == ct.GetOrigin() and image.GetDirection() == ct.GetDirection()


def test_without_a_body_the_map_is_empty(model):
    ct, liver, _ = make_abdomen()
    grid = working_grid(ct, liver, **model.card.preprocessing)
    grid = type(grid)(**{**vars(grid), "body": grid.body * 0})
    relative, labels = on_ct(LocationMap(grid.volume, 1.0), grid, ct)
    for image in (relative, labels):
        assert image.GetSize() == ct.GetSize()
        assert not sitk.GetArrayViewFromImage(image).any()
