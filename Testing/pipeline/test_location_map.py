"""The location map on the CT's grid: the same as without slabs and boxes, and nothing outside."""

import numpy as np
import pytest
import SimpleITK as sitk
from small_scene import make_abdomen, rotation

from LiverFibrosisStagingLib import location_map
from LiverFibrosisStagingLib.imaging.grid import working_grid
from LiverFibrosisStagingLib.imaging.resampling import nearest
from LiverFibrosisStagingLib.location_map import LocationMap, on_ct


def on_grid(values, grid):
    image = sitk.GetImageFromArray(values)
    image.CopyInformation(grid.volume)
    return LocationMap(image, 1.0)


def whole_map(location, grid, ct):
    """The map on the CT's grid in one piece."""
    body = nearest(grid.body, ct)
    whole = sitk.Resample(location.relative, ct, sitk.Transform(), sitk.sitkLinear, 0.0)
    return sitk.GetArrayFromImage(whole) * body


@pytest.fixture(params=[0, 35], ids=["axial", "oblique"])
def case(request, model):
    ct, liver, spleen = make_abdomen(rotation(request.param))
    return ct, working_grid(ct, liver, spleen, **model.card.preprocessing)


@pytest.mark.parametrize("slab", [1, 5, 1000])
def test_slabs_and_boxes_do_not_change_the_map(slab, case, monkeypatch):
    monkeypatch.setattr(location_map, "SLAB_SLICES", slab)
    ct, grid = case
    values = np.random.default_rng(3).random(grid.volume.GetSize()[::-1], np.float32)
    values[sitk.GetArrayViewFromImage(grid.body) == 0] = 0
    location = on_grid(values, grid)

    found = on_ct(location, grid, ct)
    relative, labels = (
        found.whole_image(part) for part in (found.relative_in_box(), found.bands_in_box())
    )

    expected = whole_map(location, grid, ct)
    assert expected.any()
    voxels, bands = map(sitk.GetArrayViewFromImage, (relative, labels))
    np.testing.assert_allclose(voxels, expected, atol=1e-5)
    np.testing.assert_array_equal(bands > 0, voxels > 0)
    np.testing.assert_array_equal(bands, np.ceil(voxels * (10 / found.maximum)).clip(0, 10))
    assert bands.max() == 10
    for image in (relative, labels):
        assert image.GetOrigin() == ct.GetOrigin() and image.GetDirection() == ct.GetDirection()
    assert found.maximum == voxels.max()
    assert found.strongest == np.unravel_index(voxels.argmax(), voxels.shape)[::-1]


def test_the_maximum_is_found_without_the_whole_map(case, monkeypatch):
    """Also of two peaks of which the one that is lower between the voxels is higher at them, and
    of a peak that is outside the body in the CT."""
    monkeypatch.setattr(location_map, "SLAB_SLICES", 2)
    ct, grid = case
    body = sitk.GetArrayViewFromImage(grid.body) > 0
    inside = np.argwhere(body)
    rng = np.random.default_rng(1)
    computed = []
    real = location_map.MapOnCt._slab

    def counted(self, at):
        values = real(self, at)
        computed.append(values.size)
        return values

    monkeypatch.setattr(location_map.MapOnCt, "_slab", counted)
    for _ in range(8):
        values = np.zeros(body.shape, np.float32)
        values[body] = 0.1
        for height in (1.0, 0.97, 0.9):
            values[tuple(inside[rng.integers(len(inside))])] = height
        values[tuple(np.argwhere(~body)[rng.integers((~body).sum())])] = 1.2
        location = on_grid(values, grid)
        found = on_ct(location, grid, ct)
        expected = whole_map(location, grid, ct)
        assert found.maximum == pytest.approx(expected.max(), rel=1e-6)
        assert expected[found.strongest[::-1]] == pytest.approx(expected.max(), rel=1e-6)
    values = np.zeros(body.shape, np.float32)
    values[np.ix_(*(np.arange(i - 1, i + 2) for i in inside[len(inside) // 2]))] = 1.0
    computed.clear()
    found = on_ct(on_grid(values, grid), grid, ct)
    assert sum(computed) < np.prod(found.size) / 20


def test_without_a_body_the_map_is_empty(model):
    ct, liver, _ = make_abdomen()
    grid = working_grid(ct, liver, **model.card.preprocessing)
    grid = type(grid)(**{**vars(grid), "body": grid.body * 0})
    found = on_ct(LocationMap(grid.volume, 1.0), grid, ct)
    assert found.maximum == 0 and found.strongest is None
    for part in (found.relative_in_box(), found.bands_in_box()):
        image = found.whole_image(part)
        assert image.GetSize() == ct.GetSize()
        assert not sitk.GetArrayViewFromImage(image).any()
