"""Paths that SimpleITK can open, and suppression of its warnings."""

import os
import threading
from pathlib import Path

import pytest
import SimpleITK as sitk
from bad_inputs import hu_array, image, liver_array, write, write_slices

from LiverFibrosisStagingLib.batch.cases import find_cases
from LiverFibrosisStagingLib.errors import StagingError
from LiverFibrosisStagingLib.imaging import itk_files
from LiverFibrosisStagingLib.imaging.itk_files import itk_path, quiet
from LiverFibrosisStagingLib.imaging.organs import write_labels
from LiverFibrosisStagingLib.imaging.reading import read_ct


@pytest.fixture(params=[True, False])
def shown(request):
    before = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(request.param)
    yield request.param
    sitk.ProcessObject.SetGlobalWarningDisplay(before)


def test_two_threads_that_read_at_once_leave_the_warnings_as_they_were(shown):
    first_in, second_in, first_out = threading.Event(), threading.Event(), threading.Event()
    seen = []

    def first():
        with quiet():
            first_in.set()
            second_in.wait(30)
        first_out.set()

    def second():
        first_in.wait(30)
        with quiet():
            second_in.set()
            first_out.wait(30)
            seen.append(sitk.ProcessObject.GetGlobalWarningDisplay())

    threads = [threading.Thread(target=work) for work in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [False]  # still quiet, though the first is done
    assert sitk.ProcessObject.GetGlobalWarningDisplay() is shown


def test_an_error_within_leaves_the_warnings_as_they_were(shown):
    with pytest.raises(ValueError), quiet(), quiet():
        raise ValueError
    assert sitk.ProcessObject.GetGlobalWarningDisplay() is shown


@pytest.fixture
def windows(monkeypatch):
    """A plain Python on a Windows whose code page is not UTF-8."""
    monkeypatch.setattr(itk_files, "_WINDOWS", True)
    monkeypatch.setattr(itk_files, "_code_page", lambda: 1252)
    return monkeypatch


def test_elsewhere_paths_are_unchanged(tmp_path):
    assert itk_path(tmp_path / "Zoë" / "ct.nii") == str(tmp_path / "Zoë" / "ct.nii")


def test_on_windows_folders_are_given_by_short_names(windows):
    windows.setattr(itk_files, "_short_name", lambda folder: "C:\\CASES\\ZO~1")
    assert itk_path(Path("Zoë") / "ct.nii") == f"C:\\CASES\\ZO~1{os.sep}ct.nii"
    assert itk_path(Path("plain") / "ct.nii") == str(Path("plain") / "ct.nii")
    with pytest.raises(StagingError, match="characters that SimpleITK cannot open"):
        itk_path(Path("plain") / "Zoë.nii")
    windows.setattr(itk_files, "_code_page", lambda: 65001)  # as in Slicer
    assert itk_path(Path("plain") / "Zoë.nii") == str(Path("plain") / "Zoë.nii")


def test_without_short_names_the_path_is_refused(windows, tmp_path):
    windows.setattr(itk_files, "_short_name", str)
    folder = tmp_path / "Zoë"
    folder.mkdir()
    write(folder / "ct.nii")
    series = write_slices(folder / "series", image(hu_array()))
    for path in (folder / "ct.nii", series, series / "IM003.dcm"):
        with pytest.raises(StagingError, match="characters that SimpleITK cannot open"):
            read_ct(path)
    with pytest.raises(StagingError, match="characters that SimpleITK cannot open"):
        write_labels(image(liver_array()), folder / "labels.nii.gz")
    assert sorted(p.name for p in folder.iterdir()) == ["ct.nii", "series"]
    cases = find_cases(folder).cases  # which their own rows refuse
    assert [case.ct for case in cases] == [folder / "ct.nii", series]


def test_short_names_serve_reading_and_writing(windows, tmp_path):
    folder = tmp_path / "Zoë"
    write_slices(folder, image(hu_array()))
    (tmp_path / "ZO~1").symlink_to(folder)
    windows.setattr(itk_files, "_short_name", lambda given: str(given).replace("Zoë", "ZO~1"))
    assert read_ct(folder).GetSize() == (72, 64, 24)
    write_labels(image(liver_array()), folder / "Zoë's labels.nii.gz")
    assert (folder / "Zoë's labels.nii.gz").is_file()


def test_free_text_of_an_image_is_not_written_with_labels(tmp_path):
    labels = image(liver_array())
    labels.SetMetaData("0008|103e", "DOE^JANE arterial")
    for name in ("labels.nrrd", "labels.mha", "labels.nii"):
        write_labels(labels, tmp_path / name)
        assert b"DOE" not in (tmp_path / name).read_bytes()
