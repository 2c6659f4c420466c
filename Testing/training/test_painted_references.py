"""Calibration on painted cases: unseen bodies only, temperature, reference maps, resuming."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

import train_insilico  # noqa: E402

from common.calibration import fit_temperature  # noqa: E402
from common.resume import RunError, training_cts  # noqa: E402
from evaluation.metrics import Predictions, cross_validated  # noqa: E402
from insilico.cohort import images  # noqa: E402
from insilico.paint import Case  # noqa: E402
from LiverFibrosisStagingLib import StagingModel, stage  # noqa: E402
from LiverFibrosisStagingLib.errors import StagingError  # noqa: E402
from LiverFibrosisStagingLib.stages import GROUPS, STAGES, median_stage, softmax  # noqa: E402
from painted import references  # noqa: E402
from painted.network import Input, SignNetwork  # noqa: E402

SMALL, SPACING = Input((16, 32, 48)), (4.0, 2.0, 2.0)
HELD, DIGESTS = [[1], [0]], ["body 0", "body 1"]
PER_BODY = 6


class Painter:
    """Boxes of a patient whose spleen grows with the stage; a case without air is refused."""

    def __init__(self, refused=()):
        self.bodies = [SimpleNamespace(name=f"b{k}") for k in range(2)]
        self.painted, self.refused = [], refused

    def case(self, seed, body, stage, only, spacing):
        self.painted.append((body, seed))
        rng = np.random.default_rng(seed)
        hu = np.full((14, 44, 60), 40.0)
        if seed not in self.refused:
            hu[:, :2] = hu[:, -2:] = -1000
        liver, spleen = np.zeros(hu.shape, bool), np.zeros(hu.shape, bool)
        liver[1:13, 8:32, 6:34] = True
        spleen[4:10, 12 : 18 + 2 * stage, 44:52] = True
        hu += 70 * liver + 60 * spleen + rng.normal(0, 8, hu.shape)
        tensors = [torch.as_tensor(a) for a in (np.float32(hu), liver, spleen)]
        return Case(*tensors, spacing, {"stage": stage})


def network(seed):
    torch.manual_seed(seed)
    made = SignNetwork(SMALL)
    with torch.no_grad():
        made.stages[-1].weight *= 20  # so that cases differ
    return made.eval()


def calibrated(folder, painter, networks=None, per_body=PER_BODY):
    described = train_insilico.metadata("tiny", 2, SMALL)
    networks = networks or [network(0), network(1)]
    return references.calibrate(
        networks, HELD, painter, described, DIGESTS, folder, per_body, SPACING
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("references")
    return folder, calibrated(folder, Painter())


@pytest.fixture
def without_figures(monkeypatch):
    """Figures, and intervals by resampling, take seconds."""

    def measured(staged, folds, *_):
        return cross_validated(Predictions.of(staged, folds), repeats=10)

    monkeypatch.setattr(references, "report_cross_validation", measured)


def records(folder):
    return {f.stem: json.loads(f.read_text()) for f in sorted((folder / "staged").glob("*.json"))}


def test_each_case_is_staged_by_the_network_that_has_not_seen_its_body(run):
    folder, found = run
    assert [sorted(training_cts(folder / f"fold_{k}.onnx")) for k in range(2)] == [
        ["body 0"],
        ["body 1"],
    ]
    assert len(records(folder)) == 2 * PER_BODY and found["refused"] == 0
    for body, fold in ((0, 1), (1, 0)):
        record = records(folder)[f"b{body}_003"]
        assert record["stage"] == (body + 3) % 5
        seed = references.FIRST_SEED + references.MOST * body + 3
        given = images(Painter().case(seed, body, record["stage"], None, SPACING)).values()
        own, other = (
            stage(*given, folder / f"fold_{k}.onnx", any_phase=True) for k in (fold, 1 - fold)
        )
        np.testing.assert_allclose(record["logits"], own.forward_pass.logits, atol=1e-5)
        assert np.abs(own.forward_pass.logits - other.forward_pass.logits).max() > 0.01


def test_the_model_has_what_was_fitted_on_these_cases(run):
    folder, found = run
    of_cases = records(folder)
    logits = np.array([record["logits"] for record in of_cases.values()])
    stages = np.array([record["stage"] for record in of_cases.values()])
    card = StagingModel.load(folder / "LFS.onnx").card
    temperature = fit_temperature(logits, stages)
    assert card.temperature == pytest.approx(temperature, rel=1e-3)
    assert set(card.calibration["operating_points"]) == set(GROUPS)
    probabilities = softmax(logits, card.temperature)
    for group, first in GROUPS.items():  # Youden's index, over all thresholds
        score, truth = probabilities[:, first:].sum(axis=1), stages >= first
        best = max(np.mean(score[truth] >= s) - np.mean(score[~truth] >= s) for s in score)
        chosen = score >= card.calibration["operating_points"][group]
        assert chosen[truth].mean() - chosen[~truth].mean() == pytest.approx(best)
    assert training_cts(folder / "LFS.onnx") == set(DIGESTS)
    assert "12 cases painted into 2 real bodies" in card.training["evaluated_on"]
    predicted = median_stage(probabilities)
    for index, name in enumerate(STAGES):
        liver = [
            record["measurements"][name]["liver"]["mean"]
            for record, of_case in zip(of_cases.values(), predicted)
            if of_case == index
        ]
        kept = [mean for mean in liver if mean > 0]
        if len(kept) >= 5:
            usual = card.reference["stages"][name]
            assert usual["cases"] == len(kept) and len(usual["joint"]["liver"]) == 2
            assert usual["liver"][2] == pytest.approx(np.median(kept), abs=1e-3)
    assert found["temperature"] == pytest.approx(temperature, rel=1e-3)


def test_a_run_resumes_and_another_network_is_refused(run, without_figures):
    folder, found = run
    painter = Painter()
    assert calibrated(folder, painter)["temperature"] == found["temperature"]
    assert painter.painted == []
    (folder / "staged" / "b1_002.json").unlink()
    calibrated(folder, painter)
    assert {body for body, _ in painter.painted} == {1} and len(painter.painted) <= 2
    with pytest.raises(RunError, match="networks"):
        calibrated(folder, painter, [network(0), network(5)])


def test_refused_cases_are_left_out_and_counted(tmp_path, without_figures):
    seed = references.FIRST_SEED + references.MOST
    found = calibrated(tmp_path, Painter(refused=(seed,)), per_body=3)
    assert found["refused"] == 1 and "refused" in records(tmp_path)["b1_000"]
    with pytest.raises(StagingError, match="all cases of a fold"):
        calibrated(tmp_path / "none", Painter(refused=(seed,)), per_body=1)


def test_one_network_cannot_be_calibrated(tmp_path):
    with pytest.raises(StagingError, match="at least 2 folds"):
        calibrated(tmp_path, Painter(), [network(0)])
