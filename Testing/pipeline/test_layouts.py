"""Folders of known data sets: their CTs, and masks by the labels that they name."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
from bad_inputs import write

from LiverFibrosisStagingLib import StagingError
from LiverFibrosisStagingLib.batch.cases import read_cohort
from LiverFibrosisStagingLib.batch.layouts import organ_labels
from LiverFibrosisStagingLib.imaging.masks import file_and_labels, read_organ

VOXELS = np.zeros((2, 4, 4), np.int16)


def make(root, *names, described=None):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, VOXELS)
    if described is not None:
        (root / "dataset.json").write_text(json.dumps(described))
    return root


def cases(root):
    """Name -> CT and masks, relative to the folder."""
    return {
        case.name: tuple(
            None if path is None else str(path).removeprefix(f"{root}/")
            for path in (case.ct, case.liver, case.spleen)
        )
        for case in read_cohort(root).cases
    }


def left(root):
    return {o.path.relative_to(root).as_posix(): o.reason for o in read_cohort(root).left_out}


def test_decathlon_liver_has_its_tumours(tmp_path):
    described = {
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "liver", "2": "cancer"},
    }
    make(tmp_path, "imagesTr/liver_0.nii.gz", "labelsTr/liver_0.nii.gz", described=described)
    make(tmp_path, "imagesTs/liver_2.nii.gz", "imagesTr/._liver_0.nii.gz")
    assert cases(tmp_path) == {
        "liver_0": ("imagesTr/liver_0.nii.gz", "labelsTr/liver_0.nii.gz:1+2", None),
        "liver_2": ("imagesTs/liver_2.nii.gz", None, None),
    }
    assert left(tmp_path) == {}


def test_decathlon_spleen_alone(tmp_path):
    described = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "spleen"}}
    make(tmp_path, "imagesTr/spleen_2.nii.gz", "labelsTr/spleen_2.nii.gz", described=described)
    assert cases(tmp_path) == {
        "spleen_2": ("imagesTr/spleen_2.nii.gz", None, "labelsTr/spleen_2.nii.gz:1")
    }


def test_nnunet_of_many_organs(tmp_path):
    described = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "spleen": 1, "kidney": 2, "liver": 6, "tumor": 7},
        "file_ending": ".nii.gz",
    }
    make(tmp_path, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz", described=described)
    make(tmp_path, "imagesTs/b_0000.nii.gz", "labelsTr/c.nii.gz")
    assert cases(tmp_path) == {
        "a": ("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz:6", "labelsTr/a.nii.gz:1"),
        "b": ("imagesTs/b_0000.nii.gz", None, None),
    }
    assert left(tmp_path) == {"labelsTr/c.nii.gz": "belongs to no image"}


def test_labels_that_nobody_names_are_not_used(tmp_path):
    make(tmp_path, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")
    assert cases(tmp_path) == {"a": ("imagesTr/a_0000.nii.gz", None, None)}
    (other,) = read_cohort(tmp_path).left_out
    assert other.case == "a" and other.reason.endswith("not named; segmented automatically")
    make(tmp_path, described={"labels": {"background": 0, "lung": 1, "liver vessels": 2}})
    assert cases(tmp_path) == {"a": ("imagesTr/a_0000.nii.gz", None, None)}


def test_of_several_channels_the_portal_venous_ct_is_the_case(tmp_path):
    names = [f"imagesTr/a_000{channel}.nii.gz" for channel in range(3)]
    described = {"channel_names": {"0": "CT arterial", "1": "MRI", "2": "CT portal"}}
    make(tmp_path, *names, described=described)
    (case,) = read_cohort(tmp_path).cases
    assert (case.ct.name, case.chosen) == ("a_0002.nii.gz", "channel 2 of 3")
    assert left(tmp_path) == {names[0]: "channel 0", names[1]: "channel 1"}


def test_a_data_set_of_mr_has_no_case(tmp_path):
    make(tmp_path, "imagesTr/a.nii.gz", described={"modality": {"0": "MRI"}})
    with pytest.raises(StagingError, match=r"contains no CT.*1 left out: image file, not a CT by"):
        read_cohort(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"), [("{", "JSON is needed"), ('{"labels": ["liver"]}', "names with their")]
)
def test_damaged_description_is_refused(text, words, tmp_path):
    make(tmp_path, "imagesTr/a.nii.gz")
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(StagingError, match=words):
        read_cohort(tmp_path)


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ({"liver": [1], "spleen": [2]}, {"liver": "1", "spleen": "2"}),
        ({"whole liver": [1, 2], "liver tumour": [2]}, {"liver": "1+2"}),
        ({"Liver": [6], "Liver_Lesion": [7], "kidney": [2], "tumor": [3]}, {"liver": "6+7"}),
        ({"cancer": [1]}, {}),
        ({"liver_vessel": [1], "splenic vein": [2]}, {}),
    ],
)
def test_labels_of_liver_and_spleen(names, found):
    assert organ_labels(names) == found


def test_several_labels_of_a_file_are_one_mask(tmp_path):
    labels = np.zeros((2, 4, 4), np.uint8)
    labels[0, 0, :3] = 1, 2, 3
    write(tmp_path / "m.nii.gz", labels)
    mask = read_organ(f"{tmp_path / 'm.nii.gz'}:1+2")
    assert sitk.GetArrayFromImage(mask)[0, 0].tolist() == [1, 1, 0, 0]
    assert mask.GetSpacing() == (5.0, 5.0, 5.0) and mask.GetPixelID() == sitk.sitkUInt8
    assert file_and_labels("m.nii.gz:1+2")[1] == (1, 2)
    with pytest.raises(StagingError, match="no voxel with the label 7 or 9"):
        read_organ(f"{tmp_path / 'm.nii.gz'}:7+9")


def test_bids_with_masks_in_derivatives(tmp_path):
    make(
        tmp_path,
        "sub-01/ct/sub-01_ct.nii.gz",
        "sub-02/ses-1/anat/sub-02_ses-1_ct.nii.gz",
        "sub-02/ses-2/anat/sub-02_ses-2_acq-portal_ct.nii.gz",
        "sub-02/ses-2/anat/sub-02_ses-2_acq-native_ct.nii.gz",
        "sub-02/ses-2/anat/sub-02_ses-2_T1w.nii.gz",
        "derivatives/hand/sub-01/ct/sub-01_label-liver_mask.nii.gz",
        "derivatives/hand/sub-01/ct/sub-01_label-spleen_mask.nii.gz",
        "derivatives/hand/sub-02/ses-2/anat/sub-02_ses-2_acq-portal_desc-liver_mask.nii.gz",
        "derivatives/hand/sub-02/ses-2/anat/sub-02_ses-2_label-spleen_mask.nii.gz",
        "derivatives/net/sub-02/ses-1/anat/sub-02_ses-1_dseg.nii.gz",
    )
    hand, net = "derivatives/hand", "derivatives/net"
    ses = "sub-02/ses-2/anat/sub-02_ses-2"
    expected = {
        "sub-01": (
            "sub-01/ct/sub-01_ct.nii.gz",
            f"{hand}/sub-01/ct/sub-01_label-liver_mask.nii.gz",
            f"{hand}/sub-01/ct/sub-01_label-spleen_mask.nii.gz",
        ),
        "sub-02_ses-1": ("sub-02/ses-1/anat/sub-02_ses-1_ct.nii.gz", None, None),
        "sub-02_ses-2_acq-native": (f"{ses}_acq-native_ct.nii.gz", None, None),
        "sub-02_ses-2_acq-portal": (
            f"{ses}_acq-portal_ct.nii.gz",
            f"{hand}/{ses}_acq-portal_desc-liver_mask.nii.gz",
            None,
        ),
    }
    assert cases(tmp_path) == expected
    labels = f"{net}/sub-02/ses-1/anat/sub-02_ses-1_dseg.nii.gz"
    assert left(tmp_path) == {
        f"{ses}_T1w.nii.gz": "neither a CT nor a mask of liver or spleen",
        f"{hand}/{ses}_label-spleen_mask.nii.gz": "a mask that could belong to 2 CTs",
        labels: "its labels of liver and spleen are not named; segmented automatically",
    }
    (tmp_path / net / "dseg.tsv").write_text("index\tname\n1\tspleen\n5\tliver\n")
    assert cases(tmp_path)["sub-02_ses-1"][1:] == (f"{labels}:5", f"{labels}:1")
    assert labels not in left(tmp_path)


def test_bids_masks_of_several_pipelines_are_not_chosen_from(tmp_path):
    make(tmp_path, "sub-01/ct/sub-01_ct.nii.gz")
    names = [f"derivatives/{one}/sub-01/ct/sub-01_label-liver_mask.nii.gz" for one in "ab"]
    make(tmp_path, *names)
    assert cases(tmp_path) == {"sub-01": ("sub-01/ct/sub-01_ct.nii.gz", None, None)}
    why = "one of several masks of an organ; segmented automatically"
    assert left(tmp_path) == dict.fromkeys(names, why)


def test_other_folders_are_searched_as_before(tmp_path):
    make(tmp_path, "sub-01/ct.nii.gz", "sub-01/seg.nii.gz")
    assert cases(tmp_path) == {"sub-01": ("sub-01/ct.nii.gz", "sub-01/seg.nii.gz", None)}
