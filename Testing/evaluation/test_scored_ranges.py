"""A reference standard with ranges of stages: only what the ranges decide is scored."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score, confusion_matrix, roc_auc_score

pytest.importorskip("matplotlib")
pytest.importorskip("joblib")
pytest.importorskip("tqdm")
from batch_tables import batch_rows, write_rows
from staged_cohorts import staged_cohort

from evaluation import cohort_maps, metrics
from evaluation import evaluate as reported
from evaluation.metrics import Predictions, cross_validated
from LiverFibrosisStagingLib.errors import StagingError
from LiverFibrosisStagingLib.evaluation import figures
from LiverFibrosisStagingLib.evaluation.cohort import cohort_measures
from LiverFibrosisStagingLib.evaluation.evaluate import evaluate
from LiverFibrosisStagingLib.evaluation.measures import group_probabilities, youden
from LiverFibrosisStagingLib.evaluation.reading import stage_of
from LiverFibrosisStagingLib.evaluation.tables import calibration_table, stages_table, table_2
from LiverFibrosisStagingLib.stages import GROUPS, StageRange, median_stage, softmax, stage_array


def coarsened(stage, number):
    """By turns: the stage, cirrhosis yes or no, the group of TCGA-LIHC."""
    cirrhosis = StageRange(4, 4) if stage == 4 else StageRange(0, 3)
    tcga = StageRange(2, 3) if stage in (2, 3) else StageRange(stage, stage)
    return (StageRange(stage, stage), cirrhosis, tcga)[number % 3]


COHORT = staged_cohort(counts=(30, 8, 10, 12, 30))
EXACT = np.array([case.stage for case in COHORT])
RANGES = [coarsened(stage, n) for n, stage in enumerate(EXACT.tolist())]
LOGITS = np.array([case.logits for case in COHORT])
PROBABILITIES = softmax(LOGITS)
PATIENTS = np.array([case.patient for case in COHORT])


def measured(stage, chosen=slice(None)):
    p = PROBABILITIES[chosen]
    positive = {name: score >= 0.4 for name, score in group_probabilities(p).items()}
    return cohort_measures(stage, p, median_stage(p), positive, PATIENTS[chosen], 50)


def test_a_group_is_measured_on_the_cases_that_decide_it():
    found = measured(stage_array(RANGES))
    for name, first in GROUPS.items():
        kept = [n for n, one in enumerate(RANGES) if one.decides(first) is not None]
        group = found["groups"][name]
        truth, score = EXACT[kept] >= first, PROBABILITIES[kept, first:].sum(axis=1)
        assert group["auc"]["value"] == pytest.approx(roc_auc_score(truth, score), abs=1e-12)
        assert (group["cases"], group["undecided"]) == (len(kept), len(RANGES) - len(kept))
        assert group["positive_cases"] == truth.sum()
        # Everything is as if the other cases were not there, the intervals as well.
        alone = measured(EXACT[kept], kept)["groups"][name]
        assert {**group, "undecided": 0} == alone
    assert found["groups"]["cirrhosis"]["undecided"] == 0 < found["groups"]["advanced"]["undecided"]


def test_stages_are_measured_on_the_cases_with_one_stage():
    found = measured(stage_array(RANGES))
    kept = [n for n, one in enumerate(RANGES) if one.exact is not None]
    predicted = median_stage(PROBABILITIES)[kept]
    stages = found["stages"]
    assert stages["cases"] == len(kept) < len(RANGES) == found["cases"]
    kappa = cohen_kappa_score(EXACT[kept], predicted, weights="quadratic")
    assert stages["quadratic_kappa"]["value"] == pytest.approx(kappa)
    expected = confusion_matrix(EXACT[kept], predicted, labels=range(5))
    assert stages["confusion"] == expected.tolist()
    assert stages == measured(EXACT[kept], kept)["stages"]
    counts = found["cases_by_stage"]
    assert sum(counts.values()) == len(RANGES)
    assert counts["F2-F3"] == RANGES.count(StageRange(2, 3)) and counts["F0-F3"] > 0


def test_exact_stages_give_the_same_in_both_forms():
    assert measured(EXACT) == measured(np.stack([EXACT, EXACT], axis=1))


def test_what_no_case_decides_is_none_and_said_to_be_not_scored():
    wide = stage_array([StageRange(4, 4) if s == 4 else StageRange(0, 3) for s in EXACT])
    wide[EXACT == 4] = (3, 4)  # no exact stage, and no cut-off but F3
    found = measured(wide)
    assert found["groups"]["cirrhosis"]["undecided"] == (EXACT == 4).sum()
    assert found["groups"]["advanced"]["positive_cases"] == found["groups"]["advanced"]["cases"]
    nothing = measured(np.array([(1, 4)] * len(EXACT)))
    for group in nothing["groups"].values():
        assert group["cases"] == 0 and set(group["auc"].values()) == {None}
        assert group["expected_calibration_error"] is None and group["reliability"] == []
    assert nothing["stages"]["quadratic_kappa"]["value"] is None
    json.dumps(nothing, allow_nan=False)
    lines = table_2({"these": nothing})
    assert [line[2:] for line in lines if line[1] == "these"][:4] == [["not scored"] * 3] * 4
    assert next(line[2:] for line in lines if line[0].startswith("Cases")) == ["0 of 90"] * 3
    rows = dict(stages_table({"these": nothing})[1:])
    assert rows["Quadratic-weighted kappa"] == rows["Macro-average AUC"] == "not scored"
    assert calibration_table({"these": nothing})[1][2:] == ["not scored"] * 4
    stage, about = np.array([(1, 4)] * len(EXACT)), {**nothing, "evaluation": "made up"}
    drawn = (
        figures.roc_groups(stage, PROBABILITIES, about),
        figures.roc_averages(stage, PROBABILITIES, about),
        figures.reliability(about, "made up"),
        figures.decision_curves(stage, PROBABILITIES),
        figures.confusion(about),
    )
    for figure in drawn:
        texts = [text.get_text() for axes in figure.axes for text in axes.findobj(_is_text)]
        assert any("not scored" in text for text in texts)


def _is_text(artist):
    return hasattr(artist, "get_text")


def test_operating_points_and_temperature_are_from_what_the_ranges_decide():
    folds = np.random.default_rng(0).integers(0, 3, len(EXACT))
    one = Predictions(PATIENTS, PATIENTS, stage_array(RANGES), folds, LOGITS)
    found = cross_validated(one, repeats=20)
    kept = [n for n, r in enumerate(RANGES) if r.decides(3) is not None]
    score = softmax(LOGITS, found["temperature"])[kept, 3:].sum(axis=1)
    assert found["operating_points"]["advanced"] == youden(EXACT[kept] >= 3, score)
    own = [n for n in kept if folds[n] == 1]
    about = found["folds"][1]
    score = softmax(LOGITS[own], about["temperature"])[:, 3:].sum(axis=1)
    assert about["auc"]["advanced"] == pytest.approx(roc_auc_score(EXACT[own] >= 3, score))
    unscored = Predictions(PATIENTS, PATIENTS, np.array([(1, 4)] * len(EXACT)), folds, LOGITS)
    assert cross_validated(unscored, repeats=20)["folds"][0]["auc"]["cirrhosis"] is None
    points = dict.fromkeys(GROUPS, 0.5)
    assert metrics.tested(one, 1.0, points, 20)["groups"]["cirrhosis"]["cases"] == len(EXACT)


@pytest.mark.parametrize(
    "text, known",
    [
        ("F2", StageRange(2, 2)),
        ("2.0", StageRange(2, 2)),
        ("F1-F2", StageRange(1, 2)),
        ("0-3", StageRange(0, 3)),
        ("F0-F4", None),
        ("", None),
    ],
)
def test_a_reference_standard_may_have_ranges(text, known, tmp_path):
    assert stage_of(tmp_path, 2, text) == known


@pytest.mark.parametrize("text", ["F5", "F3-F1", "1.5", "F1,F2", "F1-"])
def test_what_is_no_range_is_refused(text, tmp_path):
    with pytest.raises(StagingError, match=r"line 7: .*a range such as F1-F2.* is needed"):
        stage_of(tmp_path / "truth.csv", 7, text)


def test_the_command_scores_what_the_ranges_decide(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "save", lambda figure, stem: None)
    results, truth = batch_rows()
    stage = {row["case"]: int(row["stage"][1]) for row in truth if row["stage"]}
    ranges = {case: coarsened(s, n) for n, (case, s) in enumerate(stage.items())}
    for row in truth:
        row["stage"] = str(ranges.get(row["case"], ""))
    write_rows(tmp_path / "results.csv", results)
    write_rows(tmp_path / "truth.csv", truth, list(truth[0]))
    found = evaluate(tmp_path / "results.csv", tmp_path / "truth.csv", tmp_path / "out", repeats=20)
    network = found["network"]["all cases"]
    kept = [row for row in results if ranges[row["case"]].decides(2) is not None]
    area = roc_auc_score(
        [stage[row["case"]] >= 2 for row in kept], [float(row["significant"]) for row in kept]
    )
    assert network["groups"]["significant"]["auc"]["value"] == pytest.approx(area, rel=1e-5)
    assert any(f"{len(kept)} of {len(results)} cases are scored" in w for w in found["warnings"])
    sign = next(one for one in found["signs"].values() if one["groups"]["significant"])
    assert sign["groups"]["significant"]["cases"] <= len(kept)
    text = (tmp_path / "out" / "evaluation.html").read_text(encoding="utf-8")
    assert f"<td>{len(kept)} of {len(results)}</td>" in text
    with (tmp_path / "out" / "tables" / "table_2.csv").open(encoding="utf-8") as file:
        assert any(row[0] == "Cases whose stages decide it" for row in csv.reader(file))


def test_training_compares_and_writes_what_the_ranges_say():
    known = [replace(case, stages=one) for case, one in zip(COHORT, RANGES)]
    other = [replace(case, probabilities=case.probabilities[::-1]) for case in known]
    found = reported.compare(known, other)
    kept = [n for n, one in enumerate(RANGES) if one.decides(2) is not None]
    score = PROBABILITIES[kept, 2:].sum(axis=1)
    area = roc_auc_score(EXACT[kept] >= 2, score)
    assert found["significant"]["first"] == pytest.approx(area)
    predictions = Predictions.of(known)
    calibrated = metrics.calibrate(predictions, 1.0, dict.fromkeys(GROUPS, 0.5))
    rows = reported._prediction_rows(predictions, calibrated)
    assert [row["stage"] for row in rows] == [str(one) for one in RANGES]
    assert Predictions.of(COHORT).stage.tolist() == EXACT.tolist()
    by_histology = cohort_maps.analyse(known)["patterns"]["surface_over_core"]["by_histology"]
    assert sum(one["cases"] for one in by_histology.values()) == sum(
        one.exact is not None for one in RANGES
    )
