"""Where the outlines of the organs come from is told by every result that they lead to."""

import json
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import slicer
import slicer_host
from small_scene import add_segmentation, add_transform, add_volume, make_abdomen, rigid

from LiverFibrosisStagingLib import read_ct, stage
from LiverFibrosisStagingLib.imaging.segmentation import shipped_network
from LiverFibrosisStagingLib.report.summary import table_text
from LiverFibrosisStagingLib.scene.mrml import OUTLINED_ATTRIBUTE, find_segments, scene_inputs
from LiverFibrosisStagingLib.scene.scene_results import (
    find_part,
    scene_result,
    show_result,
    stored_summary,
)

BROKEN = '{"name": 1, "sha256": "0", "masks_sha256": "0"}'
NETWORK = {"name": "VNet", "sha256": "0" * 64}


@pytest.fixture(autouse=True)
def scene():
    scene = slicer_host.start()
    scene.Clear(0)
    return scene


@pytest.fixture(scope="module")
def abdomen():
    return make_abdomen()


@pytest.fixture(scope="module")
def outlined(abdomen, model):
    """A result whose masks a network has just outlined."""
    return stage(*abdomen, model, segmentation={**NETWORK, "edited": False})


@pytest.fixture
def shown(abdomen, outlined):
    """The CT and the segmentation that was made for it."""
    volume = add_volume(abdomen[0])
    show_result(outlined, volume)
    return volume, find_part(volume, "organs")


def told(volume, node):
    """What a result says of the masks of a segmentation."""
    return scene_inputs(volume, node).arguments()["segmentation"]


def array(node, organ, volume):
    return slicer.util.arrayFromSegmentBinaryLabelmap(node, organ, volume)


def change(node, organ, volume, voxels):
    slicer.util.updateSegmentBinaryLabelmapFromArray(voxels, node, organ, volume)


# ---------------------------------------------------------------------------- without a panel


def test_outlines_keep_their_network_until_they_are_edited(shown):
    volume, node = shown
    assert told(volume, node) == {**NETWORK, "edited": False}
    before = array(node, "spleen", volume)
    eaten = before.copy()
    eaten[tuple(np.argwhere(eaten)[0])] = 0  # one voxel of one organ
    change(node, "spleen", volume, eaten)
    assert told(volume, node) == {**NETWORK, "edited": True}
    change(node, "spleen", volume, before)
    assert told(volume, node) == {**NETWORK, "edited": False}
    node.GetSegmentation().RemoveSegment("spleen")
    assert told(volume, node) == {**NETWORK, "edited": True}


def test_moved_outlines_are_edited_ones(shown):
    volume, node = shown
    transform = add_transform(rigid(0, (0.0, 0.0, 4.1))).GetID()
    node.SetAndObserveTransformNodeID(transform)
    assert told(volume, node)["edited"]
    volume.SetAndObserveTransformNodeID(transform)  # the patient is moved, not the outlines
    assert not told(volume, node)["edited"]


def test_another_segmentation_has_no_network(abdomen, shown):
    volume, _ = shown
    assert told(volume, add_segmentation(volume, liver=abdomen[1], spleen=abdomen[2])) is None
    labels = add_volume(abdomen[1], "Mask", "vtkMRMLLabelMapVolumeNode")
    assert told(volume, labels) is None


@pytest.mark.parametrize("value", ["", "{", "[1]", "null", BROKEN])
def test_a_broken_attribute_is_none(value, shown):
    volume, node = shown
    node.SetAttribute(OUTLINED_ATTRIBUTE, value)
    assert told(volume, node) is None


def test_a_saved_scene_keeps_it(shown, scene, tmp_path):
    (tmp_path / "scene").mkdir()
    assert scene.SaveSceneToSlicerDataBundleDirectory(str(tmp_path / "scene"), None)
    scene.Clear(0)
    (saved,) = tmp_path.rglob("*.mrml")
    scene.SetURL(str(saved))
    assert scene.Connect()
    volume = slicer.util.getNode("CT")
    node = find_part(volume, "organs")
    assert told(volume, node) == {**NETWORK, "edited": False}
    voxels = array(node, "liver", volume)
    voxels[0, 0, 0] = 1
    change(node, "liver", volume, voxels)
    assert told(volume, node) == {**NETWORK, "edited": True}


def test_shown_again_edited_outlines_stay_as_they_are(outlined, shown):
    volume, node = shown
    voxels = array(node, "liver", volume)
    voxels[:10] = 0
    change(node, "liver", volume, voxels)
    show_result(outlined.explain("F0"), volume)
    assert find_part(volume, "organs") is node
    np.testing.assert_array_equal(array(node, "liver", volume), voxels)


def test_new_outlines_do_not_replace_those_that_may_be_edited(outlined, shown):
    volume, node = shown
    other = {
        **outlined.provenance,
        "segmentation": {**NETWORK, "sha256": "1" * 64, "edited": False},
    }
    show_result(replace(outlined, provenance=other), volume)
    made = find_part(volume, "organs")
    assert made is not node and node.GetScene() is not None
    assert told(volume, made)["sha256"] == "1" * 64
    assert told(volume, node) == {**NETWORK, "edited": False}


def test_results_of_edited_or_given_masks_bring_no_segmentation(outlined):
    for segmentation in (None, {**NETWORK, "edited": True}):
        provenance = {**outlined.provenance, "segmentation": segmentation}
        assert scene_result(replace(outlined, provenance=provenance)).organs is None
    assert scene_result(outlined).organs is not None


def test_warnings_go_with_outlines_that_nobody_has_looked_at(abdomen, outlined, model):
    edited = stage(*abdomen, model, segmentation={**NETWORK, "edited": True})
    given = stage(*abdomen, model)
    assert edited.summary()["segmentation"] == {**NETWORK, "edited": True}
    assert given.summary()["segmentation"] is None
    assert not any("automatically" in warning for warning in (*edited.warnings, *given.warnings))
    assert sum("automatically" in warning for warning in outlined.warnings) == 1
    lonely = stage(*abdomen[:2], model=model, segmentation={**NETWORK, "edited": False})
    assert any("No spleen was found" in warning for warning in lonely.warnings)
    for result, words in ((edited, "VNet, edited"), (outlined, "VNet"), (given, "User")):
        assert f"Liver and spleen segmented by\t{words}\t" in table_text(result.summary())


# ---------------------------------------------------------------------------- found organs


def test_found_organs_become_segments_that_can_be_chosen(sample):
    """Without a segmentation Stage makes one; staged with that, the result is the same."""
    logic = slicer_host.import_module().LiverFibrosisStagingLogic()
    volume = add_volume(read_ct(sample["ct"]))
    result = logic.stageVolume(volume)
    logic.showResult(result, volume)
    (node,) = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
    segmentation = node.GetSegmentation()
    assert [find_segments(node, organ) for organ in ("liver", "spleen")] == [
        ("liver",),
        ("spleen",),
    ]
    for organ, code in (("liver", "10200004"), ("spleen", "78961009")):
        segment = segmentation.GetSegment(organ)
        assert f"~SCT^{code}^{organ.capitalize()}~" in segment.GetTerminology()
        segment.SetName("x")  # found by its code, not by its name
        assert find_segments(node, organ) == (organ,)
        mask = sitk.GetArrayFromImage(getattr(result, organ))
        np.testing.assert_array_equal(array(node, organ, volume) > 0, mask > 0)
    assert node.GetNodeReferenceID("referenceImageGeometryRef") == volume.GetID()
    again = logic.stageVolume(volume, node)
    np.testing.assert_array_equal(again.probabilities, result.probabilities)
    assert again.warnings == result.warnings
    assert again.summary()["segmentation"] == result.summary()["segmentation"]
    assert again.summary()["segmentation"]["sha256"] == shipped_network().sha256
    logic.showResult(again, volume)
    assert slicer.util.getNodesByClass("vtkMRMLSegmentationNode") == [node]


# ---------------------------------------------------------------------------- in the panel


@pytest.fixture
def panel():
    pytest.importorskip("PySide6.QtUiTools", exc_type=ImportError)
    panel = slicer_host.open_panel()
    yield panel
    slicer_host.close_panel(panel)


def test_staged_twice_on_the_panel(panel, tmp_path, scene):
    ui = panel.ui
    volume, own = slicer_host.import_module().loadSample()

    def staged(node):
        """Warnings that the outlines were made automatically, and what the JSON says of them."""
        ui.inputVolumeSelector.setCurrentNode(volume)
        ui.segmentationSelector.setCurrentNode(node)
        ui.stageButton.click()
        slicer_host.wait_until(lambda: not ui.progressWidget.visible, 300)
        folder = panel._result[1].save(tmp_path / "saved")
        written = json.loads((folder / "staging.json").read_text(encoding="utf-8"))
        assert written["segmentation"] == stored_summary(volume)["segmentation"]
        return "automatically" in ui.warningsLabel.text, written["segmentation"]

    network = {"name": shipped_network().card.name, "sha256": shipped_network().sha256}
    unedited, edited = ({**network, "edited": value} for value in (False, True))
    assert staged(None) == (True, unedited)
    made = find_part(volume, "organs")
    assert staged(None) == (True, unedited)
    assert staged(made) == (True, unedited)  # chosen by hand
    assert staged(own) == (False, None)
    voxels = array(made, "spleen", volume)
    voxels[tuple(np.argwhere(voxels)[0])] = 0
    change(made, "spleen", volume, voxels)
    assert staged(None) == (False, edited)
    np.testing.assert_array_equal(array(made, "spleen", volume), voxels)
