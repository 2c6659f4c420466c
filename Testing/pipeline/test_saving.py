"""The parts of a result's files are written side by side, and fail as one."""

import threading

import pytest

from LiverFibrosisStagingLib import StagingError, result
from LiverFibrosisStagingLib.errors import DiskFull


def test_parts_run_at_the_same_time_and_the_first_error_is_raised():
    both, done = threading.Barrier(2, timeout=30), []

    def fails(name):
        both.wait()
        raise OSError(name)

    with pytest.raises(OSError, match="one"):
        result._side_by_side(lambda: fails("one"), lambda: fails("two"))

    def ends():
        both.wait()
        done.append("it ended")

    with pytest.raises(OSError, match="one"):
        result._side_by_side(lambda: fails("one"), ends)
    assert done == ["it ended"]


def test_full_disk_in_several_files_leaves_nothing(staged_sample, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(result.NrrdWriter, "write", full)
    with pytest.raises(DiskFull, match="No space left"):
        staged_sample.save(tmp_path / "new" / "folder")
    assert not list(tmp_path.iterdir())


def test_refusal_of_one_part_leaves_nothing(staged_sample, tmp_path):
    with pytest.raises(StagingError):
        staged_sample.save(tmp_path / "new", dicom=[tmp_path / "no slice.dcm"])
    assert not list(tmp_path.iterdir())
