"""The sample, staged once from files with a patient's name, and its report."""

import shutil
from dataclasses import replace

import pytest

NAME = "Mustermann"


@pytest.fixture(scope="session")
def staged_sample(sample, single, tmp_path_factory):
    """A result; its supported stage comes from one of the shipped networks."""
    from LiverFibrosisStagingLib import stage

    folder = tmp_path_factory.mktemp(f"{NAME}_Erika")
    given = {}
    for organ, path in sample.items():
        given[organ] = folder / f"{NAME}_{organ}.nii.gz"
        shutil.copy(path, given[organ])
    result = stage(**given, model=single)
    return replace(result, reasons=())


@pytest.fixture(scope="session")
def report_file(staged_sample, tmp_path_factory):
    """The path of its report.html; report.pdf is beside it."""
    return staged_sample.save_report(tmp_path_factory.mktemp("report"))
