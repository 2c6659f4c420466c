"""Evaluation of a model on a cohort: numbers, tables and figures."""

import csv
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("joblib")
pytest.importorskip("tqdm")
pytest.importorskip("matplotlib")
from phantom_cohorts import write_cohort
from sklearn.metrics import roc_auc_score
from staged_cohorts import staged_cohort

from cases.manifest import read_manifest
from evaluation import cohort_maps, evaluate, staged
from evaluation.figures import save
from evaluation.metrics import Predictions, calibrate
from LiverFibrosisStagingLib import stage
from LiverFibrosisStagingLib.errors import StagingError
from LiverFibrosisStagingLib.evaluation import figures
from LiverFibrosisStagingLib.evaluation.paper import TABLE_2
from LiverFibrosisStagingLib.evaluation.tables import MEASURES

TRAINED_ON = "a simulated cohort, no patients"
FIGURES = {
    "fig_3a_roc_groups",
    "fig_3b_roc_averages",
    "fig_5_liver_weights",
    "region_weights",
    "reliability",
    "confusion",
}


@pytest.fixture(scope="module")
def model_path(single_path):
    return single_path


@pytest.fixture(scope="module")
def model(single):
    return single


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Path:
    """Three small phantoms of F0, F4 and F4, and their manifest."""
    return write_cohort(tmp_path_factory.mktemp("cohort"), [0, 4, 4])


@pytest.fixture(scope="module")
def evaluated(manifest, model_path, tmp_path_factory) -> Path:
    """The output of the command for the shipped model, compared with itself."""
    folder = tmp_path_factory.mktemp("evaluation")
    command = f"--model {model_path} --manifest {manifest} -o {folder} --workers 1"
    assert evaluate.main([*command.split(), "--compare", str(model_path)]) == 0
    return folder


def test_the_command_writes_everything(evaluated, model):
    found = json.loads((evaluated / "metrics.json").read_text())
    assert found["cases"] == 3 and found["trained_on"] == model.card.trained_on
    assert found["temperature"] == model.card.temperature
    assert "Research use only" in found["research_use"]
    for name in FIGURES:
        assert (evaluated / "figures" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
        assert (evaluated / "figures" / f"{name}.pdf").read_bytes()[:4] == b"%PDF"
    for name in ("table_2", "confusion", "regions", "patterns"):
        text = (evaluated / "tables" / f"{name}.md").read_text()
        assert "Research use only" in text and model.card.trained_on.rstrip(".") in text
        assert (evaluated / "tables" / f"{name}.csv").is_file()
    assert (evaluated / "tables" / "comparison.md").is_file()
    compared = found["compared_with"]
    assert compared["model"] == model.sha256 and compared["significant"] is None
    assert not list(evaluated.rglob(".partial*"))


def test_measures_equal_the_results_of_the_library(evaluated, manifest, model):
    case = read_manifest(manifest)[1]
    result = stage(case.ct, case.liver, case.spleen, model)
    (kept,) = staged.stage_cases([case], model, evaluated / "staged")
    assert kept.logits == pytest.approx(result.forward_pass.logits, abs=1e-4)
    assert kept.probabilities == pytest.approx(result.probabilities, abs=1e-4)
    for region, values in result.measurements.items():
        assert kept.measurements[region] == pytest.approx(values, abs=1e-3)
    assert (kept.stage, kept.name, kept.patient) == (4, case.name, "p1")
    with (evaluated / "predictions.csv").open() as file:
        line = list(csv.DictReader(file))[1]
    assert float(line["p_F4"]) == pytest.approx(result.probabilities[4], abs=1e-4)
    assert (line["stage"], line["fold"]) == ("F4", "test")


def test_a_staged_case_is_not_staged_again(evaluated, manifest, model, monkeypatch):
    done, really = [], staged._stage_one

    def counting(case, *rest):
        done.append(case.name)
        return really(case, *rest)

    monkeypatch.setattr(staged, "_stage_one", counting)
    cases = read_manifest(manifest)
    before = staged.stage_cases(cases, model, evaluated / "staged", workers=1)
    assert not done and [case.name for case in before] == [case.name for case in cases]
    os.utime(cases[2].ct)  # as after copying the file
    staged.stage_cases(cases, model, evaluated / "staged", workers=1)
    assert not done
    # Another CT under the same name, with the same size and time; then another version.
    others = [replace(cases[0], ct=cases[2].ct, liver=cases[2].liver), *cases[1:]]
    after = staged.stage_cases(others, model, evaluated / "staged", workers=1)
    assert done == [cases[0].name]
    assert not np.allclose(after[0].logits, before[0].logits, atol=1e-3)
    monkeypatch.setattr(staged, "__version__", "0.0")
    staged.stage_cases(cases[1:2], model, evaluated / "staged", workers=1)
    assert done == [cases[0].name, cases[1].name]


def test_a_case_that_cannot_be_staged_is_a_row_and_the_others_are_evaluated(
    manifest, model, tmp_path, capsys
):
    cases = read_manifest(manifest)[:2]
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"no image")
    listed = tmp_path / "manifest.csv"
    good = cases[0]
    listed.write_text(
        "patient,ct,liver,spleen,stage\n"
        f"bad,{broken},{cases[1].liver},{cases[1].spleen},F4\n"
        f"p0,{good.ct},{good.liver},{good.spleen},F0\n"
    )
    output = tmp_path / "out"
    command = f"--model {model.path} --manifest {listed} -o {output} --workers 1"
    assert evaluate.main(command.split()) == 0
    (row,) = csv.DictReader((output / "tables" / "refused.csv").open())
    assert (row["case"], row["line"]) == ("bad", "2") and "broken" not in row["reason"]
    assert [path.name for path in (output / "staged").rglob("*.json")] == ["p0.json"]
    assert json.loads((output / "metrics.json").read_text())["cases"] == 1


def test_a_missing_model_is_refused(tmp_path):
    with pytest.raises(StagingError, match="no model file"):
        staged.stage_cases([], tmp_path / "none.onnx", tmp_path)


@pytest.fixture(scope="module")
def cross_validated(tmp_path_factory):
    """Folder, measures and folds of a cross-validation with the size of the paper's cohort."""
    cases = [replace(case, site="AB"[n % 2]) for n, case in enumerate(staged_cohort())]
    folder = tmp_path_factory.mktemp("cross_validated")
    folds = {case.name: number % 5 for number, case in enumerate(cases)}
    return folder, evaluate.report_cross_validation(cases, folds, folder, TRAINED_ON), folds


def test_cross_validation_report(cross_validated):
    folder, found, folds = cross_validated
    assert found == json.loads((folder / "metrics.json").read_text())
    with (folder / "predictions.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert {line["name"]: int(line["fold"]) for line in lines} == folds
    # The AUC in metrics.json is that of predictions.csv.
    truth = [line["stage"] in ("F2", "F3", "F4") for line in lines]
    score = [float(line["p_significant"]) for line in lines]
    measured = found["groups"]["significant"]["auc"]["value"]
    assert measured == pytest.approx(roc_auc_score(truth, score), abs=1e-4)
    called = np.array([line["positive_significant"] == "1" for line in lines])
    sensitivity = found["groups"]["significant"]["sensitivity"]["value"]
    assert sensitivity == pytest.approx(called[truth].mean())
    with (folder / "tables" / "by_site.csv").open() as file:
        assert [row[:2] for row in csv.reader(file)][1:3] == [["A", "126"], ["B", "126"]]


def test_table_2_stands_beside_the_papers(cross_validated):
    folder, found, _ = cross_validated
    text = (folder / "tables" / "table_2.md").read_text()
    paper = "| Specificity (%) | Yin et al. 2021 | 91.7 [82.0, 96.8] | 88.2 [77.8, 95.6] | 86.5"
    assert paper in text
    assert "| AUC | Yin et al. 2021 | 0.92 [0.86, 0.97] | 0.89 [0.83, 0.96] | 0.88 [0.79, 0" in text
    ours = found["groups"]["advanced"]["auc"]
    assert f"{ours['value']:.2f} [{ours['low']:.2f}, {ours['high']:.2f}]" in text
    assert all(set(group) == set(MEASURES) for group in TABLE_2.values())


def test_comparison_needs_the_same_cases():
    cases, weaker = staged_cohort(skill=3), staged_cohort(skill=0.6)
    found = evaluate.compare(cases, weaker)
    assert found["cirrhosis"]["difference"] > 0 and found["cirrhosis"]["p"] < 0.001
    with pytest.raises(ValueError, match="same cases"):
        evaluate.compare(cases, weaker[1:])


def test_operating_points_are_the_models(model):
    points = {"significant": 0.3, "advanced": 0.2, "cirrhosis": 0.1}
    card = replace(model.card, calibration={"temperature": 1.0, "operating_points": points})
    assert evaluate.operating_points(card) == points
    plain = replace(model.card, calibration={})
    assert evaluate.operating_points(plain) == dict.fromkeys(points, 0.5)


def test_every_figure_has_the_footer(tmp_path):
    cases = staged_cohort()
    predictions = Predictions.of(cases)
    points = dict.fromkeys(("significant", "advanced", "cirrhosis"), 0.4)
    calibrated = calibrate(predictions, 1.0, points)
    found = evaluate.tested(predictions, 1.0, points, repeats=20)
    for figure in (
        figures.roc_groups(predictions.stage, calibrated.probabilities, found),
        figures.reliability(found, "temperature 1.00"),
        figures.liver_weights(cohort_maps.grouped(cases)["liver"]),
    ):
        save(figure, tmp_path, "figure", TRAINED_ON)
        footer = figure.get_supxlabel().replace("\n", " ")
        assert "Research use only" in footer and TRAINED_ON in footer
    drawn = figures.roc_groups(predictions.stage, calibrated.probabilities, found).axes[0]
    line = next(line for line in drawn.lines if "Cirrhosis" in line.get_label())
    x, y = line.get_data()
    area = found["groups"]["cirrhosis"]["auc"]["value"]
    assert np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2) == pytest.approx(area)
