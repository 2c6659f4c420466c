"""Damaged files in a DICOM folder are left out with a note; a gap that one leaves is refused."""

import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from bad_inputs import PATIENT, hu_array, image, write_slices

from LiverFibrosisStagingLib.batch.cases import find_cases
from LiverFibrosisStagingLib.errors import StagingError
from LiverFibrosisStagingLib.imaging.dicom_elements import is_whole
from LiverFibrosisStagingLib.imaging.reading import notes, read_ct

_LAST = 23
_NOTE = "1 damaged file was left out; part of the scan may be missing."


def cut(path, share=0.6):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def without_pixels(path):
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"\xe0\x7f\x10\0")])


def as_text(path):
    path.write_text("no image\n" * 200)


def emptied(path):
    path.write_bytes(b"")


def with_a_huge_element(path):
    """An element whose length lies far beyond the file's end."""
    data = bytearray(path.read_bytes())
    at = data.index(b"\x20\0\x0e\0")  # the series' identifier
    struct.pack_into("<I", data, at + 4, 2_000_000_000)
    path.write_bytes(data)


def with_more_rows(path):
    data = bytearray(path.read_bytes())
    at = data.index(b"\x28\0\x10\0\x02\0\0\0")
    struct.pack_into("<H", data, at + 8, 60000)
    path.write_bytes(data)


DAMAGE = (cut, without_pixels, as_text, emptied, with_a_huge_element, with_more_rows)


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    return write_slices(tmp_path_factory.mktemp("sound") / "series", image(hu_array()))


@pytest.fixture
def folder(series, tmp_path):
    return Path(shutil.copytree(series, tmp_path / "series"))


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("number", [0, _LAST])
def test_a_damaged_file_at_an_end_is_left_out_with_a_note(damage, number, folder):
    damage(folder / f"IM{number:03d}.dcm")
    found = read_ct(folder)
    intact = hu_array()[1:] if number == 0 else hu_array()[:-1]
    np.testing.assert_array_equal(sitk.GetArrayViewFromImage(found), intact)
    assert notes(found) == (_NOTE,)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_within_leaves_a_gap_that_is_refused(damage, folder):
    damage(folder / "IM010.dcm")
    with pytest.raises(StagingError, match=r"slices are missing .*IM010.dcm is damaged") as refusal:
        read_ct(folder)
    assert PATIENT not in str(refusal.value)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_copy_is_left_out(damage, folder):
    shutil.copy(folder / "IM010.dcm", folder / "copy.dcm")
    damage(folder / "copy.dcm")
    found = read_ct(folder)
    np.testing.assert_array_equal(sitk.GetArrayViewFromImage(found), hu_array())
    assert notes(found) == (_NOTE,)


@pytest.mark.parametrize("damage", [cut, without_pixels, with_a_huge_element, with_more_rows])
def test_a_damaged_file_given_by_the_user_is_refused(damage, folder):
    damage(folder / "IM010.dcm")
    with pytest.raises(StagingError, match=r"^IM010.dcm: the DICOM file is truncated or damaged"):
        read_ct(folder / "IM010.dcm")
    with pytest.raises(StagingError, match=r"slices are missing .*IM010.dcm is damaged"):
        read_ct(folder / "IM011.dcm")


def test_nothing_but_damaged_files_is_refused(folder):
    for path in folder.iterdir():
        cut(path)
    with pytest.raises(StagingError, match=r"24 files, such as IM000.dcm, are damaged"):
        read_ct(folder)


def test_damaged_files_do_not_merge_patients_nor_hide_them(tmp_path):
    for name in ("anna", "bert", "carl"):
        tags = {"0010|0020": name, "0020|000d": f"1.9.{ord(name[0])}"}
        write_slices(tmp_path / name, image(hu_array(12)), tags)
    for name in ("anna", "bert"):  # the first file of each
        cut(tmp_path / name / "IM000.dcm")
    for path in (tmp_path / "carl").iterdir():
        as_text(path)
    cases = find_cases(tmp_path).cases
    assert [case.ct for case in cases] == [tmp_path / name for name in ("anna", "bert", "carl")]
    assert notes(read_ct(cases[0].source)) == (_NOTE,)


def test_a_slice_of_another_size_is_not_part_of_the_stack(folder):
    small = sitk.RegionOfInterest(image(hu_array()), (64, 64, 24))
    for number in (_LAST, 10):
        (folder / f"IM{number:03d}.dcm").unlink()
        write_slices(folder, small, skip=tuple(set(range(24)) - {number}), prefix="S")
        if number == _LAST:
            found = read_ct(folder)
            assert found.GetSize() == (72, 64, 23) and "Not used" in notes(found)[0]
    with pytest.raises(StagingError, match=r"slices are missing"):
        read_ct(folder)


@pytest.mark.parametrize("spacing", [b"", b"0\\0", b"abc", b"-5\\5", b"5"])
def test_a_slice_without_pixel_spacing_is_left_out(spacing, folder):
    for path in folder.iterdir():
        data = path.read_bytes()
        at = data.index(b"\x28\0\x30\0") + 4
        length = struct.unpack_from("<I", data, at)[0]
        field = spacing.ljust(len(spacing) + len(spacing) % 2)
        rest = data[at + 4 + length :]
        path.write_bytes(data[:at] + struct.pack("<I", len(field)) + field + rest)
    with pytest.raises(StagingError, match="only 24 x images without pixel spacing"):
        read_ct(folder)


@pytest.mark.parametrize("thickness", ["0", "nan", "-3", "1e999", "abc"])
def test_a_strange_thickness_does_no_harm(thickness, tmp_path):
    one = tuple(range(1, 24))
    path = write_slices(tmp_path / "one", image(hu_array()), {"0018|0050": thickness}, skip=one)
    assert read_ct(path).GetSpacing()[2] == 1.0


def test_a_dicomdir_is_skipped_in_its_folder_and_refused_by_itself(folder):
    directory = bytes(128) + b"DICM" + b"\x02\0\x02\0UI\x14\0" + b"1.2.840.10008.1.3.10\x02"
    for name in ("DICOMDIR", "directory.dcm"):
        (folder / name).write_bytes(directory + bytes(100))
        assert notes(read_ct(folder)) == ()
        with pytest.raises(StagingError, match="contains no images; give the images' folder"):
            read_ct(folder / name)


def test_damaged_compressed_pixels_are_left_out(shared_data, tmp_path):
    source = shared_data / "ts_example_ct_dicom_slab_pv" / "dicom"
    folder = Path(shutil.copytree(source, tmp_path / "slab"))
    whole = read_ct(source)
    files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    last = Path(files[-1])
    for damage in (cut, lambda path: cut(path, 0.999)):
        shutil.copy(source / last.name, last)
        damage(last)
        found = read_ct(folder)
        np.testing.assert_array_equal(
            sitk.GetArrayViewFromImage(found), sitk.GetArrayFromImage(whole)[:-1]
        )
        assert notes(found) == (_NOTE,)


def test_odd_dicom_files_are_read_or_refused(tmp_path):
    pydicom_data = pytest.importorskip("pydicom.data")
    files = [p for p in Path(pydicom_data.__file__).parent.rglob("*") if p.is_file()]
    files = [p for p in files if p.read_bytes()[128:132] == b"DICM" or p.suffix == ".dcm"]
    assert len(files) > 150
    read = 0
    for number, path in enumerate(files):
        alone = tmp_path / str(number)
        alone.mkdir()
        shutil.copy(path, alone)
        try:
            read += read_ct(alone if number % 2 else alone / path.name).GetDimension() == 3
        except StagingError as refusal:
            text = str(refusal)
            assert text.endswith(".") and "\n" not in text and len(text) < 400
    assert read


def test_unusual_but_complete_files_pass_the_check_of_elements():
    pydicom_data = pytest.importorskip("pydicom.data")
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    for path in Path(pydicom_data.__file__).parent.rglob("*.dcm"):
        if path.read_bytes()[128:132] != b"DICM":
            continue
        reader.SetFileName(str(path))
        try:
            reader.ReadImageInformation()
        except RuntimeError:
            continue
        assert is_whole(path), path.name
