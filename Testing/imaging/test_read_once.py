"""A compressed NIfTI or NRRD file is expanded once, by ITK, and damage is still found."""

import gzip

import numpy as np
import pytest
import SimpleITK as sitk

from LiverFibrosisStagingLib import StagingError
from LiverFibrosisStagingLib.imaging import pixel_data
from LiverFibrosisStagingLib.imaging.pixel_data import PixelData
from LiverFibrosisStagingLib.imaging.reading import read_ct


@pytest.fixture
def scan() -> sitk.Image:
    values = np.random.default_rng(2).integers(-1000, 1000, (12, 20, 24))
    image = sitk.GetImageFromArray(values.astype(np.int16))
    image.SetSpacing((0.7, 0.8, 2.5))
    image.SetOrigin((-10.0, 20.0, 30.0))
    image.SetDirection((0, -1, 0, 1, 0, 0, 0, 0, 1))
    return image


@pytest.fixture
def expanded(monkeypatch) -> list[int]:
    """Bytes of each part of a stream that the library expanded itself."""
    sizes, parts = [], PixelData._parts

    def counted(pixels, path):
        for part in parts(pixels, path):
            sizes.append(len(part))
            yield part

    monkeypatch.setattr(pixel_data, "_CHUNK", 1024)
    monkeypatch.setattr(PixelData, "_parts", counted)
    return sizes


KINDS = [sitk.sitkInt16, sitk.sitkUInt16, sitk.sitkInt32, sitk.sitkUInt8, sitk.sitkFloat32]


@pytest.mark.parametrize("ending", ["nii.gz", "nrrd"])
@pytest.mark.parametrize("kind", KINDS)
def test_as_by_itk(kind, ending, scan, tmp_path, expanded):
    path = tmp_path / f"ct.{ending}"
    sitk.WriteImage(sitk.Cast(scan, kind), path, useCompression=True)
    expected = sitk.ReadImage(path)
    found = read_ct(path)
    assert len(expanded) <= 1 and sum(expanded) <= 1024  # the header of a NIfTI file
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


def test_two_members_and_what_follows(scan, tmp_path, expanded):
    path = tmp_path / "ct.nii.gz"
    sitk.WriteImage(scan, path)
    content = gzip.decompress(path.read_bytes())
    half = len(content) // 2
    for members in (
        gzip.compress(content[:half]) + gzip.compress(content[half:] + b"more"),
        gzip.compress(content) + b"more",
        gzip.compress(content) + gzip.compress(b""),
    ):
        path.write_bytes(members)
        expanded.clear()
        found = sitk.GetArrayFromImage(read_ct(path))
        np.testing.assert_array_equal(found, sitk.GetArrayFromImage(scan))
        assert sum(expanded) > len(content)


def test_values_that_itk_replaces_are_refused(scan, tmp_path):
    path = tmp_path / "ct.nii.gz"
    for value in (np.nan, np.inf):
        values = sitk.GetArrayFromImage(scan).astype(np.float32)
        values[5, 6, 7] = value
        sitk.WriteImage(sitk.GetImageFromArray(values), path)
        with pytest.raises(StagingError, match="contains NaN or infinite values"):
            read_ct(path)


@pytest.mark.parametrize("ending", ["nii.gz", "nrrd"])
def test_damage_is_found(ending, scan, tmp_path, capfd):
    path = tmp_path / f"ct.{ending}"
    sitk.WriteImage(scan, path, useCompression=True)
    whole = path.read_bytes()
    start = whole.index(pixel_data.GZIP_MAGIC)
    short = gzip.decompress(whole[start:])[:-40]
    for place in (-1, -6, len(whole) - 2000, len(whole) // 2):  # length, checksum, pixels
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(StagingError, match=r"damaged|truncated"):
            read_ct(path)
    for content in (whole[:-1], whole[:-40], whole[:start] + gzip.compress(short)):
        path.write_bytes(content)
        with pytest.raises(StagingError, match="truncated"):
            read_ct(path)
    assert capfd.readouterr() == ("", "")
