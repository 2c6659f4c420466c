"""All fields of a model's metadata are checked when it is loaded."""

import json
import re
from dataclasses import asdict

import pytest

from LiverFibrosisStagingLib import StagingError, StagingModel
from LiverFibrosisStagingLib.gradcam_onnx.explainable import ExplainableModel
from LiverFibrosisStagingLib.imaging.segmentation import SegmentationModel
from LiverFibrosisStagingLib.model import read_card
from LiverFibrosisStagingLib.quality import unusual

pytest.importorskip("onnx", reason="makes the model files")
from tiny_models import (
    CARD,
    EXPLAINABLE,
    SEGMENTATION_CARD,
    explainable_model,
    segmentation_model,
    staging_model,
    written,
)

STRANGE = [None, True, 3, -1, 2.5, 1e300, "x", "", "two\nlines", [], [1], ["x"], {}, {"x": [1]}]
# What stands where a field is, and is as good as anything else there.
GOOD = {
    "name": ["x"],
    "target_layer": ["x"],
    "tail": [[], ["x"]],
    "intended_use": ["x"],
    "patch_overlap": [],
    "smoothing_mm": [3, 2.5],
    "fill.beyond_mm": [3, 2.5],
    "fill.hu": [3, -1, 2.5],
    "liver_hu": [3, -1, 2.5],
    "calibration": [{}, {"x": [1]}],
    "calibration.temperature": [3, 2.5],
    "calibration.operating_points": [{}, {"x": [1]}],
    "calibration.operating_points.cirrhosis": [],
    "reference": [{}, {"x": [1]}],
    "reference.source": ["x"],
    "reference.stages": [{}, {"x": [1]}],
    "reference.stages.F4.cases": [3],
    "training": [{}, {"x": [1]}],
    "training.data": ["x"],
    "training.cases_per_stage": [],
    "training.date": ["x"],
    "training.code_version": ["x"],
    "training.folds": [3],
    "training.auc": [{}],
    "training.evaluated_on": ["x"],
}


def places(card, *above):
    """Every field of a card, as a path of names."""
    for name, value in card.items():
        yield (*above, name)
        if isinstance(value, dict):
            yield from places(value, *above, name)


def changed(card, place, value=None, gone=False):
    card = json.loads(json.dumps(card))
    inner = card
    for name in place[:-1]:
        inner = inner[name]
    if gone:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return card


# A card with the fields that not every model has.
FULL = CARD | {"field": "body", "fill": {"beyond_mm": 20, "hu": -100}, "liver_hu": 105}
PLACES = {".".join(place): place for place in places(FULL | {"channels": ["ct"]})}


@pytest.mark.parametrize("field", PLACES)
def test_a_field_of_another_type_is_refused_by_name(field, tmp_path):
    place = PLACES[field]
    for value in STRANGE:
        path = written(staging_model(changed(FULL, place, value)), tmp_path / "m.onnx")
        # json's True is Python's 1: types have to be the same as well.
        if any(value == good and type(value) is type(good) for good in GOOD.get(field, [])):
            read_card(path)
            continue
        with pytest.raises(StagingError) as refusal:
            read_card(path)
        text = str(refusal.value)
        assert "m.onnx" in text and field in text and "is needed" in text, text
        assert "\n" not in text and len(text) < 400


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("calibration", [1], r"calibration is \[1\]; a JSON object is needed"),
        ("reference", ["x"], r"reference is \[\"x\"\]; a JSON object is needed"),
        ("training.auc.cirrhosis", {"value": 0.9, "high": 1}, "low is missing; .* is needed"),
        ("training.auc.cirrhosis.low", 0.99, "low <= high"),
        ("training.cases_per_stage", [1, 2, 3], "a list of 5 values"),
        (
            "training.cases_per_stage",
            [1, 2, 3, 4, 5.5],
            r"cases_per_stage.4 is 5.5; .*whole number",
        ),
        ("reference.percentiles", [5, 50, 95], "a list with 2.5 and 97.5"),
        ("reference.percentiles", [97.5, 2.5], "ascending"),
        ("reference.stages.F4.joint", {"liver": [2, 1]}, "joint.liver is .*ascending"),
        ("reference.stages.F4.joint", {"liver": [1]}, "joint.liver is .*a list of 2 values"),
        ("reference.stages.F4.liver", [1, 2], "liver is .*a list of 5 values"),
        ("reference.stages.F4.liver", [5, 4, 3, 2, 1], "ascending"),
        ("reference.stages.F4", {"liver": [1, 2, 3, 4, 5]}, "F4.cases is missing"),
        ("calibration.temperature", 0, "from 0.001 to 1000"),
        ("window_hu", [225, -125], "lower HU first"),
        ("window_hu", [0, 0], "lower HU first"),
        ("spacing_mm", [4, 0, 2], "spacing_mm.1 is 0; a number from 0.5 to 50 is needed"),
        ("patch_size", [4, 8, 6.0], "patch_size.2 is 6.0"),
        ("patch_size", [4, 8, 10**400], "patch_size.2 is 1000"),
        ("patch_size", [2048, 2048, 2048], "at most 67108864 voxels"),
        ("contract", 3, "contract is 3; 1 or 2 .the supported versions. is needed"),
        ("channels", ["ct", "spleen"], "channels is .*liver.* is needed"),
        ("fill", {"hu": -100}, "fill.beyond_mm is missing; a number from 0 to 200 is needed"),
        ("stages", ["F0"], "stages is"),
    ],
)
def test_what_was_found_and_what_is_needed(field, value, words, tmp_path):
    path = written(staging_model(changed(CARD, field.split("."), value)), tmp_path / "m.onnx")
    with pytest.raises(StagingError, match=words):
        StagingModel.load(path)


@pytest.mark.parametrize(
    "field", ["name", "stages", "window_hu", "spacing_mm", "patch_size", "tail"]
)
def test_a_missing_field_is_refused(field, tmp_path):
    path = written(staging_model(changed(CARD, [field], gone=True)), tmp_path / "m.onnx")
    with pytest.raises(StagingError, match=f"{field} is missing; .* is needed"):
        StagingModel.load(path)


@pytest.mark.parametrize("field", ["smoothing_mm", "calibration", "reference", "training"])
def test_the_others_may_be_missing(field, tmp_path):
    path = written(staging_model(changed(CARD, [field], gone=True)), tmp_path / "m.onnx")
    card = StagingModel.load(path).card
    assert card.temperature == (1.0 if field == "calibration" else 0.5)
    assert unusual({"liver": {"mean": 9.0}}, card.reference, "F4") or field == "reference"


def test_unknown_fields_are_kept(tmp_path):
    card = changed(CARD, ["of_others"], [1, {"x": None}])
    for place in (["training"], ["calibration"], ["reference"], ["reference", "stages", "F4"]):
        card = changed(card, [*place, "of_others"], {"x": [None]})
    found = read_card(written(staging_model(card), tmp_path / "m.onnx"))
    assert found.training["of_others"] == found.calibration["of_others"] == {"x": [None]}
    json.dumps(asdict(found), allow_nan=False)


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "null", "[]", '"x"', "1", "NaN", '{"contract": NaN}', '{"contract": true}'),
        *('{"contract": 1, "x": 1e999}', '{"contract": 1, "x": "\\ud800"}'),
        *("[" * 100_000, "9" * 5000),
    ],
)
def test_other_texts_are_refused(text, tmp_path):
    path = tmp_path / "m.onnx"
    for model in (staging_model(), segmentation_model(), explainable_model()):
        model.metadata_props[0].value = text
        written(model, path)
        for load in (StagingModel, SegmentationModel, ExplainableModel, read_card):
            with pytest.raises(StagingError, match=r"m\.onnx") as refusal:
                load(path)
            assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("window_hu", v) for v in (None, [1], ["a", "b"], [250, -150])],
        *[("spacing_mm", v) for v in (4, [4, 4], [4, 4, -4], [4, 4, True])],
        *[("multiple_of", v) for v in (0, 2.0, "2", None, 10**9)],
        *[("classes", v) for v in ("liver", ["liver"], [1, 2, 3])],
        *[("training", v) for v in ([1], "x", {"data": 3})],
        *[("name", v) for v in (3, None, "")],
    ],
)
def test_a_segmenting_network_is_checked_likewise(field, value, tmp_path):
    card = changed(SEGMENTATION_CARD, [field], value)
    with pytest.raises(StagingError, match=re.escape(f"liver_segmentation.{field}")):
        SegmentationModel(written(segmentation_model(card), tmp_path / "m.onnx"))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("grid", v) for v in (3, [0], ["x"], [1, 2, 3, 4], [-1, -30], [2.5])],
        *[("channel_axis", v) for v in (0, 2, "1", 1.0, True, None, [1])],
        *[("target_layer", v) for v in (None, 3, ["relu"])],
        *[("scores", v) for v in (None, 3, "")],
        *[("version", v) for v in (2, "1", True, None)],
    ],
)
def test_a_prepared_classifier_is_checked_likewise(field, value, tmp_path):
    described = changed(EXPLAINABLE, [field], value)
    with pytest.raises(StagingError, match=re.escape(f"explainable.{field}")):
        ExplainableModel(written(explainable_model(described), tmp_path / "m.onnx"))
