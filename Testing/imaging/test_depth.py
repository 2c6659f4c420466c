"""Depth in a mask agrees with ITK's distance map."""

import numpy as np
import pytest
import SimpleITK as sitk

from LiverFibrosisStagingLib.imaging.components import largest
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
