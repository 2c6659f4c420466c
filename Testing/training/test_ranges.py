"""Stages known as ranges in training: loss, sampling, folds, temperature, acquisition."""

from itertools import chain
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("monai")
import torch
from sklearn.metrics import roc_auc_score
from torch.nn import functional

from cases.folds import split
from cases.manifest import Case
from common.calibration import fit_temperature
from evaluation.acquisition import ALL, shortcut
from lfs.data import Draws, Patches
from lfs.fit import aucs
from lfs.loss import ordinal_loss, range_loss
from LiverFibrosisStagingLib.stages import ANY_STAGE, StageRange, softmax, stage_array

RANGES = [StageRange(low, high) for low in range(5) for high in range(low, 5)]
LOSSES = (range_loss, ordinal_loss)


def random_logits(count: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(0, 3, (count, 5)))


def soft_label_loss(logits: torch.Tensor, stages: torch.Tensor) -> torch.Tensor:
    """The loss of exact stages, written without ranges."""
    distance = torch.arange(5) - stages[:, None]
    return functional.cross_entropy(logits, torch.softmax(-2.0 * distance**2, dim=1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "loss, plain", [(ordinal_loss, soft_label_loss), (range_loss, functional.cross_entropy)]
)
def test_the_loss_of_exact_stages_is_as_without_ranges(loss, plain, dtype):
    stages = torch.arange(5).repeat(8)
    logits = [random_logits(40).to(dtype).requires_grad_() for _ in range(3)]
    values = [
        plain(logits[0], stages),
        loss(logits[1], stages),
        loss(logits[2], torch.stack([stages, stages], dim=1)),
    ]
    for value in values:
        value.backward()
    assert values[0] == values[1] == values[2]
    for other in logits[1:]:
        assert torch.allclose(other.grad, logits[0].grad, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("stages", RANGES, ids=str)
def test_the_loss_of_a_range_is_that_of_its_probability(stages):
    """Against sums over probabilities in numpy, and the gradient against finite differences."""
    logits = random_logits(3)
    own = torch.tensor([stages] * 3)
    p = softmax(logits.numpy())
    inside = (np.arange(5) >= stages.lowest) & (np.arange(5) <= stages.highest)
    gap = np.maximum(stages.lowest - np.arange(5), np.arange(5) - stages.highest)[~inside]
    weight = np.exp(-2.0 * gap**2)
    whole = np.log(p[:, inside].sum(axis=1))
    expected = -(whole + np.log(p[:, ~inside]) @ weight) / (1 + weight.sum())
    assert float(range_loss(logits, own)) == pytest.approx(-whole.mean(), abs=1e-12)
    assert float(ordinal_loss(logits, own)) == pytest.approx(expected.mean(), rel=1e-6, abs=1e-12)
    for loss in LOSSES:
        assert torch.autograd.gradcheck(lambda x, f=loss: f(x, own), logits.requires_grad_())


@pytest.mark.parametrize("loss", LOSSES)
def test_there_is_no_pressure_among_the_stages_of_a_range(loss):
    """Probability that moves from one stage of a range to another does not change the loss."""
    p = torch.tensor([[0.2, 0.1, 0.3, 0.2, 0.2]], dtype=torch.float64, requires_grad=True)
    known = torch.tensor([[1, 3]])
    loss(p.log(), known).backward()
    inside = p.grad[0, 1:4]
    assert torch.allclose(inside, inside[:1].expand(3), atol=1e-12)
    assert p.grad[0, 0] > inside[0] and p.grad[0, 4] > inside[0]


@pytest.mark.parametrize("loss", LOSSES)
def test_nothing_is_learnt_where_nothing_is_known(loss):
    logits = (20 * random_logits(6)).float().requires_grad_()
    value = loss(logits, torch.tensor([ANY_STAGE] * 6))
    value.backward()
    assert value == 0 and not logits.grad.any()


def test_labels_can_be_mixed_in_one_batch():
    logits = random_logits(3)
    known = torch.tensor([(2, 2), (0, 3), (1, 2)])
    each = [ordinal_loss(logits[[k]], known[[k]]) for k in range(3)]
    assert float(ordinal_loss(logits, known)) == pytest.approx(float(sum(each)) / 3)


def drawn(stages: np.ndarray, steps: int = 200) -> list[list[int]]:
    return [[one.case for one in batch] for batch in Draws(stages, range(steps), 8, 0, 0, 0.0, 0)]


def test_a_range_is_drawn_as_a_stage_and_what_is_unknown_is_not():
    stages = np.array([(0, 0)] * 10 + [(4, 4)] * 2 + [(2, 3)] * 4 + [ANY_STAGE] * 5)
    share = np.bincount(list(chain(*drawn(stages))), minlength=21) / 1600
    for part in (slice(0, 10), slice(10, 12), slice(12, 16)):
        assert share[part].sum() == pytest.approx(1 / 3, abs=0.05)
    assert share[16:].sum() == 0


def test_draws_of_exact_stages_do_not_depend_on_how_they_are_written():
    stages = np.random.default_rng(0).integers(0, 5, 30)
    assert drawn(stages, 20) == drawn(np.stack([stages, stages], axis=1), 20)


def test_patches_carry_the_range():
    prepared = [{"volume": torch.zeros(1, 8, 8, 8, dtype=torch.uint8)}] * 2
    patches = Patches(prepared, np.array([(0, 0), (1, 2)]), 8)
    draw = next(iter(Draws(patches.stages, range(1), 1, 0, 0, 1.0, 0)))[0]._replace(case=1)
    assert patches[draw][1].tolist() == [1, 2]


def test_the_aucs_of_validation_are_those_of_the_cases_that_decide():
    rng = np.random.default_rng(1)
    known = np.array([RANGES[k] for k in rng.integers(0, len(RANGES), 200)])
    p = softmax(rng.normal(0, 1, (200, 5)))
    found = aucs(p, known)
    kept = [k for k in range(200) if StageRange(*known[k]).decides(3) is not None]
    truth = [StageRange(*known[k]).decides(3) for k in kept]
    assert 0 < len(kept) < 200
    assert found["advanced"] == pytest.approx(roc_auc_score(truth, p[kept, 3:].sum(axis=1)))
    unknown = aucs(p, np.array([(0, 3)] * 200))
    assert all(np.isnan(value) for value in unknown.values())


def cases(ranges) -> list[Case]:
    return [
        Case(line=n + 2, name=f"P{n}", patient=f"P{n}", ct=Path(f"{n}.nii"), stages=one)
        for n, one in enumerate(ranges)
    ]


def counts_by_fold(cohort, folds, of) -> list[int]:
    return [sum(cohort[i].stages in of for i in fold.test) for fold in folds]


def test_folds_are_balanced_by_range_and_rare_ranges_join_a_near_one():
    no, yes, rare = StageRange(0, 3), StageRange(4, 4), StageRange(0, 2)
    tcga = StageRange(2, 3)
    cohort = cases([no] * 20 + [yes] * 10 + [tcga] * 10 + [rare] * 2)
    folds = split(cohort, 5)
    assert sorted(i for fold in folds for i in fold.test) == list(range(42))
    assert counts_by_fold(cohort, folds, {yes}) == counts_by_fold(cohort, folds, {tcga}) == [2] * 5
    together = counts_by_fold(cohort, folds, {no, rare})  # the two rare cases count as F0-F3
    assert max(together) - min(together) <= 1
    for fold in folds:
        assert not {*fold.train} & {*fold.test} and not {*fold.train} & {*fold.validation}
        assert fold.train and fold.validation


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("names", [["F0-F3", "F4"] * 2, ["F0-F3"] * 6, ["F0-F1", "F2-F3"] * 3])
def test_folds_of_very_small_cohorts(names):
    cohort = cases([StageRange.of(name) for name in names])
    folds = split(cohort, 5)
    assert sorted(i for fold in folds for i in fold.test) == list(range(len(names)))


def test_the_temperature_is_that_of_the_likelihood_of_the_ranges():
    """A known temperature is found again from ranges; the likelihood has its maximum there."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (6000, 5))
    stage = (rng.random((6000, 1)) > softmax(logits).cumsum(axis=1)[:, :-1]).sum(axis=1)
    known = np.stack([stage, stage], axis=1)
    assert fit_temperature(3 * logits, known) == fit_temperature(3 * logits, stage)
    half = np.arange(6000) % 2 == 0
    known[half] = np.where((stage[half] < 4)[:, None], (0, 3), (4, 4))
    known[1::4] = np.where(np.isin(stage[1::4], (2, 3))[:, None], (2, 3), known[1::4])
    found = fit_temperature(3 * logits, known)
    assert found == pytest.approx(3, abs=0.2)

    def likelihood(temperature):
        p = softmax(3 * logits, temperature)
        return sum(np.log(row[a : b + 1].sum()) for row, (a, b) in zip(p, known))

    assert likelihood(found) > max(likelihood(0.97 * found), likelihood(1.03 * found))


def test_a_shortcut_is_sought_in_the_cases_that_decide():
    rng = np.random.default_rng(2)
    stage = rng.integers(0, 5, 80)
    kernel = [str(k) for k in np.where((stage == 4) & (rng.random(80) < 0.8), "sharp", "soft")]
    rows = [{"kernel": one, "noise": str(n)} for one, n in zip(kernel, rng.normal(size=80))]
    patients = [f"P{n}" for n in range(80)]
    options = {"permutations": 49, "repeats": 20}
    exact = shortcut(rows, ["kernel", "noise"], stage, patients, **options)
    ranges = [StageRange(s, s) for s in stage]
    assert shortcut(rows, ["kernel", "noise"], ranges, patients, **options) == exact
    known = stage_array([StageRange(4, 4) if s == 4 else StageRange(0, 3) for s in stage])
    found = shortcut(rows, ["kernel", "noise"], known, patients, **options)
    for model in ("kernel", ALL):
        assert (
            found["auc"][model]["cirrhosis"]["value"] == exact["auc"][model]["cirrhosis"]["value"]
        )
        assert found["auc"][model]["cirrhosis"]["low"] > 0.5
        assert found["auc"][model]["significant"]["value"] is None
    assert found["patients"]["advanced"] == {"without": 0, "with": int((stage == 4).sum())}
    assert "F4" in found["warnings"][0] and len(found["warnings"]) == 1
