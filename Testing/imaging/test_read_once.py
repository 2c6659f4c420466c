"""A compressed NIfTI file is expanded once, with ITK's result."""

import gzip

import numpy as np
import pytest
import SimpleITK as sitk

from LiverFibrosisStagingLib import StagingError
from LiverFibrosisStagingLib.imaging import reading
from LiverFibrosisStagingLib.imaging.reading import read_ct


@pytest.fixture
def scan() -> sitk.Image:
    values = np.random.default_rng(2).integers(-1000, 1000, (12, 20, 24))
    image = sitk.GetImageFromArray(values.astype(np.int16))
    image.SetSpacing((0.7, 0.8, 2.5))
    image.SetOrigin((-10.0, 20.0, 30.0))
    image.SetDirection((0, -1, 0, 1, 0, 0, 0, 0, 1))
    return image


@pytest.mark.parametrize("kind", [sitk.sitkInt16, sitk.sitkUInt16, sitk.sitkInt32, sitk.sitkUInt8])
def test_as_by_itk(kind, scan, tmp_path, monkeypatch):
    path = tmp_path / "ct.nii.gz"
    sitk.WriteImage(sitk.Cast(scan, kind), path)
    expected = sitk.ReadImage(path)
    monkeypatch.setattr(reading, "_read_checked", None)
    found = read_ct(path)
    assert found.GetPixelID() == kind
    assert found.GetOrigin() == expected.GetOrigin()
    assert found.GetSpacing() == expected.GetSpacing()
    np.testing.assert_allclose(found.GetDirection(), expected.GetDirection(), atol=1e-9)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found), sitk.GetArrayFromImage(expected))


@pytest.mark.parametrize("scaling", [(2.0, 0.0), (1.0, -1024.0)])
def test_scaled_values_are_left_to_itk(scaling, scan, tmp_path):
    path = tmp_path / "ct.nii.gz"
    sitk.WriteImage(scan, path)
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[112:120] = np.array(scaling, "<f4").tobytes()
    path.write_bytes(gzip.compress(content))
    found = sitk.GetArrayFromImage(read_ct(path))
    expected = sitk.GetArrayFromImage(scan) * scaling[0] + scaling[1]
    np.testing.assert_array_equal(found, expected)


def test_two_members_and_what_follows(scan, tmp_path):
    path = tmp_path / "ct.nii.gz"
    sitk.WriteImage(scan, path)
    content = gzip.decompress(path.read_bytes())
    half = len(content) // 2
    path.write_bytes(gzip.compress(content[:half]) + gzip.compress(content[half:] + b"more"))
    found = sitk.GetArrayFromImage(read_ct(path))
    np.testing.assert_array_equal(found, sitk.GetArrayFromImage(scan))


def test_damage_is_found(scan, tmp_path):
    path = tmp_path / "ct.nii.gz"
    sitk.WriteImage(scan, path)
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[-6] ^= 1  # of the checksum
    for content, why in (
        (bytes(damaged), "damaged"),
        (whole[:-40], "truncated"),
        (gzip.compress(gzip.decompress(whole)[:-40]), "truncated"),
    ):
        path.write_bytes(content)
        with pytest.raises(StagingError, match=why):
            read_ct(path)
