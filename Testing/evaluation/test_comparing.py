"""DeLong's comparison by hand, against scikit-learn, permutations and the bootstrap."""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from LiverFibrosisStagingLib.evaluation import measures
from LiverFibrosisStagingLib.evaluation.comparing import delong, f0_against_f4


def test_delong_by_placement_values():
    """Three positive and four negative cases, with the placement values written out."""
    truth = np.array([1, 1, 1, 0, 0, 0, 0], bool)
    first = np.array([0.9, 0.7, 0.4, 0.8, 0.3, 0.4, 0.1])
    second = np.array([0.6, 0.2, 0.9, 0.5, 0.3, 0.2, 0.1])
    # Share of the negative cases below each positive one, of the positive above each negative one.
    above = np.array([[4 / 4, 3 / 4, 2.5 / 4], [4 / 4, 1.5 / 4, 4 / 4]])
    below = np.array([[1 / 3, 3 / 3, 2.5 / 3, 3 / 3], [2 / 3, 2 / 3, 2.5 / 3, 3 / 3]])
    areas = above.mean(axis=1)
    assert areas == pytest.approx(below.mean(axis=1))
    apart = above[0] - above[1], below[0] - below[1]
    variance = sum(((d - d.mean()) ** 2).sum() / (len(d) - 1) / len(d) for d in apart)
    found = delong(truth, first, second)
    assert found[:3] == pytest.approx((*areas, areas[0] - areas[1]))
    z = (areas[0] - areas[1]) / np.sqrt(variance)
    assert found.p == pytest.approx(2 * norm.sf(abs(z)))
    assert found.high - found.difference == pytest.approx(1.959964 * np.sqrt(variance), rel=1e-6)


def test_delongs_p_is_that_of_permutations():
    """Under the null hypothesis, each case's two scores (by rank) can be exchanged."""
    rng = np.random.default_rng(5)
    truth = np.arange(60) < 25
    shared = truth + rng.normal(0, 0.6, 60)
    first, second = shared + rng.normal(0, [[0.4], [1.3]], (2, 60))
    ranks = np.array([first, second]).argsort(axis=1).argsort(axis=1).astype(float)
    observed = abs(roc_auc_score(truth, ranks[0]) - roc_auc_score(truth, ranks[1]))
    extreme = 0
    for _ in range(1000):
        swapped = np.where(rng.random(60) < 0.5, ranks[::-1], ranks)
        one, other = (measures.auc(truth, score, np.ones((1, 60)))[0] for score in swapped)
        extreme += abs(one - other) >= observed - 1e-12
    p = delong(truth, first, second).p
    assert 0.01 < p < 0.5
    assert extreme / 1000 == pytest.approx(p, abs=0.05)


def test_repeated_cts_do_not_make_a_difference_significant():
    """Every case three times, as CTs of one patient: the p of the patients, not of the CTs."""
    rng = np.random.default_rng(2)
    truth = np.arange(80) < 30
    first, second = truth + rng.normal(0, [[0.8], [1.0]], (2, 80))
    once = delong(truth, first, second)
    patient = np.tile(np.arange(80), 3)
    three = [np.tile(one, 3) for one in (truth, first, second)]
    by_patient, by_case = delong(*three, patient), delong(*three)
    assert by_patient.p == pytest.approx(once.p)
    assert by_patient.high == pytest.approx(once.high)
    assert by_case.p < once.p
    # A patient with CTs of both classes, whose placements are summed: with the bootstrap.
    patient = np.arange(80) % 40
    found = delong(truth, first, second, patient)
    weights = measures.draw_patients(patient, 4000, 0)
    apart = measures.auc(truth, first, weights) - measures.auc(truth, second, weights)
    assert (found.high - found.low) / 3.92 == pytest.approx(apart.std(), rel=0.1)


def test_mann_whitney_counts_pairs():
    f0, f4 = np.array([0.5, 0.7, 0.7]), np.array([0.7, 1.2])
    found = f0_against_f4(f0, f4)
    assert found["u"] == 5 and found["higher_in_f4"] == pytest.approx(5 / 6)
    assert f0_against_f4(f0, np.array([])) is None


def test_delong_agrees_with_scikit_learn_and_the_bootstrap():
    rng = np.random.default_rng(3)
    truth = np.arange(200) < 80
    shared = rng.normal(0, 0.7, 200)
    first = (truth * 1.6 + shared + rng.normal(0, 0.7, 200)).round(1)  # with ties
    second = (truth * 1.2 + shared + rng.normal(0, 0.7, 200)).round(1)
    found = delong(truth, first, second)
    assert found.first == pytest.approx(roc_auc_score(truth, first))
    assert found.second == pytest.approx(roc_auc_score(truth, second))
    assert found.difference == pytest.approx(found.first - found.second)
    # Stratified samples, because DeLong's variance is for fixed class sizes.
    again = np.hstack(
        [
            rng.multinomial(80, np.full(80, 1 / 80), 4000),
            rng.multinomial(120, np.full(120, 1 / 120), 4000),
        ]
    ).astype(float)
    differences = measures.auc(truth, first, again) - measures.auc(truth, second, again)
    error = (found.high - found.low) / (2 * 1.959964)
    assert error == pytest.approx(differences.std(), rel=0.08)
    swapped = delong(truth, second, first)
    assert swapped.p == pytest.approx(found.p)
    assert (swapped.low, swapped.high) == pytest.approx((-found.high, -found.low))


def test_delong_has_its_nominal_level_and_detects_a_difference():
    rng = np.random.default_rng(0)
    truth = np.arange(150) < 60
    ps = []
    for _ in range(400):
        shared = truth + rng.normal(0, 0.6, 150)
        first, second = shared + rng.normal(0, 0.8, (2, 150))
        ps.append(delong(truth, first, second).p)
    assert 0.025 <= np.mean(np.array(ps) < 0.05) <= 0.08
    good, bad = truth + rng.normal(0, 0.4, 150), rng.normal(0, 1, 150)
    assert delong(truth, good, bad).p < 1e-4
    same = delong(truth, good, 3 * good)
    assert (same.difference, same.p) == (0, 1)
    with pytest.raises(ValueError, match="two cases"):
        delong(np.arange(150) < 1, good, bad)
