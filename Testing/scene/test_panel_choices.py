"""Which CT and segmentation the panel chooses; each result belongs to its CT."""

import numpy as np
import pytest

pytest.importorskip(
    "PySide6.QtUiTools", reason="PySide6 cannot be imported on this machine", exc_type=ImportError
)

import sample_data_host
import slicer
import slicer_host
from panel_steps import choose, is_busy, load_scene, of_class, save_scene, stage
from slicer_host import wait_until

from LiverFibrosisStagingLib.scene.scene_nodes import find_part

pytestmark = pytest.mark.usefixtures("single_network")


def load_sample():
    return slicer_host.import_module().loadSample()


def settle():
    """Let Qt process pending events."""
    slicer.app.processEvents()


def chosen(panel):
    return panel.ui.inputVolumeSelector.currentNode(), panel.ui.segmentationSelector.currentNode()


def add_volume(name, voxels=True, class_name="vtkMRMLScalarVolumeNode"):
    node = slicer.mrmlScene.AddNewNodeByClass(class_name, name)
    if voxels:
        slicer.util.updateVolumeFromArray(node, np.zeros((4, 4, 4), np.int16))
    return node


def add_segmentation(name, volume=None, liver=True):
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    node.GetSegmentation().AddEmptySegment("", "Liver" if liver else "Bone")
    if volume is not None:
        node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    return node


# ---------------------------------------------------------------------------- what comes in later


def test_a_ct_that_is_loaded_while_the_panel_is_open_is_chosen(panel):
    volume, segmentation = load_sample()  # as in the console
    settle()
    assert chosen(panel) == (volume, segmentation) and panel.ui.stageButton.enabled
    second, _ = load_sample()
    settle()
    assert chosen(panel) == (volume, segmentation) and second is not volume


def test_the_sample_data_modules_sample_is_chosen(panel, host):
    host.open_module()
    sample_data_host.SampleDataLogic().clickButton("LiverFibrosisPhantom")
    settle()
    volume, segmentation = chosen(panel)
    assert volume.GetName() == "LiverFibrosisPhantom"
    assert segmentation.GetName() == "LiverFibrosisPhantom organs"
    assert "Liver; Spleen" in panel.ui.foundLabel.text


def test_label_maps_empty_volumes_and_results_are_no_cts(panel):
    add_volume("labels", class_name="vtkMRMLLabelMapVolumeNode")
    later = add_volume("later", voxels=False)
    add_segmentation("bones", liver=False)
    settle()
    assert chosen(panel) == (None, None)
    slicer.util.updateVolumeFromArray(later, np.zeros((4, 4, 4), np.int16))  # voxels come now
    settle()
    assert chosen(panel) == (later, None)


def test_the_smooth_map_is_not_taken_for_a_ct(staged):
    staged.ui.smoothCheckBox.click()
    wait_until(lambda: not is_busy(staged))
    volume, _ = chosen(staged)
    smooth = find_part(volume, "smooth")
    slicer.mrmlScene.RemoveNode(volume)
    settle()
    assert smooth is not None and chosen(staged)[0] is None


def test_automatic_stays_where_the_user_chose_it(ready):
    volume, segmentation = chosen(ready)
    choose(ready, volume, None)
    add_segmentation("another", volume)
    settle()
    ready.exit()
    ready.enter()
    assert chosen(ready) == (volume, None)
    slicer.mrmlScene.RemoveNode(segmentation)
    settle()
    assert chosen(ready) == (volume, None)


def test_a_segmentation_that_was_deleted_is_replaced(ready):
    volume, segmentation = chosen(ready)
    other = add_segmentation("another", volume)
    settle()
    assert chosen(ready) == (volume, segmentation)
    slicer.mrmlScene.RemoveNode(segmentation)
    ready.enter()
    assert chosen(ready) == (volume, other)


# ---------------------------------------------------------------------------- two CTs


def test_another_ct_does_not_get_the_first_ones_liver(panel):
    one, two = add_volume("one"), add_volume("two")
    of_one, of_two = add_segmentation("liver of one", one), add_segmentation("liver of two", two)
    loaded = add_segmentation("from a file")  # nothing says whose it is
    settle()
    assert chosen(panel) == (one, of_one)
    panel.ui.inputVolumeSelector.setCurrentNode(two)
    assert chosen(panel) == (two, of_two)
    slicer.mrmlScene.RemoveNode(of_one)
    panel.ui.inputVolumeSelector.setCurrentNode(one)
    assert chosen(panel) == (one, None) and "automatically" in panel.ui.foundLabel.text
    panel.ui.segmentationSelector.setCurrentNode(of_two)  # the user's own wish, but said
    assert chosen(panel) == (one, of_two) and "another CT: two" in panel.ui.foundLabel.text
    slicer.mrmlScene.RemoveNode(two)
    panel.ui.segmentationSelector.setCurrentNode(None)
    panel.ui.segmentationSelector.setCurrentNode(loaded)
    assert chosen(panel) == (one, loaded)


def test_a_loaded_segmentation_is_taken_where_there_is_one_ct(panel):
    add_segmentation("from a file")
    one = add_volume("one")
    settle()
    assert chosen(panel)[0] is one and chosen(panel)[1].GetName() == "from a file"


def test_each_ct_keeps_its_result_and_display(staged):
    ui, first = staged.ui, chosen(staged)[0]
    second, organs = load_sample()
    second.SetName("Second")
    organs.GetSegmentation().RemoveSegment("spleen")
    summary = ui.measurementsLabel.text
    ui.inputVolumeSelector.setCurrentNode(second)
    assert ui.emptyLabel.visible and "Second" in ui.emptyLabel.text and not ui.saveButton.enabled
    ui.opacitySlider.value = 40.0
    stage(staged)
    assert ui.resultWidget.visible and ui.measurementsLabel.text != summary
    ui.inputVolumeSelector.setCurrentNode(first)
    assert ui.measurementsLabel.text == summary
    assert not ui.saveButton.enabled and "Stage the CT again" in ui.saveButton.toolTip
    slicer.util.setSliceViewerLayers(background=first, label=find_part(first, "bands"))
    ui.inputVolumeSelector.setCurrentNode(second)
    ui.opacitySlider.value = 70.0
    ui.inputVolumeSelector.setCurrentNode(first)
    composites = of_class("vtkMRMLSliceCompositeNode")
    assert {view.GetLabelOpacity() for view in composites} == {0.7}


def test_a_result_goes_to_the_ct_that_was_staged(ready):
    first, segmentation = chosen(ready)
    second = add_volume("Second")
    ready.ui.stageButton.click()
    ready.logic.getParameterNode().inputVolume = second  # by a script: the selectors are disabled
    wait_until(lambda: not is_busy(ready), 120)
    assert ready.ui.emptyLabel.visible and find_part(second, "results") is None
    assert find_part(first, "results") is not None
    choose(ready, first, segmentation)
    assert ready.ui.resultWidget.visible and ready.ui.saveButton.enabled


# ---------------------------------------------------------------------------- scenes


def test_a_scene_that_is_added_does_not_change_what_is_chosen(ready, tmp_path):
    """The parameter node of a scene that is read in replaces the one that is there."""
    saved = save_scene(tmp_path / "scene")
    for _ in range(2):
        slicer.mrmlScene.SetURL(str(saved))
        assert slicer.mrmlScene.Import()
        settle()
        volume, segmentation = chosen(ready)
        assert volume.GetName() == "LiverFibrosisPhantom" and segmentation is not None
    assert ready.ui.stageButton.enabled
    ready.ui.inputVolumeSelector.setCurrentNode(None)  # the panel is connected, once
    assert ready.logic.getParameterNode().inputVolume is None


def test_automatic_comes_back_with_a_scene(ready, tmp_path):
    choose(ready, chosen(ready)[0], None)
    load_scene(save_scene(tmp_path / "scene"))
    settle()
    assert chosen(ready)[0] is not None and chosen(ready)[1] is None
