"""Results record which network segmented the organs, and whether the masks were edited."""

import json
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import slicer
import slicer_host
from small_scene import add_segmentation, add_transform, add_volume, rigid

from LiverFibrosisStagingLib import read_ct, stage
from LiverFibrosisStagingLib.imaging.segmentation import shipped_network
from LiverFibrosisStagingLib.report.summary import table_text
from LiverFibrosisStagingLib.scene.mrml import SEGMENTED_ATTRIBUTE, find_segments, scene_inputs
from LiverFibrosisStagingLib.scene.scene_nodes import find_part, stored_summary
from LiverFibrosisStagingLib.scene.scene_results import scene_result, show_result

pytestmark = pytest.mark.usefixtures("scene")

BROKEN = '{"name": 1, "sha256": "0", "masks_sha256": "0"}'
NETWORK = {"name": "VNet", "sha256": "0" * 64}


@pytest.fixture(scope="module")
def automatic(abdomen, model):
    """A result whose masks a network has just made."""
    return stage(*abdomen, model, segmentation={**NETWORK, "edited": False})


@pytest.fixture
def shown(abdomen, automatic):
    """The CT and the segmentation that was made for it."""
    volume = add_volume(abdomen[0])
    show_result(automatic, volume)
    return volume, find_part(volume, "organs")


def recorded(volume, node):
    """What a result records about the masks of a segmentation."""
    return scene_inputs(volume, node).arguments()["segmentation"]


def array(node, organ, volume):
    return slicer.util.arrayFromSegmentBinaryLabelmap(node, organ, volume)


def change(node, organ, volume, voxels):
    slicer.util.updateSegmentBinaryLabelmapFromArray(voxels, node, organ, volume)


# ---------------------------------------------------------------------------- without a panel


def test_masks_keep_their_network_until_they_are_edited(shown):
    volume, node = shown
    assert recorded(volume, node) == {**NETWORK, "edited": False}
    before = array(node, "spleen", volume)
    eaten = before.copy()
    eaten[tuple(np.argwhere(eaten)[0])] = 0  # one voxel of one organ
    change(node, "spleen", volume, eaten)
    assert recorded(volume, node) == {**NETWORK, "edited": True}
    change(node, "spleen", volume, before)
    assert recorded(volume, node) == {**NETWORK, "edited": False}
    node.GetSegmentation().RemoveSegment("spleen")
    assert recorded(volume, node) == {**NETWORK, "edited": True}


def test_moved_masks_are_edited_ones(shown):
    volume, node = shown
    transform = add_transform(rigid(0, (0.0, 0.0, 4.1))).GetID()
    node.SetAndObserveTransformNodeID(transform)
    assert recorded(volume, node)["edited"]
    volume.SetAndObserveTransformNodeID(transform)  # the patient is moved, not the outlines
    assert not recorded(volume, node)["edited"]


def test_another_segmentation_has_no_network(abdomen, shown):
    volume, _ = shown
    assert recorded(volume, add_segmentation(volume, liver=abdomen[1], spleen=abdomen[2])) is None
    labels = add_volume(abdomen[1], "Mask", "vtkMRMLLabelMapVolumeNode")
    assert recorded(volume, labels) is None


@pytest.mark.parametrize("value", ["", "{", "[1]", "null", BROKEN])
def test_a_broken_attribute_is_none(value, shown):
    volume, node = shown
    node.SetAttribute(SEGMENTED_ATTRIBUTE, value)
    assert recorded(volume, node) is None


def test_a_saved_scene_keeps_it(shown, scene, tmp_path):
    (tmp_path / "scene").mkdir()
    assert scene.SaveSceneToSlicerDataBundleDirectory(str(tmp_path / "scene"), None)
    scene.Clear(0)
    (saved,) = tmp_path.rglob("*.mrml")
    scene.SetURL(str(saved))
    assert scene.Connect()
    volume = slicer.util.getNode("CT")
    node = find_part(volume, "organs")
    assert recorded(volume, node) == {**NETWORK, "edited": False}
    voxels = array(node, "liver", volume)
    voxels[0, 0, 0] = 1
    change(node, "liver", volume, voxels)
    assert recorded(volume, node) == {**NETWORK, "edited": True}


def test_edited_masks_are_kept_when_the_result_is_shown_again(automatic, shown):
    volume, node = shown
    voxels = array(node, "liver", volume)
    voxels[:10] = 0
    change(node, "liver", volume, voxels)
    show_result(automatic.explain("F0"), volume)
    assert find_part(volume, "organs") is node
    np.testing.assert_array_equal(array(node, "liver", volume), voxels)


def test_new_masks_do_not_replace_possibly_edited_ones(automatic, shown):
    volume, node = shown
    other = {
        **automatic.provenance,
        "segmentation": {**NETWORK, "sha256": "1" * 64, "edited": False},
    }
    show_result(replace(automatic, provenance=other), volume)
    made = find_part(volume, "organs")
    assert made is not node and node.GetScene() is not None
    assert recorded(volume, made)["sha256"] == "1" * 64
    assert recorded(volume, node) == {**NETWORK, "edited": False}


def test_results_of_edited_or_given_masks_bring_no_segmentation(automatic):
    for segmentation in (None, {**NETWORK, "edited": True}):
        provenance = {**automatic.provenance, "segmentation": segmentation}
        assert scene_result(replace(automatic, provenance=provenance)).organs is None
    assert scene_result(automatic).organs is not None


def test_warnings_for_unedited_automatic_masks(abdomen, automatic, model):
    edited = stage(*abdomen, model, segmentation={**NETWORK, "edited": True})
    given = stage(*abdomen, model)
    organs = ["liver", "spleen"]
    assert edited.summary()["segmentation"] == {**NETWORK, "edited": True, "organs": organs}
    assert given.summary()["segmentation"] is None
    assert not any("automatically" in warning for warning in (*edited.warnings, *given.warnings))
    assert sum("automatically" in warning for warning in automatic.warnings) == 1
    lonely = stage(*abdomen[:2], model=model, segmentation={**NETWORK, "edited": False})
    assert any("No spleen was found" in warning for warning in lonely.warnings)
    for result, words in ((edited, "V-Net, edited"), (automatic, "V-Net"), (given, "User")):
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
        """Whether it warns that the masks were made automatically, and their entry in the JSON."""
        ui.inputVolumeSelector.setCurrentNode(volume)
        ui.segmentationSelector.setCurrentNode(node)
        ui.stageButton.click()
        slicer_host.wait_until(lambda: not ui.progressWidget.visible, 300)
        folder = panel._panel._result[1].save(tmp_path / "saved")
        written = json.loads((folder / "staging.json").read_text(encoding="utf-8"))
        assert written["segmentation"] == stored_summary(volume)["segmentation"]
        return "automatically" in ui.warningsLabel.text, written["segmentation"]

    network = {"name": shipped_network().card.name, "sha256": shipped_network().sha256}
    network["organs"] = ["liver", "spleen"]
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
