"""The predicted stage: the median of the probabilities, consistent with the groups' scores."""

import numpy as np
import pytest

from LiverFibrosisStagingLib.stages import GROUPS, STAGES, group_scores, median_stage


@pytest.mark.parametrize(
    "probabilities, stage",
    [
        ([1, 0, 0, 0, 0], "F0"),
        ([0, 0, 0, 0, 1], "F4"),
        ([0.4, 0.05, 0.05, 0.2, 0.3], "F2"),  # the most probable is F0, but 0.55 are above F1
        ([0.2, 0.2, 0.2, 0.2, 0.2], "F2"),
        ([0.5, 0, 0, 0, 0.5], "F0"),  # one half is enough
        ([0.25, 0.25, 0, 0.25, 0.25], "F1"),
        ([0, 0.49, 0.51, 0, 0], "F2"),
    ],
)
def test_the_first_stage_with_a_cumulative_probability_of_one_half(probabilities, stage):
    assert STAGES[int(median_stage(np.array(probabilities, float)))] == stage


def test_median_agrees_with_the_groups_on_any_probabilities():
    probabilities = np.random.default_rng(0).dirichlet([0.4] * 5, 5000)
    predicted = median_stage(probabilities)
    assert predicted.shape == (5000,) and set(predicted) == set(range(5))
    assert (predicted != probabilities.argmax(axis=1)).mean() > 0.1, "the rules must differ"
    for row, stage in zip(probabilities, predicted):
        assert stage == np.argmax(row.cumsum() >= 0.5) == median_stage(row)
        for name, first in GROUPS.items():
            assert (stage >= first) == (group_scores(row)[name] > 0.5)


def test_median_minimises_the_expected_distance():
    probabilities = np.random.default_rng(1).dirichlet([0.5] * 5, 500)
    stages = np.arange(5)
    expected = probabilities @ np.abs(np.subtract.outer(stages, stages))
    chosen = expected[np.arange(500), median_stage(probabilities)]
    np.testing.assert_allclose(chosen, expected.min(axis=1), atol=1e-12)
