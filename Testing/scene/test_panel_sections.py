"""The panel's sections on a result: why, signs, checks and report, and stages not supported."""

import math
import re
import types
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip(
    "PySide6.QtUiTools", reason="PySide6 cannot be imported on this machine", exc_type=ImportError
)

import SimpleITK as sitk
import slicer
import slicer_host
import widgets_host
from bad_inputs import write_slices
from panel_steps import choose, in_scene, is_busy, load_scene, of_class, save_scene, stage
from slicer_host import wait_until

from LiverFibrosisStagingLib.dicom_output.writing import FILES as DICOM_FILES
from LiverFibrosisStagingLib.scene.scene_nodes import find_part, stored_summary

pytestmark = pytest.mark.usefixtures("single_network")
SECTIONS = ("why", "signs", "checks", "report")


def volume_of(panel):
    return panel.ui.inputVolumeSelector.currentNode()


def plain(html):
    return re.sub(r"<[^>]+>", " ", html.replace("&nbsp;", " ").replace("&#x27;", "'"))


def unenhanced(volume):
    """Subtract the contrast from the sample."""
    voxels = slicer.util.arrayFromVolume(volume)
    voxels[voxels > 70] -= 70
    slicer.util.arrayFromVolumeModified(volume)


def stage_in_spite(panel):
    """Stage the sample without contrast: refused first, then with the tick."""
    unenhanced(volume_of(panel))
    stage(panel)
    refusals = [dialog.text for dialog in slicer_host.dialogs]
    slicer_host.dialogs.clear()
    panel.ui.anyPhaseCheckBox.click()
    stage(panel)
    return refusals


def columns(node):
    table = node.GetTable()
    return [
        [table.GetValue(row, column).ToString() for row in range(table.GetNumberOfRows())]
        for column in range(table.GetNumberOfColumns())
    ]


# ---------------------------------------------------------------------------- signs


def test_signs_are_shown_with_place_and_source(staged):
    summary = stored_summary(volume_of(staged))
    text = plain(staged.ui.signsLabel.text)
    assert f"{summary['signs']['spleen_volume_ml']:.0f} mL" in text
    assert f"{summary['signs']['liver_mean_hu']:.0f} HU" in text
    for sentence in summary["signs_placed"]:
        assert sentence.partition(": ")[2].rstrip(".")[1:] in text
    assert 'href="https://doi.org/10.1007/s00330-016-4648-0"' in staged.ui.signsLabel.text
    assert staged.ui.signsLabel.openExternalLinks


def test_a_sign_that_is_not_measurable_has_its_reason(ready):
    segmentation = ready.ui.segmentationSelector.currentNode()
    segmentation.GetSegmentation().RemoveSegment(
        segmentation.GetSegmentation().GetSegmentIdBySegmentName("Spleen")
    )
    stage(ready)
    text = plain(ready.ui.signsLabel.text)
    assert "not measurable" in text and "There is no mask of the spleen." in text


def test_table_and_chart_of_the_signs(staged):
    volume = volume_of(staged)
    value = stored_summary(volume)["signs"]["spleen_volume_ml"]
    names, values, _, sources = columns(find_part(volume, "signs"))
    first = names.index("Spleen volume")
    assert values[first] == f"{value:.0f} mL" and "Pickhardt" in sources[first]

    labels, signs, groups, percentages = columns(find_part(volume, "percentiles"))
    assert labels[:6] == ["Spleen F0", "F1", "F2", "F3", "F4", "Liver F0"]
    # By hand: mean 215.1 and SD 88.5 mL in F0, log-normal.
    variance = math.log(1 + (88.5 / 215.1) ** 2)
    z = (math.log(value / 215.1) + variance / 2) / math.sqrt(variance)
    expected = 50 * (1 + math.erf(z / math.sqrt(2)))
    found = dict(zip(zip(signs, groups), map(float, percentages)))
    assert found["Spleen", "F0"] == pytest.approx(expected, abs=0.01)
    series = find_part(volume, "percentiles_plot").GetNthPlotSeriesNode(0)
    assert series.GetTableNode() is find_part(volume, "percentiles")

    manager = slicer.app.layoutManager()
    layout = slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView
    manager.setLayout(layout)
    staged.ui.showSignsPlotButton.click()
    (selection,) = of_class("vtkMRMLSelectionNode")
    plot = find_part(volume, "percentiles_plot")
    assert selection.GetActivePlotChartID() == plot.GetID()
    staged.ui.showSignsTableButton.click()
    assert selection.GetActiveTableID() == find_part(volume, "signs").GetID()
    assert manager.layout != layout
    manager.setLayout(layout)


# ---------------------------------------------------------------------------- why and checks


def test_regions_are_bars_in_proportion(staged):
    measured = stored_summary(volume_of(staged))["measurements"]
    rows = re.findall(
        r'<tr><td align="left">([^<]+?)&nbsp;</td>.*?width="(\d+)" bgcolor=',
        staged.ui.measurementsLabel.text,
    )
    widths = {name.replace("&nbsp;", " "): int(width) for name, width in rows}
    means = {key: values["mean"] for key, values in measured.items()}
    ratio = widths["Liver"] / means["liver"]
    assert widths["Liver surface"] == pytest.approx(ratio * means["liver_surface"], abs=1)
    assert widths["Spleen"] == pytest.approx(ratio * means["spleen"], abs=1)


def test_each_check_is_shown_and_the_title_counts_them(ready):
    stage(ready)
    ui, summary = ready.ui, stored_summary(volume_of(ready))
    text = plain(ui.checksLabel.text)
    assert summary["checks"] and all(check["sentence"] in text for check in summary["checks"])
    concerns = [check for check in summary["checks"] if check["outcome"] != "pass"]
    stated = {check["sentence"] for check in concerns}
    assert not any(sentence in plain(ui.warningsLabel.text) for sentence in stated)
    count = len(stated | set(summary["warnings"]))
    expected = {0: "all passed", 1: "1 warning"}.get(count, f"{count} warnings")
    assert ui.checksCollapsibleButton.text == f"Checks: {expected}"
    assert ui.attentionLabel.visible == bool(count)


# ---------------------------------------------------------------------------- not supported


def test_a_wrong_phase_is_staged_only_on_request_and_its_stage_is_grey(ready):
    ui = ready.ui
    assert not ui.anyPhaseCheckBox.visible
    before = in_scene()
    (refusal,) = stage_in_spite(ready)
    assert "portal-venous phase is needed" in refusal
    assert ui.anyPhaseCheckBox.text.replace("&", "") in refusal
    assert ui.anyPhaseCheckBox.visible and in_scene() != before
    assert ui.unsupportedLabel.visible and not ui.stageLabel.visible
    assert not ui.probabilitiesWidget.enabled
    summary = stored_summary(volume_of(ready))
    text = plain(ui.unsupportedLabel.text)
    assert summary["reasons"] and all(reason in text for reason in summary["reasons"])
    assert ui.checksCollapsibleButton.text.startswith("Checks: 1 failed")
    assert summary["stage"] not in find_part(volume_of(ready), "plot").GetTitle()


def test_a_refusal_offers_the_tick_for_this_ct_only(ready):
    ui, volume = ready.ui, volume_of(ready)
    unenhanced(volume)
    stage(ready)
    slicer_host.dialogs.clear()
    ui.anyPhaseCheckBox.click()
    choose(ready, *slicer_host.import_module().loadSample())
    assert not ui.anyPhaseCheckBox.visible and not ui.anyPhaseCheckBox.checked
    stage(ready)
    assert "phase" not in ui.unsupportedLabel.text
    slicer.mrmlScene.RemoveNode(volume)
    slicer.mrmlScene.Clear(0)
    choose(ready, *slicer_host.import_module().loadSample())
    assert not ui.anyPhaseCheckBox.visible


# ---------------------------------------------------------------------------- the scene


def test_sections_come_with_a_result_and_with_a_saved_scene(ready, tmp_path):
    ui = ready.ui
    sections = [getattr(ui, f"{name}CollapsibleButton") for name in SECTIONS]
    assert not any(section.visible for section in sections)
    stage_in_spite(ready)
    assert all(section.visible for section in sections)
    labels = ("unsupported", "attention", "pattern", "measurements", "reference", "signs", "checks")
    before = [getattr(ui, f"{name}Label").text for name in labels]
    load_scene(save_scene(tmp_path / "scene"))
    assert all(section.visible for section in sections) and not ui.stageLabel.visible
    assert [getattr(ui, f"{name}Label").text for name in labels] == before
    assert ui.showSignsPlotButton.enabled and not ui.reportButton.enabled


# ---------------------------------------------------------------------------- report


def test_the_report_opens_in_the_browser(staged):
    widgets_host.opened.clear()
    staged.ui.reportButton.click()
    assert is_busy(staged) and staged.ui.stageButton.text == "&Cancel"
    wait_until(lambda: not is_busy(staged), 60)
    (page,) = map(Path, widgets_host.opened)
    text = page.read_text(encoding="utf-8")
    assert "esearch use" in text and volume_of(staged).GetName() not in text
    staged.ui.reportButton.click()
    wait_until(lambda: not is_busy(staged), 60)
    assert len(set(widgets_host.opened)) == 2  # the first page may still be open


def test_without_a_browser_the_page_is_named(staged, monkeypatch):
    monkeypatch.setattr(widgets_host, "open_address", lambda address: False)
    staged.ui.reportButton.click()
    wait_until(lambda: not is_busy(staged), 60)
    (dialog,) = slicer_host.dialogs
    assert "report.html" in dialog.text
    slicer_host.dialogs.clear()


# ---------------------------------------------------------------------------- segments and body


def add_lobes(volume):
    """Left and right lobe and caudate, as slabs of the sample's liver, as a segmentation."""
    (organs,) = of_class("vtkMRMLSegmentationNode")
    liver_id = organs.GetSegmentation().GetSegmentIdBySegmentName("Liver")
    liver = slicer.util.arrayFromSegmentBinaryLabelmap(organs, liver_id, volume)
    x = np.nonzero(liver.any(axis=(0, 1)))[0]
    borders = np.quantile(x, [0.2, 0.5]).astype(int)
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Lobes")
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    slabs = (slice(0, borders[0]), slice(*borders), slice(borders[1], None))
    volumes = []
    for name, slab in zip(("caudate lobe", "left lobe", "right lobe"), slabs):
        part = np.zeros_like(liver)
        part[:, :, slab] = liver[:, :, slab]
        segment = node.GetSegmentation().AddEmptySegment(name, name)
        slicer.util.updateSegmentBinaryLabelmapFromArray(part, node, segment, volume)
        volumes.append(part.sum())
    return node, volumes


def test_segments_of_the_ct_are_found_and_measured(ready):
    node, (caudate, left, right) = add_lobes(volume_of(ready))
    stage(ready)
    signs = stored_summary(volume_of(ready))["signs"]
    assert signs["lsvr"] == pytest.approx((caudate + left) / right, rel=1e-6)
    node.GetSegmentation().GetNthSegment(2).SetName("Segment 3")
    ready.ui.segmentsSelector.setCurrentNode(of_class("vtkMRMLSegmentationNode")[0])
    ready.ui.stageButton.click()
    (dialog,) = slicer_host.dialogs
    assert "has no parts of the liver" in dialog.text
    slicer_host.dialogs.clear()


def test_height_and_weight_are_for_one_ct(ready):
    ui = ready.ui
    ui.heightSpinBox.value = 180
    ready.ui.stageButton.click()
    (dialog,) = slicer_host.dialogs
    assert "Only the height is given" in dialog.text
    slicer_host.dialogs.clear()
    ui.weightSpinBox.value = 80
    stage(ready)
    signs = stored_summary(volume_of(ready))["signs"]
    assert signs["spleen_ml_per_m2"] == pytest.approx(signs["spleen_volume_ml"] / 2)
    choose(ready, *slicer_host.import_module().loadSample())
    assert ui.heightSpinBox.value == ui.weightSpinBox.value == 0


# ---------------------------------------------------------------------------- DICOM


def test_a_ct_from_dicom_is_written_as_dicom(ready, sample, tmp_path, monkeypatch):
    pydicom = pytest.importorskip("pydicom")
    pytest.importorskip("highdicom")
    ui, volume = ready.ui, volume_of(ready)
    tags = {"0020|0052": "1.2.3.9", "0010|0010": "Roe^Jane"}
    slices = write_slices(tmp_path / "ct", sitk.ReadImage(sample["ct"]), tags)
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in slices.iterdir()]
    files = {str(each.SOPInstanceUID): each.filename for each in headers}
    database = types.SimpleNamespace(
        instanceValue=lambda uid, tag: "", fileForInstance=lambda uid: files.get(uid, "")
    )
    monkeypatch.setattr(slicer, "dicomDatabase", database, raising=False)
    volume.SetAttribute("DICOM.instanceUIDs", " ".join(files))
    stage(ready)
    widgets_host.file_dialog_answers.append(str(tmp_path))
    ui.dicomButton.click()
    wait_until(lambda: not is_busy(ready), 60)
    written = tmp_path / "LiverFibrosisPhantom" / "dicom"
    segmentation = pydicom.dcmread(written / "segmentation.dcm")
    liver = sitk.GetArrayFromImage(sitk.ReadImage(sample["liver"]))
    number = [
        frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        for frame in segmentation.PerFrameFunctionalGroupsSequence
    ]
    of_liver = segmentation.pixel_array[np.array(number) == 1]
    assert of_liver.sum() == (liver > 0).sum()
    assert {path.name for path in written.iterdir()} == set(DICOM_FILES)

    slicer_host.dialog_answers.append("Cancel")
    widgets_host.file_dialog_answers.append(str(tmp_path))
    ui.saveButton.click()  # would remove them
    assert not is_busy(ready) and "Replace it?" in slicer_host.dialogs.pop().text
    files.clear()
    choose(ready, None, None)
    choose(ready, volume, None)
    assert "DICOM database" in ui.dicomButton.toolTip
