"""The check of `acquisition.py` on a cohort before training."""

from collections.abc import Sequence
from pathlib import Path

from cases.manifest import Case
from evaluation.acquisition import quiet, shortcut, write
from LiverFibrosisStagingLib.errors import StagingError

COLUMNS = ("site", "scanner", "kernel", "thickness")


def check_acquisition(cases: Sequence[Case], folder: Path) -> list[str]:
    """Whether the acquisition tells the stage; writes `folder`/tables/acquisition.csv and .json.

    Returns the warnings, or one sentence that says why there is none; nothing if no case states its
    acquisition.
    """
    names = [name for name in COLUMNS if any(getattr(case, name) for case in cases)]
    if not names:
        return []
    rows = [{name: getattr(case, name) for name in names} for case in cases]
    stages, patients = [case.stages for case in cases], [case.patient for case in cases]
    try:
        found = shortcut(rows, names, stages, patients)
    except StagingError as refusal:
        return [str(refusal)]
    write(found, folder / "tables")
    return found["warnings"] or [quiet(found)]
