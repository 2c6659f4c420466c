"""The steps of in_slicer.py, in their order: what is done, and the expected result."""

import re
import tempfile
import unittest
from pathlib import Path
from typing import Any

import numpy as np
import qt
import slicer
import vtk
from in_slicer_walk import (
    MODULE,
    ROOT,
    STAGES,
    STEPS,
    Walk,
    at_rest,
    check,
    column_of,
    in_scene,
    of_class,
    step,
)

SAMPLE = "LiverFibrosisPhantom"
LIVER, SPLEEN = "10200004", "78961009"  # SNOMED CT
ABDOMEN = (350.0, 50.0)  # window and level, HU

__all__ = ["STEPS"]


@step("empty", computes=False)
def empty_panel(walk: Walk) -> None:
    """The panel shows what is missing."""
    ui = walk.ui
    check(not ui.stageButton.enabled, "Stage is enabled without a CT")
    check(not ui.missingLabel.isHidden() and ui.missingLabel.text, "nothing shows what is missing")
    check("CT" in ui.stageButton.toolTip, f"Stage is disabled because: {ui.stageButton.toolTip}")
    check(not walk.has_result() and not walk.busy(), "a result or a running job in an empty scene")


@step("empty", computes=False)
def sample_data(walk: Walk) -> None:
    """SampleData.downloadSample loads a CT and its two segments; the open panel chooses them."""
    import SampleData

    SampleData.SampleDataLogic().downloadSample(SAMPLE)
    walk.settle()
    volumes, nodes = of_class("vtkMRMLScalarVolumeNode"), of_class("vtkMRMLSegmentationNode")
    check(len(volumes) == 1, f"{len(volumes)} scalar volumes")
    check(len(nodes) == 1, f"{len(nodes)} segmentations")
    segmentation = nodes[0].GetSegmentation()
    found = {}
    for position in range(segmentation.GetNumberOfSegments()):
        segment = segmentation.GetNthSegment(position)
        voxels = slicer.util.arrayFromSegmentBinaryLabelmap(
            nodes[0], segmentation.GetNthSegmentID(position), volumes[0]
        )
        check(voxels.any(), f"segment {segment.GetName()} is empty")
        found[segment.GetName().lower()] = segment.GetTerminology()
    check(sorted(found) == ["liver", "spleen"], f"{len(found)} segments: {sorted(found)[:5]}")
    check(LIVER in found["liver"] and SPLEEN in found["spleen"], f"terminology: {found}")
    check(walk.volume() is volumes[0], "the panel has not chosen the sample's CT")


@step("loaded", computes=False)
def install(walk: Walk) -> None:
    """Slicer asks before it installs; declining is no error."""
    if not walk.lacking():
        walk.notes.append("all required packages are already installed")
        return
    walk.dialogs.decline = True
    walk.ui.stageButton.click()
    walk.wait(lambda: not walk.busy(), "the declined installation")
    check(len(walk.dialogs.questions) == 1, f"not one question: {walk.dialogs.questions}")
    check(not walk.dialogs.errors, f"an error after declining: {walk.dialogs.errors}")
    check(not walk.has_result(), "a result without the required packages")
    walk.dialogs.clear()
    walk.ui.stageButton.click()
    walk.wait(lambda: walk.dialogs.errors or walk.has_result(), "installing and staging")


@step("loaded")
def stage(walk: Walk) -> None:
    """Progress, then consistent numbers and the map in every view; the panel keeps its width."""
    ui, seen = walk.ui, set()

    def note(value: int) -> None:
        seen.add(value)

    views = slicer.app.layoutManager().viewport()
    walk.settle()
    width = views.width
    ui.progressBar.connect("valueChanged(int)", note)
    ui.stageButton.click()
    check(walk.busy() and not ui.inputVolumeSelector.enabled, "the click on Stage starts nothing")
    walk.wait(lambda: ui.progressBar.value >= 300 or not walk.busy(), "the network")
    walk.picture("while-staging")
    walk.wait(lambda: not walk.busy(), "staging")
    ui.progressBar.disconnect("valueChanged(int)", note)
    check(not walk.dialogs.errors and walk.has_result(), f"no result: {walk.dialogs.errors}")
    check(len(seen) > 3, f"hardly any progress was shown: {sorted(seen)}")
    bars = walk.bars()
    check(abs(sum(bars) - 1000) <= 3, f"probabilities add up to {sum(bars)} / 1000")
    median = STAGES[int(np.argmax(np.cumsum(bars) >= sum(bars) / 2))]
    check(ui.stageLabel.text == median, "the stage is not the median of the probabilities")
    check("Liver" in ui.measurementsLabel.text, "no measurements")
    check(" mL" in ui.signsLabel.text, "no signs")
    check(ui.checksLabel.text and ui.checksCollapsibleButton.text, "no checks")
    supported = walk.logic.storedSummary(walk.volume())["supported"]
    check(ui.stageLabel.isHidden() != supported, "an unsupported stage in large letters")
    check(ui.unsupportedLabel.isHidden() == supported, "the reasons are not shown")
    check("esearch use" in ui.researchUseLabel.text, "the research-use notice is missing")
    walk.check_views()
    voxels = slicer.util.arrayFromVolume(walk.part("bands"))
    check(voxels.max() == 10, f"the map's highest band is {voxels.max()}")
    walk.settle()
    check(views.width == width, f"the views were {width} pixels wide and are {views.width}")
    for name in ("explainedComboBox", "saveButton", "reportButton", "smoothCheckBox"):
        check(getattr(ui, name).enabled, f"{name} is disabled")


@step("staged")
def nodes_of_a_result(walk: Walk) -> None:
    """Ordinary nodes, named after the CT and filed with it; its table and chart are active."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    for part in ("bands", "results", "probabilities", "plot", "signs", "percentiles_plot"):
        node = walk.part(part)
        check(node is not None, f"no {part}")
        check(node.GetName().startswith(walk.volume().GetName()), f"{node.GetName()} by name")
        item = hierarchy.GetItemByDataNode(node)
        check(item != hierarchy.GetInvalidItemID(), f"{node.GetName()} is not in the hierarchy")
        at_root = hierarchy.GetItemParent(item) == hierarchy.GetSceneItemID()
        check(not at_root, f"{node.GetName()} is at the subject hierarchy's root")
    selection = slicer.app.applicationLogic().GetSelectionNode()
    tables = {walk.part(part).GetID() for part in ("results", "probabilities")}
    check(selection.GetActiveTableID() in tables, "no table of the result is the active one")
    chart = walk.part("plot").GetID()
    check(selection.GetActivePlotChartID() == chart, "the result's chart is not the active one")


@step("staged")
def table_and_chart(walk: Walk) -> None:
    """The buttons show the table and the chart in views of their kind."""
    manager = slicer.app.layoutManager()
    layout = manager.layout
    walk.click("showTableButton", "the table")
    walk.settle()
    tables = slicer.util.getNodesByClass("vtkMRMLTableViewNode")
    shown = [view.GetTableNodeID() for view in tables]
    check(walk.part("results").GetID() in shown, f"table views show {shown}")
    walk.picture("table-shown")
    walk.click("showPlotButton", "the chart")
    walk.settle()
    charts = slicer.util.getNodesByClass("vtkMRMLPlotViewNode")
    shown = [view.GetPlotChartNodeID() for view in charts]
    check(walk.part("plot").GetID() in shown, f"plot views show {shown}")
    walk.picture("chart-shown")
    manager.setLayout(layout)


@step("staged")
def signs_table_and_chart(walk: Walk) -> None:
    """The buttons show the signs in a table view, and their percentiles in a plot view."""
    manager = slicer.app.layoutManager()
    layout = manager.layout
    walk.click("showSignsTableButton", "the signs")
    walk.settle()
    tables = slicer.util.getNodesByClass("vtkMRMLTableViewNode")
    shown = [view.GetTableNodeID() for view in tables]
    check(walk.part("signs").GetID() in shown, f"table views show {shown}")
    walk.picture("signs-table-shown")
    walk.click("showSignsPlotButton", "the percentiles")
    walk.settle()
    charts = slicer.util.getNodesByClass("vtkMRMLPlotViewNode")
    shown = [view.GetPlotChartNodeID() for view in charts]
    check(walk.part("percentiles_plot").GetID() in shown, f"plot views show {shown}")
    walk.picture("signs-chart-shown")
    manager.setLayout(layout)


@step("staged")
def report(walk: Walk) -> None:
    """The report is written and opened in the browser, without a dialog."""
    walk.click("reportButton", "the report")
    check(not walk.dialogs.errors, f"an error: {walk.dialogs.errors}")
    check(len(walk.dialogs.opened) == 1, f"opened: {walk.dialogs.opened}")
    page = Path(walk.dialogs.opened[0])
    check(page.name == "report.html" and page.is_file(), f"{page} was not written")
    text = page.read_text(encoding="utf-8")
    check("esearch use" in text, "the report has no research-use notice")
    check(walk.volume().GetName() not in text, "the report names the CT")
    walk.notes.append(f"{page.stat().st_size / 1e6:.1f} MB")


@step("staged")
def organs_in_3d(walk: Walk) -> None:
    """Surfaces of liver and spleen are shown on demand and hidden again."""
    node = walk.ui.segmentationSelector.currentNode() or walk.part("organs")
    walk.click("show3DButton", "surfaces")
    walk.settle()
    surface = slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()
    has_surfaces = node.GetSegmentation().ContainsRepresentation(surface)
    check(has_surfaces, f"{node.GetName()} has no surfaces")
    check(node.GetDisplayNode().GetVisibility3D(), "the surfaces are not visible")
    walk.picture("surfaces-shown")
    walk.click("show3DButton", "no surfaces")
    check(not node.GetDisplayNode().GetVisibility3D(), "the surfaces stay")


@step("staged")
def explain(walk: Walk) -> None:
    """Another stage is explained: another map, the same numbers."""
    ui, before = walk.ui, slicer.util.arrayFromVolume(walk.part("bands")).copy()
    bars, shown = walk.bars(), ui.explainedComboBox.currentIndex
    for key in (qt.Qt.Key_Home, qt.Qt.Key_End):  # the first of the list, or else the last
        if ui.explainedComboBox.currentIndex == shown:
            press = qt.QKeyEvent(qt.QEvent.KeyPress, key, qt.Qt.NoModifier)
            qt.QApplication.sendEvent(ui.explainedComboBox, press)
            walk.wait(lambda: not walk.busy(), "explaining")
    check(ui.explainedComboBox.currentIndex != shown, "the list does not keep the choice")
    after = slicer.util.arrayFromVolume(walk.part("bands"))
    check((after != before).any(), "the map is that of the stage before")
    check(walk.bars() == bars, "explaining changed the probabilities")
    walk.check_views()


@step("staged")
def smooth_map(walk: Walk) -> None:
    """The smooth map is shown as the views' foreground and removed again."""
    walk.click("smoothCheckBox", "the smooth map")
    check(walk.ui.smoothCheckBox.checked, "the box is not checked")
    walk.check_views("smooth")
    walk.picture("smooth-map-shown")
    walk.click("smoothCheckBox", "the bands")
    walk.check_views()


@step("staged")
def outline_and_opacity(walk: Walk) -> None:
    """Outline, opacity, threshold and legend change the views."""
    ui, legend = walk.ui, slicer.modules.colors.logic().GetColorLegendDisplayNode
    walk.click("outlineCheckBox", "the outline")
    outlined = [logic.GetSliceNode().GetUseLabelOutline() for logic in walk.slices()]
    check(all(outlined), f"outline in the views: {outlined}")
    walk.picture("outline-shown")
    walk.click("outlineCheckBox", "the bands")
    check(not walk.slices()[0].GetSliceNode().GetUseLabelOutline(), "the outline stays")
    ui.opacitySlider.value = 60.0
    ui.thresholdSlider.value = 40.0
    slicer.app.processEvents()
    opacity = walk.slices()[0].GetSliceCompositeNode().GetLabelOpacity()
    check(abs(opacity - 0.6) < 1e-6, f"opacity 60 % is {opacity} in the view")
    colors = walk.part("bands").GetDisplayNode().GetColorNode().GetLookupTable()
    check(colors.GetTableValue(2)[3] == 0.0, "a band below the threshold is still shown")
    check(colors.GetTableValue(7)[3] > 0.0, "a band above the threshold is not shown")
    walk.picture("threshold-shown")
    ui.opacitySlider.value, ui.thresholdSlider.value = 100.0, 0.0
    check(legend(walk.part("bands")).GetVisibility(), "no legend")
    walk.click("legendCheckBox", "no legend")
    check(not legend(walk.part("bands")).GetVisibility(), "the legend stays")
    walk.click("legendCheckBox", "the legend")


@step("staged")
def jump(walk: Walk) -> None:
    """Every view shows a slice through the strongest region."""
    for logic in walk.slices():
        logic.GetSliceNode().JumpSliceByCentering(0, 0, 0)
    walk.click("jumpButton", "jumping")
    node = walk.part("bands")
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    strongest = np.argwhere(slicer.util.arrayFromVolume(node) == 10)[:, ::-1]  # i, j, k
    ras = np.c_[strongest, np.ones(len(strongest))] @ slicer.util.arrayFromVTKMatrix(matrix)[:3].T
    for logic in walk.slices():
        node = logic.GetSliceNode()
        plane = slicer.util.arrayFromVTKMatrix(node.GetSliceToRAS())[:3]
        distance = np.abs((ras - plane[:, 3]) @ plane[:, 2]).min()
        check(distance < 1e-3, f"{node.GetName()} is {distance:.3f} mm from the strongest region")


@step("staged")
def save_result(walk: Walk) -> None:
    """Files in a folder named after the CT; what is there is replaced only after a question."""
    chosen = Path(tempfile.mkdtemp(prefix="saved", dir=walk.folder))
    walk.dialogs.folder = str(chosen)
    walk.click("saveButton", "saving")
    saved = next(chosen.rglob("staging.json"), None)
    check(saved is not None, "nothing was saved")
    check(saved.parent != chosen, "saved into the chosen folder itself")
    name = re.sub(r"[^\w.+-]+", "_", walk.volume().GetName())
    check(name in saved.parent.name, f"{walk.volume().GetName()} is in {saved.parent.name}")
    names = {path.name for path in saved.parent.iterdir()}
    check({"overview.png", "location_map_label.nrrd"} <= names, f"only {sorted(names)}")
    check(not walk.dialogs.questions, f"asked: {walk.dialogs.questions}")
    before = saved.stat().st_mtime_ns
    walk.dialogs.decline = True
    walk.click("saveButton", "saving again")
    check(len(walk.dialogs.questions) == 1, f"asked before replacing: {walk.dialogs.questions}")
    check(saved.stat().st_mtime_ns == before, "replaced although declined")
    walk.dialogs.decline = False
    walk.click("saveButton", "saving again")
    check(saved.stat().st_mtime_ns != before, "not replaced although confirmed")


@step("staged")
def leave_and_come_back(walk: Walk) -> None:
    """Opening another module in between changes nothing."""
    bars = walk.bars()
    slicer.util.selectModule("Data")
    slicer.app.processEvents()
    slicer.util.selectModule(MODULE)
    slicer.app.processEvents()
    check(walk.has_result() and walk.bars() == bars, "the result is gone")
    walk.check_views()


@step("staged")
def reload_the_scene(walk: Walk) -> None:
    """The saved scene restores the choice, the result and its display."""
    ui, path, tips = walk.ui, walk.folder / "scene.mrb", walk.tips(enabled=True)
    ui.opacitySlider.value = 60.0
    before = (walk.volume().GetName(), ui.stageLabel.text, walk.bars(), ui.measurementsLabel.text)
    check(slicer.util.saveScene(str(path), {}), "the scene was not saved")
    slicer.mrmlScene.Clear(0)
    slicer.app.processEvents()
    check(not walk.has_result() and not ui.stageButton.enabled, "the panel kept a closed scene")
    walk.check_reasons(tips)
    slicer.util.loadScene(str(path), {})
    walk.settle()
    path.unlink()
    check(walk.volume() is not None, "the chosen CT is lost")
    check(walk.has_result(), "the result is not shown")
    after = (walk.volume().GetName(), ui.stageLabel.text, walk.bars(), ui.measurementsLabel.text)
    check(after == before, f"before {before}, after {after}")
    check(ui.opacitySlider.value == 60.0, f"the opacity is {ui.opacitySlider.value}")
    walk.check_views()
    walk.check_reasons(tips)
    ui.opacitySlider.value = 100.0
    walk.stage()
    check(ui.saveButton.enabled, "Save is disabled after staging again")


@step("staged")
def second_ct(walk: Walk) -> None:
    """Two CTs have two results; the panel shows that of the chosen one."""
    first, bars = walk.volume(), walk.bars()
    second = walk.load_ct("walk-second")
    check(walk.volume() is first, "the chosen CT was replaced by the one loaded last")
    voxels = slicer.util.arrayFromVolume(second)
    voxels[voxels > 70] -= 40  # less enhancement
    slicer.util.arrayFromVolumeModified(second)
    segmentation = walk.ui.segmentationSelector.currentNode()
    walk.choose(second, segmentation)
    check(not walk.has_result(), "the first CT's result is shown for the second")
    check("walk-second" in walk.ui.emptyLabel.text, f"it says: {walk.ui.emptyLabel.text}")
    walk.stage()
    check(walk.bars() != bars, "both have the same numbers")
    mine = walk.bars()
    walk.check_views()
    walk.choose(first, segmentation)
    check(walk.bars() == bars, "the first CT's numbers are not shown again")
    walk.choose(second, segmentation)
    check(walk.bars() == mine, "the second CT's numbers are not shown again")


@step("empty")
def ct_alone(walk: Walk) -> None:
    """A loaded CT is chosen; staged alone, it gets a segmentation and the abdomen window."""
    volume = walk.load_ct("walk-first")
    check(walk.volume() is volume, "a CT loaded while the panel is open is not chosen")
    walk.choose(volume, None)
    walk.stage()
    display = volume.GetDisplayNode()
    window = (display.GetWindow(), display.GetLevel())
    check(window == ABDOMEN, f"window and level are {window}")
    check(walk.part("organs") is not None, "no segmentation of the organs")
    provenance = walk.logic.storedSummary(volume)["segmentation"]
    check(provenance, "the automatic segmentation is not recorded")
    check("automatically" in walk.ui.warningsLabel.text, "no warning to check the segmentation")

    display.SetAutoWindowLevel(False)
    display.SetWindowLevel(1500, -600)
    walk.stage()
    kept = (display.GetWindow(), display.GetLevel())
    check(kept == (1500.0, -600.0), f"the user's window became {kept}")
    again = walk.logic.storedSummary(volume)["segmentation"]
    check(again == provenance, f"staged twice, {provenance} became {again}")
    check("automatically" in walk.ui.warningsLabel.text, "staged twice, the warning is gone")

    organs = walk.part("organs")
    segment_id = organs.GetSegmentation().GetNthSegmentID(0)
    voxels = slicer.util.arrayFromSegmentBinaryLabelmap(organs, segment_id, volume)
    voxels[: len(voxels) // 2] = 0
    slicer.util.updateSegmentBinaryLabelmapFromArray(voxels, organs, segment_id, volume)
    walk.stage()
    edited = walk.logic.storedSummary(volume)["segmentation"]
    expected = {**provenance, "edited": True}
    check(edited == expected, f"edited by hand, {provenance} became {edited}")


@step("loaded")
def cancel(walk: Walk) -> None:
    """Cancel ends staging without changing the scene."""
    walk.settle()
    before = in_scene()
    walk.start_staging()
    walk.click("stageButton", "cancelling")
    check(in_scene() == before, f"left behind: {in_scene() - before}")
    check(not walk.has_result() and walk.ui.stageButton.enabled, "not ready to stage again")
    walk.wait(at_rest, "the thread's end")


@step("loaded")
def close_while_running(walk: Walk) -> None:
    """Closing the scene ends staging; the next CT can be staged."""
    walk.start_staging()
    slicer.mrmlScene.Clear(0)
    walk.wait(lambda: not walk.busy() and at_rest(), "the end of staging")
    check(not walk.has_result() and not walk.ui.stageButton.enabled, "something is left")
    check(not of_class("vtkMRMLLabelMapVolumeNode"), "a label map is left")


@step("loaded")
def delete_while_running(walk: Walk) -> None:
    """Deleting the CT ends staging."""
    walk.start_staging()
    slicer.mrmlScene.RemoveNode(walk.volume())
    walk.wait(lambda: not walk.busy() and at_rest(), "the end of staging")
    check(not walk.has_result() and not walk.ui.stageButton.enabled, "something is left")


@step("loaded")
def refusals(walk: Walk) -> None:
    """Unsuitable input is refused with one sentence; the scene is not changed."""
    walk.settle()
    ui, before = walk.ui, in_scene()
    ui.modelPathLineEdit.currentPath = str(walk.folder / "absent.onnx")
    walk.click("stageButton", "refusing an absent model")
    walk.check_refused("absent.onnx")
    ui.modelPathLineEdit.currentPath = ""

    segmentation = ui.segmentationSelector.currentNode().GetSegmentation()
    for position in range(segmentation.GetNumberOfSegments()):
        segmentation.GetNthSegment(position).SetName("bone")
        segmentation.GetNthSegment(position).SetTerminology("")
    walk.click("stageButton", "refusing a segmentation without a liver")
    walk.check_refused("liver")
    check(in_scene() == before, f"left behind: {in_scene() - before}")

    voxels = np.zeros((40, 64, 64), np.int16)
    voxels[10:30, 16:48, 16:48] = 90
    walk.choose(slicer.util.addVolumeFromArray(voxels, name="walk-box"), None)
    walk.click("stageButton", "refusing what is no CT")
    walk.check_refused()


@step("loaded")
def wrong_phase(walk: Walk) -> None:
    """A CT without contrast is refused; with the tick, its stage is grey and has its reasons."""
    ui = walk.ui
    voxels = slicer.util.arrayFromVolume(walk.volume())
    voxels[voxels > 70] -= 70
    slicer.util.arrayFromVolumeModified(walk.volume())
    check(ui.anyPhaseCheckBox.isHidden(), "the tick is there before a refusal")
    walk.click("stageButton", "refusing a CT without contrast")
    walk.check_refused("portal-venous")
    check(not ui.anyPhaseCheckBox.isHidden(), "the tick is not offered")
    walk.picture("phase-refused")
    walk.click("anyPhaseCheckBox", "the tick")
    walk.click("stageButton", "staging in spite of the phase")
    check(walk.has_result(), f"no result: {walk.dialogs.errors}")
    check(ui.stageLabel.isHidden(), "the stage is shown in large letters")
    check(not ui.unsupportedLabel.isHidden(), "no reasons")
    check("portal-venous" in ui.unsupportedLabel.text, "the phase is not among the reasons")
    check(not ui.probabilitiesWidget.enabled, "the probabilities are not grey")


@step("empty")
def console_lines(walk: Walk) -> None:
    """The tutorial's lines for the Python console work when pasted."""
    text = (ROOT / "docs" / "slicer.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    check(len(blocks) >= 2, f"{len(blocks)} blocks of Python")
    names: dict[str, Any] = {"slicer": slicer}
    for block in blocks:
        if "slicer.util.exit" not in block:  # else it is a script
            exec(block, names)
    walk.wait(lambda: not names["batch"].isRunning, "the batch")
    walk.settle()
    check(names["result"].stage in STAGES, "no stage")
    for table in (names["table"], names["batch"].tableNode):
        check(table and column_of(table, "stage")[0] in STAGES, "no stage in a batch's table")
    check(walk.volume() is names["ct"], "the CT loaded in the console is not chosen")
    check(walk.has_result(), "the panel does not show what the console has staged")


@step("empty")
def self_test(walk: Walk) -> None:
    """The module's own test passes."""
    suite = unittest.TestLoader().loadTestsFromTestCase(walk.module.LiverFibrosisStagingTest)
    outcome = unittest.TestResult()
    suite.run(outcome)
    failures = [trace for _, trace in outcome.errors + outcome.failures]
    check(not failures, "; ".join(failures))
    check(outcome.testsRun and not outcome.skipped, f"not run: {outcome.skipped}")
    walk.notes.append(f"{outcome.testsRun} tests")
