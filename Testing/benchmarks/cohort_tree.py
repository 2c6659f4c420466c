"""Seconds of `cohort.py` for each series of a synthetic tree, without the examination of voxels.

    python Testing/benchmarks/cohort_tree.py FOLDER 100 300

Numbers that grow with the number of series show work that is not linear.
"""

import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / part) for part in ("Testing", "Training", "LiverFibrosisStaging")]

import numpy as np  # noqa: E402
from public_copies import ct, workbook  # noqa: E402

from public import command, examination  # noqa: E402


def tree(folder: Path, count: int) -> tuple[Path, Path, Path]:
    """The images, and the tables of a collection and of a hospital."""
    hu = np.full((12, 32, 32), 50, np.int16)
    hu[:, :8] = -1000
    images = folder / "images"
    for number in range(count):
        hu[0, 0, 0] = number - 1000
        place = images / f"{number}"
        if not place.exists():
            ct(place, f"HCC_{number:03d}", str(number), hu=hu, **{"0008|0050": f"A{number}"})
    names = ("TCIA_ID", "Evidence_of_cirh", "CPS", "hepatitis")
    rows = [(f"HCC_{number:03d}", 1, "A", "NA") for number in range(count)]
    lines = [f"HCC_{n:03d},A{n},F2,2000-01-01" for n in range(count)]
    table = folder / "hospital.csv"
    table.write_text("\n".join(["patient,accession,stage,biopsy date", *lines]), encoding="utf-8")
    return images, workbook(folder / "clinical.xlsx", names, *rows), table


def main() -> None:
    """Time both commands with one process."""
    examination._examined = lambda *_: examination.Examined("portal venous")
    for count in map(int, sys.argv[2:]):
        folder = Path(sys.argv[1]) / str(count)
        images, clinical, table = tree(folder, count)
        for name, given in (("hcc-tace-seg", clinical), ("hospital", table)):
            output = folder / f"{name}-{time.time_ns()}" / "manifest.csv"
            arguments = [name, "--images", images, "--table", given, "-o", output, "--workers", "1"]
            more = ["--score", "metavir"] if name == "hospital" else []
            start, used = time.perf_counter(), time.process_time()
            assert command.main([*map(str, arguments), *more]) == 0
            wall, used = time.perf_counter() - start, time.process_time() - used
            print(f"{name}, {count} series: {used / count:.4f} s of CPU each, {wall:.1f} s in all")


if __name__ == "__main__":
    main()
