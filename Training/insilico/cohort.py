"""A cohort of painted cases as NIfTI files with a manifest.

    python Training/insilico_cohort.py BODIES -n 40 --seed 1 -o COHORT

The stages are equally common and each body has all of them. COHORT/signs.csv lists the body of each
case and its drawn and measured signs. What the drawn signs allow at most is printed: the AUC of
each alone and of all together.
"""

import argparse
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from tqdm import tqdm

from common.files import unfinished
from common.resume import check_plan
from common.tables import markdown, write_csv
from LiverFibrosisStagingLib import StagingError, __version__
from LiverFibrosisStagingLib.stages import GROUPS, STAGES

from .bodies import load_bodies
from .effects import SIGNS, ceilings
from .paint import Case, Painter

SPACING_MM = (2.5, 0.8, 0.8)


def write_cohort(
    painter: Painter,
    folder: Path,
    count: int,
    seed: int,
    only: Collection[str] | None = None,
    spacing: tuple[float, float, float] = SPACING_MM,
) -> Path:
    """Write `count` cases and their manifest; returns its path.

    only, spacing: as for `Painter.case`. Raises RunError if the folder contains another cohort.
    """
    names = [body.name for body in painter.bodies]
    plan = {
        "bodies": names,
        "count": count,
        "seed": seed,
        "only": sorted(only) if only is not None else None,
        "spacing": list(spacing),
        "software": __version__,
    }
    check_plan(folder / "cohort.json", plan, outputs=folder.glob("*_ct.nii.gz"))
    rows, signs = [], []
    for index in tqdm(range(count), "Painting", unit="CT"):
        body, stage = index % len(names), index // len(names) % len(STAGES)
        patient = f"painted_{seed}_{index:04d}"
        own = int(np.random.SeedSequence([seed, index]).generate_state(1)[0])
        case = painter.case(own, body, stage, only, spacing)
        files = _write(case, folder, patient)
        rows.append([patient, *files, STAGES[stage], "portal venous"])
        signs.append([patient, names[body], *case.truth.values()])
    for name, header, lines in (
        ("signs.csv", ["patient", "body", *case.truth], signs),
        ("manifest.csv", ["patient", "ct", "liver", "spleen", "stage", "phase"], rows),
    ):
        with unfinished(folder / name) as partial:
            write_csv(partial, [header, *lines])
    return folder / "manifest.csv"


def images(case: Case) -> dict[str, sitk.Image]:
    """CT (int16, HU) and masks of a case: "ct", "liver", "spleen"."""
    found = {}
    for kind, voxels in (
        ("ct", case.hu.round().to(torch.int16)),
        ("liver", case.liver.to(torch.uint8)),
        ("spleen", case.spleen.to(torch.uint8)),
    ):
        found[kind] = sitk.GetImageFromArray(voxels.cpu().numpy())
        found[kind].SetSpacing(case.spacing[::-1])
    return found


def _write(case: Case, folder: Path, name: str) -> list[str]:
    """Write CT and masks; returns the names of the files."""
    found = []
    for kind, image in images(case).items():
        found.append(f"{name}_{kind}.nii.gz")
        sitk.WriteImage(image, folder / found[-1], useCompression=True, compressionLevel=1)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bodies", type=Path, metavar="BODIES", help="folder of body files")
    parser.add_argument("-n", type=int, default=40, help="number of cases")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=SIGNS, help="signs that the stage changes")
    parser.add_argument(
        "--spacing", nargs=3, type=float, default=SPACING_MM, metavar=("SLICE", "ROW", "COLUMN")
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="COHORT")
    options = parser.parse_args(arguments)
    try:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        bodies = load_bodies(options.bodies, device)
        if not bodies or options.n < 1:
            raise StagingError(f"{options.bodies}: {len(bodies)} bodies; one or more are needed.")
        spacing = tuple(options.spacing)
        write_cohort(
            Painter(bodies), options.output, options.n, options.seed, options.only, spacing
        )
    except (StagingError, OSError) as refusal:
        print(refusal, file=sys.stderr)
        return 1
    rows = [[name, *(f"{auc:.3f}" for auc in found.values())] for name, found in ceilings().items()]
    print(markdown([["AUC of drawn signs", *GROUPS], *rows]))
    return 0
