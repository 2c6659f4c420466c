"""Automatic segmentation of liver and spleen: phantom, real CTs, and CTs without liver."""

import json
import threading

import numpy as np
import pytest
import SimpleITK as sitk

from LiverFibrosisStagingLib import StagingError, read_ct, read_mask, segment_organs, stage
from LiverFibrosisStagingLib.__main__ import main
from LiverFibrosisStagingLib.errors import Cancelled
from LiverFibrosisStagingLib.imaging.organs import ORGANS, write_labels
from LiverFibrosisStagingLib.imaging.segmentation import (
    SLAB_SLICES,
    SegmentationModel,
    segment,
    shipped_network,
)
from LiverFibrosisStagingLib.report.summary import segmented_by

onnx = pytest.importorskip("onnx", reason="changes the model file")


@pytest.fixture(scope="module")
def network():
    return shipped_network()


@pytest.fixture(scope="module")
def ct(sample):
    return read_ct(sample["ct"])


@pytest.fixture(scope="module")
def found(ct, network):
    return segment(ct, network)


def dice(ours, theirs):
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(ours != 0, sitk.Cast(theirs != 0, sitk.sitkUInt8))
    return overlap.GetDiceCoefficient()


def volumes(labels):
    statistics = sitk.LabelShapeStatisticsImageFilter()
    statistics.Execute(labels)
    return {n: statistics.GetPhysicalSize(n) / 1000 for n in statistics.GetLabels()}


def test_organs_of_the_phantom_are_found(found, ct, sample):
    assert dice(found.liver, read_mask(sample["liver"])) > 0.92
    assert dice(found.spleen, read_mask(sample["spleen"])) > 0.88
    assert found.labels.GetSize() == ct.GetSize() and found.labels.GetOrigin() == ct.GetOrigin()
    measured = volumes(found.labels)
    assert found.volumes_ml["liver"] == pytest.approx(measured[1], rel=1e-6)
    assert found.volumes_ml["spleen"] == pytest.approx(measured[2], rel=1e-6)
    assert sum("automatically" in warning for warning in found.warnings) == 1


def test_a_liver_cut_off_or_of_unusual_size_gives_a_warning(ct, found, network, monkeypatch):
    places = np.flatnonzero(sitk.GetArrayFromImage(found.liver).any(axis=(1, 2)))
    said = " ".join(segment(ct[:, :, int(places.mean()) :], network).warnings)
    assert "reaches the scan's lower end" in said and "adult livers" not in said
    monkeypatch.setattr(
        "LiverFibrosisStagingLib.imaging.input_checks.USUAL_LIVER_ML", (2000.0, 4000.0)
    )
    said = " ".join(segment(ct, network).warnings)
    assert "adult livers have 2000 to 4000 mL" in said


def test_each_organ_is_one_component_without_holes(found):
    for mask in (found.liver, found.spleen):
        pieces = sitk.ConnectedComponent(mask)
        assert sitk.GetArrayViewFromImage(pieces).max() == 1
    closed = sitk.BinaryFillhole(found.labels != 0)
    changed = np.count_nonzero(sitk.GetArrayViewFromImage(closed != (found.labels != 0)))
    assert changed < 0.001 * np.count_nonzero(sitk.GetArrayViewFromImage(found.labels))


def turned(ct, degrees):
    """The same patient on an oblique grid."""
    turn = sitk.Euler3DTransform()
    turn.SetRotation(0.0, np.radians(degrees / 2), np.radians(degrees))
    middle = np.array(ct.TransformContinuousIndexToPhysicalPoint([n / 2 for n in ct.GetSize()]))
    matrix = np.array(turn.GetMatrix()).reshape(3, 3)
    size = [int(1.25 * n) for n in ct.GetSize()]
    grid = sitk.Image(size, sitk.sitkInt16)
    grid.SetSpacing(ct.GetSpacing())
    grid.SetDirection(matrix.ravel().tolist())
    corner = matrix @ (np.array(size) / 2 * ct.GetSpacing())
    grid.SetOrigin((middle - corner).tolist())
    return sitk.Resample(ct, grid, sitk.Transform(), sitk.sitkLinear, -1024)


@pytest.mark.parametrize("axes", ["RAS", "PIR"])
def test_voxel_order_does_not_matter(axes, found, ct, network):
    other = segment(sitk.DICOMOrient(ct, axes), network)
    for organ, volume in found.volumes_ml.items():
        assert other.volumes_ml[organ] == pytest.approx(volume, rel=1e-6), organ


def test_an_oblique_patient_has_the_same_liver(found, ct, network):
    other = segment(turned(ct, 12), network)
    assert other.volumes_ml["liver"] == pytest.approx(found.volumes_ml["liver"], rel=0.02)


def test_a_rotated_header_does_not_matter(found, ct, network):
    """As after a registration: the same voxels in another place."""
    moved = sitk.Image(ct)
    moved.SetDirection(turned(ct, 20).GetDirection())
    moved.SetOrigin((50.0, -30.0, 700.0))
    other = segment(moved, network)
    assert other.labels.GetDirection() == moved.GetDirection()
    voxels = [sitk.GetArrayFromImage(one.labels) for one in (found, other)]
    assert np.mean(voxels[0] != voxels[1]) < 1e-4


def with_slices_of(ct, thickness):
    spacing = [*ct.GetSpacing()[:2], thickness]
    size = [*ct.GetSize()[:2], int(ct.GetSize()[2] * ct.GetSpacing()[2] / thickness)]
    return sitk.Resample(
        ct, size, sitk.Transform(), sitk.sitkLinear, ct.GetOrigin(), spacing, ct.GetDirection()
    )


@pytest.mark.parametrize("thickness", [1.0, 5.0])
def test_slice_thickness_changes_volumes_by_less_than_5_percent(thickness, found, ct, network):
    other = with_slices_of(ct, thickness)
    for organ, volume in segment(other, network).volumes_ml.items():
        assert volume == pytest.approx(found.volumes_ml[organ], rel=0.05), organ


def ellipsoids(*parts):
    """A CT of ellipsoids, (centre, radii, HU), in mm; 2.5 x 4 x 4 mm."""
    z, y, x = np.ogrid[-100:100:2.5, -160:160:4, -200:200:4]
    hu = np.full((80, 80, 100), -1000.0)
    for (cz, cy, cx), (rz, ry, rx), value in parts:
        inside = ((z - cz) / rz) ** 2 + ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1
        hu[np.broadcast_to(inside, hu.shape)] = value
    hu += np.random.default_rng(0).normal(0, 10, hu.shape)
    image = sitk.GetImageFromArray(hu.astype(np.int16))
    image.SetSpacing((4.0, 4.0, 2.5))
    return image


HEAD = (((0, 0, 0), (95, 95, 75), 1000), ((0, 0, 0), (88, 88, 68), 35))
LUNGS = tuple(((0, -10, side), (400, 75, 60), -850) for side in (-80, 80))
CHEST = (((0, 0, 0), (400, 110, 170), 20), *LUNGS, ((0, 90, 0), (400, 18, 18), 400))
AIR = (((0, 0, 0), (5, 5, 5), 50),)
WATER = (((0, 0, 0), (400, 110, 160), 0),)


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param(HEAD, id="head"),
        pytest.param(CHEST, id="chest"),
        pytest.param(WATER, id="water"),
    ],
)
def test_a_ct_without_liver_is_refused(parts, network):
    with pytest.raises(StagingError, match="no liver was found"):
        segment(ellipsoids(*parts), network)


def test_air_is_refused(network):
    with pytest.raises(StagingError, match=r"soft tissue|HU"):
        segment(ellipsoids(*AIR), network)


def test_long_scans_are_processed_in_slabs(ct, found, network):
    """Half a metre of air above and below the patient hardly changes the result."""
    air = [0, 0, int(500 / ct.GetSpacing()[2])]
    long = sitk.ConstantPad(ct, air, air, -1024)
    assert long.GetSize()[2] * long.GetSpacing()[2] / network.card.spacing_mm[0] > SLAB_SLICES
    for organ, volume in segment(long, network).volumes_ml.items():
        assert volume == pytest.approx(found.volumes_ml[organ], rel=0.03), organ


def test_cancelled_and_progress(ct, network):
    cancel, steps = threading.Event(), []

    def progress(fraction, step):
        steps.append((fraction, step))
        cancel.set()

    with pytest.raises(Cancelled):
        segment(ct, network, progress, cancel)
    assert steps == [(0.0, "Reading")]


def test_staging_needs_a_ct_and_nothing_else(ct, found, sample, model, tmp_path):
    alone = stage(sample["ct"], model=model)
    given = stage(sample["ct"], found.liver, found.spleen, model=model)
    np.testing.assert_allclose(alone.probabilities, given.probabilities, atol=1e-6)
    assert alone.measurements.keys() == given.measurements.keys()
    assert set(found.warnings) <= set(alone.warnings)
    assert given.summary()["segmentation"] is None
    assert alone.summary()["segmentation"]["organs"] == ["liver", "spleen"]
    assert alone.summary()["segmentation"]["name"] == shipped_network().card.name
    alone.save(tmp_path / "result")
    labels = sitk.ReadImage(str(tmp_path / "result" / "organs.seg.nrrd"))
    assert dice(labels == 1, found.liver) == 1.0 and dice(labels == 2, found.spleen) == 1.0
    for number, organ in enumerate(ORGANS):
        assert labels.GetMetaData(f"Segment{number}_Name") == organ.name
        assert f"SCT^{organ.code}^{organ.name}" in labels.GetMetaData(f"Segment{number}_Tags")
    assert (ORGANS[0].code, ORGANS[1].code) == ("10200004", "78961009")


def test_a_spleen_that_is_given_is_kept(ct, sample, model):
    spleen = read_mask(sample["spleen"])
    result = stage(ct, None, spleen, model)
    assert dice(result.spleen, spleen) == 1.0
    summary = result.summary()
    assert summary["segmentation"]["organs"] == ["liver"]
    assert segmented_by(summary) == "V-Net (liver), user (spleen)"
    (warning,) = (text for text in result.warnings if "automatically" in text)
    assert "spleen" not in warning


def test_the_command_writes_a_label_image(sample, found, tmp_path, capsys):
    target = tmp_path / "new" / "organs.nii.gz"
    assert main(["segment", str(sample["ct"]), "-o", str(target), "-q"]) == 0
    said = capsys.readouterr().out
    assert f"liver: {found.volumes_ml['liver']:.0f} mL" in said and "Research use" in said
    labels = sitk.ReadImage(str(target))
    assert np.array_equal(*map(sitk.GetArrayViewFromImage, (labels, found.labels)))
    assert main(["segment", str(sample["ct"]), "-o", str(tmp_path / "organs.txt"), "-q"]) == 1
    assert "Cannot write" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["new"]


def test_slicer_reads_the_saved_segments(found, tmp_path):
    """Names and codes survive SimpleITK; a missing organ has no segment."""
    write_labels(found.liver, tmp_path / "liver.seg.nrrd")
    image = sitk.ReadImage(str(tmp_path / "liver.seg.nrrd"))
    assert image.GetMetaData("Segment0_ID") == "liver"
    assert not image.HasMetaDataKey("Segment1_ID")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (None, "'liver_segmentation' metadata"),
        ({"classes": ["background", "liver"]}, "classes is .* is needed"),
        ({"contract": 9}, "contract"),
        ({"spacing_mm": "wide"}, 'spacing_mm is "wide"'),
        ({"window_hu": [250, -150]}, "lower HU first"),
    ],
)
def test_an_invalid_model_file_is_refused(change, sentence, network, tmp_path):
    model = onnx.load(network.path)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    said = json.loads(properties.pop("liver_segmentation"))
    if change is not None:
        properties["liver_segmentation"] = json.dumps(said | change)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, properties)
    onnx.save(model, tmp_path / "broken.onnx")
    with pytest.raises(StagingError, match=sentence):
        SegmentationModel(tmp_path / "broken.onnx")


def test_a_staging_model_does_not_segment(model):
    with pytest.raises(StagingError, match="not a segmentation model"):
        SegmentationModel(model.path)


@pytest.mark.parametrize("orientation", ["RAS", "PIR", "oblique_header"])
def test_the_shared_variants_have_the_same_volumes(orientation, shared_data, network):
    """A real CT without contrast, with its axes in another order, and under an oblique header."""
    folder = shared_data / "neg_geom_variants_ts"
    upright, other = (
        segment(folder / f"ct_{name}.nii.gz", network).volumes_ml for name in ("LPS", orientation)
    )
    for organ, volume in other.items():
        assert volume == pytest.approx(upright[organ], rel=0.02), organ


def test_a_real_oblique_patient_has_the_same_organs(shared_data, network):
    ct = read_ct(shared_data / "hcc011_cirrA_pv" / "ct.nii.gz")
    expected = segment(ct, network).volumes_ml
    for organ, volume in segment(turned(ct, 12), network).volumes_ml.items():
        assert volume == pytest.approx(expected[organ], rel=0.05), organ


def test_a_pelvis_has_no_liver(shared_data, network):
    """The lower 12 cm of a real CT."""
    ct = read_ct(shared_data / "ts_example_ct_nc_masks" / "ct.nii.gz")
    with pytest.raises(StagingError, match="no liver was found"):
        segment(ct[:, :, :40], network)


def test_three_centimetres_of_one_of_two_phases(shared_data, network):
    """A folder with two acquisitions: the liver of one, cut off at both ends of the scan."""
    found = segment(shared_data / "neg_dcm_hcc002_2phases_dupz" / "dicom", network)
    said = " ".join(found.warnings)
    assert "acquisition 2" in said and "lower and upper end" in said
    assert 300 < found.volumes_ml["liver"] < 900


@pytest.mark.parametrize("thickness", [1.0, 5.0])
def test_slices_of_a_real_ct_may_be_thin_or_thick(thickness, shared_data, network):
    ct = read_ct(shared_data / "hcc011_cirrA_pv" / "ct.nii.gz")
    expected = segment(ct, network).volumes_ml
    for organ, volume in segment(with_slices_of(ct, thickness), network).volumes_ml.items():
        assert volume == pytest.approx(expected[organ], rel=0.05), organ


@pytest.mark.parametrize("case", ["neg_mr_abdomen_ts", "neg_dcm_dcmqi_ct3slice"])
def test_real_non_livers_are_refused(case, shared_data, network):
    folder = shared_data / case
    source = next(folder.glob("*.nii.gz"), folder / "dicom")
    with pytest.raises(StagingError):
        segment(source, network)


@pytest.mark.parametrize(
    ("case", "liver_ml", "spleen_ml"),
    [
        ("hcc002_cirrA_pv", 2384, 290),
        ("hcc007_cirrA_bl_pv", 2145, 221),
        ("hcc011_cirrA_pv", 1976, 228),
        ("hcc048_cirrA_pv", 1367, 417),
        ("ts_example_ct_nc_masks", 1123, 261),
    ],
)
def test_real_volumes(case, liver_ml, spleen_ml, shared_data, network):
    """CTs from the shipped network's training data."""
    labels = segment_organs(shared_data / case / "ct.nii.gz")
    measured = volumes(labels)
    assert measured[1] == pytest.approx(liver_ml, rel=0.1)
    assert measured[2] == pytest.approx(spleen_ml, rel=0.15)
