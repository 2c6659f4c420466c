"""The panel's groups at the model's operating points, with real Qt."""

import json
from dataclasses import replace

import pytest

pytest.importorskip(
    "PySide6.QtUiTools", reason="PySide6 cannot be imported on this machine", exc_type=ImportError
)

import slicer
from panel_steps import choose

from LiverFibrosisStagingLib.scene.scene_nodes import SUMMARY_ATTRIBUTE, find_part
from LiverFibrosisStagingLib.scene.scene_results import scene_result, show_result

GROUPS = ("significant", "advanced", "cirrhosis")
# Of stage F3, but positive for cirrhosis; advanced is exactly at its point.
CHANGES = {
    "stage": "F3",
    "scores": {"significant": 0.85, "advanced": 0.7, "cirrhosis": 0.45},
    "operating_points": {
        "significant": {"point": 0.9, "positive": False},
        "advanced": {"point": 0.7, "positive": True},
        "cirrhosis": {"point": 0.41, "positive": True},
    },
}


@pytest.fixture
def shown(ready, staged_sample):
    """Shows the sample's result from a scene in which its summary was changed; returns the panel's
    widgets.
    """
    volume = ready.ui.inputVolumeSelector.currentNode()
    show_result(scene_result(replace(staged_sample, percentiles={})), volume)
    table = find_part(volume, "results")
    summary = json.loads(table.GetAttribute(SUMMARY_ATTRIBUTE))

    def show(**changes):
        changed = {key: value for key, value in {**summary, **changes}.items() if value is not None}
        table.SetAttribute(SUMMARY_ATTRIBUTE, json.dumps(changed))
        choose(ready, None, None)
        choose(ready, volume, None)
        slicer.app.processEvents()
        assert ready.ui.resultWidget.visible
        return ready.ui

    return show


def texts(ui):
    return [getattr(ui, f"{name}Value").text for name in GROUPS]


def marked(ui):
    return [getattr(ui, f"{name}Point").visible for name in GROUPS]


def test_a_mark_and_words_say_what_is_positive(shown):
    ui = shown(**CHANGES)
    assert texts(ui) == ["85 %, no", "70 %, yes", "45 %, yes"] and marked(ui) == [True] * 3
    assert ui.stageLabel.text == "F3"
    for name, found in CHANGES["operating_points"].items():
        mark, width = getattr(ui, f"{name}Point").geometry, getattr(ui, f"{name}Bar").width
        center = mark.x() + mark.width() / 2
        assert width > 50 and center / width == pytest.approx(found["point"], abs=2 / width)
    for widget in (ui.cirrhosisBar, ui.cirrhosisValue, ui.cirrhosisLabel):
        tip = widget.toolTip
        assert tip.startswith("Probability of cirrhosis")
        assert "0.45, at or above the operating point 0.41: positive." in tip
        assert "Youden" in tip and "does not use them" in tip
        assert "The model was trained on: 252 simulated phantoms" in tip


def test_nothing_is_marked_without_points(shown):
    tip = shown(**CHANGES).cirrhosisBar.toolTip
    some = {**CHANGES["operating_points"], "cirrhosis": None}
    ui = shown(**{**CHANGES, "operating_points": some})
    assert texts(ui) == ["85 %, no", "70 %, yes", "45 %"] and marked(ui) == [True, True, False]
    assert "operating point" in tip and ui.cirrhosisBar.toolTip == "Probability of cirrhosis: F4."


def test_a_scene_with_a_result_of_schema_3_is_shown(shown):
    ui = shown(**{**CHANGES, "schema": 3, "operating_points": None})
    assert texts(ui) == ["85 %", "70 %", "45 %"] and marked(ui) == [False] * 3
    assert ui.stageLabel.text == "F3"
