"""Same answers as another checkout of this project, on every CT of a folder.

    python Testing/benchmarks/same_answers.py DATA --against CHECKOUT [--only NAME ...]

DATA contains a folder for each patient, with ct*.nii.gz or a subfolder dicom, and perhaps masks,
seg*.nii.gz or liver.nii.gz. Each CT is staged with automatic organs, and with its masks, by both
checkouts, each in a process of its own. By case: the largest difference of the probabilities, of
the location map on the CT's grid and of the signs (relative to the larger value), and the number of
voxels that differ in the masks and in the label map. A case that both refuse with the same sentence
is the same. The exit code is 1 if probabilities differ by more than 1e-4 or maps by more than 1e-3.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
MOST_PROBABILITY, MOST_MAP = 1e-4, 1e-3


def cases(data: Path) -> list[tuple[str, Path, Path | None]]:
    """Name, CT and mask of each case."""
    found: list[tuple[str, Path, Path | None]] = []
    for folder in sorted(each for each in data.iterdir() if each.is_dir()):
        cts = sorted(folder.glob("ct*.nii.gz")) + sorted(folder.glob("dicom"))
        masks = sorted([*folder.glob("seg*.nii.gz"), *folder.glob("liver.nii.gz")])
        for ct in cts:
            name = f"{folder.name}/{ct.name}"
            found.append((name, ct, None))
            ending = ct.name.removeprefix("ct")
            own = [mask for mask in masks if len(cts) == 1 or mask.name.endswith(ending)]
            found += [(f"{name} + {mask.name}", ct, mask) for mask in own]
    return found


def answers(ct: Path, mask: Path | None, target: Path) -> None:
    """Stage a case in this process and store what is compared."""
    import SimpleITK as sitk

    from LiverFibrosisStagingLib import stage
    from LiverFibrosisStagingLib.errors import StagingError

    try:
        result = stage(ct, mask, any_phase=True)
    except StagingError as refusal:
        np.savez(target, refusal=str(refusal))
        return
    signs = {each.key: each.value for each in result.signs.measurements}
    np.savez(
        target,
        refusal="",
        probabilities=result.probabilities,
        map=sitk.GetArrayFromImage(result.location_map),
        labels=sitk.GetArrayFromImage(result.label_map),
        organs=sitk.GetArrayFromImage(result.organs),
        signs=np.array([np.nan if value is None else value for value in signs.values()]),
        texts=[result.stage, result.phase, *result.reasons, *result.warnings],
    )


def compared(one: Path, other: Path) -> tuple[str, bool]:
    """A line of the table, and whether the answers are the same."""
    with np.load(one) as new, np.load(other) as old:
        if str(new["refusal"]) or str(old["refusal"]):
            same = str(new["refusal"]) == str(old["refusal"])
            return ("refused by both" if same else f"{new['refusal']} / {old['refusal']}"), same
        apart = {
            name: float(np.abs(new[name] - old[name]).max()) for name in ("probabilities", "map")
        }
        voxels = {
            name: int(np.count_nonzero(new[name] != old[name])) for name in ("organs", "labels")
        }
        larger = np.fmax(np.fmax(np.abs(new["signs"]), np.abs(old["signs"])), 1e-9)
        signs = np.abs(new["signs"] - old["signs"]) / larger
        same_signs = (np.isnan(new["signs"]) == np.isnan(old["signs"])).all()
        worst = float(np.nanmax(signs)) if same_signs else np.inf
        texts = np.array_equal(new["texts"], old["texts"])
        line = f"{apart['probabilities']:9.1e}{apart['map']:9.1e}{worst:9.1e}"
        line += f"{voxels['organs']:9d}{voxels['labels']:9d}  {'same' if texts else 'DIFFERENT'}"
        same = apart["probabilities"] <= MOST_PROBABILITY and apart["map"] <= MOST_MAP
        return line, same


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--against", type=Path, required=True)
    parser.add_argument("--only", nargs="*", help="words of which a case's name contains one")
    parser.add_argument("--case", nargs="+", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        target, ct, *mask = options.case
        answers(ct, mask[0] if mask else None, target)
        return 0
    heading = f"{'probab.':>9s}{'map':>9s}{'signs':>9s}{'organs':>9s}{'bands':>9s}  texts"
    print(f"{'case':70s}{heading}")
    all_same = True
    for name, ct, mask in cases(options.data):
        if options.only and not any(word in name for word in options.only):
            continue
        with tempfile.TemporaryDirectory() as folder:
            files = []
            for number, root in enumerate((ROOT, options.against)):
                files.append(Path(folder) / f"{number}.npz")
                given = [files[-1], ct, *([] if mask is None else [mask])]
                environment = {**os.environ, "PYTHONPATH": str(root / "LiverFibrosisStaging")}
                command = [sys.executable, __file__, options.data, "--against", root, "--case"]
                subprocess.run([*map(str, command), *map(str, given)], env=environment, check=True)
            line, same = compared(*files)
        all_same &= same
        print(f"{name:70s}{line}", flush=True)
    return 0 if all_same else 1


if __name__ == "__main__":
    sys.exit(main())
