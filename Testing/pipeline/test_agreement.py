"""Agreement of the ensemble's networks, and comparison of the map with reference cases."""

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import SimpleITK as sitk

from LiverFibrosisStagingLib import stage
from LiverFibrosisStagingLib.__main__ import main
from LiverFibrosisStagingLib.ensemble import disagreement, spread
from LiverFibrosisStagingLib.model import read_card
from LiverFibrosisStagingLib.quality import percentiles, unusual
from LiverFibrosisStagingLib.report.summary import table_rows
from LiverFibrosisStagingLib.stages import GROUPS, STAGES, median_stage, softmax

SCHEMA = Path(__file__).parents[2] / "Resources" / "staging.schema.json"


@pytest.fixture(scope="module")
def result(sample, model):
    return stage(sample["ct"], sample["liver"], sample["spleen"], model)


def test_the_shipped_model_is_an_ensemble_and_reports_its_spread(result, model):
    members = result.member_probabilities
    assert len(members) > 1 and members.shape[1] == len(STAGES)
    given = [f.tensors["member_logits"][0] for f in result.forward_pass.forwards]
    logits = np.mean(given, axis=0, dtype=np.float64)
    np.testing.assert_allclose(members, softmax(logits, model.card.temperature))
    np.testing.assert_allclose(logits.mean(axis=0), result.forward_pass.logits, atol=1e-4)
    found = result.summary()["ensemble"]
    assert found["members"] == len(members)
    for index, name in enumerate(STAGES):
        low, high = found["range"][name]
        assert (low, high) == (members[:, index].min(), members[:, index].max())
    for name, first in GROUPS.items():
        scores = members[:, first:].sum(axis=1)
        assert found["range"][name] == pytest.approx([scores.min(), scores.max()])
    jsonschema.validate(json.loads(json.dumps(result.summary())), json.loads(SCHEMA.read_text()))


def test_probabilities_and_map_of_the_shipped_model(result, model):
    assert result.probabilities.sum() == pytest.approx(1)
    assert 0 <= result.outside_share <= 1
    # The map lies within the network's field of view.
    columns = np.argwhere(sitk.GetArrayViewFromImage(result.label_map))
    reach = (np.ptp(columns, axis=0) + 1) * result.ct.GetSpacing()[::-1]
    field = np.multiply(model.card.patch_size, model.card.spacing_mm)
    assert columns.size and (reach[1:] <= field[1:] + 2 * np.array(model.card.spacing_mm[1:])).all()


def test_the_command_line_and_the_library_agree(result, sample, tmp_path, capsys):
    arguments = ["stage", sample["ct"], "--liver", sample["liver"], "--spleen", sample["spleen"]]
    assert main([*map(str, arguments), "-o", str(tmp_path)]) == 0
    ours, theirs = json.loads((tmp_path / "staging.json").read_text()), result.summary()
    for key in ("stage", "probabilities", "reasons", "measurements", "location_map", "ensemble"):
        assert ours[key] == theirs[key], key
    assert result.stage in capsys.readouterr().out


def test_the_table_shows_how_many_networks_agree(result):
    rows = {name: value for name, value, _ in table_rows(result.summary())}
    members = result.member_probabilities
    agreeing = (median_stage(members) == STAGES.index(result.stage)).sum()
    assert rows[f"Networks predicting {result.stage}"] == f"{agreeing} of {len(members)}"


@pytest.mark.parametrize("says_f4, warned", [(5, False), (4, False), (3, True), (1, True)])
def test_networks_that_disagree_are_a_warning(says_f4, warned):
    members = np.array([[0, 0, 0, 0.2, 0.8]] * says_f4 + [[0.9, 0, 0, 0.1, 0]] * (5 - says_f4))
    sentences = disagreement(spread(members, "F4"), "F4")
    assert bool(sentences) == warned
    if warned:
        assert sentences == [f"The networks disagree: only {says_f4} of 5 predict F4."]


REFERENCE = {
    "percentiles": [2.5, 25, 50, 75, 97.5],
    "stages": {
        "F0": {"cases": 19, "liver": [1, 2, 3, 4, 5]},
        "F4": {"cases": 80, "liver": [1, 2, 3, 4, 5], "spleen": [0.5, 1, 2, 3, 4]},
    },
}


def weights(**means):
    return {
        region: {"mean": mean, "share": 0.5, "volume_ml": 1.0} for region, mean in means.items()
    }


def test_only_regions_outside_their_usual_range_are_named():
    (sentence,) = unusual(weights(liver=3.5, spleen=4.5, rest=9.0), REFERENCE, "F4")
    assert sentence == (
        "Unusual location map for F4, each region by itself against the central 95 % of 80 "
        "reference cases: spleen 4.50 (above 4.00)."
    )
    (sentence,) = unusual(weights(liver=0.5, spleen=4.5), REFERENCE, "F4")
    assert sentence.endswith(": liver 0.50 (below 1.00), spleen 4.50 (above 4.00).")
    found = percentiles(weights(liver=3.5, spleen=9.0, rest=9.0), REFERENCE, "F4")
    assert found == {"liver": pytest.approx(62.5), "spleen": 97.5}


def test_joint_bounds_replace_those_of_each_region():
    stages = {"F4": {**REFERENCE["stages"]["F4"], "joint": {"liver": [0.5, 6], "spleen": [0.1, 5]}}}
    reference = {**REFERENCE, "stages": stages}
    assert unusual(weights(liver=5.5, spleen=4.5), reference, "F4") == []
    assert unusual(weights(liver=5.5), reference, "F4") == []  # without a spleen mask
    (sentence,) = unusual(weights(liver=5.5, spleen=5.5), reference, "F4")
    assert sentence == (
        "Unusual location map for F4, outside the range of 95 % of 80 reference cases: spleen 5.50 "
        "(above 5.00)."
    )


@pytest.mark.parametrize(
    "reference, stage_name", [(REFERENCE, "F0"), (REFERENCE, "F2"), ({}, "F4")]
)
def test_too_few_reference_cases_give_no_warning(reference, stage_name):
    assert unusual(weights(liver=100.0), reference, stage_name) == []


def test_usual_weights_give_no_warning():
    assert unusual(weights(liver=5.0, spleen=0.5), REFERENCE, "F4") == []


def test_only_the_predicted_stages_map_is_compared(result):
    """The reference contains maps of the predicted stage only."""
    other = "F0" if result.stage == "F4" else "F4"
    assert not any("Unusual" in warning for warning in result.explain(other).map_warnings)


def test_the_reference_of_a_trained_model_is_that_of_its_test_cohort(phantoms_path):
    reference = read_card(phantoms_path).reference
    assert "test cohort" in reference["source"]
    for values in reference["stages"].values():
        assert values["cases"] >= 5
        for region in ("liver", "liver_surface", "liver_core", "spleen", "rest"):
            assert values[region] == sorted(values[region])
