"""Cohorts of coarse phantoms, which are simulated in a fraction of a second, with manifest."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import joblib
import pytest

from cases import phantom, phantom_cohort
from cases.inputs import Checked
from common.resume import voxel_digest
from LiverFibrosisStagingLib import staging

TINY = {"spacing": (8.0, 6.0, 6.0), "size": (28, 54, 66)}
COARSE = {"spacing": (6.0, 4.0, 4.0), "size": (38, 81, 99)}
MEDIUM = {"spacing": (4.0, 3.0, 3.0), "size": (57, 108, 132)}


def write_cohort(folder: Path, stages: Sequence[int], seed: int = 0, **resolution) -> Path:
    """Write phantoms of the stages, patients p0, p1, ... (from `seed` on); returns the manifest."""
    folder.mkdir(exist_ok=True)
    lines = ["patient,ct,liver,spleen,stage"]
    for index, stage in enumerate(stages):
        case = phantom.phantom(stage, seed + index, **(resolution or COARSE))
        files = phantom_cohort.write(case, folder / f"case{index}")
        lines.append(",".join([f"p{seed + index}", *files.values(), f"F{stage}"]))
    manifest = folder / "manifest.csv"
    manifest.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return manifest


@contextmanager
def unchecked_inputs() -> Iterator[pytest.MonkeyPatch]:
    """Runs without the checks of the inputs, which take most of the time of a coarse phantom.

    test_input_checks_of_cohorts.py runs them. Cases are staged in threads: processes start slowly.
    """
    from runs import reading

    def without(inclusion, *_):
        found = {"series": {}, "concerns": [], "refused": None}
        cases = inclusion.included
        return Checked(inclusion, {c.name: found | {"voxels": voxel_digest(c.ct)} for c in cases})

    with pytest.MonkeyPatch.context() as patch, joblib.parallel_config("threading"):
        patch.setattr(reading, "check_inputs", without)
        patch.setattr(staging, "input_checks", lambda *_: ("portal-venous", ()))
        yield patch
