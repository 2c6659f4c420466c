"""The parts of the search for the aorta agree with direct computation."""

import itertools

import numpy as np
import pytest

from LiverFibrosisStagingLib.imaging.aorta import RADII_MM, _best_path, _disk_means
from LiverFibrosisStagingLib.imaging.coarse import STEP_MM


@pytest.mark.parametrize("shift", [(0, 0), (1, -1), (-2, 0)])
def test_best_path_is_the_best_of_all(shift: tuple[int, int]) -> None:
    """Against all 81 x 12 connected paths through three slices of 3 x 4 voxels."""
    scores = np.random.default_rng(8).random((3, 3, 4)).astype(np.float32) / 5
    moved = np.array([(0, 0), shift])
    best, expected = -np.inf, None
    places = list(np.ndindex(scores.shape[1:]))
    for path in itertools.product(places, repeat=3):
        # Moves in the patient: the origin of a slice's scores has moved too.
        moves = np.abs(np.diff(path, axis=0) + moved)
        if moves.max() <= 1:
            total = sum(scores[(k, *place)] for k, place in enumerate(path)) - 0.05 * moves.sum()
            if total > best:
                best, expected = total, path
    np.testing.assert_array_equal(_best_path(scores, moved), expected)


def test_disk_means_are_those_of_the_voxels_within_three_quarters_of_the_radius() -> None:
    margin = 12
    values = np.random.default_rng(9).normal(100, 30, (27, 26, 2)).astype(np.float32)
    around = np.stack(np.mgrid[-margin : margin + 1, -margin : margin + 1], axis=-1).reshape(-1, 2)
    for radius, found in zip(RADII_MM, _disk_means(values, margin), strict=True):
        disk = around[np.hypot(*around.T) * STEP_MM[1] <= 0.75 * radius]
        for row, column in np.ndindex(3, 2):
            expected = values[row + margin + disk[:, 0], column + margin + disk[:, 1]].mean(axis=0)
            np.testing.assert_allclose(found[row, column], expected, rtol=1e-5)
