"""What a cohort needs before a network is trained on it, and the command that checks it.

    python Training/manifest.py COHORT.csv

lists all problems of a manifest by line, or what it contains: stages, masks, sites and folds.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from cases.folds import fold_names
from cases.manifest import (
    EVERYONE,
    Case,
    Criteria,
    ManifestError,
    add_grades,
    apply,
    counted,
    read_manifest,
    size,
)
from common.resume import digest
from LiverFibrosisStagingLib.errors import StagingError
from LiverFibrosisStagingLib.imaging.masks import file_and_labels
from LiverFibrosisStagingLib.imaging.organs import LIVER_LABEL, SPLEEN_LABEL
from LiverFibrosisStagingLib.imaging.reading import read_mask
from LiverFibrosisStagingLib.report.summary import group_stages
from LiverFibrosisStagingLib.stages import GROUPS

MIN_PATIENTS = 2  # with and without a group, among those that a given fold does not test


def check_for_training(
    cases: Sequence[Case],
    path: Path,
    folds: int = 5,
    refused: Sequence[tuple[Case, str]] = (),
) -> None:
    """Raise ManifestError if the cohort is not sufficient for training in `folds` folds.

    The folds of the manifest are used if it has them. A range of stages counts for the groups that
    it decides. refused: cases that were left out, with the reasons, which the error repeats.
    """
    problems = [*_same_content(cases), *_fold_problems(cases)]
    names = fold_names(cases)
    count = len(names) or folds
    patients = len({case.patient for case in cases})
    if names and len(names) < 2:
        problems.append(f"All cases are in the fold {names[0]!r}; two folds or more are needed.")
    elif not names and patients < 2 * count:
        problems.append(f"The cohort has {patients} patients; {count} folds need {2 * count}.")
    sides = patients_by_group(cases)
    if names:
        problems += _folds_without_a_group(cases, names)
    elif all(min(known[:2]) < count for known in sides.values()):
        found = "; ".join(
            f"{group_stages(name)}: {without} without, {with_it} with"
            for name, (without, with_it, _) in sides.items()
        )
        problems.append(
            f"No group of stages has {count} patients with and {count} without it, which {count} "
            f"folds need ({found})."
        )
    if problems:
        why = [f"line {case.line}: left out: {reason}" for case, reason in refused]
        raise ManifestError(path, [*problems, *why])


def one_fold_per_site(cases: Sequence[Case], path: Path) -> list[Case]:
    """The cases with their site as fold. Raises ManifestError if a site is missing or the only one.

    A patient with CTs from two sites is refused by `check_for_training`.
    """
    missing = [
        f"line {c.line}: the site is missing; each case needs one." for c in cases if not c.site
    ]
    if missing:
        raise ManifestError(path, missing)
    if len({case.site for case in cases}) < 2:
        raise ManifestError(path, ["All cases are from one site; two or more are needed."])
    return [replace(case, fold=case.site) for case in cases]


def patients_by_group(cases: Sequence[Case]) -> dict[str, tuple[int, int, int]]:
    """Group -> how many patients are without and with it, and for how many this is not known."""
    found = {}
    for name, first in GROUPS.items():
        decided = {
            answer: {case.patient for case in cases if case.stages.decides(first) is answer}
            for answer in (False, True, None)
        }
        found[name] = tuple(len(patients) for patients in decided.values())
    return found


def _same_content(cases: Sequence[Case]) -> Iterator[str]:
    first: dict[str, Case] = {}
    for case in cases:
        other = first.setdefault(digest(case.ct), case)
        if other is not case:
            yield (
                f"line {case.line}: the CT {case.ct.name} has the same content as the CT of line "
                f"{other.line}; remove one of them."
            )


def _fold_problems(cases: Sequence[Case]) -> Iterator[str]:
    """Cases without a fold where others have one; patients in two folds."""
    if not any(case.fold for case in cases):
        return
    first: dict[str, Case] = {}
    for case in cases:
        if not case.fold:
            yield f"line {case.line}: the fold is missing; all cases have one, or none."
            continue
        other = first.setdefault(case.patient, case)
        if other.fold != case.fold:
            yield (
                f"line {case.line}: patient {case.patient} is in the fold {case.fold!r}, but in "
                f"{other.fold!r} in line {other.line}; all CTs of a patient are needed in one fold."
            )


def _folds_without_a_group(cases: Sequence[Case], names: Sequence[str]) -> Iterator[str]:
    for name in names:
        rest = [case for case in cases if case.fold != name]
        if all(min(known[:2]) < MIN_PATIENTS for known in patients_by_group(rest).values()):
            yield (
                f"Without the fold {name!r}, no group of stages has {MIN_PATIENTS} patients with "
                f"and {MIN_PATIENTS} without it; they are needed for training."
            )
        elif max(Counter(case.stages for case in rest).values()) < MIN_PATIENTS:
            # Training and validation are balanced by stage.
            yield f"Without the fold {name!r}, each stage has one CT; one needs {MIN_PATIENTS}."


def file_problems(cases: Iterable[Case]) -> Iterator[str]:
    """Files that are no 3-D image by their header, and a binary mask named for both organs."""
    for case in cases:
        masks = {part: mask for part in ("liver", "spleen") if (mask := getattr(case, part))}
        found = [
            problem
            for part, file in {"ct": case.ct, **masks}.items()
            for problem in _header_problems(part, file_and_labels(file)[0])
        ]
        if not found and len(masks) == 2:
            found += _same_mask(case)
        yield from (f"line {case.line}: {problem}" for problem in found)


def _header_problems(part: str, file: Path) -> list[str]:
    if file.is_dir():
        return []
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return [f"the {part} file {file.name} cannot be read as an image."]
    if reader.GetDimension() != 3:
        return [f"the {part} file {file.name} has {reader.GetDimension()} dimensions, not 3."]
    return []


def _same_mask(case: Case) -> Iterator[str]:
    """One mask of one file as liver and spleen; different labels of a file are not refused."""
    (file, liver), (other, spleen) = (file_and_labels(mask) for mask in (case.liver, case.spleen))
    if file != other or (liver and spleen):
        return
    try:
        present = set(np.unique(sitk.GetArrayFromImage(read_mask(file))).tolist()) - {0}
    except StagingError as refusal:
        yield str(refusal)
        return
    both = present == {LIVER_LABEL, SPLEEN_LABEL}
    ours, theirs = (
        set(labels) or ({own} if both else present)
        for labels, own in ((liver, LIVER_LABEL), (spleen, SPLEEN_LABEL))
    )
    if ours & theirs:
        yield (
            f"liver and spleen are the same mask in {file.name}; two files, two labels, or an "
            f"image with {LIVER_LABEL} liver and {SPLEEN_LABEL} spleen are needed."
        )


def overview(cases: Sequence[Case]) -> list[str]:
    """What a cohort has, one sentence each: stages, groups, masks, sites, folds."""
    lines = [f"Stages: {counted(case.stages for case in cases)}."]
    for name, (without, with_it, open_) in patients_by_group(cases).items():
        unknown = f", {open_} not known" if open_ else ""
        lines.append(f"{group_stages(name)}: {without} patients without, {with_it} with{unknown}.")
    for part, then in (
        ("liver", "the shipped V-Net outlines the organs"),
        (
            "spleen",
            "it is measured if the V-Net outlines the organs, or if the liver's file has both",
        ),
    ):
        missing = [case.line for case in cases if getattr(case, part) is None]
        if missing:
            lines.append(f"{len(missing)} CTs without a {part} mask ({_lines(missing)}): {then}.")
    for title, values in (
        ("Sites", [case.site for case in cases]),
        ("Folds", [case.fold for case in cases]),
    ):
        counts = Counter(value or "not stated" for value in values)
        if any(values):
            lines.append(f"{title}: " + ", ".join(f"{v} {n}" for v, n in counts.items()) + ".")
    return lines


def _lines(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:10])) + (" ..." if len(numbers) > 10 else "")
    return f"{'line' if len(numbers) == 1 else 'lines'} {shown}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description="Check a cohort's manifest.")
    parser.add_argument("manifest", type=Path, help="CSV or TSV (Training/docs/manifest.md)")
    add_grades(parser)
    parser.add_argument("--folds", type=int, default=5, help="folds of the training (default: 5)")
    options = parser.parse_args(arguments)
    try:
        cases = read_manifest(options.manifest, options.grades)
        problems = list(file_problems(cases))
        if problems:
            raise ManifestError(options.manifest, problems)
        known = apply(cases, EVERYONE)
        check_for_training(known.included, options.manifest, options.folds, known.excluded)
    except StagingError as refusal:
        print(refusal, file=sys.stderr)
        return 1
    print(f"{size(cases)}; no problems found in the manifest.")
    print(*overview(cases), sep="\n")
    if known.excluded:
        lines = _lines([case.line for case, _ in known.excluded])
        print(f"{len(known.excluded)} CTs have no known stage ({lines}) and are left out.")
    print(f"{len(apply(cases, Criteria()).included)} CTs meet the paper's inclusion criteria.")
    return 0
