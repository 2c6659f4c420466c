"""Volume ratios of the liver's parts, on a liver whose parts are known."""

import numpy as np
import pytest
import SimpleITK as sitk

from LiverFibrosisStagingLib.imaging.segments import LiverSegments
from LiverFibrosisStagingLib.signs.measure import RATIOS, measure_signs

HALF_AXES = np.array([80.0, 60.0, 55.0])
# Planes x = const, as shares of the half axis, between the segments I to VIII from left to right;
# multiples of 12 mm, so that they lie between voxels.
PLANES = (0.6, 0.45, 0.3, 0.15, -0.15, -0.45, -0.6)


def bodies(spacing, size_mm=(192, 144, 120)):
    """CT, liver (an ellipsoid) and segments (slices of it across x) on one grid, LPS."""
    size = [round(length / step) for length, step in zip(size_mm, spacing)]
    x, y, z = (
        (np.arange(n) - (n - 1) / 2) * step / half
        for n, step, half in zip(size, spacing, HALF_AXES)
    )
    inside = z[:, None, None] ** 2 + y[None, :, None] ** 2 + x[None, None, :] ** 2 <= 1
    labels = inside * (1 + np.searchsorted(-np.array(PLANES), -x))[None, None]

    def image(array):
        made = sitk.GetImageFromArray(array)
        made.SetSpacing(spacing)
        return made

    ct = image(np.where(inside, 105, -100).astype(np.int16))
    return ct, image(inside.astype(np.uint8)), image(labels.astype(np.uint8))


def truth(first, last):
    """Volume of the unit ball's slices from segment `first` to `last`, counted from the left."""
    edges = np.array([1.0, *PLANES, -1.0])
    high, low = edges[first - 1], edges[last]
    return np.pi * ((high - high**3 / 3) - (low - low**3 / 3))


def couinaud(labels):
    return LiverSegments(labels, tuple(frozenset({n}) for n in range(1, 9)))


@pytest.mark.parametrize("spacing", [(0.8, 0.8, 1.5), (1.5, 1.5, 5.0)])
def test_ratios_within_two_percent_of_the_truth(spacing):
    ct, liver, labels = bodies(spacing)
    signs = measure_signs(ct, liver, None, "", couinaud(labels))
    assert signs["lsvr"].value == pytest.approx(truth(1, 3) / truth(4, 8), rel=0.02)
    expected = truth(1, 1) / truth(5, 8)
    assert signs["caudate_right_ratio"].value == pytest.approx(expected, rel=0.02)


@pytest.fixture(scope="module")
def coarse():
    return bodies((2.0, 2.0, 3.0))


def test_segments_may_be_on_another_grid(coarse):
    ct, liver, _ = coarse
    _, _, labels = bodies((1.0, 1.5, 2.0))
    labels.SetOrigin(
        [
            ((a - 1) * s - (b - 1) * t) / 2
            for a, s, b, t in zip(
                liver.GetSize(), liver.GetSpacing(), labels.GetSize(), labels.GetSpacing()
            )
        ]
    )
    signs = measure_signs(ct, liver, None, "", couinaud(labels))
    assert signs["lsvr"].value == pytest.approx(truth(1, 3) / truth(4, 8), rel=0.02)


def test_each_ratio_needs_its_own_lobes(coarse):
    ct, liver, labels = coarse
    to_lobes = {1: 1, 2: 2, 3: 2, 4: 3, 5: 3, 6: 3, 7: 3, 8: 3}
    right = frozenset(range(4, 9))
    lobes = LiverSegments(
        sitk.ChangeLabel(labels, to_lobes), (frozenset({1}), frozenset({2, 3}), right)
    )
    signs = measure_signs(ct, liver, None, "", lobes)
    assert signs["lsvr"].value == pytest.approx(truth(1, 3) / truth(4, 8), rel=0.02)
    assert signs["caudate_right_ratio"].value is None
    assert "the right hemiliver without segment IV are needed" in (
        signs["caudate_right_ratio"].reason
    )


def test_without_segments_the_reason_says_how_to_get_them(coarse):
    ct, liver, _ = coarse
    signs = measure_signs(ct, liver, None, "")
    for key in RATIOS:
        assert signs[key].value is None
        assert signs[key].reason.startswith("Segments are needed: Couinaud segments")
        assert "TotalSegmentator's task liver_segments" in signs[key].reason


def test_segments_of_another_scan_are_not_used(coarse):
    ct, liver, labels = coarse
    moved = sitk.Image(labels)
    moved.SetOrigin((60.0, 0.0, 0.0))
    half = sitk.ChangeLabel(labels, {label: 0 for label in range(1, 6)})
    for given, words in ((moved, "of the liver mask"), (half, "segments of the same liver")):
        found = measure_signs(ct, liver, None, "", couinaud(given))["lsvr"]
        assert found.value is None and words in found.reason


def test_a_liver_that_is_cut_off_has_no_ratios(coarse):
    ct, liver, labels = (image[:, :, 8:] for image in coarse)
    found = measure_signs(ct, liver, None, "", couinaud(labels))["lsvr"]
    assert found.value is None and "reaches the edge of the scan" in found.reason
