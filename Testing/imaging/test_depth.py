"""Depth in a mask agrees with ITK's distance map, components and holes with scipy's."""

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from LiverFibrosisStagingLib.imaging.components import components, filled, largest
from LiverFibrosisStagingLib.imaging.masks import eroded


@pytest.mark.parametrize(
    "spacing", [(0.78125, 0.78125, 2.5), (0.625, 0.625, 0.6), (5.0, 5.0, 5.0), (1.25, 2.5, 1.0)]
)
@pytest.mark.parametrize("share", [0.0005, 0.01])
def test_depth_as_by_distances(spacing: tuple[float, ...], share: float) -> None:
    inside = np.random.default_rng(5).random((17, 33, 41)) >= share
    mask = sitk.GetImageFromArray(inside.astype(np.uint8))
    mask.SetSpacing(spacing)
    distance = sitk.SignedMaurerDistanceMap(
        mask == 0, insideIsPositive=False, squaredDistance=False, useImageSpacing=True
    )
    expected = sitk.GetArrayFromImage(distance) > 5.0
    assert 0 < np.count_nonzero(expected) < expected.size or share == 0.01
    for stored in (inside, np.asfortranarray(inside)):
        np.testing.assert_array_equal(eroded(stored, 5.0, spacing[::-1]), expected)


def test_the_edge_of_the_image_is_no_surface() -> None:
    assert eroded(np.ones((2, 3, 5), bool), 5.0, (1.0, 1.0, 1.0)).all()


def test_largest_of_none_one_and_two_parts() -> None:
    parts = np.zeros((5, 6, 7), bool)
    np.testing.assert_array_equal(largest(parts), parts)
    parts[1:3, 1:3, 1:3] = True
    np.testing.assert_array_equal(largest(parts), parts)
    first = parts.copy()
    parts[4, 5, 5:] = True
    np.testing.assert_array_equal(largest(parts), first)
    np.testing.assert_array_equal(largest(parts, 0.1), parts)


@pytest.mark.parametrize("size", [(30, 40), (9, 20, 30)])
def test_components_and_holes_as_by_scipy(size: tuple[int, ...]) -> None:
    inside = np.random.default_rng(2).random(size) < 1.5 / len(size) - 0.06
    for mask in (inside, np.asfortranarray(inside), ~inside, inside & False, inside | True):
        labels, count = ndimage.label(mask)
        expected = np.bincount(labels[mask], minlength=1)
        numbers, sizes = components(mask)
        assert len(sizes) == count + 1 and sorted(sizes) == sorted(expected)
        np.testing.assert_array_equal(numbers > 0, mask)
        for share in (1.0, 0.1):
            kept = (expected >= share * expected.max())[labels] & mask
            np.testing.assert_array_equal(largest(mask, share), kept)
        np.testing.assert_array_equal(filled(mask), ndimage.binary_fill_holes(mask))


def test_holes_may_be_open_at_closed_ends() -> None:
    inside = np.random.default_rng(3).random((9, 20, 30)) < 0.56
    closed = np.pad(inside, ((1, 1), (0, 0), (0, 0)), constant_values=True)
    expected = ndimage.binary_fill_holes(closed)[1:-1]
    np.testing.assert_array_equal(filled(inside, ends=False), expected)
    assert expected.sum() > filled(inside).sum() > inside.sum()
