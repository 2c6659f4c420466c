"""Segmentations of the liver's parts: folders, Slicer segmentations, label images."""

import numpy as np
import pytest
import SimpleITK as sitk

from LiverFibrosisStagingLib.errors import StagingError
from LiverFibrosisStagingLib.imaging.organs import COUINAUD_CODES, liver_part
from LiverFibrosisStagingLib.imaging.segments import read_segments

SPACING = (2.0, 2.0, 2.5)  # 0.01 mL per voxel
# Voxels of Couinaud's segments I to VIII.
SIZES = (40, 110, 130, 150, 170, 190, 210, 230)


@pytest.fixture
def labels():
    """Label image [8, 20, 20] with segment n in slice n - 1."""
    array = np.zeros((8, 20, 20), np.uint8)
    for label, size in enumerate(SIZES, start=1):
        array[label - 1].flat[:size] = label
    return array


def image(array, spacing=SPACING):
    made = sitk.GetImageFromArray(array)
    made.SetSpacing(spacing)
    return made


def folder(path, parts):
    path.mkdir()
    for name, array in parts.items():
        sitk.WriteImage(image(array.astype(np.uint8)), path / f"{name}.nii.gz")
    return path


def terminology(code, name):
    return (
        "TerminologyEntry:Anatomy~SCT^123037004^Anatomical Structure~"
        f"SCT^{code}^{name}~^^~Anatomic codes~^^~^^|"
    )


def slicer(path, array, segments):
    """A .seg.nrrd file; segments: label -> (name, terminology)."""
    made = image(array)
    for number, (label, (name, tags)) in enumerate(segments.items()):
        for key, value in (("LabelValue", str(label)), ("Name", name), ("Tags", tags)):
            made.SetMetaData(f"Segment{number}_{key}", value)
    sitk.WriteImage(made, path)
    return path


def check_all(found):
    for label, size in enumerate(SIZES, start=1):
        assert found.volume_ml(frozenset({label})) == pytest.approx(size / 100)
    assert found.volume_ml(frozenset({1, 2, 3})) == pytest.approx(2.80)
    assert found.volume_ml(frozenset(range(4, 9))) == pytest.approx(9.50)


def test_the_folder_of_totalsegmentator(labels, tmp_path):
    parts = {f"liver_segment_{n}": labels == n for n in range(1, 9)}
    other = {"spleen": labels > 0, "liver_vessels": labels > 3, "liver": labels > 0}
    check_all(read_segments(folder(tmp_path / "segments", parts | other)))


def test_a_label_image_with_the_labels_1_to_8(labels, tmp_path):
    sitk.WriteImage(image(labels), tmp_path / "segments.nii.gz")
    check_all(read_segments(tmp_path / "segments.nii.gz"))


def test_a_slicer_segmentation_by_codes_whatever_names_and_labels(labels, tmp_path):
    segments = {
        31 - n: (f"Segment_{n}", terminology(code, "Couinaud hepatic segment"))
        for n, code in enumerate(COUINAUD_CODES, start=1)
    }
    turned = np.where(labels > 0, 31 - labels, 0).astype(np.uint8)
    turned[0, 19, 19] = 7
    segments[7] = ("Tumor", terminology("108369006", "Tumor"))
    check_all(read_segments(slicer(tmp_path / "a.seg.nrrd", turned, segments)))


def test_a_slicer_segmentation_by_names(labels, tmp_path):
    roman = ("I", "II", "III", "IV", "V", "VI", "VII", "VIII")
    segments = {n: (f"Liver segment {name}", "") for n, name in enumerate(roman, start=1)}
    check_all(read_segments(slicer(tmp_path / "b.seg.nrrd", labels, segments)))


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("liver_segment_4", {4}),
        ("Couinaud hepatic segment IVb", {4}),
        ("Caudate lobe of liver", {1}),
        ("left_lobe", {2, 3}),
        ("Right lobe of liver", {4, 5, 6, 7, 8}),
        ("right-hemiliver", {5, 6, 7, 8}),
        ("left lateral section", {2, 3}),
        ("liver", None),
        ("right", None),
        ("lung_upper_lobe_left", None),
        ("segment 4", None),
    ],
)
def test_names_of_parts(name, part):
    found = liver_part(None, name)
    assert found == (None if part is None else frozenset(part))


def test_lobes_make_up_what_they_consist_of_and_nothing_else(labels, tmp_path):
    lobes = {
        "caudate_lobe": labels == 1,
        "left_lobe": np.isin(labels, (2, 3)),
        "right_lobe": labels > 3,
    }
    found = read_segments(folder(tmp_path / "lobes", lobes))
    assert found.volume_ml(frozenset({1, 2, 3})) == pytest.approx(2.80)
    assert found.volume_ml(frozenset(range(4, 9))) == pytest.approx(9.50)
    # The right lobe contains segment IV.
    assert found.volume_ml(frozenset(range(5, 9))) is None
    assert found.volume_ml(frozenset({2})) is None


def test_segments_replace_the_lobe_that_they_are_part_of(labels, tmp_path):
    parts = {f"liver_segment_{n}": labels == n for n in range(1, 9)}
    both = parts | {"right_lobe": labels > 3}
    check_all(read_segments(folder(tmp_path / "both", both)))


def test_an_empty_segment_has_no_volume_but_is_known(labels, tmp_path):
    labels[labels == 1] = 0
    parts = {f"liver_segment_{n}": labels == n for n in range(1, 9)}
    found = read_segments(folder(tmp_path / "resected", parts))
    assert found.volume_ml(frozenset({1})) == 0
    assert found.volume_ml(frozenset({1, 2})) == pytest.approx(1.10)


def test_what_is_not_a_segmentation_of_the_liver_is_refused(labels, tmp_path):
    def refused(path, words):
        with pytest.raises(StagingError, match=words):
            read_segments(path)

    organs = np.minimum(labels, 2)
    sitk.WriteImage(image(organs), tmp_path / "organs.nii.gz")
    refused(tmp_path / "organs.nii.gz", r"its labels \(1, 2\) are not parts of the liver")
    refused(folder(tmp_path / "other", {"spleen": labels > 0}), "no mask is named after a part")
    empty = {f"liver_segment_{n}": labels > 8 for n in range(1, 9)}
    refused(folder(tmp_path / "empty", empty), "all parts of the liver are empty")
    refused(tmp_path / "none.nii.gz", "no such file")
    mixed = folder(tmp_path / "mixed", {"liver_segment_1": labels == 1})
    sitk.WriteImage(image(labels, (1.0, 1.0, 1.0)), mixed / "liver_segment_2.nii.gz")
    refused(mixed, "different grids")
