"""From MRML nodes to the library: same numbers as without Slicer, segments, transforms."""

import math
import threading
import types
import unittest

import numpy as np
import pytest
import SimpleITK as sitk
import slicer
import slicer_host
from small_scene import (
    SPACING,
    add_segmentation,
    add_transform,
    add_volume,
    in_scene,
    make_abdomen,
    rigid,
    rotation,
    same_result,
)
from vtkmodules.util.numpy_support import vtk_to_numpy
from vtkmodules.vtkCommonCore import vtkStringArray
from vtkmodules.vtkCommonTransforms import vtkThinPlateSplineTransform
from vtkmodules.vtkFiltersSources import vtkSphereSource

from LiverFibrosisStagingLib import Cancelled, StagingError, stage
from LiverFibrosisStagingLib.imaging.body import Body, body_of
from LiverFibrosisStagingLib.scene.mrml import find_segments, scene_inputs

pytestmark = pytest.mark.usefixtures("scene")

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
def result(abdomen, model):
    return stage(*abdomen, model)


@pytest.fixture(scope="module")
def logic():
    return slicer_host.import_module().LiverFibrosisStagingLogic()


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

    _, liver, _ = scene_inputs(volume, node).images()

    assert set(find_segments(node, "liver")) == set(names)
    np.testing.assert_array_equal(sitk.GetArrayViewFromImage(liver), mask)
    node.GetSegmentation().RemoveSegment(names[3])
    assert find_segments(node, "liver") == ()  # seven of eight are not the liver


def test_given_segment_ids_are_used(abdomen):
    volume = add_volume(abdomen[0])
    node = add_segmentation(volume, liver=abdomen[2], mine=abdomen[1], spleen=abdomen[1])
    _, liver, spleen = scene_inputs(volume, node, "mine", "liver").images()
    np.testing.assert_array_equal(*map(sitk.GetArrayViewFromImage, (liver, abdomen[1])))
    np.testing.assert_array_equal(*map(sitk.GetArrayViewFromImage, (spleen, abdomen[2])))


def test_segmentation_under_a_transform_of_its_own(abdomen):
    volume = add_volume(abdomen[0])
    node = add_segmentation(volume, liver=abdomen[1])
    shift = np.eye(4)
    shift[2, 3] = 2 * SPACING[2]
    node.SetAndObserveTransformNodeID(add_transform(shift).GetID())
    _, liver, _ = scene_inputs(volume, node).images()
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
    _, liver, _ = scene_inputs(volume, node).images()
    volume_mm3 = sitk.GetArrayViewFromImage(liver).sum() * math.prod(SPACING)
    assert volume_mm3 == pytest.approx(4 / 3 * math.pi * SPHERE_MM**3, rel=0.05)
    assert in_scene() == before
    assert not node.GetSegmentation().ContainsRepresentation("Binary labelmap")


def test_label_map_volume_serves_as_masks(abdomen, logic, model, result):
    volume = add_volume(abdomen[0])
    both = abdomen[1] + 2 * abdomen[2]
    node = add_volume(both, "Organs", "vtkMRMLLabelMapVolumeNode")
    same_result(logic.stageVolume(volume, node, model=model), result)


def test_staging_and_cancelling_do_not_change_the_scene(abdomen, logic, model):
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
    tags |= {("1.2.3", "0010,1020"): "1.8", ("1.2.3", "0010,1030"): "80"}
    database = types.SimpleNamespace(instanceValue=lambda uid, tag: tags.get((uid, tag), ""))
    monkeypatch.setattr(slicer, "dicomDatabase", database, raising=False)
    image, _, _ = scene_inputs(volume, None).images()
    assert image.GetMetaData("0008|103e") == "T1 axial"
    assert body_of(image) == Body(180, 80)
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
    with pytest.raises(StagingError, match=f"'CT' .*'{name}'.* only translations and rotations"):
        logic.stageVolume(volume, segmentation)
    assert in_scene() == before


def test_volume_with_tilted_axes_is_refused(abdomen):
    matrix = np.diag([-3.0, -3.0, 4.0, 1.0])
    matrix[1, 2] = 1.0
    array = sitk.GetArrayFromImage(abdomen[0])
    volume = slicer.util.addVolumeFromArray(array, matrix, "Tilted")
    with pytest.raises(StagingError, match="'Tilted' are not at right angles"):
        scene_inputs(volume, None)


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
        (volume_without_voxels, "'Nothing' has no voxels"),
        (model_as_segmentation, "'Bone' is a .*a segmentation with the liver is needed"),
        (no_liver, "'Organs' has no liver: none of its 2 segments"),
        (two_livers, r"several segments that are the liver \('liver', 'Liver'\)"),
        (empty_liver, "'liver' of 'Organs' is empty within 'CT'"),
        (liver_of_another_patient, "'liver' of 'Organs' is empty within 'CT'"),
    ],
)
def test_refusals_name_the_node_and_do_not_change_the_scene(make, sentence, abdomen, logic):
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
        scene_inputs(volume, segmentation, "Segment_9")


def test_module_passes_its_own_self_test():
    module = slicer_host.import_module()
    suite = unittest.defaultTestLoader.loadTestsFromTestCase(module.LiverFibrosisStagingTest)
    outcome = unittest.TestResult()
    suite.run(outcome)
    assert outcome.testsRun == 2
    assert outcome.wasSuccessful() and not outcome.skipped, outcome.errors + outcome.failures


def test_a_segmentation_turned_against_the_ct(abdomen):
    """The segments keep their place in the patient; only the voxels that hold them differ."""
    volume = add_volume(abdomen[0])
    node = add_segmentation(volume, liver=abdomen[1])
    turn = rigid(30, (4.0, -9.0, 13.0))
    node.SetAndObserveTransformNodeID(add_transform(turn).GetID())
    _, liver, _ = scene_inputs(volume, node).images()
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
