"""A cohort of simulated patients (`cases/phantom.py`), with the paper's shares of the stages.

python Training/phantom.py -n 252 --seed 1 -o COHORT     CTs, masks and COHORT/manifest.csv
python Training/phantom.py --sample LiverFibrosisStaging/Resources/SampleData   the sample CT
"""

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from tqdm import tqdm

from cases.phantom import EFFECTS, Phantom, phantom
from common.files import unfinished
from common.resume import check_plan
from common.tables import write_csv
from LiverFibrosisStagingLib import StagingError, __version__
from LiverFibrosisStagingLib.imaging.organs import LIVER_LABEL, SPLEEN_LABEL, write_labels

# Patients per stage, and their median age, share of men, specimens and etiologies: Yin et al. 2021,
# Table 1. Its F0 patients had no histology; they were healthy by history.
PATIENTS = (134, 8, 10, 18, 82)
MEDIAN_AGE = (63, 64, 57, 48, 60)
MEN = (0.507, 0.375, 0.7, 0.611, 0.622)
SPECIMENS = (
    {"none": 1},
    {"biopsy": 7, "transplantation": 1},
    {"biopsy": 6, "transplantation": 4},
    {"biopsy": 6, "transplantation": 12},
    {"biopsy": 17, "resection": 5, "transplantation": 57},
)
ETIOLOGIES = (
    {"none": 1},
    {"other": 1, "unknown": 7},
    {"autoimmune hepatitis": 1, "PSC": 2, "unknown": 7},
    {
        "alcoholic": 1,
        "autoimmune hepatitis": 1,
        "HCV": 1,
        "PSC": 1,
        "other": 7,
        "unknown": 7,
    },
    {
        "alcoholic": 25,
        "autoimmune hepatitis": 3,
        "HBV": 3,
        "HCV": 9,
        "steatohepatitis": 8,
        "Wilson disease": 1,
        "other": 9,
        "unknown": 24,
    },
)
SAMPLE_STAGE, SAMPLE_SEED = 4, 2021


def write(case: Phantom, prefix: Path) -> dict[str, str]:
    """Write PREFIX_ct.nii.gz, PREFIX_liver.nii.gz and PREFIX_spleen.nii.gz; kind -> file name."""
    names = {}
    for kind, image in case._asdict().items():
        path = prefix.with_name(f"{prefix.name}_{kind}.nii.gz")
        with unfinished(path) as file:
            sitk.WriteImage(image, file, useCompression=True)
        names[kind] = path.name
    return names


def write_sample(folder: Path) -> None:
    """Write the sample data: the CT, and liver and spleen as a Slicer segmentation."""
    folder.mkdir(parents=True, exist_ok=True)
    case, name = phantom(SAMPLE_STAGE, SAMPLE_SEED), f"phantom_F{SAMPLE_STAGE}"
    sitk.WriteImage(case.ct, folder / f"{name}_ct.nii.gz", useCompression=True)
    spleen = sitk.And(case.spleen, case.liver == 0)
    write_labels(case.liver * LIVER_LABEL + spleen * SPLEEN_LABEL, folder / f"{name}.seg.nrrd")


def stage_counts(count: int) -> list[int]:
    """Patients per stage F0..F4 among `count` >= 5: shares as in the paper, at least one each."""
    if count < len(PATIENTS):
        raise StagingError(f"{count} patients: a cohort needs {len(PATIENTS)} or more.")
    exact = np.array(PATIENTS) * count / sum(PATIENTS)
    counts = np.maximum(np.floor(exact), 1).astype(int)
    while counts.sum() != count:
        short = counts.sum() < count
        gap = exact - counts if short else np.where(counts > 1, counts - exact, -np.inf)
        counts[np.argmax(gap)] += 1 if short else -1
    return counts.tolist()


def patients(count: int, seed: int, balanced: bool = False) -> list[dict[str, str | int]]:
    """The manifest's rows without files, one per scan, in shuffled order.

    The stages have the shares of the paper's cohort; with `balanced`, equal shares. One patient
    with F0 and one with F4 have two scans, unless `balanced`. seed, scan: arguments of `phantom`.
    """
    counts = stage_counts(count) if not balanced else None
    stages = np.arange(count) % 5 if balanced else np.repeat(np.arange(5), counts)
    twice = set() if balanced else {0, count - 1}
    rows = []
    for index, stage in enumerate(stages.tolist()):
        own = np.random.SeedSequence([seed, index])
        rng = np.random.default_rng(own.spawn(1)[0])
        specimen, etiology = (_one_of(rng, table[stage]) for table in (SPECIMENS, ETIOLOGIES))
        row = {
            "patient": f"phantom_{seed}_{index:04d}",
            "stage": f"F{stage}",
            "age": int(np.clip(rng.normal(MEDIAN_AGE[stage], 13), 18, 90)),
            "sex": "M" if rng.random() < MEN[stage] else "F",
            "etiology": etiology,
            "specimen": specimen,
            "days": int(rng.integers(0, 150)),
            "phase": "portal venous",
            "seed": int(own.generate_state(1)[0]),
        }
        rows += [{**row, "scan": scan} for scan in range(2 if index in twice else 1)]
    order = np.random.default_rng(seed).permutation(len(rows))
    return [rows[i] for i in order]


def _one_of(rng: np.random.Generator, table: dict[str, int]) -> str:
    weights = np.array(list(table.values()), float)
    return str(rng.choice(list(table), p=weights / weights.sum()))


def write_cohort(
    folder: Path,
    count: int,
    seed: int,
    effects: Iterable[str] = EFFECTS,
    workers: int = 1,
    balanced: bool = False,
    strength: float = 1.0,
) -> Path:
    """Write CTs and masks of `count` simulated patients and their manifest; returns its path.

    Scans that exist in the folder are kept, so that an interrupted run can be resumed. Raises
    RunError if the folder contains another cohort.
    """
    effects = tuple(effects)
    rows = patients(count, seed, balanced)
    plan = {
        "count": count,
        "seed": seed,
        "effects": sorted(effects),
        "balanced": balanced,
        "strength": strength,
        "software": __version__,
    }
    check_plan(folder / "cohort.json", plan, outputs=folder.glob("*_ct.nii.gz"))
    one = partial(_write_one, folder=folder, effects=effects, strength=strength)
    with ProcessPoolExecutor(workers) as pool:
        rows = list(tqdm(pool.map(one, rows), "Phantoms", len(rows), unit="CT"))
    manifest = folder / "manifest.csv"
    columns = ["patient", "ct", "liver", "spleen", "stage"]
    columns += ["age", "sex", "etiology", "specimen", "days", "phase"]
    with unfinished(manifest) as file:
        write_csv(file, [columns, *([row[column] for column in columns] for row in rows)])
    return manifest


def _write_one(
    row: dict[str, str | int], *, folder: Path, effects: tuple[str, ...], strength: float
) -> dict:
    row = dict(row)
    own_seed, scan, stage = row.pop("seed"), row.pop("scan"), int(row["stage"][1])
    prefix = folder / (row["patient"] + (f"_{scan + 1}" if scan else ""))
    files = {kind: f"{prefix.name}_{kind}.nii.gz" for kind in Phantom._fields}
    if not all((folder / name).exists() for name in files.values()):
        write(phantom(stage, own_seed, effects=effects, strength=strength, scan=scan), prefix)
    return {**row, **files}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-n", type=int, default=sum(PATIENTS), help="number of patients")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--balanced", action="store_true", help="equal shares of the stages, not the paper's"
    )
    parser.add_argument(
        "--effects", nargs="+", choices=EFFECTS, default=EFFECTS, help="that the stage changes"
    )
    parser.add_argument("--strength", type=float, default=1.0, help="factor of the effects")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="of the cohort")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument(
        "--sample", type=Path, metavar="FOLDER", help="write the extension's sample data there"
    )
    options = parser.parse_args(arguments)
    if not (options.output or options.sample):
        parser.error("-o FOLDER or --sample FOLDER is needed")
    try:
        if options.sample:
            write_sample(options.sample)
        if options.output:
            write_cohort(
                options.output,
                options.n,
                options.seed,
                options.effects,
                options.workers,
                options.balanced,
                options.strength,
            )
    except (StagingError, OSError) as refusal:
        print(refusal, file=sys.stderr)
        return 1
    return 0
