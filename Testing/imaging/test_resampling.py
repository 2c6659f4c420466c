"""Resampling axis by axis agrees with SimpleITK's resampler."""

import itertools

import numpy as np
import pytest
import SimpleITK as sitk

from LiverFibrosisStagingLib.imaging.resampling import linear, nearest

# Signed permutations of the axes, as of scans in other orders, in both handednesses.
TURNS = [
    np.eye(3)[list(order)] * np.array(signs)[:, None]
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


def _scan(kind: type = np.int16) -> sitk.Image:
    values = np.random.default_rng(3).integers(-1000, 1000, (14, 17, 19)).astype(kind)
    image = sitk.GetImageFromArray(values)
    image.SetSpacing((0.8, 0.9, 2.1))
    image.SetOrigin((-3.0, 5.0, 11.0))
    return image


def _grid(size: tuple[int, int, int], spacing: tuple[float, float, float]) -> sitk.Image:
    grid = sitk.Image(size, sitk.sitkUInt8)
    grid.SetSpacing(spacing)
    grid.SetOrigin((-5.3, 3.9, 8.2))  # the grid reaches beyond the scan on all sides
    return grid


def _reference(image: sitk.Image, grid: sitk.Image, how: int, outside: float) -> np.ndarray:
    kind = sitk.sitkFloat32 if how == sitk.sitkLinear else image.GetPixelID()
    return sitk.GetArrayFromImage(sitk.Resample(image, grid, sitk.Transform(), how, outside, kind))


@pytest.mark.parametrize("factors", [(1, 1, 1), (2, 3, 1), (1, 2, 4), (3, 1, 2)])
@pytest.mark.parametrize("kind", [np.int16, np.uint8, np.int32, np.float32])
def test_means_of_blocks_and_linear(factors: tuple[int, int, int], kind: type) -> None:
    scan, grid = _scan(kind), _grid((13, 15, 17), (1.7, 1.3, 2.9))
    shrunk = sitk.BinShrink(scan, factors)
    expected = _reference(shrunk, grid, sitk.sitkLinear, -77.0)
    found = linear(scan, grid, -77.0, factors)
    assert found.dtype == np.float32
    assert 0 < np.count_nonzero(expected == -77.0) < expected.size
    np.testing.assert_allclose(found, expected, atol=2e-3)


@pytest.mark.parametrize("number", range(48))
def test_turned_axes(number: int) -> None:
    scan, grid = _scan(), _grid((9, 33, 41), (2.3, 0.5, 0.7))
    scan.SetDirection(TURNS[number].ravel().tolist())
    scan.SetOrigin(grid.TransformContinuousIndexToPhysicalPoint((4.03, 15.07, 20.11)))
    expected = _reference(scan, grid, sitk.sitkLinear, -77.0)
    assert np.count_nonzero(expected != -77.0) > 100
    np.testing.assert_allclose(linear(scan, grid, -77.0), expected, atol=2e-3)
    mask = scan > 100
    expected = _reference(mask, grid, sitk.sitkNearestNeighbor, 0)
    np.testing.assert_array_equal(nearest(mask, grid), expected)


def test_half_a_voxel_at_the_edge_and_one_slice() -> None:
    line = sitk.GetImageFromArray(np.arange(1, 5, dtype=np.float32)[None, None])
    grid = sitk.Image((12, 1, 1), sitk.sitkUInt8)
    grid.SetSpacing((0.5, 1.0, 1.0))
    grid.SetOrigin((-1.0, 0.0, 0.0))
    found = linear(line, grid, -9.0).ravel().tolist()
    assert found == [-9, 1, 1, 1.5, 2, 2.5, 3, 3.5, 4, -9, -9, -9]
    assert found == _reference(line, grid, sitk.sitkLinear, -9.0).ravel().tolist()
    found = nearest(line > 2, grid)
    np.testing.assert_array_equal(found, _reference(line > 2, grid, sitk.sitkNearestNeighbor, 0))


def test_oblique_and_beyond() -> None:
    scan, grid = _scan(), _grid((13, 15, 17), (1.7, 1.3, 2.9))
    turn = sitk.VersorTransform((0.1, 0.2, 1.0), 0.3).GetMatrix()
    scan.SetDirection(turn)
    expected = _reference(sitk.BinShrink(scan, (2, 1, 1)), grid, sitk.sitkLinear, -77.0)
    found = linear(scan, grid, -77.0, (2, 1, 1))
    np.testing.assert_array_equal(found, expected)
    label = sitk.Cast(scan > 0, sitk.sitkUInt8) * 7
    expected = _reference(label, grid, sitk.sitkNearestNeighbor, 0) > 0
    np.testing.assert_array_equal(nearest(label, grid), expected)
    grid.SetOrigin((500.0, 0.0, 0.0))
    assert (linear(_scan(), grid, -77.0) == -77.0).all()
    assert not nearest(_scan() > 0, grid).any()
