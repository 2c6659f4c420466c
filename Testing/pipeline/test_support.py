"""Whether a stage is supported, and how the signs are compared with it."""

import dataclasses

import numpy as np
import pytest
from onnx import numpy_helper
from tiny_models import staging_model, written

from LiverFibrosisStagingLib import StagingModel
from LiverFibrosisStagingLib.ensemble import spread
from LiverFibrosisStagingLib.imaging.input_checks import Check
from LiverFibrosisStagingLib.result import one_line
from LiverFibrosisStagingLib.signs.measure import Measurement, measure_signs
from LiverFibrosisStagingLib.signs.placing import place, place_signs
from LiverFibrosisStagingLib.signs.published import published_signs
from LiverFibrosisStagingLib.staging import stage
from LiverFibrosisStagingLib.support import agreement
from LiverFibrosisStagingLib.support import reasons as all_reasons


def reasons(stage_name, checks, outside=0.1, members=None, has_spleen=True, spleen_is_input=False):
    return all_reasons(
        stage_name, checks, outside, members, has_spleen=has_spleen, spleen_is_input=spleen_is_input
    )


def check(key, outcome):
    return Check(key, key, outcome, f"The {key} is {outcome}.")


def test_a_stage_is_supported_if_nothing_speaks_against_it():
    checks = (check("phase", "pass"), check("thickness", "warn"))
    members = spread(stage_rows(5), "F4")
    assert reasons("F4", checks, 0.3, members, spleen_is_input=True) == ()
    assert reasons("F4", (), has_spleen=False) == ()


@pytest.mark.parametrize(("lower", "upper", "supported"), [(9, 9, False), (9, 0, True)])
def test_a_slab_of_the_liver_is_a_reason(lower, upper, supported):
    areas = {"liver_lower_cm2": lower, "liver_upper_cm2": upper}
    found = reasons("F0", (Check("coverage", "", "warn", "Cut.", areas),), has_spleen=False)
    assert found == (() if supported else ("Cut.",))


@pytest.mark.parametrize("spleen_is_input", [False, True])
def test_the_spleen_must_be_complete_if_it_is_an_input(spleen_is_input):
    areas = {"liver_lower_cm2": 0, "liver_upper_cm2": 0, "spleen_lower_cm2": 9}
    cut = Check("coverage", "", "warn", "Cut.", {**areas, "spleen_upper_cm2": 0})
    assert reasons("F0", (cut,), spleen_is_input=spleen_is_input) == (
        ("Cut.",) if spleen_is_input else ()
    )
    missing = reasons("F0", (), has_spleen=False, spleen_is_input=spleen_is_input)
    sentence = "There is no mask of the spleen; the model needs it."
    assert missing == ((sentence,) if spleen_is_input else ())


def test_an_unusual_volume_of_the_liver_is_a_reason():
    found = reasons("F0", (check("liver_volume", "warn"),))
    assert found == ("The liver_volume is warn.",)


def stage_rows(says_f4):
    return np.array([[0, 0, 0, 0.2, 0.8]] * says_f4 + [[0.9, 0.1, 0, 0, 0]] * (5 - says_f4))


def test_weight_far_from_the_organs_is_a_reason_with_its_share():
    far = "85 % of the location map's weight lies farther than 10 mm from the liver"
    assert reasons("F4", (), 0.85) == (f"{far} and outside the spleen.",)
    assert reasons("F4", (), 0.85, has_spleen=False) == (f"{far}.",)


def test_an_empty_map_is_a_reason():
    (reason,) = reasons("F4", (), None)
    assert "empty" in reason


@pytest.fixture(scope="module")
def without_weight(tmp_path_factory):
    """A model whose scores do not depend on the CT, so that its maps are empty."""

    def constant(network):
        for weights in network.graph.initializer:
            if weights.name == "dense":
                zeros = np.zeros(weights.dims, np.float32)
                weights.CopyFrom(numpy_helper.from_array(zeros, "dense"))

    path = written(staging_model(), tmp_path_factory.mktemp("models") / "m.onnx", constant)
    return StagingModel.load(path)


def test_an_empty_map_is_said_once(sample, without_weight):
    staged = stage(sample["ct"], sample["liver"], sample["spleen"], without_weight)
    assert staged.body_mean == 0 and staged.outside_share is None
    assert sum("map is empty" in text for text in (*staged.reasons, *staged.warnings)) == 1
    assert not staged.supported
    other = staged.explain("F0" if staged.stage != "F0" else "F4")
    (warning,) = (text for text in other.warnings if "map is empty" in text)
    assert warning.endswith(f"to {other.explained}.") and other.reasons == staged.reasons


def test_failed_checks_and_disagreeing_networks_are_reasons():
    checks = (check("phase", "warn"), check("organs", "refuse"), check("noise", "warn"))
    found = reasons("F4", checks, members=spread(stage_rows(3), "F4"))
    assert found == (
        "The phase is warn.",
        "The organs is refuse.",
        "The networks disagree: only 3 of 5 predict F4.",
    )


def placed(**values):
    return [each for key, value in values.items() for each in place(key, value)]


def test_signs_in_the_range_of_the_stage_agree_with_it():
    found = agreement(placed(spleen_volume_ml=900.0, lsvr=0.62), "F4")
    assert found.agrees
    assert found.sentence == (
        "Spleen (900 mL) and Liver segmental volume ratio (0.62) are within the range of F3 to F4, "
        "as the predicted stage F4."
    )


def test_signs_outside_of_it_disagree():
    found = agreement(placed(spleen_volume_ml=900.0, lsvr=0.2), "F0")
    assert found.agrees is False
    lsvr = "Liver segmental volume ratio (0.20) is within the range of F0 to "
    assert found.sentence.startswith(lsvr)
    assert found.sentence.endswith(
        "Spleen (900 mL) is within the range of F3 to F4, not of the predicted stage F0: look "
        "again."
    )
    huge = agreement(placed(spleen_volume_ml=9000.0), "F4").sentence
    assert huge == (
        "Spleen (9000 mL) is not within the range of the predicted stage F4: look again."
    )


def test_a_sign_in_the_range_of_every_stage_leaves_them_open():
    found = agreement(placed(spleen_volume_ml=300.0), "F4")
    assert found.agrees is None
    assert found.sentence == (
        "Spleen (300 mL) is within the range of F0 to F4, which leaves every stage open."
    )
    assert "Spleen" not in agreement(placed(spleen_volume_ml=300.0, lsvr=0.62), "F4").sentence


def test_a_lower_bound_disagrees_only_with_what_it_exceeds():
    cut_off = place("spleen_volume_ml", 580.0, at_least=True)
    found = agreement(cut_off, "F0")
    assert found.agrees is False
    assert found.sentence.startswith("Spleen (at least 580 mL) is not within the range of")
    assert agreement(cut_off, "F4").agrees is None


def test_signs_that_do_not_separate_the_stages_say_nothing():
    for value in (300.0, 1650.0):
        assert agreement(placed(liver_volume_ml=value), "F4").agrees is None
    assert agreement([], "F0").agrees is None


@pytest.fixture(scope="module")
def result(sample, single):
    return stage(sample["ct"], sample["liver"], sample["spleen"], single)


def test_only_measured_and_published_signs_are_placed(sample, result):
    assert {each.sign.key for each in place_signs(result.signs)} == {
        found.key
        for found in result.signs.measurements
        if found.value is not None
        and any(
            group.sign.key == found.key and group.sign.comparable
            for group in (*published_signs().groups, *published_signs().intervals)
        )
    }
    missing = (Measurement("spleen_volume_ml", None, "There is none."),)
    assert place_signs(dataclasses.replace(result.signs, measurements=missing)) == ()


def test_result_carries_signs_as_measured(result):
    again = measure_signs(result.ct, result.liver, result.spleen, result.phase)
    assert again == result.signs
    summary = result.summary()
    for found in result.signs.measurements:
        assert summary["signs"][found.key] == found.value
        assert (found.key in summary["signs_notes"]) == (found.value is None)
    assert [each.sentence for each in result.placements] == summary["signs_placed"][
        : len(result.placements)
    ]
    assert summary["agreement"]["sentence"] == result.agreement.sentence


def test_the_predicted_stages_map_decides_whatever_is_explained(sample, single, result):
    other = "F0" if result.stage != "F0" else "F4"
    staged = stage(sample["ct"], sample["liver"], sample["spleen"], single, explain=other)
    assert staged.explained == other != result.explained
    assert staged.reasons == result.reasons == result.explain(other).reasons
    assert staged.percentiles == {}


def test_an_unsupported_stage_is_said_first(result):
    unsupported = dataclasses.replace(result, reasons=("The phase is arterial.",))
    assert not unsupported.supported
    assert one_line(unsupported).startswith("Not supported: F")
    assert one_line(unsupported).endswith("). The phase is arterial.")
    summary = unsupported.summary()
    assert (summary["supported"], summary["reasons"]) == (False, ["The phase is arterial."])


def test_the_shipped_model_needs_the_spleen(sample, model, single):
    sentence = "There is no mask of the spleen; the model needs it."
    assert sentence in stage(sample["ct"], sample["liver"], model=model).reasons
    assert sentence not in stage(sample["ct"], sample["liver"], model=single).reasons
