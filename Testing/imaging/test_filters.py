"""Filters of arrays agree with SimpleITK's."""

import numpy as np
import pytest
import SimpleITK as sitk

from LiverFibrosisStagingLib.imaging.filters import dilated, gaussian, opened, times
from LiverFibrosisStagingLib.imaging.grid import _quantiles, body_mask
from LiverFibrosisStagingLib.imaging.input_checks import _deviation

SPACING = (3.0, 2.0, 1.5)


def _noise(shape: tuple[int, int, int] = (12, 23, 31)) -> np.ndarray:
    return np.random.default_rng(2).normal(40, 200, shape).astype(np.float32)


def _image(array: np.ndarray) -> sitk.Image:
    image = sitk.GetImageFromArray(array.astype(np.uint8) if array.dtype == bool else array)
    image.SetSpacing(SPACING[::-1])
    return image


@pytest.mark.parametrize("sigma", [1.0, 14.0])
def test_gaussian(sigma: float) -> None:
    values = _noise()
    expected = sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(_image(values), sigma))
    found = gaussian(values, [sigma] * 3, SPACING)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-3)
    part = (slice(None), slice(11, 20), slice(3, 9))
    np.testing.assert_allclose(gaussian(values, [sigma] * 3, SPACING, part), found[part], atol=2e-3)


def test_gaussian_of_few_voxels_and_of_one_axis() -> None:
    values = _noise((3, 9, 8))
    found = gaussian(values, (2.0, 0.0, 2.0), SPACING)
    expected = sitk.GetArrayFromImage(sitk.RecursiveGaussian(_image(values), 2.0, direction=0))
    np.testing.assert_allclose(found, expected, atol=2e-3)


@pytest.mark.parametrize("shape", [(9,), (70, 90, 40), (300, 200, 1), (5, 6, 7, 8)])
@pytest.mark.parametrize("columns", [0, 1, 65])
def test_products_along_each_axis(shape: tuple[int, ...], columns: int) -> None:
    rng = np.random.default_rng(4)
    array = rng.random(shape, np.float32)
    for axis, length in enumerate(shape):
        matrix = rng.random((length, columns), np.float32)
        expected = np.moveaxis(np.tensordot(array, matrix, (axis, 0)), -1, axis)
        for order in (array, np.asfortranarray(array)):
            np.testing.assert_allclose(times(order, matrix, axis), expected, rtol=2e-5)


@pytest.mark.parametrize("radius", [(0, 2, 2), (1, 0, 3), (4, 30, 2)])
def test_boxes(radius: tuple[int, int, int]) -> None:
    few, many = _noise() > 450, _noise() < 450
    expected = sitk.BinaryDilate(_image(few), radius[::-1], sitk.sitkBox)
    np.testing.assert_array_equal(dilated(few, radius), sitk.GetArrayViewFromImage(expected))
    expected = sitk.GrayscaleMorphologicalOpening(_image(many), radius[::-1], sitk.sitkBox)
    found = opened(many, radius)
    np.testing.assert_array_equal(found, sitk.GetArrayViewFromImage(expected))


def test_deviation() -> None:
    values = _noise()
    expected = sitk.GetArrayFromImage(sitk.Noise(_image(values), [2, 2, 0]))
    np.testing.assert_allclose(_deviation(values), expected, rtol=1e-5)


def test_quantiles_of_counted_values() -> None:
    rng = np.random.default_rng(4)
    values, counts = rng.normal(size=50), rng.integers(1, 9, 50)
    shares = (0.0, 0.001, 0.37, 0.999, 1.0)
    expected = np.quantile(np.repeat(values, counts), shares)
    np.testing.assert_allclose(_quantiles(values, counts, shares), expected, rtol=1e-12)


def test_body_with_lungs_without_table() -> None:
    hu = np.full((6, 40, 50), -1000.0, np.float32)
    hu[:, 8:28, 5:45] = 40.0
    hu[:, 14:20, 10:20] = -900.0  # a lung, open at the first and last slice
    hu[3, 8:14, 30:33] = -700.0  # air from outside, in one slice
    hu[:, 36, 2:48] = 300.0  # the table's shell
    hu[:, 28:36, 20] = 0.0  # and a strap that joins it to the body
    expected = np.zeros(hu.shape, bool)
    expected[:, 8:28, 5:45] = True
    expected[3, 8:14, 30:33] = False
    np.testing.assert_array_equal(body_mask(hu, (4.0, 2.0, 2.0), 4.0), expected)
    assert not body_mask(np.full_like(hu, -1000.0), (4.0, 2.0, 2.0), 4.0).any()
