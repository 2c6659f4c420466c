"""train.py --start-from a SignNetwork, on a small cohort of phantoms, and in the library."""

import csv
import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("monai")
pytest.importorskip("matplotlib")

import train  # noqa: E402
import train_insilico  # noqa: E402
from phantom_cohorts import TINY, unchecked_inputs, write_cohort  # noqa: E402

from cases.manifest import read_manifest  # noqa: E402
from common import resume  # noqa: E402
from evaluation import evaluate  # noqa: E402
from finetuning import methods  # noqa: E402
from finetuning.cohort import read_cohort  # noqa: E402
from finetuning.fit import Tuning, logits_of  # noqa: E402
from LiverFibrosisStagingLib import StagingModel, stage  # noqa: E402
from LiverFibrosisStagingLib.resources import default_model_path  # noqa: E402
from painted.export import export  # noqa: E402
from painted.imported import load  # noqa: E402
from painted.network import Input, SignNetwork  # noqa: E402
from runs.reading import Source  # noqa: E402

COUNT = 10  # in two folds, each stage has one patient to train on
QUICK = Tuning(steps=10, inner_folds=2)
LABEL = "by a stand-in for histology"


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Two small networks for coarse CTs with random weights, in one file."""
    torch.manual_seed(0)
    given = Input((16, 40, 56))
    networks = [SignNetwork(given) for _ in range(2)]
    for network in networks:
        network.separate()
    about = train_insilico.metadata("tiny", 2, given) | {"spacing_mm": [16.0, 8.0, 8.0]}
    path = tmp_path_factory.mktemp("start") / "start.onnx"
    export(networks, path, about, {"0" * 16})
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory, start):
    folder = tmp_path_factory.mktemp("cohort")
    manifest = write_cohort(folder / "cohort", [i % 5 for i in range(COUNT)], 0, **TINY)
    header, *lines = manifest.read_text().splitlines()
    labelled = [f"{header},label", *(f"{line},{LABEL}" for line in lines)]
    manifest.write_text("\n".join(labelled) + "\n")
    with unchecked_inputs() as patch:  # figures of the evaluation: test_train_command.py
        patch.setattr(evaluate, "save", lambda *_: None)
        patch.setattr(methods, "PENALTIES", (0.1,))
        patch.setattr(methods, "INNER", 2)
        found = train.train(
            Source(manifest, folds=2, start_from=start),
            folder / "RUN",
            data="Ten simulated phantoms, no patient.",
            tuning=QUICK,
            seeds=1,
            draws=1,
        )
    return manifest, folder / "RUN", found


def test_a_run_writes_the_comparison_and_the_model_card(finished):
    _, run, found = finished
    assert json.loads((run / "metrics.json").read_text()) == found
    rows = [*csv.reader((run / "tables" / "comparison.csv").open(encoding="utf-8"))]
    assert [row[0] for row in rows[1:-1]] == list(methods.METHODS)
    assert "Research use only" in rows[-1][0] and "Ten simulated phantoms" in rows[-1][0]
    for name in ("comparison.md", "power.csv", "power.md", "learning_curve.csv"):
        assert (run / "tables" / name).stat().st_size
    for name in ("comparison", "learning_curve"):
        assert (run / "figures" / f"{name}.png").stat().st_size > 1000
    card = (run / "MODEL_CARD.md").read_text()
    assert "Comparison on the same cases" in card and "L2-SP" in card
    assert "too few for a comparison" in card and "an AUC of 0.80 has an interval" in card
    assert "CTs by stage: F0 2, F1 2, F2 2, F3 2, F4 2." in card
    assert f"Stages of {COUNT} CTs: {LABEL}" in card and "split by patient" in card


def test_the_fine_tuned_network_stages_as_the_start_network_does(finished, start):
    manifest, run, found = finished
    before, model = StagingModel.load(start), StagingModel.load(run / "LFS.onnx")
    assert model.card.preprocessing == before.card.preprocessing
    assert model.card.contract == 2 and model.card.checks is None
    assert model.card.temperature == pytest.approx(found["temperature"])
    assert model.card.trained_on.startswith("Fine-tuned on: Ten simulated phantoms, no patient.")
    assert before.card.trained_on in model.card.trained_on
    case = read_manifest(manifest)[3]
    result = stage(case.ct, case.liver, case.spleen, model)
    assert result.probabilities.sum() == pytest.approx(1)
    assert result.forward_pass.member_probabilities.shape == (2, 5)
    known = resume.training_cts(run / "LFS.onnx")
    assert known > resume.training_cts(start)
    assert all(resume.digests(case.ct) <= known for case in read_manifest(manifest))


def test_means_give_the_logits_of_the_library(finished, start):
    manifest, run, _ = finished
    cases = read_manifest(manifest)
    cohort = read_cohort(cases, start, run / "staged")  # as it was kept
    found = logits_of(load(start), cohort)
    result = stage(cases[2].ct, cases[2].liver, cases[2].spleen, start)
    np.testing.assert_allclose(found[2], result.forward_pass.logits, atol=1e-4)
    value = result.signs["spleen_volume_ml"].value
    assert cohort.signs[2, 0] == pytest.approx(value)


def test_a_patient_of_the_shipped_network_is_refused(finished, tmp_path, capsys):
    manifest, _, _ = finished
    text = manifest.read_text().replace("\np3,", "\nHCC_002,")
    other = manifest.with_name("other.csv")
    other.write_text(text)
    command = ["--manifest", other, "-o", tmp_path / "RUN", "--folds", "2", "--start-from"]
    assert train.main([*map(str, command), str(default_model_path())]) == 1
    said = capsys.readouterr().err
    assert "trained on patients that a fold holds out (HCC_002)" in said
    assert not (tmp_path / "RUN").exists()
