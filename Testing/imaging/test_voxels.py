"""Views along other axes have the voxels and the geometry that DICOMOrient gives a copy."""

import itertools

import numpy as np
import pytest
import SimpleITK as sitk

from LiverFibrosisStagingLib.imaging.grid import bounding_box
from LiverFibrosisStagingLib.imaging.resampling import linear, nearest
from LiverFibrosisStagingLib.imaging.voxels import Voxels

TURNS = [
    np.eye(3)[list(order)] * np.array(signs)[:, None]
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]
TILT = np.array(sitk.VersorTransform((0.1, 0.2, 1.0), 0.3).GetMatrix()).reshape(3, 3)


def _scan(direction: np.ndarray) -> sitk.Image:
    values = np.random.default_rng(5).integers(-900, 900, (7, 8, 9)).astype(np.int16)
    image = sitk.GetImageFromArray(values)
    image.SetSpacing((0.8, 0.9, 2.1))
    image.SetOrigin((-3.0, 5.0, 11.0))
    image.SetDirection(direction.ravel().tolist())
    return image


@pytest.mark.parametrize("tilt", [np.eye(3), TILT], ids=["straight", "oblique"])
@pytest.mark.parametrize("number", range(48))
def test_lps(number: int, tilt: np.ndarray) -> None:
    scan = _scan(tilt @ TURNS[number])
    expected = sitk.DICOMOrient(scan, "LPS")
    found = Voxels.of(scan).lps()
    assert np.shares_memory(found.array, sitk.GetArrayViewFromImage(scan))
    np.testing.assert_array_equal(found.array, sitk.GetArrayViewFromImage(expected))
    np.testing.assert_array_equal(found.size, expected.GetSize())
    np.testing.assert_allclose(found.spacing, expected.GetSpacing())
    np.testing.assert_allclose(found.origin, expected.GetOrigin(), atol=1e-12)
    np.testing.assert_allclose(found.direction.ravel(), expected.GetDirection(), atol=1e-12)


@pytest.mark.parametrize("number", range(48))
def test_blocks_begin_at_the_same_end_in_every_order(number: int) -> None:
    scan = _scan(TURNS[number])  # 7, 8 and 9 voxels: blocks of 2, 3 and 4 leave some over
    grid = sitk.Image([6, 5, 4], sitk.sitkUInt8)
    grid.SetSpacing((1.9, 2.8, 3.1))
    ordered = sitk.DICOMOrient(scan, "LPS")
    grid.SetOrigin(ordered.TransformContinuousIndexToPhysicalPoint((0.4, 0.3, 0.2)))
    shrunk = sitk.BinShrink(ordered, (2, 3, 4))
    expected = sitk.Resample(
        shrunk, grid, sitk.Transform(), sitk.sitkLinear, -77.0, sitk.sitkFloat32
    )
    found = linear(scan, grid, -77.0, (2, 3, 4))
    assert np.count_nonzero(found != -77.0) > 5
    np.testing.assert_allclose(found, sitk.GetArrayFromImage(expected), atol=2e-3)


@pytest.mark.parametrize("number", range(48))
def test_places_in_the_middle_of_two_voxels(number: int) -> None:
    mask = _scan(np.eye(3)) > 0
    fine = sitk.Image([2 * n + 2 for n in mask.GetSize()], sitk.sitkUInt8)  # half a voxel beyond
    fine.SetSpacing([step / 2 for step in mask.GetSpacing()])
    fine.SetOrigin(mask.TransformContinuousIndexToPhysicalPoint((-0.5, -0.5, -0.5)))
    turned = Voxels.of(fine).along(TURNS[number])
    reference = turned.part(np.zeros(3, int), turned.size - 1)
    image = sitk.GetImageFromArray(nearest(mask, reference).view(np.uint8))
    image.CopyInformation(reference)
    found = sitk.DICOMOrient(image, "LPS")
    expected = nearest(mask, fine)
    assert 0 < expected.mean() < 1
    np.testing.assert_array_equal(sitk.GetArrayViewFromImage(found), expected)


def test_places_indices_and_parts() -> None:
    scan = _scan(TILT)
    voxels = Voxels.of(scan)
    index = np.array([[2.5], [3.0], [4.25]])
    place = scan.TransformContinuousIndexToPhysicalPoint(index[:, 0].tolist())
    np.testing.assert_allclose(voxels.places(index)[:, 0], place)
    np.testing.assert_allclose(voxels.indices(voxels.places(index)), index)
    part = voxels.part(np.array([1, 2, 3]), np.array([4, 4, 5]))
    expected = scan[1:5, 2:5, 3:6]
    assert part.GetSize() == expected.GetSize() == (4, 3, 3)
    np.testing.assert_allclose(part.GetOrigin(), expected.GetOrigin())
    np.testing.assert_array_equal(
        sitk.GetArrayViewFromImage(part), sitk.GetArrayViewFromImage(expected)
    )


def test_other_axes_that_are_not_parallel() -> None:
    assert Voxels.of(_scan(TILT)).along(np.eye(3)) is None
    straight = Voxels.of(_scan(TILT)).lps().straight()
    assert not straight.origin.any()
    np.testing.assert_array_equal(straight.direction, np.eye(3))


def test_oblique_in_parts_as_at_once() -> None:
    """More slices than are resampled at a time, of a part of the scan, and beyond it."""
    scan = _scan(TILT)
    grid = sitk.Image([5, 6, 70], sitk.sitkUInt8)
    grid.SetSpacing((0.7, 0.6, 0.3))
    grid.SetOrigin((-4.0, 6.0, 8.0))
    expected = sitk.Resample(
        sitk.BinShrink(scan, (2, 1, 2)),
        grid,
        sitk.Transform(),
        sitk.sitkLinear,
        -7,
        sitk.sitkFloat32,
    )
    found = linear(scan, grid, -7.0, (2, 1, 2))
    assert 0 < np.count_nonzero(found == -7.0) < found.size
    np.testing.assert_allclose(found, sitk.GetArrayFromImage(expected), atol=1e-3)


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("steps", list(itertools.product((1, -1), repeat=3)))
def test_the_box_around_voxels_does_not_depend_on_how_they_lie_in_memory(
    axes: tuple[int, ...], steps: tuple[int, ...]
) -> None:
    stored = np.zeros((5, 6, 7), np.uint8)
    seen = stored.transpose(axes)[tuple(slice(None, None, step) for step in steps)]
    assert bounding_box(seen) is None
    for inside in ((1, 2, 0), (3, 2, 4)):
        seen[inside] = 3
    assert bounding_box(seen) == (slice(1, 4), slice(2, 3), slice(0, 5))
