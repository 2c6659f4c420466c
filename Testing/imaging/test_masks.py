"""Masks are put on the CT's grid within the organs' boxes, as SimpleITK does as a whole."""

import numpy as np
import pytest
import SimpleITK as sitk

from LiverFibrosisStagingLib import StagingError
from LiverFibrosisStagingLib.imaging.masks import organ_masks, read_organ
from LiverFibrosisStagingLib.imaging.organs import write_labels
from LiverFibrosisStagingLib.imaging.reading import read_mask

SPACING = (0.8, 0.9, 2.5)


def image(values: np.ndarray) -> sitk.Image:
    made = sitk.GetImageFromArray(values)
    made.SetSpacing(SPACING)
    made.SetOrigin((-10.0, 20.0, 30.0))
    made.SetDirection((0, -1, 0, 1, 0, 0, 0, 0, -1))
    return made


@pytest.fixture
def ct() -> sitk.Image:
    return image(np.zeros((20, 30, 40), np.int16))


@pytest.fixture
def labels() -> sitk.Image:
    """Liver 1 and spleen 2, without a single smooth border."""
    values = np.zeros((20, 30, 40), np.uint8)
    values[4:15, 3:20, 5:22] = np.random.default_rng(1).random((11, 17, 17)) < 0.7
    values[6:12, 10:25, 24:33] = 2 * (np.random.default_rng(2).random((6, 15, 9)) < 0.7)
    return image(values)


def same(found: sitk.Image, expected: sitk.Image, grid: sitk.Image) -> None:
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found), sitk.GetArrayFromImage(expected))
    assert found.GetPixelID() == sitk.sitkUInt8
    for part in ("Size", "Spacing", "Origin", "Direction"):
        assert getattr(found, f"Get{part}")() == getattr(grid, f"Get{part}")()


@pytest.mark.parametrize("kind", [sitk.sitkUInt8, sitk.sitkInt16, sitk.sitkFloat32])
def test_a_label_image_is_liver_and_spleen(kind, ct, labels):
    if kind == sitk.sitkFloat32:
        liver, spleen, _ = organ_masks(
            ct, sitk.Cast(labels == 1, kind), sitk.Cast(labels == 2, kind)
        )
    else:
        liver, spleen, _ = organ_masks(ct, sitk.Cast(labels, kind), None)
    same(liver, labels == 1, ct)
    same(spleen, labels == 2, ct)


@pytest.mark.parametrize("kind", [sitk.sitkUInt8, sitk.sitkInt16])
@pytest.mark.parametrize("place", [(4, 3, 5), (9, 12, 12), (14, 24, 32)])
def test_one_voxel_of_a_third_label_is_found(place, kind, ct, labels):
    values = sitk.GetArrayFromImage(labels)
    values[place] = 7
    with pytest.raises(StagingError, match=r"several labels \(1, 2, 7\)"):
        organ_masks(ct, sitk.Cast(image(values), kind), None)


def test_only_a_mask_as_needed_is_not_copied(ct, labels):
    liver = labels == 1
    assert organ_masks(ct, liver, None)[0] is liver
    named, fives, shifted = sitk.Image(liver), liver * 5, sitk.Image(liver)
    named.SetMetaData("Segment0_Name", "Somebody's liver")
    shifted.SetOrigin(np.add(liver.GetOrigin(), 0.01))
    for mask in (named, fives, shifted, sitk.Cast(liver, sitk.sitkUInt16)):
        found, _, warnings = organ_masks(ct, mask, None)
        assert found is not mask and not found.GetMetaDataKeys() and warnings == ()
        same(found, liver, ct)


def resampled(mask: sitk.Image, grid: sitk.Image) -> sitk.Image:
    return sitk.Resample(mask, grid, sitk.Transform(), sitk.sitkNearestNeighbor, 0)


def test_a_mask_on_another_grid(ct, labels):
    liver = labels == 1
    finer = sitk.Image(60, 61, 33, sitk.sitkUInt8)
    finer.SetOrigin(liver.GetOrigin())
    finer.SetDirection(liver.GetDirection())
    finer.SetSpacing((0.51, 0.47, 1.43))
    for mask in (liver[2:36, :, 3:18], resampled(liver, finer)):
        found, _, (warning,) = organ_masks(ct, mask, None)
        same(found, resampled(mask, ct), ct)
        assert warning.endswith("was resampled.")
    part = ct[12:40, :, :]
    found, _, (warning,) = organ_masks(part, liver, None)
    same(found, resampled(liver, part), part)
    assert "% of it lies outside the CT" in warning


def test_an_oblique_mask(ct, labels):
    turned, angle = sitk.Image(labels == 1), 0.1
    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0]])
    rotation = np.vstack([rotation, [0, 0, 1]]) @ np.reshape(ct.GetDirection(), (3, 3))
    turned.SetDirection(rotation.ravel().tolist())
    found, _, _ = organ_masks(ct, turned, None)
    same(found, resampled(turned, ct), ct)


def test_a_mask_of_another_scan_is_refused(ct, labels):
    far = labels == 1
    far.SetOrigin((500.0, 500.0, 500.0))
    with pytest.raises(StagingError, match="outside the CT"):
        organ_masks(ct, far, None)


def test_labels_of_a_file(labels, tmp_path):
    path = tmp_path / "labels.nii.gz"
    sitk.WriteImage(labels, path)
    grid = read_mask(path)
    same(read_organ(f"{path}:2"), labels == 2, grid)
    same(read_organ(f"{path}:1+2"), labels != 0, grid)
    for other in ("257", "3", "99999999999999999999"):  # 257 would be 1 in eight bits
        same(read_organ(f"{path}:2+{other}"), labels == 2, grid)
        with pytest.raises(StagingError, match="no voxel with the label"):
            read_organ(f"{path}:{other}")
    sitk.WriteImage(labels * 0, path)
    with pytest.raises(StagingError, match="no voxel with the label"):
        read_organ(f"{path}:1")


def test_written_labels_name_the_organs_that_are_there(labels, tmp_path):
    path = tmp_path / "organs.seg.nrrd"
    labels.SetMetaData("PatientName", "Somebody")
    write_labels(labels, path)
    found = sitk.ReadImage(path)
    names = [found.GetMetaData(f"Segment{n}_Name") for n in range(2)]
    assert names == ["Liver", "Spleen"] and b"Somebody" not in path.read_bytes()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found), sitk.GetArrayFromImage(labels))
    write_labels((labels == 2) * 2, path)
    found = sitk.ReadImage(path)
    assert found.GetMetaData("Segment0_Name") == "Spleen"
    assert not found.HasMetaDataKey("Segment1_Name")
