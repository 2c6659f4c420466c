"""Which validation is the best: strata that count the same, kappa, few cases, one lucky value."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional  # noqa: E402

from lfs.validation import criterion, few, improved, measures  # noqa: E402
from LiverFibrosisStagingLib.stages import median_stage, softmax  # noqa: E402


def drawn(stages, seed=0):
    return np.random.default_rng(seed).normal(0, 2, (len(stages), 5)).astype(np.float32)


def test_each_stage_counts_the_same_in_the_balanced_loss():
    stages = np.array([0] * 6 + [1] + [4] * 3)
    logits = drawn(stages)
    found = measures(logits, stages, functional.cross_entropy)
    losses = -np.log(softmax(logits)[np.arange(10), stages])
    assert found["loss"] == pytest.approx(losses.mean(), rel=1e-5)
    by_stage = [losses[stages == stage].mean() for stage in (0, 1, 4)]
    assert found["balanced"] == pytest.approx(np.mean(by_stage), rel=1e-5)
    again = measures(np.repeat(logits, 3, axis=0), np.repeat(stages, 3), functional.cross_entropy)
    assert again["balanced"] == pytest.approx(found["balanced"], rel=1e-5)


def test_ranges_are_strata_of_their_own():
    """stages [n, 2]; the loss here is the distance from the range's lower end."""
    stages = np.array([[0, 0], [0, 0], [1, 2], [3, 4], [3, 4], [3, 4]])
    logits = drawn(stages)

    def loss(given, truth):
        return (given.argmax(dim=1) - truth[:, 0]).abs().float().mean()

    found = measures(logits, stages, loss)
    apart = abs(logits.argmax(axis=1) - stages[:, 0])
    expected = [apart[:2].mean(), apart[2], apart[3:].mean()]
    assert found["balanced"] == pytest.approx(np.mean(expected))
    assert found["loss"] == pytest.approx(apart.mean())


def weighted_kappa(truth, predicted):
    """Cohen 1968: 1 - observed over expected squared differences."""
    observed = np.mean((truth - predicted) ** 2)
    return 1 - observed / np.mean((truth[:, None] - predicted[None]) ** 2)


def test_kappa_is_quadratic_and_of_exact_stages_only():
    stages = np.arange(40) % 5
    logits = drawn(stages) + 3 * np.eye(5, dtype=np.float32)[stages]
    predicted = np.array([median_stage(row) for row in softmax(logits)])
    expected = weighted_kappa(stages, predicted)
    assert 0.2 < expected < 0.95
    found = measures(logits, stages, functional.cross_entropy)
    assert found["kappa"] == pytest.approx(expected)
    ranges = np.stack([stages, stages], axis=1)
    ranges[30:, 1] = 4
    ranges[30:, 0] = 2

    def loss(given, truth):
        return functional.cross_entropy(given, truth[:, 0])

    partly = measures(logits, ranges, loss)["kappa"]
    assert partly == pytest.approx(weighted_kappa(stages[:30], predicted[:30]))


@pytest.mark.parametrize("stages", [[3], [2, 2, 2], [[1, 3], [0, 4]]])
def test_tiny_validation_sets_have_values(stages):
    stages = np.array(stages)
    confident = np.zeros((len(stages), 5), np.float32)
    confident[:, stages.reshape(len(stages), -1)[:, 0]] = 9

    def loss(given, truth):
        return functional.cross_entropy(given, truth.reshape(len(truth), -1)[:, 0])

    found = measures(confident, stages, loss)
    assert np.isfinite([*found.values()]).all()
    assert found["kappa"] == 0


def test_the_balanced_loss_decides_between_equal_kappas():
    low, high = {"kappa": 0.5, "balanced": 0.9}, {"kappa": 0.5, "balanced": 1.1}
    better = {"kappa": 0.6, "balanced": 2.0}
    assert criterion(better, "kappa") < criterion(low, "kappa") < criterion(high, "kappa")
    assert criterion(low, "balanced") < criterion(high, "balanced") < criterion(better, "balanced")
    assert criterion({"loss": 3.0}, "loss") == [3.0]


def best_of(losses):
    """The number of the validation whose weights are kept."""
    lowest, best = [float("inf")], -1
    for number in range(len(losses)):
        smoothed = improved([[value] for value in losses[: number + 1]], lowest)
        if smoothed is not None:
            lowest, best = smoothed, number
    return best


def test_one_lucky_validation_does_not_decide():
    assert best_of([1.0, 0.2, 1.0, 0.9, 0.6, 0.5, 0.4]) == 6  # the first lucky
    assert best_of([1.0, 0.9, 0.8, 0.7, 0.2, 0.7, 0.6, 0.9, 0.9]) == 6
    assert best_of([1.0, 0.9, 0.8, 0.9, 1.0, 1.1]) == 3
    assert best_of([1.0]) == 0 and best_of([1.0, 2.0]) == 1


def test_equal_validations_are_no_improvement():
    assert best_of([0.5] * 9) == 2


def test_stages_with_few_validation_cases_are_named():
    training = np.array([0, 0, 1, 1, 3, 3, 4, 4])
    sentence = few(training, np.array([0, 0, 0, 3, 4, 4, 4, 4]))
    assert sentence.startswith("8 cases for validation, among them 0 F1, 1 F3: with fewer than 3")
    assert few(training, np.repeat([0, 1, 3, 4], 3)) is None
    ranges = np.array([[0, 0], [1, 2], [1, 2], [1, 2]])
    assert "among them 1 F0: with" in few(ranges, ranges)
