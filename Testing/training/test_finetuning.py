"""Fine-tuning on a cohort: the trained layers, the methods' folds, intervals, power."""

import dataclasses
import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("monai")

from scipy.stats import norm  # noqa: E402
from sklearn.metrics import cohen_kappa_score, roc_auc_score  # noqa: E402
from synthetic_cohorts import synthetic  # noqa: E402

from evaluation import trainings  # noqa: E402
from evaluation.staged import Staged  # noqa: E402
from finetuning import compare, methods, power  # noqa: E402
from finetuning.cohort import assemble  # noqa: E402
from finetuning.fit import UNCHANGED, Tuning, fine_tune, logits_of, train_anew  # noqa: E402
from finetuning.methods import ANEW, METHODS, SHIPPED, SIGNS, START_BOTH, TUNED, Fold  # noqa: E402
from finetuning.networks import compare_networks  # noqa: E402
from lfs import loss  # noqa: E402
from LiverFibrosisStagingLib.signs.measure import UNITS  # noqa: E402
from LiverFibrosisStagingLib.stages import GROUPS, StageRange, median_stage, softmax  # noqa: E402
from painted.maps import NAMES  # noqa: E402
from painted.network import Input, SignNetwork  # noqa: E402

QUICK = Tuning(steps=40, learning_rate=0.05, strengths=(UNCHANGED, 1.0, 0.01), inner_folds=2)


@pytest.fixture(autouse=True)
def quick_regressions(monkeypatch):
    monkeypatch.setattr(methods, "PENALTIES", (0.1, 1.0))
    monkeypatch.setattr(methods, "INNER", 2)


@pytest.fixture(scope="module")
def starts():
    """Two networks with random weights that read signs and stages from the maps' means."""
    networks = []
    for seed in range(2):
        torch.manual_seed(seed)
        network = SignNetwork(Input((16, 32, 48)))
        network.signs[0].running_mean.fill_(1.0)
        network.signs[0].running_var.fill_(0.04)
        network.separate()
        networks.append(network.eval())
    return networks


# ------------------------------------------------------------------------------- training


def test_the_loss_of_each_case_of_several_networks():
    logits = torch.randn(3, 6, 5)
    lowest, highest = torch.tensor([0, 1, 3, 4, 0, 0]), torch.tensor([0, 2, 3, 4, 3, 4])
    stages = torch.stack([lowest, highest], dim=1)
    ours = loss.range_loss(logits, stages, "none")
    chances = torch.softmax(logits, dim=-1)
    for case in range(6):
        expected = -chances[:, case, lowest[case] : highest[case] + 1].sum(dim=1).log()
        torch.testing.assert_close(ours[:, case], expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ours.mean(), loss.range_loss(logits, stages))


def test_training_in_a_batch_is_training_alone(starts):
    """One member, one strength, by PyTorch's own loop."""
    cohort, _ = synthetic(30, ranges=True)
    train = np.arange(20)
    once = dataclasses.replace(QUICK, strengths=(0.1,), inner_folds=3)
    found = fine_tune(starts, cohort, train, once).networks[1]
    network = SignNetwork(starts[1].given)
    network.load_state_dict(starts[1].state_dict())
    network.eval()
    before = [values.detach().clone() for values in network.stages.parameters()]
    optimizer = torch.optim.Adam(network.stages.parameters(), once.learning_rate)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, once.steps)
    means = torch.as_tensor(cohort.means[train])
    ends = np.stack([cohort.lowest, cohort.highest], axis=1)[train]
    for _ in range(once.steps):
        optimizer.zero_grad()
        pull = sum(((p - q) ** 2).sum() for p, q in zip(network.stages.parameters(), before))
        nll = loss.range_loss(network.of_means(means)[0], torch.as_tensor(ends))
        (nll + 0.1 * pull).backward()
        optimizer.step()
        rates.step()
    for ours, theirs in zip(found.stages.parameters(), network.stages.parameters()):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)
    for ours, theirs in zip(found.signs.parameters(), starts[1].signs.parameters()):
        assert torch.equal(ours, theirs)


def test_a_strong_pull_keeps_the_weights_and_readers_keep_to_their_maps(starts):
    cohort, _ = synthetic(40)
    distance = []
    for strength in (100.0, 0.01):
        tuning = dataclasses.replace(QUICK, strengths=(strength,), readers=True)
        network = fine_tune(starts, cohort, np.arange(40), tuning).networks[0]
        pairs = zip(network.parameters(), starts[0].parameters())
        distance.append(sum(float(((p - q) ** 2).sum().detach()) for p, q in pairs))
        assert not network.signs[1].weight[network.own_maps == 0].any()
        assert not network.signs[3].weight[network.own_readers == 0].any()
    assert distance[0] < 0.02 * distance[1]


def test_labels_without_information_leave_the_network_as_it_is(starts):
    cohort, _ = synthetic(40)
    nothing = dataclasses.replace(cohort, lowest=np.zeros(40, int), highest=np.full(40, 4))
    tuning = dataclasses.replace(QUICK, strengths=(UNCHANGED, 1.0))
    found = fine_tune(starts, nothing, np.arange(30), tuning)
    np.testing.assert_allclose(found.logits, logits_of(starts, cohort), atol=1e-4)


@pytest.mark.parametrize("ranges", [False, True])
@pytest.mark.parametrize("learn", [fine_tune, train_anew])
def test_training_learns_from_stages_and_ranges(starts, learn, ranges):
    cohort, stage = synthetic(100, ranges=ranges)
    train, test = np.arange(60), np.arange(60, 100)
    tuning = dataclasses.replace(QUICK, readers=True)
    scores = methods.log_odds(learn(starts, cohort, train, tuning).logits, 3)[test]
    assert roc_auc_score(stage[test] >= 3, scores) > 0.85


def test_a_cases_logits_are_the_mean_over_its_patches(starts):
    rng = np.random.default_rng(0)
    patches = [rng.normal(1, 0.2, (number, len(NAMES))) for number in (1, 3, 2)]
    known, _ = synthetic(3)
    staged = staged_cohort(known, np.zeros((3, 5)))
    pairs = zip(staged, patches)
    cohort = assemble([dataclasses.replace(c, means=np.float32(each)) for c, each in pairs])
    np.testing.assert_array_equal(cohort.signs, known.signs)
    found = logits_of(starts, cohort)
    with torch.no_grad():
        for row, each in zip(found, patches):
            means = torch.as_tensor(each, dtype=torch.float32)
            expected = torch.stack([network.of_means(means)[0] for network in starts])
            np.testing.assert_allclose(row, expected.mean(dim=(0, 1)), atol=1e-5)


# ------------------------------------------------------------------------------- methods


def test_no_method_sees_the_fold_it_is_tested_on(starts):
    """Other labels and signs of the cases that are tested change none of their scores."""
    cohort, _ = synthetic(40, per_patient=2)
    rest, test = cohort.splits(np.arange(40), 2, 0)[0]
    assert not set(cohort.patient[rest]) & set(cohort.patient[test])
    changed = dataclasses.replace(cohort, lowest=cohort.lowest.copy(), signs=cohort.signs.copy())
    changed.lowest[test] = 4 - cohort.lowest[test]
    changed = dataclasses.replace(changed, highest=changed.lowest)
    folds = [Fold(rest, test)]
    found = [methods.cross_validate(each, starts, folds, QUICK)[0] for each in (cohort, changed)]
    for name in METHODS:
        for group in GROUPS:
            one, other = (each.scores[name][group][test] for each in found)
            assert np.isfinite(one).all() and np.array_equal(one, other)


def predictions(cohort, better, seed=0):
    """Scores of all methods; those of the fine-tuned network are better by so many SD."""
    rng = np.random.default_rng(seed)
    scores = {}
    for number, name in enumerate(METHODS):
        shift = better if name == TUNED else 0.0
        noise = rng.normal(0, 1, (len(cohort), 3)) + number
        truth = np.column_stack([cohort.lowest >= first for first in GROUPS.values()])
        scores[name] = dict(zip(GROUPS, (noise + (0.5 + shift) * truth).T))
    logits = {name: rng.normal(0, 1, (len(cohort), 5)) for name in methods.NETWORKS}
    logits[ANEW] = 9.0 * np.eye(5)[cohort.lowest]
    return methods.OutOfFold(scores, logits)


def test_the_comparison_has_intervals_and_agrees_with_scikit_learn():
    cohort, _ = synthetic(80, ranges=True)
    seeds = [predictions(cohort, 1.0, seed) for seed in range(3)]
    found = compare.compare(cohort, seeds)
    json.dumps(found, allow_nan=False)
    for group, first in GROUPS.items():
        known = [StageRange(*e).decides(first) for e in zip(cohort.lowest, cohort.highest)]
        decided = np.array([each is not None for each in known])
        truth = np.array([bool(each) for each in known])[decided]
        measured = found["groups"][group]
        assert measured["cases"] == [truth.sum(), (~truth).sum()]
        for name in METHODS:
            one = measured["methods"][name]
            values = [roc_auc_score(truth, e.scores[name][group][decided]) for e in seeds]
            assert one["auc"]["value"] == pytest.approx(values[0])
            assert one["auc_with_seeds"]["value"] == pytest.approx(np.mean(values))
            assert one["sd_between_seeds"] == pytest.approx(np.std(values, ddof=1))
            assert one["auc_with_seeds"]["low"] < np.mean(values) < one["auc_with_seeds"]["high"]
        difference = measured["fine_tuned_minus_start"]
        areas = [measured["methods"][name]["auc_with_seeds"]["value"] for name in (TUNED, SHIPPED)]
        assert difference["value"] == pytest.approx(areas[0] - areas[1])
        assert difference["low"] < difference["value"] < difference["high"]
    exact = cohort.lowest == cohort.highest
    stage, predicted = cohort.lowest[exact], seeds[0].logits[TUNED][exact]
    kappa = cohen_kappa_score(stage, median_stage(softmax(predicted)), weights="quadratic")
    assert found["kappa"][TUNED]["value"] == pytest.approx(kappa)
    assert found["kappa"][ANEW]["value"] == 1
    assert len(compare.table(found)) == 1 + len(METHODS)


@pytest.mark.parametrize(
    ("better", "words"),
    [
        (3.0, "is better than the start network"),
        (0.0, "is not better than the start network beyond the interval"),
        (-3.0, "use the start network"),
    ],
)
def test_the_comparison_says_whether_fine_tuning_helped(better, words):
    cohort, _ = synthetic(60)
    said = compare.sentences(compare.compare(cohort, [predictions(cohort, better)]))
    assert len(said) == 3 and all(words in sentence for sentence in said)


def test_sentence_and_table_agree_where_the_first_training_differs_from_the_mean():
    cohort, _ = synthetic(60)
    seeds = [predictions(cohort, better, seed) for seed, better in enumerate((-1, 3, 3))]
    found = compare.compare(cohort, seeds)
    for sentence, measured in zip(compare.sentences(found), found["groups"].values()):
        start, tuned = (measured["methods"][n]["auc_with_seeds"]["value"] for n in (SHIPPED, TUNED))
        assert tuned > start and f"difference in AUC {tuned - start:+.2f} [" in sentence
    pair = measured["methods"]
    assert pair[TUNED]["auc"]["value"] < pair[SHIPPED]["auc"]["value"]  # of the first training


def test_few_patients_are_not_compared():
    cohort, _ = synthetic(8)
    said = compare.sentences(compare.compare(cohort, [predictions(cohort, 3.0)]))
    assert all("too few for a comparison" in sentence for sentence in said)


def test_the_interval_with_seeds_is_wider_where_seeds_differ():
    rng = np.random.default_rng(0)
    truth = rng.random(200) < 0.5
    weights = compare.draw_patients(np.arange(200).astype(str), 400, 0)
    scores = [truth + rng.normal(0, noise, 200) for noise in (0.5, 1.0, 3.0)]
    found = trainings.areas_of(truth, scores, weights, 90, 0).area()
    alone, both = found["auc"], found["auc_with_seeds"]
    assert both["high"] - both["low"] > 1.5 * (alone["high"] - alone["low"])


# --------------------------------------------------------------------------------- power


@pytest.mark.parametrize(("area", "positive", "negative"), [(0.8, 12, 40), (0.7, 30, 30)])
def test_the_expected_interval_is_that_of_simulated_cohorts(area, positive, negative):
    """Exponential scores, for which Hanley and McNeil's Q1 and Q2 are exact: AUC = a / (1 + a)."""
    rng = np.random.default_rng(0)
    error = power.standard_error(area, positive, negative)
    high = rng.exponential(area / (1 - area), (2000, positive))
    low = rng.exponential(1.0, (2000, negative))
    won = (high[:, :, None] > low[:, None]).mean(axis=(1, 2))
    assert won.mean() == pytest.approx(area, abs=0.01)
    assert won.std() == pytest.approx(error, rel=0.05)
    # Normal scores, the usual model: close.
    shift = np.sqrt(2) * norm.ppf(area)
    high, low = rng.normal(shift, 1, (2000, positive)), rng.normal(0, 1, (2000, negative))
    won = (high[:, :, None] > low[:, None]).mean(axis=(1, 2))
    assert won.std() == pytest.approx(error, rel=0.12)


def test_the_power_note_counts_patients_that_the_cut_off_decides():
    cohort, _ = synthetic(60, ranges=True)
    positive, negative = 12, 48  # 6 cases of F0-F3 are known to have no cirrhosis
    low, high = power.expected_interval(0.8, positive, negative)
    assert power.power_sentences(cohort)[-1] == (
        f"Cirrhosis (F4): with {positive} patients with it and {negative} without, an AUC of 0.80 "
        f"has an interval of about {low:.2f} to {high:.2f}."
    )
    lines = power.power_table(cohort)
    assert len(lines) == 1 + 3 * 5 and "(this cohort)" in lines[1][1]
    one = dataclasses.replace(cohort, lowest=np.zeros(60, int), highest=np.ones(60, int))
    assert power.power_sentences(one) == [] and len(power.power_table(one)) == 1


def test_the_learning_curve_takes_parts_of_the_patients(starts):
    cohort, _ = synthetic(40, per_patient=2)
    folds = [Fold(*each) for each in cohort.splits(np.arange(40), 2, 0)]
    quick = dataclasses.replace(QUICK, steps=2)
    whole, _ = methods.cross_validate(cohort, starts, folds, quick, (TUNED, ANEW))
    rows = power.learning_curve(cohort, starts, folds, quick, 2, whole)
    assert len(rows) == (3 * 2 + 1) * 2 * 3
    sizes = sorted({(row["share"], row["patients"]) for row in rows})
    assert [share for share, _ in sizes] == [0.25, 0.5, 0.75, 1.0]
    assert sizes[-1][1] == 10 and sizes[0][1] < sizes[2][1] < 10
    part = power._part(cohort, np.arange(40), 0.5, 0)
    assert len(part) == 2 * len(set(cohort.patient[part]))  # patients with both of their CTs


# ------------------------------------------------------------------------- LFS networks


def staged_cohort(cohort, logits):
    return [
        Staged(
            name=f"case{i}",
            patient=cohort.patient[i],
            stages=StageRange(cohort.lowest[i], cohort.highest[i]),
            logits=row,
            probabilities=softmax(row),
            predicted=int(row.argmax()),
            measurements={},
            signs={k: None if np.isnan(v) else v for k, v in zip(UNITS, cohort.signs[i])},
        )
        for i, row in enumerate(logits)
    ]


def test_lfs_networks_are_compared_with_their_start_and_the_signs(tmp_path):
    cohort, stage = synthetic(60)
    rng = np.random.default_rng(0)
    truth = np.eye(5)[stage]
    before, tuned, again, anew = (
        staged_cohort(cohort, strength * truth + rng.normal(0, 1, (60, 5)))
        for strength in (0.5, 3.0, 3.0, 1.0)
    )
    fold_of = {case.name: i % 3 for i, case in enumerate(before)}
    known = fold_of, tmp_path, "Synthetic cases."
    found, section = compare_networks(before, [tuned, again], anew, *known)
    assert json.loads(json.dumps(found)) == found
    for group, first in GROUPS.items():
        methods_found = found["groups"][group]["methods"]
        assert [*methods_found] == [SHIPPED, TUNED, ANEW, SIGNS, START_BOTH]
        scores = methods.log_odds(np.array([case.logits for case in before]), first)
        area = roc_auc_score(stage >= first, scores)
        assert methods_found[SHIPPED]["auc"]["value"] == pytest.approx(area)
        assert methods_found[START_BOTH]["auc"]["value"] > area
        assert len(methods_found[TUNED]["seeds"]) == 2 and len(methods_found[ANEW]["seeds"]) == 1
    assert section.count("is better than the start network") == 3
    assert "fine-tuned and signs" not in section and "start network and signs" in section
