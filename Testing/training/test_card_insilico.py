"""The model card of a model trained on painted fibrosis, and its results in the model file."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from sklearn.metrics import roc_auc_score

pytest.importorskip("onnx")
pytest.importorskip("torch")

import card_insilico

from common.tables import MISSING, write_csv
from evaluation import painted_card
from lfs.export import describe
from LiverFibrosisStagingLib.explanation_check import CHANGES
from LiverFibrosisStagingLib.model import read_card
from LiverFibrosisStagingLib.stages import GROUPS, RESEARCH_USE

MEASURED = ("auc", "evaluated_on")
RESULTS = ROOT / "Training" / "results" / "painted"


@pytest.fixture(scope="module")
def described(model_path, tmp_path_factory):
    """A copy of the shipped model with its results, and their folder with the card."""
    folder = tmp_path_factory.mktemp("results")
    for name in ("metrics.json", "cases.csv", "real_cts.csv"):
        shutil.copy(RESULTS / name, folder)
    model = Path(shutil.copy(model_path, folder))
    training = read_card(model).training
    describe(model, {"training": {k: v for k, v in training.items() if k not in MEASURED}})
    assert card_insilico.main(["--model", str(model), "--results", str(folder)]) == 0
    return model, folder


def test_the_shipped_file_describes_itself(model_path):
    card = read_card(model_path)
    assert model_path.stat().st_size < 15e6
    assert (card.contract, card.channels, card.field) == (2, ("ct", "liver", "spleen"), "organs")
    assert card.fill is not None and card.liver_hu is not None
    assert "no patient with a known stage" in card.trained_on
    assert RESEARCH_USE in card.intended_use
    assert set(card.training["auc"]) == set(GROUPS)


def test_the_metadata_have_the_aucs_of_the_cases(described, model_path):
    model, folder = described
    before, card = read_card(model_path), read_card(model)
    with (folder / "cases.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    stages = np.array([float(row["stage"]) for row in rows])
    cirrhosis = [float(row["p_F4"]) for row in rows]
    area = card.training["auc"]["cirrhosis"]
    assert area["value"] == pytest.approx(roc_auc_score(stages == 4, cirrhosis), abs=1e-4)
    assert area["low"] < area["value"] < area["high"]
    assert card.training["evaluated_on"].startswith(f"{len(rows)} cases painted into ")
    assert card.trained_on == before.trained_on
    moved = card.checks["moved"]["surroundings are fat"]
    expected = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert moved["cases"] == len(rows)
    assert moved["largest"] == expected["counterfactuals"]["surroundings are fat"]["largest"]
    assert (card.fill, card.temperature) == (before.fill, before.temperature)


def test_the_card_has_the_numbers_of_the_results(described):
    model, folder = described
    text = (folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    card = read_card(model)
    assert RESEARCH_USE in text and card.trained_on in text
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    for who in ("network", "logistic_regression", "drawn_signs"):
        assert f"| {metrics[who]['advanced']:.2f} | {metrics[who]['cirrhosis']:.2f} |" in text
    with (folder / "real_cts.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            share = round(100 * float(row["share_with_10_mm"]))
            assert re.search(rf"\| {row['case']} \| .* \| {share} % \|", text)


def test_real_cts_have_a_column_for_each_measured_change(described, tmp_path):
    model, results = described
    folder = Path(shutil.copytree(results, tmp_path / "results"))
    columns = ("case", "expected", *CHANGES, "share_with_10_mm", "spleen_share")
    rows = [columns, ("a", 1.234, 1.1, 2.2, 1.3, MISSING, 1.4, 0.75, 0.1)]
    write_csv(folder / "real_cts.csv", rows)
    text = painted_card.write(model, folder).read_text(encoding="utf-8")
    assert f"| CT | expected stage | {' | '.join(CHANGES)} | map in liver" in text
    assert f"| a | 1.23 | 1.10 | 2.20 | 1.30 | {MISSING} | 1.40 | 75 % |" in text


def test_aucs_of_another_evaluation_are_kept(described, tmp_path):
    folder = Path(shutil.copytree(described[1], tmp_path / "results"))
    other = folder / described[0].name
    auc = {group: {"value": 0.6, "low": 0.5, "high": 0.7} for group in GROUPS}
    training = read_card(other).training | {"auc": auc, "evaluated_on": "patients"}
    describe(other, {"training": training})
    assert card_insilico.main(["--model", str(other), "--results", str(folder)]) == 0
    assert read_card(other).training == training
    assert "0.60 [0.50, 0.70] (patients)" in (folder / "MODEL_CARD.md").read_text(encoding="utf-8")


def test_the_shipped_card_is_the_one_of_the_results(model_path, tmp_path):
    """After other results, Training/card_insilico.py must be run again."""
    made = painted_card.write(model_path, Path(shutil.copytree(RESULTS, tmp_path / "results")))
    shipped = (RESULTS / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert shipped == made.read_text(encoding="utf-8")


def test_no_results_are_refused(model_path, tmp_path, capsys):
    model = shutil.copy(model_path, tmp_path)
    assert card_insilico.main(["--model", str(model), "--results", str(tmp_path)]) == 1
    assert "cases.csv" in capsys.readouterr().err
