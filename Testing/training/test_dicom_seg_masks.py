"""DICOM segmentations as masks on the grid of their CT."""

import numpy as np
import pytest
import SimpleITK as sitk
from bad_inputs import hu_array

pytest.importorskip("highdicom")
from public_copies import LIVER, SPLEEN, TUMOUR, ct, masks, seg, slices_of
from pydicom import Dataset, dcmread

from LiverFibrosisStagingLib import read_ct
from LiverFibrosisStagingLib.errors import StagingError
from public.seg import kind_of, read_segmentation


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    folder = ct(tmp_path_factory.mktemp("seg") / "ct", "P1")
    return folder, read_ct(folder)


def shuffled(count):
    return np.random.default_rng(3).permutation(count)


@pytest.mark.parametrize("order", [None, shuffled])
def test_segments_are_at_their_places_in_any_order_of_frames(series, tmp_path, order):
    folder, image = series
    drawn = masks()
    drawn[LIVER][[7, 9, 11]] = False
    made = seg(tmp_path / "s.dcm", slices_of(folder), drawn, order=order)
    found = read_segmentation(tmp_path / "s.dcm")
    assert found.patient == "P1"
    # A slice without any segment has no frame, and is not referred to.
    shown = np.any([mask.any(axis=(1, 2)) for mask in drawn.values()], axis=0)
    assert len(made.PerFrameFunctionalGroupsSequence) < shown.sum() * len(drawn)
    uids = [each.SOPInstanceUID for each in slices_of(folder)]
    assert found.instances == {uid for uid, one in zip(uids, shown) if one}
    voxels = found.masks(image)
    assert set(voxels) == {"liver", "tumour", "spleen"}
    for name, label in (("liver", LIVER), ("tumour", TUMOUR), ("spleen", SPLEEN)):
        np.testing.assert_array_equal(voxels[name], drawn[label])


@pytest.mark.parametrize("kind", ["FRACTIONAL", "LABELMAP"])
def test_fractions_and_label_maps(series, tmp_path, kind):
    folder, image = series
    drawn = {label: masks()[label] for label in (TUMOUR, LIVER)}
    seg(tmp_path / "s.dcm", slices_of(folder), drawn, kind=kind)
    found = read_segmentation(tmp_path / "s.dcm").masks(image)
    np.testing.assert_array_equal(found["liver"], drawn[LIVER])
    np.testing.assert_array_equal(found["tumour"], drawn[TUMOUR])


def test_frames_with_an_odd_number_of_pixels_and_turned_axes(tmp_path):
    # 61 x 71 bits are no whole bytes, so that a frame begins within one.
    folder = ct(tmp_path / "ct", "P1", hu=hu_array()[:, :61, :71])
    drawn = {LIVER: masks()[LIVER][:, :61, :71]}
    seg(tmp_path / "s.dcm", slices_of(folder), drawn)
    found = read_segmentation(tmp_path / "s.dcm")
    image = read_ct(folder)
    np.testing.assert_array_equal(found.masks(image)["liver"], drawn[LIVER])
    turned = sitk.Flip(image, (True, False, True))
    np.testing.assert_array_equal(found.masks(turned)["liver"], drawn[LIVER][::-1, :, ::-1])


def test_a_segmentation_beside_its_ct_is_refused(series, tmp_path):
    folder, image = series
    seg(tmp_path / "s.dcm", slices_of(folder), {LIVER: masks()[LIVER]})
    found = read_segmentation(tmp_path / "s.dcm")
    moved = sitk.Image(image)
    moved.SetOrigin((-181.5, -160.0, 50.0))
    with pytest.raises(StagingError, match="between the voxels"):
        found.masks(moved)
    finer = sitk.Image(image)
    finer.SetSpacing([step / 2 for step in image.GetSpacing()])
    with pytest.raises(StagingError, match="between the voxels"):
        found.masks(finer)
    with pytest.raises(StagingError, match="beyond its CT"):
        found.masks(image[:, :, :12])
    data = (tmp_path / "s.dcm").read_bytes()
    (tmp_path / "s.dcm").write_bytes(data[: len(data) - 4000])
    with pytest.raises(StagingError, match="cannot be read"):
        found.masks(image)
    (tmp_path / "s.dcm").write_bytes(data[:100])
    with pytest.raises(StagingError, match="damaged"):
        read_segmentation(tmp_path / "s.dcm")


def test_other_objects_are_no_segmentations(series):
    assert read_segmentation(sorted(series[0].iterdir())[0]) is None


@pytest.mark.parametrize(
    ("label", "code", "kind"),
    [
        ("Liver", None, "liver"),
        ("Segment_1", ("SRT", "T-62000", "Liver"), "liver"),
        ("liver without tumor", ("SCT", "10200004", "Liver"), "liver"),
        ("Whole_Liver", ("SCT", "10200004", "Liver"), "liver"),
        ("Liver_Remnant", ("SCT", "10200004", "Liver"), None),
        ("Hepatic", ("SCT", "10200004", "Liver"), None),
        ("Portal", ("SRT", "T-48810", "Portal vein"), None),
        ("Abdominal aorta", ("SRT", "T-42500", "Abdominal aorta"), None),
        ("Tumor_2", ("SRT", "M-01000", "Morphologically Altered Structure"), "tumour"),
        ("Mass", ("SRT", "M-03000", "Mass"), "tumour"),
        ("Segment 4", ("SCT", "108369006", "Neoplasm"), "tumour"),
        ("Milz", None, "spleen"),
        ("Spleen", ("SRT", "T-C3000", "Spleen"), "spleen"),
        ("Kidney", ("SCT", "64033007", "Kidney"), None),
    ],
)
def test_kinds_of_segments(label, code, kind):
    segment = Dataset()
    segment.SegmentLabel = label
    if code is not None:
        coded = Dataset()
        coded.CodingSchemeDesignator, coded.CodeValue, coded.CodeMeaning = code
        segment.SegmentedPropertyTypeCodeSequence = [coded]
    assert kind_of(segment) == kind


def test_a_real_segmentation_has_the_voxels_of_its_nrrd(shared_data):
    folder = shared_data / "neg_dcm_dcmqi_ct3slice"
    found = read_segmentation(folder / "liver_SEG.dcm")
    slices = [dcmread(path, stop_before_pixels=True) for path in (folder / "dicom").iterdir()]
    assert found.instances == {each.SOPInstanceUID for each in slices}
    drawn = sitk.GetArrayFromImage(sitk.ReadImage(folder / "liver_seg.nrrd")) > 0
    np.testing.assert_array_equal(found.masks(read_ct(folder / "dicom"))["liver"], drawn)
    assert drawn.sum() == 107098
