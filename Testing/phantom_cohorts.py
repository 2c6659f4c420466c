"""Cohorts of coarse phantoms, which are simulated in a fraction of a second, with manifest."""

from collections.abc import Sequence
from pathlib import Path

from cases import phantom, phantom_cohort

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
