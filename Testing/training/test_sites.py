"""AUCs by site, and whether the acquisition of a cohort tells the stage."""

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

pytest.importorskip("matplotlib")
from cases.manifest import Case
from evaluation import by_site, model_card
from evaluation.cohort_acquisition import check_acquisition
from evaluation.metrics import Calibrated
from LiverFibrosisStagingLib.evaluation.measures import group_probabilities
from LiverFibrosisStagingLib.stages import GROUPS, StageRange, softmax


def cohort(count=120, **of_case):
    """Cases of the stages in turn; of_case: property -> its value from number and stage."""
    return [
        Case(
            line=i + 2,
            name=f"p{i}",
            patient=f"p{i}",
            ct=Path("ct.nii.gz"),
            stages=StageRange(i % 5, i % 5),
            **{name: value(i, i % 5) for name, value in of_case.items()},
        )
        for i in range(count)
    ]


def predicted(cases, noise=1.5):
    rng = np.random.default_rng(0)
    middle = np.array([sum(case.stages) / 2 for case in cases]) + noise * rng.normal(
        size=len(cases)
    )
    probabilities = softmax(-((middle[:, None] - np.arange(5)) ** 2))
    scores = group_probabilities(probabilities)
    return Calibrated(probabilities, {name: scores[name] > 0.5 for name in GROUPS})


def test_aucs_by_site_are_those_of_its_cases(tmp_path):
    cases = cohort(site=lambda i, _: ("A", "B", None)[i % 3])
    # A range that leaves a group open, in every site.
    cases += [
        Case(200 + i, f"q{i}", f"q{i}", Path("x"), StageRange(1, 3), site=("A", "B", None)[i % 3])
        for i in range(9)
    ]
    calibrated = predicted(cases)
    found = by_site.report(cases, calibrated, tmp_path, "Phantoms.")
    assert list(found) == ["A", "B", "not stated"]
    for site in ("A", "B"):
        for name, first in GROUPS.items():
            own = [
                i
                for i, case in enumerate(cases)
                if case.site == site and case.stages.decides(first) is not None
            ]
            truth = [cases[i].stages.lowest >= first for i in own]
            scores = group_probabilities(calibrated.probabilities)[name][own]
            measured = found[site][name]
            assert measured["value"] == pytest.approx(roc_auc_score(truth, scores))
            assert measured["low"] < measured["value"] < measured["high"]
            assert (measured["with"], measured["without"]) == (sum(truth), len(own) - sum(truth))
    text = (tmp_path / "tables" / "by_site.md").read_text()
    assert "Research use only" in text and "| not stated | 43 |" in text


def test_a_site_with_one_stage_has_no_auc_and_one_site_no_table(tmp_path):
    cases = cohort(site=lambda _, stage: "cirrhosis clinic" if stage == 4 else "elsewhere")
    found = by_site.report(cases, predicted(cases), tmp_path, "Phantoms.")
    assert found["cirrhosis clinic"]["cirrhosis"]["value"] is None
    assert "-, 24/0" in (tmp_path / "tables" / "by_site.csv").read_text()
    alone = cohort(site=lambda *_: "A")
    assert by_site.report(alone, predicted(alone), tmp_path / "none", "Phantoms.") == {}


def test_a_kernel_that_tells_the_stage_is_warned_of(tmp_path):
    cases = cohort(
        kernel=lambda i, stage: "B40f" if stage >= 3 or i % 11 == 0 else "B30f",
        thickness=lambda i, _: (2.5, 5.0)[i // 5 % 2],
    )
    warnings = check_acquisition(cases, tmp_path)
    assert any("kernel" in warning for warning in warnings)
    found = json.loads((tmp_path / "tables" / "acquisition.json").read_text())
    assert found["auc"]["kernel"]["advanced"]["value"] > 0.9
    (section,) = model_card._acquisition(tmp_path)
    assert all(warning in section for warning in warnings) and "| kernel |" in section


def test_an_acquisition_that_says_nothing_is_not_warned_of(tmp_path):
    rng = np.random.default_rng(3)
    cases = cohort(scanner=lambda *_: str(rng.choice(["GE", "Siemens", "Canon"])))
    (said,) = check_acquisition(cases, tmp_path)
    assert "does not tell the stage" in said
    assert check_acquisition(cohort(), tmp_path / "none") == []
    assert model_card._acquisition(tmp_path / "none") == []
    (same,) = check_acquisition(cohort(scanner=lambda *_: "GE"), tmp_path / "none")
    assert "No property of the acquisition can be compared" in same
