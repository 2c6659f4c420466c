"""A CT given as one DICOM file is recognised by all slices that are read with it."""

import pytest
from bad_inputs import hu_array, image, write_slices

from common.resume import digest
from LiverFibrosisStagingLib import read_ct
from LiverFibrosisStagingLib.imaging.reading import source_files


@pytest.fixture
def series(tmp_path):
    """A folder with two series of the same slices but the last, and two acquisitions of a third."""
    hu = hu_array(12)
    folder = write_slices(tmp_path / "ct", image(hu), {}, uid="1.2.3.1", prefix="a")
    hu[-1] += 1
    write_slices(folder, image(hu), {}, uid="1.2.3.2", prefix="b")
    for number in "12":
        tags = {"0020|000e": "1.2.3.3", "0020|0012": number}
        write_slices(folder, image(hu + int(number)), tags, uid=f"1.2.3.3.{number}", prefix=number)
    return folder


def first(folder, prefix):
    return min(folder.glob(f"{prefix}*.dcm"))


def test_the_digest_is_that_of_the_files_that_are_read(series, tmp_path):
    found = {prefix: digest(first(series, prefix)) for prefix in "ab12"}
    assert len(set(found.values())) == 4
    for prefix, own in found.items():
        one, other = sorted(series.glob(f"{prefix}*.dcm"))[::11]
        assert digest(one) == digest(other) == own
        alone = tmp_path / prefix
        alone.mkdir()
        for path in source_files(read_ct(one)):
            (alone / f"renamed {path.name}").write_bytes(path.read_bytes())
        assert len(list(alone.iterdir())) == 12 and digest(alone) == own


def test_the_digest_changes_with_another_slice_of_the_stack_only(series):
    before = {prefix: digest(first(series, prefix)) for prefix in "ab12"}
    sorted(series.glob("a*.dcm"))[5].write_bytes(sorted(series.glob("b*.dcm"))[5].read_bytes())
    after = {prefix: digest(first(series, prefix)) for prefix in "ab12"}
    assert after["a"] != before["a"]
    sorted(series.glob("2*.dcm"))[-1].unlink()
    last = {prefix: digest(first(series, prefix)) for prefix in "ab12"}
    assert last["2"] != after["2"] and (last["a"], last["1"]) == (after["a"], after["1"])


def test_a_damaged_file_has_a_digest(series):
    path = first(series, "a")
    path.write_bytes(path.read_bytes()[:400])
    assert digest(path) != digest(first(series, "b"))
