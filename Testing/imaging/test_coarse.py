"""A CT and its masks on the coarse grid of the checks."""

import numpy as np
import pytest
import SimpleITK as sitk

from LiverFibrosisStagingLib.imaging import coarse
from LiverFibrosisStagingLib.imaging.coarse import CoarseScan

SHAPE = (60, 40, 50)


def image(array):
    made = sitk.GetImageFromArray(array)
    made.SetSpacing((1.7, 2.3, 2.9))
    return made


def mask(*box):
    array = np.zeros(SHAPE, np.uint8)
    array[box] = np.random.default_rng(3).random(array[box].shape) < 0.5
    return image(array)


@pytest.mark.parametrize(
    "box",
    [
        (slice(20, 30), slice(11, 29), slice(5, 17)),
        (slice(22, 23), slice(7, 8), slice(9, 10)),
        (slice(0, 60), slice(0, 3), slice(47, 50)),
        (slice(56, 60), slice(10, 20), slice(10, 20)),  # beyond the slices that are kept
    ],
)
def test_a_mask_is_resampled_only_around_the_organ(box, monkeypatch):
    liver = mask(slice(10, 20), slice(5, 25), slice(8, 30))
    given = image(np.zeros(SHAPE, np.int16)), liver, mask(*box)
    found = CoarseScan.of(*given)
    assert found.liver.any() and found.spleen.any() == (box[0].start < 56)

    def everywhere(mask, box, grid):
        return tuple(slice(0, n) for n in grid.GetSize())

    monkeypatch.setattr(coarse, "_around", everywhere)
    expected = CoarseScan.of(*given)
    np.testing.assert_array_equal(found.liver, expected.liver)
    np.testing.assert_array_equal(found.spleen, expected.spleen)


def test_the_core_of_an_organ():
    """Deeper than 5 mm, in voxels of 3 x 2 x 2 mm."""
    organ = np.zeros((20, 30, 40), bool)
    organ[3:14, 5:25, 8:30] = True
    core = coarse._core(organ)
    assert core.box == (slice(4, 13), slice(7, 23), slice(10, 28)) and core.inside.all()
    inside, box = coarse._core(organ & False)
    assert organ[box].shape == inside.shape == (0, 0, 0)
    inside, box = coarse._core(organ & (np.arange(40) < 10))
    assert organ[box].shape == inside.shape and not inside.any()
