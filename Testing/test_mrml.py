"""Real MRML: nodes in, the same numbers as without Slicer out, and the result in its place."""

import math
import threading
import types
import unittest
from collections import Counter

import numpy as np
import pytest
import SimpleITK as sitk
import slicer
import slicer_host
from vtkmodules.util.numpy_support import vtk_to_numpy
from vtkmodules.vtkCommonCore import vtkStringArray
from vtkmodules.vtkCommonMath import vtkMatrix4x4
from vtkmodules.vtkCommonTransforms import vtkThinPlateSplineTransform
from vtkmodules.vtkFiltersSources import vtkSphereSource

from LiverFibrosisStagingLib import Cancelled, StagingError, read_ct, stage
from LiverFibrosisStagingLib.colors import BANDS
from LiverFibrosisStagingLib.mrml import find_segments, staging_inputs, volume_to_image
from LiverFibrosisStagingLib.scene_results import (
    PARTS,
    SMOOTH_OPACITY,
    TABLE_ATTRIBUTE,
    Display,
    find_part,
    is_result,
    jump_to_strongest,
    set_display,
    show_result,
    stored_summary,
)

SPACING = (3.515625, 3.7, 4.1)  # mm; a float32 in NIfTI that is no decimal, and two decimals
ORIGIN = (-171.3046875, -115.7, -96.9)
LIVER = "General~SCT^123037004^Anatomical Structure~SCT^10200004^Liver~^^~Codes~^^~^^"
TUMOUR = (
    "General~SCT^49755003^Morphologically Altered Structure~SCT^108369006^Neoplasm~^^~Codes"
    "~SCT^10200004^Liver~^^"
)
COUINAUD = (71133005, 277956007, 277957003, 277958008, 277959000, 277960005, 277961009, 277962002)
SPHERE_MM = 50.0


@pytest.fixture(scope="module")
def model(single):
    return single


@pytest.fixture(scope="module")
def logic():
    return slicer_host.import_module().LiverFibrosisStagingLogic()


@pytest.fixture(scope="module")
def views():
    return [slicer_host.SliceView(name) for name in ("Axial", "Sagittal", "Coronal")]


@pytest.fixture(autouse=True)
def scene():
    scene = slicer_host.start()
    scene.Clear(0)
    return scene


@pytest.fixture(scope="module")
def abdomen():
    return make_abdomen()


@pytest.fixture(scope="module")
def result(abdomen, model):
    return stage(*abdomen, model)


def make_abdomen(direction=None, shift=(0.0, 0.0, 0.0)):
    """CT, liver and spleen: a body with two ellipsoids, differently grey from front to back."""
    z, y, x = np.ogrid[:48, :62, :98]
    x, y, z = (o + s * i for o, s, i in zip(ORIGIN, SPACING, (x, y, z)))
    body = (x / 160) ** 2 + (y / 105) ** 2 + 0 * z < 1
    liver = ((x + 65) / 70) ** 2 + (y / 65) ** 2 + (z / 70) ** 2 < 1
    spleen = ((x - 90) / 28) ** 2 + ((y - 40) / 28) ** 2 + (z / 40) ** 2 < 1
    hu = np.where(body, 40 + y / 4, -1000) + 70 * (liver | spleen)
    hu += np.random.default_rng(0).normal(0, 8, hu.shape)
    images = [
        sitk.GetImageFromArray(a) for a in (hu.astype(np.int16), *map(np.uint8, (liver, spleen)))
    ]
    for image in images:
        image.SetSpacing(SPACING)
        image.SetOrigin(np.add(ORIGIN, shift).tolist())
        if direction is not None:
            image.SetOrigin((direction @ ORIGIN + shift).tolist())
            image.SetDirection(direction.ravel().tolist())
    return images


def rotation(degrees):
    """About the patient's axis and then a little about the left-right one; the same in RAS, LPS."""
    a, b = np.radians(degrees), np.radians(degrees / 3)
    about_z = [[math.cos(a), -math.sin(a), 0], [math.sin(a), math.cos(a), 0], [0, 0, 1]]
    about_x = [[1, 0, 0], [0, math.cos(b), -math.sin(b)], [0, math.sin(b), math.cos(b)]]
    return np.array(about_x) @ np.array(about_z)


def add_volume(image, name="CT", class_name="vtkMRMLScalarVolumeNode"):
    lps = np.eye(4)
    lps[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    lps[:3, 3] = image.GetOrigin()
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps
    return slicer.util.addVolumeFromArray(sitk.GetArrayFromImage(image), ras, name, class_name)


def add_segmentation(volume, **segments):
    """A segmentation of masks; a segment's name is its keyword."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Organs")
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    for name, mask in segments.items():
        segment = node.GetSegmentation().AddEmptySegment(name, name)
        slicer.util.updateSegmentBinaryLabelmapFromArray(
            sitk.GetArrayFromImage(mask), node, segment, volume
        )
    return node


def add_transform(matrix, name="Transform"):
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", name)
    vtk_matrix = vtkMatrix4x4()
    vtk_matrix.DeepCopy(np.asarray(matrix, float).ravel())
    node.SetMatrixTransformToParent(vtk_matrix)
    return node


def rigid(degrees, shift):
    matrix = np.eye(4)
    matrix[:3, :3] = rotation(degrees)
    matrix[:3, 3] = shift
    return matrix


def in_scene():
    nodes = slicer.util.getNodesByClass("vtkMRMLNode")
    return Counter(node.GetClassName() for node in nodes)


def same_result(one, other):
    np.testing.assert_array_equal(one.probabilities, other.probabilities)
    assert one.measurements == other.measurements
    for name in ("location_map", "label_map"):
        np.testing.assert_array_equal(
            sitk.GetArrayViewFromImage(getattr(one, name)),
            sitk.GetArrayViewFromImage(getattr(other, name)),
        )


@pytest.mark.parametrize("degrees", [0, 20])
def test_numbers_are_those_of_the_file_read_without_slicer(degrees, tmp_path, logic, model):
    paths = [tmp_path / f"{name}.nii.gz" for name in ("ct", "liver", "spleen")]
    for image, path in zip(make_abdomen(rotation(degrees)), paths):
        sitk.WriteImage(image, str(path))
    volume = slicer_host.load_volume(paths[0])
    masks = [sitk.ReadImage(str(path)) for path in paths[1:]]
    segmentation = add_segmentation(volume, liver=masks[0], spleen=masks[1])

    alone = stage(*paths, model)
    through_nodes = logic.stageVolume(volume, segmentation, model=model)

    same_result(through_nodes, alone)
    assert through_nodes.ct.GetSpacing() == alone.ct.GetSpacing()
    assert through_nodes.ct.GetOrigin() == alone.ct.GetOrigin()
    assert through_nodes.ct.GetDirection() == alone.ct.GetDirection()


def test_numbers_of_a_real_ct_are_those_of_the_file(shared_data, logic, model):
    folder = shared_data / "hcc007_cirrA_bl_pv"
    both = folder / "seg_semiauto_liver1_spleen2.nii.gz"
    volume = slicer_host.load_volume(folder / "ct.nii.gz")
    labels = sitk.ReadImage(str(both))
    segmentation = add_segmentation(volume, Liver=labels == 1, Spleen=labels == 2)
    same_result(
        logic.stageVolume(volume, segmentation, model=model),
        stage(folder / "ct.nii.gz", both, model=model),
    )


def test_parent_transform_moves_the_patient(abdomen, logic, model):
    volume = add_volume(abdomen[0])
    segmentation = add_segmentation(volume, liver=abdomen[1], spleen=abdomen[2])
    shift_ras = np.array([12.0, -30.0, 45.5])
    transform = add_transform(rigid(25, shift_ras))
    for node in (volume, segmentation):
        node.SetAndObserveTransformNodeID(transform.GetID())
    # A turn in RAS about z and x is the inverse turn about x, the same turn about z in LPS.
    flip = np.diag([-1.0, -1.0, 1.0])
    moved = make_abdomen(flip @ rotation(25) @ flip, flip @ shift_ras)

    through_nodes = logic.stageVolume(volume, segmentation, model=model)

    alone = stage(*moved, model)
    # Equal but for the rounding of oblique axes: a voxel at a band's edge may fall to either side.
    np.testing.assert_allclose(through_nodes.probabilities, alone.probabilities, atol=1e-7)
    labels, others = (sitk.GetArrayFromImage(each.label_map) for each in (through_nodes, alone))
    assert (labels != others).mean() < 1e-4
    np.testing.assert_allclose(
        through_nodes.location_map.TransformIndexToPhysicalPoint((50, 30, 20)),
        alone.location_map.TransformIndexToPhysicalPoint((50, 30, 20)),
        atol=1e-9,
    )


@pytest.mark.parametrize("degrees", [None, 0, 30])
def test_label_volume_lies_where_the_ct_lies(degrees, abdomen, result):
    volume = add_volume(abdomen[0])
    if degrees is not None:
        transform = add_transform(rigid(degrees, (5, 6, -7)))
        volume.SetAndObserveTransformNodeID(transform.GetID())

    label = show_result(result, volume)

    matrices = vtkMatrix4x4(), vtkMatrix4x4()
    for node, matrix in zip((volume, label), matrices):
        node.GetIJKToRASMatrix(matrix)
    of_volume, of_label = map(slicer.util.arrayFromVTKMatrix, matrices)
    np.testing.assert_array_equal(of_label, of_volume)
    assert label.GetTransformNodeID() == volume.GetTransformNodeID()
    np.testing.assert_array_equal(
        slicer.util.arrayFromVolume(label), sitk.GetArrayViewFromImage(result.label_map)
    )


@pytest.mark.parametrize("degrees", [None, 20])
def test_slice_views_show_the_bands_at_their_place(degrees, abdomen, result, views):
    volume = add_volume(abdomen[0])
    to_world = np.eye(4)
    if degrees is not None:
        to_world = rigid(degrees, (15, -20, 30))
        volume.SetAndObserveTransformNodeID(add_transform(to_world).GetID())
    volume.GetDisplayNode().SetAutoWindowLevel(False)
    volume.GetDisplayNode().SetWindowLevel(350, 50)

    show_result(result, volume)

    labels = sitk.GetArrayViewFromImage(result.label_map)
    hu = sitk.GetArrayViewFromImage(abdomen[0])
    shown = set()
    for index in np.random.default_rng(1).permutation(np.argwhere(hu > -500))[:400]:
        around = labels[tuple(slice(i - 1, i + 2) for i in index)]
        label = labels[tuple(index)]
        # One point for each band, inside an even patch, so that its pixel shows no other band.
        if label in shown or around.size != 27 or (around != label).any():
            continue
        shown.add(label)
        lps = abdomen[0].TransformIndexToPhysicalPoint(index[::-1].tolist())
        ras = (to_world @ [-lps[0], -lps[1], lps[2], 1])[:3]
        opacity = BANDS[label].opacity
        for view in views:
            with_map, grey = view.color(ras, label=True), view.color(ras, label=False)
            assert grey[0] == grey[1] == grey[2]
            if degrees is None:
                window = np.clip((hu[tuple(index)] - 50) / 350 + 0.5, 0, 1) * 255
                assert abs(grey[0] - window) < 80  # interpolated noise, but not air
            expected = (1 - opacity) * grey[:3] + opacity * 255 * np.array(BANDS[label].rgb)
            np.testing.assert_allclose(with_map[:3], expected, atol=2)
    assert len(shown) >= 3


def test_second_result_replaces_the_first(abdomen, result, model, views):
    volume = add_volume(abdomen[0])
    label = show_result(result, volume)
    before = in_scene()
    other = stage(*abdomen, model, explain="F0" if result.stage != "F0" else "F4")

    assert show_result(other, volume) is label

    assert in_scene() == before
    np.testing.assert_array_equal(
        slicer.util.arrayFromVolume(label), sitk.GetArrayViewFromImage(other.label_map)
    )
    legend = slicer.modules.colors.logic().GetColorLegendDisplayNode(label)
    assert other.explained in legend.GetTitleText()
    for view in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"):
        assert view.GetBackgroundVolumeID() == volume.GetID()
        assert view.GetLabelVolumeID() == label.GetID()


def test_two_cts_share_one_colour_table_with_the_bands_names(abdomen, result):
    labels = [show_result(result, add_volume(abdomen[0], name)) for name in ("CT 1", "CT 2")]

    assert [label.GetName() for label in labels] == ["CT 1 location map", "CT 2 location map"]
    tables = [label.GetDisplayNode().GetColorNode() for label in labels]
    assert tables[0] is tables[1]
    of_ours = [
        node
        for node in slicer.util.getNodesByClass("vtkMRMLColorTableNode")
        if node.GetAttribute(TABLE_ATTRIBUTE)
    ]
    assert of_ours == [tables[0]]
    color = [0.0] * 4
    for value, band in enumerate(BANDS):
        tables[0].GetColor(value, color)
        np.testing.assert_allclose(color, (*band.rgb, band.opacity), atol=1 / 255)
        if value:
            assert tables[0].GetColorName(value) == band.name


def test_label_volume_is_filed_beside_its_ct(abdomen, result, scene):
    volume = add_volume(abdomen[0])
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    study = hierarchy.CreateStudyItem(hierarchy.GetSceneItemID(), "Study")
    hierarchy.CreateItem(study, volume)
    label = show_result(result, volume)
    assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(label)) == study


def test_failure_leaves_nothing_half_made(abdomen, result, monkeypatch):
    volume = add_volume(abdomen[0])
    before = in_scene()
    monkeypatch.delattr(slicer.modules, "colors")  # no Colors module: the legend fails, last of all
    with pytest.raises(AttributeError):
        show_result(result, volume)
    assert in_scene() == before


def test_result_of_another_volume_is_refused(abdomen, result):
    volume = add_volume(abdomen[0][:40, :, :], "Cropped")
    before = in_scene()
    with pytest.raises(StagingError, match="98 x 62 x 48 voxels, 'Cropped' has 40 x 62 x 48"):
        show_result(result, volume)
    assert in_scene() == before


def set_terminology(segmentation, name, entry):
    segmentation.GetSegmentation().GetSegment(name).SetTerminology(entry)


def test_liver_is_found_by_terminology_whatever_its_name(abdomen):
    volume = add_volume(abdomen[0])
    node = add_segmentation(volume, liver=abdomen[2], organ=abdomen[1], tumour=abdomen[2])
    set_terminology(node, "organ", LIVER)
    set_terminology(node, "tumour", TUMOUR)
    assert find_segments(node, "liver") == ("organ",)
    assert find_segments(node, "spleen") == ()


@pytest.mark.parametrize("name", ["liver", " Liver", "LIVER", "Foie"])
def test_liver_is_found_by_name(name, abdomen):
    volume = add_volume(abdomen[0])
    node = add_segmentation(
        volume, **{"liver tumor": abdomen[2], "liver vessels": abdomen[2], name: abdomen[1]}
    )
    set_terminology(node, "liver tumor", TUMOUR)
    assert find_segments(node, "liver") == (name,)


@pytest.mark.parametrize("by", ["terminology", "name"])
def test_couinaud_segments_make_up_the_liver(by, abdomen):
    volume, mask = add_volume(abdomen[0]), sitk.GetArrayFromImage(abdomen[1])
    left = np.cumsum(mask.reshape(-1)).reshape(mask.shape)  # eight parts of one size
    part = np.where(mask, (left - 1) * 8 // left.max(), 8)
    roman = ("I", "II", "III", "IV", "V", "VI", "VII", "VIII")
    names = [f"Liver segment {r}" for r in roman] if by == "name" else [f"S{n}" for n in range(8)]
    segments = {
        name: sitk.GetImageFromArray((part == n).astype(np.uint8)) for n, name in enumerate(names)
    }
    node = add_segmentation(volume, **segments, spleen=abdomen[2])
    if by == "terminology":
        for name, code in zip(names, COUINAUD):
            set_terminology(node, name, LIVER.replace("10200004^Liver", f"{code}^{name}"))

    _, liver, _ = staging_inputs(volume, node)

    assert set(find_segments(node, "liver")) == set(names)
    np.testing.assert_array_equal(sitk.GetArrayViewFromImage(liver), mask)
    node.GetSegmentation().RemoveSegment(names[3])
    assert find_segments(node, "liver") == ()  # seven of eight are not the liver


def test_chosen_segment_wins(abdomen):
    volume = add_volume(abdomen[0])
    node = add_segmentation(volume, liver=abdomen[2], mine=abdomen[1], spleen=abdomen[1])
    _, liver, spleen = staging_inputs(volume, node, "mine", "liver")
    np.testing.assert_array_equal(*map(sitk.GetArrayViewFromImage, (liver, abdomen[1])))
    np.testing.assert_array_equal(*map(sitk.GetArrayViewFromImage, (spleen, abdomen[2])))


def test_segmentation_under_a_transform_of_its_own(abdomen):
    volume = add_volume(abdomen[0])
    node = add_segmentation(volume, liver=abdomen[1])
    shift = np.eye(4)
    shift[2, 3] = 2 * SPACING[2]
    node.SetAndObserveTransformNodeID(add_transform(shift).GetID())
    _, liver, _ = staging_inputs(volume, node)
    expected = np.roll(sitk.GetArrayViewFromImage(abdomen[1]), 2, axis=0)
    np.testing.assert_array_equal(sitk.GetArrayViewFromImage(liver), expected)


def test_liver_as_a_closed_surface(abdomen):
    volume = add_volume(abdomen[0])
    node = add_segmentation(volume)
    sphere = vtkSphereSource()
    sphere.SetRadius(SPHERE_MM)
    sphere.SetThetaResolution(60)
    sphere.SetPhiResolution(60)
    sphere.Update()
    surface = slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()
    node.GetSegmentation().SetSourceRepresentationName(surface)
    node.AddSegmentFromClosedSurfaceRepresentation(sphere.GetOutput(), "Liver", [1, 0, 0])
    before = in_scene()
    _, liver, _ = staging_inputs(volume, node)
    volume_mm3 = sitk.GetArrayViewFromImage(liver).sum() * math.prod(SPACING)
    assert volume_mm3 == pytest.approx(4 / 3 * math.pi * SPHERE_MM**3, rel=0.05)
    assert in_scene() == before
    assert not node.GetSegmentation().ContainsRepresentation("Binary labelmap")


def test_label_map_volume_serves_as_masks(abdomen, logic, model, result):
    volume = add_volume(abdomen[0])
    both = abdomen[1] + 2 * abdomen[2]
    node = add_volume(both, "Organs", "vtkMRMLLabelMapVolumeNode")
    same_result(logic.stageVolume(volume, node, model=model), result)


def test_staging_and_cancelling_leave_the_scene_alone(abdomen, logic, model):
    volume = add_volume(abdomen[0])
    segmentation = add_segmentation(volume, liver=abdomen[1], spleen=abdomen[2])
    before, steps, cancel = in_scene(), [], threading.Event()

    def progress(fraction, step):
        steps.append(fraction)
        if fraction >= 0.4:
            cancel.set()

    with pytest.raises(Cancelled):
        logic.stageVolume(volume, segmentation, model=model, progress=progress, cancel=cancel)
    assert steps == sorted(steps)
    assert in_scene() == before


def test_dicom_tags_of_slicers_database_reach_the_checks(abdomen, logic, monkeypatch):
    volume = add_volume(abdomen[0])
    segmentation = add_segmentation(volume, liver=abdomen[1])
    volume.SetAttribute("DICOM.instanceUIDs", "1.2.3 1.2.4")
    tags = {("1.2.3", "0008,0060"): "MR", ("1.2.3", "0008,103e"): "T1 axial"}
    database = types.SimpleNamespace(instanceValue=lambda uid, tag: tags.get((uid, tag), ""))
    monkeypatch.setattr(slicer, "dicomDatabase", database, raising=False)
    image = volume_to_image(volume)
    assert image.GetMetaData("0008|103e") == "T1 axial"
    with pytest.raises(StagingError, match="MR"):
        logic.stageVolume(volume, segmentation)


def bend(name):
    spline = vtkThinPlateSplineTransform()
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode", name)
    node.SetAndObserveTransformToParent(spline)
    return node


TRANSFORMS = {
    "bending": lambda: bend("bending"),
    "shearing": lambda: add_transform(
        [[1, 0.2, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], "shearing"
    ),
    "scaling": lambda: add_transform(np.diag([1.1, 1.1, 1.1, 1]), "scaling"),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_that_deform_are_refused(name, abdomen, logic):
    volume = add_volume(abdomen[0])
    segmentation = add_segmentation(volume, liver=abdomen[1])
    volume.SetAndObserveTransformNodeID(TRANSFORMS[name]().GetID())
    before = in_scene()
    with pytest.raises(StagingError, match=f"'CT' .*'{name}'.* only shifts and rotations"):
        logic.stageVolume(volume, segmentation)
    assert in_scene() == before


def test_volume_with_tilted_axes_is_refused(abdomen):
    matrix = np.diag([-3.0, -3.0, 4.0, 1.0])
    matrix[1, 2] = 1.0
    array = sitk.GetArrayFromImage(abdomen[0])
    volume = slicer.util.addVolumeFromArray(array, matrix, "Tilted")
    with pytest.raises(StagingError, match="'Tilted' are not at right angles"):
        volume_to_image(volume)


def no_volume(abdomen):
    return None, None


def label_map_as_ct(abdomen):
    return add_volume(abdomen[1], "Mask", "vtkMRMLLabelMapVolumeNode"), None


def volume_without_voxels(abdomen):
    return slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Nothing"), None


def model_as_segmentation(abdomen):
    return add_volume(abdomen[0]), slicer.mrmlScene.AddNewNodeByClass("vtkMRMLModelNode", "Bone")


def no_liver(abdomen):
    volume = add_volume(abdomen[0])
    return volume, add_segmentation(volume, spleen=abdomen[2], **{"liver tumor": abdomen[2]})


def two_livers(abdomen):
    volume = add_volume(abdomen[0])
    return volume, add_segmentation(volume, liver=abdomen[1], Liver=abdomen[2])


def empty_liver(abdomen):
    volume = add_volume(abdomen[0])
    return volume, add_segmentation(volume, liver=abdomen[1] * 0)


def liver_of_another_patient(abdomen):
    volume = add_volume(abdomen[0])
    segmentation = add_segmentation(volume, liver=abdomen[1])
    far = np.eye(4)
    far[2, 3] = 900
    segmentation.SetAndObserveTransformNodeID(add_transform(far).GetID())
    return volume, segmentation


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (no_volume, "No CT volume is chosen"),
        (label_map_as_ct, "'Mask' is a .*scalar volume is needed"),
        (volume_without_voxels, "'Nothing' holds no voxels"),
        (model_as_segmentation, "'Bone' is a .*a segmentation with the liver is needed"),
        (no_liver, "'Organs' has no liver: none of its 2 segments"),
        (two_livers, r"several segments that are the liver \('liver', 'Liver'\)"),
        (empty_liver, "'liver' of 'Organs' is empty within 'CT'"),
        (liver_of_another_patient, "'liver' of 'Organs' is empty within 'CT'"),
    ],
)
def test_refusals_name_the_node_and_leave_the_scene_alone(make, sentence, abdomen, logic):
    nodes = make(abdomen)
    before = in_scene()
    with pytest.raises(StagingError, match=sentence) as refusal:
        logic.stageVolume(*nodes)
    assert str(refusal.value).count(".") == 1  # one sentence
    assert in_scene() == before


def test_unknown_segment_id_is_refused(abdomen):
    volume = add_volume(abdomen[0])
    segmentation = add_segmentation(volume, liver=abdomen[1])
    with pytest.raises(StagingError, match="no segment with the id 'Segment_9'"):
        staging_inputs(volume, segmentation, "Segment_9")


def test_folder_is_staged_from_the_python_console(tmp_path, logic, model):
    (tmp_path / "in").mkdir()
    for image, part in zip(make_abdomen(), ("ct", "liver", "spleen")):
        sitk.WriteImage(image, str(tmp_path / "in" / f"A_{part}.nii.gz"))
    rows = logic.stageFolder(tmp_path / "in", tmp_path / "out", model=model)
    assert [row["status"] for row in rows] == ["done"]
    assert (tmp_path / "out" / "results.csv").is_file()


def test_module_passes_its_own_self_test():
    module = slicer_host.import_module()
    suite = unittest.defaultTestLoader.loadTestsFromTestCase(module.LiverFibrosisStagingTest)
    outcome = unittest.TestResult()
    suite.run(outcome)
    assert outcome.testsRun == 2
    assert outcome.wasSuccessful() and not outcome.skipped, outcome.errors + outcome.failures


def names_of_results(volume):
    return {part: find_part(volume, part) and find_part(volume, part).GetName() for part in PARTS}


def test_results_are_nodes_named_after_the_ct_and_updated_by_a_second_run(abdomen, result):
    volume = add_volume(abdomen[0])
    show_result(result, volume)
    assert names_of_results(volume) == {
        "bands": "CT location map",
        "smooth": None,
        "results": "CT fibrosis staging",
        "probabilities": "CT stage probabilities",
        "series": "CT probability",
        "plot": "CT fibrosis stage plot",
        "organs": None,  # they were given
    }
    table = find_part(volume, "probabilities").GetTable()
    values = [table.GetValueByName(row, "Probability").ToDouble() for row in range(5)]
    np.testing.assert_allclose(values, result.probabilities)
    (series,) = [find_part(volume, "plot").GetNthPlotSeriesNode(n) for n in range(1)]
    assert series.GetTableNode() is find_part(volume, "probabilities")

    before = in_scene()
    again = result.explain("F0" if result.explained != "F0" else "F1")
    show_result(again, volume)
    assert in_scene() == before
    assert stored_summary(volume)["location_map"]["explained"] == again.explained
    assert find_part(volume, "plot").GetNumberOfPlotSeriesNodes() == 1


def test_smooth_map_has_the_numbers_and_the_colors_of_the_bands(abdomen, result, views):
    volume = add_volume(abdomen[0])
    show_result(result, volume, Display(smooth=True))
    node = find_part(volume, "smooth")
    relative = sitk.GetArrayViewFromImage(result.location_map)
    np.testing.assert_array_equal(slicer.util.arrayFromVolume(node), relative)

    labels = sitk.GetArrayViewFromImage(result.label_map)
    composite = views[0].logic.GetSliceCompositeNode()
    assert composite.GetForegroundVolumeID() == node.GetID()
    assert composite.GetForegroundOpacity() == SMOOTH_OPACITY
    shown = set()
    for index in np.random.default_rng(2).permutation(np.argwhere(labels > 0))[:2000]:
        around = tuple(slice(max(0, i - 1), i + 2) for i in index)
        label = labels[tuple(index)]
        if label in shown or (labels[around] != label).any() or labels[around].size != 27:
            continue
        shown.add(label)
        lps = abdomen[0].TransformIndexToPhysicalPoint(index[::-1].tolist())
        ras = np.array([-lps[0], -lps[1], lps[2]])
        composite.SetForegroundOpacity(SMOOTH_OPACITY)
        color = views[0].color(ras)
        composite.SetForegroundOpacity(0.0)
        grey = views[0].color(ras)
        opacity = SMOOTH_OPACITY if label > 1 else 0.0
        expected = grey[:3] * (1 - opacity) + 255 * opacity * np.array(BANDS[label].rgb)
        np.testing.assert_allclose(color[:3], expected, atol=3)
    assert len(shown) >= 3

    set_display(volume, Display(smooth=False))
    assert composite.GetForegroundVolumeID() is None
    assert composite.GetLabelVolumeID() == find_part(volume, "bands").GetID()
    show_result(result, volume)  # a result without a smooth map leaves no old one behind
    assert find_part(volume, "smooth") is None


def test_another_foreground_stays(abdomen, result, views):
    volume, other = add_volume(abdomen[0]), add_volume(abdomen[0], "Arterial phase")
    composite = views[0].logic.GetSliceCompositeNode()
    composite.SetForegroundVolumeID(other.GetID())
    show_result(result, volume)
    set_display(volume, Display(opacity=0.3, outline=True))
    assert composite.GetForegroundVolumeID() == other.GetID()
    assert composite.GetLabelOpacity() == pytest.approx(0.3)


def test_jump_goes_to_the_highest_value(abdomen, result, views):
    volume = add_volume(abdomen[0])
    to_world = rigid(20, (15, -20, 30))
    volume.SetAndObserveTransformNodeID(add_transform(to_world).GetID())
    show_result(result, volume)
    values = sitk.GetArrayViewFromImage(result.location_map)
    strongest = np.unravel_index(values.argmax(), values.shape)[::-1]
    lps = abdomen[0].TransformIndexToPhysicalPoint([int(i) for i in strongest])
    expected = (to_world @ [-lps[0], -lps[1], lps[2], 1])[:3]

    jump_to_strongest(volume)

    for view in views:
        matrix = slicer.util.arrayFromVTKMatrix(view.node.GetSliceToRAS())
        in_slice = np.linalg.solve(matrix, [*expected, 1.0])
        assert in_slice[2] == pytest.approx(0.0, abs=1e-6)  # in the plane that is shown


def test_saved_scene_brings_results_back(abdomen, result, tmp_path, scene):
    volume = add_volume(abdomen[0])
    show_result(result, volume, Display(smooth=True))
    summary = stored_summary(volume)
    for node in slicer.util.getNodesByClass("vtkMRMLStorableNode"):
        if node.GetSaveWithScene() and (node.IsA("vtkMRMLVolumeNode") or is_result(node)):
            node.AddDefaultStorageNode()
            storage = node.GetStorageNode()
            extension = storage.GetDefaultWriteFileExtension()
            storage.SetFileName(str(tmp_path / f"{node.GetID()}.{extension}"))
            assert storage.WriteData(node)
    scene.SetURL(str(tmp_path / "scene.mrml"))
    assert scene.Commit()
    scene.Clear(0)
    scene.SetURL(str(tmp_path / "scene.mrml"))
    assert scene.Connect()

    volume = slicer.util.getNode("CT")
    assert stored_summary(volume) == summary
    assert all(find_part(volume, part) is not None for part in PARTS if part != "organs")
    np.testing.assert_array_equal(
        slicer.util.arrayFromVolume(find_part(volume, "bands")),
        sitk.GetArrayViewFromImage(result.label_map),
    )
    before = in_scene()
    show_result(result, volume, Display(smooth=True))
    assert in_scene() == before


def test_a_segmentation_turned_against_the_ct(abdomen):
    """The segments keep their place in the patient; only the voxels that hold them differ."""
    volume = add_volume(abdomen[0])
    node = add_segmentation(volume, liver=abdomen[1])
    turn = rigid(30, (4.0, -9.0, 13.0))
    node.SetAndObserveTransformNodeID(add_transform(turn).GetID())
    _, liver, _ = staging_inputs(volume, node)
    ids = vtkStringArray()
    ids.InsertNextValue("liver")
    merged = slicer.vtkOrientedImageData()
    slicer.vtkSlicerSegmentationsModuleLogic.GenerateMergedLabelmapInReferenceGeometry(
        node, volume, ids, slicer.vtkSegmentation.EXTENT_REFERENCE_GEOMETRY, merged
    )
    expected = vtk_to_numpy(merged.GetPointData().GetScalars()) != 0
    found = sitk.GetArrayViewFromImage(liver).ravel() != 0
    both = (expected & found).sum() / (expected | found).sum()
    assert both > 0.999


def test_sample_is_loaded_with_terminology_and_stages(logic, model, sample, scene):
    volume, segmentation = slicer_host.import_module().loadSample()
    assert find_segments(segmentation, "liver") == ("liver",)
    assert find_segments(segmentation, "spleen") == ("spleen",)
    same_result(
        logic.stageVolume(volume, segmentation, model=model), stage(*sample.values(), model)
    )


# -------------------------------------------------------------------- organs that were found


def test_found_organs_become_segments_that_can_be_chosen(sample, logic):
    """Without a segmentation Stage makes one; staged with that, the result is the same."""
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
        found = slicer.util.arrayFromSegmentBinaryLabelmap(node, organ, volume)
        mask = sitk.GetArrayFromImage(getattr(result, organ))
        np.testing.assert_array_equal(found > 0, mask > 0)
    assert node.GetNodeReferenceID("referenceImageGeometryRef") == volume.GetID()
    again = logic.stageVolume(volume, node)
    np.testing.assert_allclose(again.probabilities, result.probabilities, atol=1e-6)
    logic.showResult(logic.stageVolume(volume), volume)
    assert slicer.util.getNodesByClass("vtkMRMLSegmentationNode") == [node]
