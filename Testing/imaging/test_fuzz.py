"""Damaged files of every format are read, or refused with a message (see `fuzz.py`)."""

import pytest
from fuzz_targets import image_targets
from fuzzing import hunt

SEED = 20261126
FORMATS = (
    *("plain.nii", "zipped.nii.gz", "rezipped.nii.gz", "floats.nii", "plain.nrrd", "zipped.nrrd"),
    *("apart.nhdr", "plain.mha", "zipped.mha", "apart.mhd", "dicom", "jpeg2000.dicom"),
)


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    return image_targets(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("name", FORMATS)
def test_every_damaged_file_is_read_or_refused(name, targets):
    tally = hunt(targets[name], SEED, 100 if "dicom" in name else 250)
    assert tally.findings == []
    assert tally.refused
