"""What a run is trained on: its cohorts, checked and split, and the plan that it keeps to."""

import dataclasses
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cases import report as cohort_report
from cases.folds import Fold, fold_names, split
from cases.inputs import Checked, Patch, check_inputs, check_some, refusals, write_tables
from cases.manifest import (
    EVERYONE,
    Case,
    Criteria,
    Inclusion,
    ManifestError,
    apply,
    read_manifest,
)
from cases.requirements import check_for_training, one_fold_per_site
from common.processes import process, wait_for_others
from common.resume import (
    RunError,
    check_plan,
    digest,
    refuse_known,
    training_cts,
    warn_of_unknown,
)
from evaluation.cohort_acquisition import check_acquisition
from lfs.schedule import Schedule
from LiverFibrosisStagingLib import __version__

HELD_OUT, TEST = "patients that a fold holds out", "test cases"


@dataclasses.dataclass(frozen=True)
class Source:
    """Which cohorts are used, and how the first is split.

    manifest, test: of the cohort and of a test cohort with other patients. criteria: for inclusion.
    folds: number of folds, unless the manifest has folds; only: train this one only. fold_seed: of
    the folds, and of shuffle_labels, which permutes the stages among the patients, as a control at
    chance level. any_phase: also use CTs that are not in the portal-venous phase.
    leave_one_site_out: every site is a fold. start_from: the file that the training starts from,
    which must not have been trained on cases that are tested.
    """

    manifest: Path
    test: Path | None = None
    grades: str = "metavir"
    criteria: Criteria = EVERYONE
    folds: int = 5
    only: int | None = None
    fold_seed: int = 0
    shuffle_labels: bool = False
    any_phase: bool = False
    leave_one_site_out: bool = False
    start_from: Path | None = None


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The cases that can be used, and the folds.

    training_cts: by fold, for those that are trained, digests of all CTs that its network learns
    from, also before (`resume`).
    """

    source: Source
    checked: Checked
    test_checked: Checked
    cases: list[Case]
    parts: list[Fold]
    training_cts: dict[int, frozenset[str]]

    @property
    def test_cases(self) -> list[Case]:
        """The usable cases of the test cohort."""
        return self.test_checked.inclusion.included

    @property
    def all_cts(self) -> frozenset[str]:
        """`training_cts` of all folds."""
        return frozenset().union(*self.training_cts.values())


def read_inputs(source: Source, run: Path, patch: Patch | None, schedule: Schedule) -> Inputs:
    """Read and check the cohorts, and split the first.

    RUN receives what the input checks found (`cases.inputs`). Cases that the start was trained on,
    by the content of their files or the code of a public collection, are refused before, and by
    their voxels after these checks. patch: see `check_inputs`. schedule: of the network.

    Raises ManifestError, RunError if a case to be tested was trained on, and StagingError if the
    schedule is impossible.
    """
    manifest, folds = source.manifest, source.folds
    inclusion = apply(read_manifest(manifest, source.grades), source.criteria)
    if source.leave_one_site_out:
        included = one_fold_per_site(inclusion.included, manifest)
        inclusion = dataclasses.replace(inclusion, included=included)
    check_for_training(inclusion.included, manifest, folds, inclusion.excluded)
    schedule.course(len(inclusion.included))  # refuses impossible numbers before any CT is read
    test_inclusion = Inclusion([], [])
    if source.test is not None:
        test_inclusion = _read_test(source, inclusion.included)
    before = _trained_before(source, inclusion.included, test_inclusion.included)
    checked = _checked(inclusion, run, patch, source.any_phase)
    cases = checked.inclusion.included
    check_for_training(cases, manifest, folds, refusals(checked))
    test_checked = _checked(test_inclusion, run / "test", patch, source.any_phase)
    if source.test is not None:
        check_some(test_checked, source.test)
    if source.shuffle_labels:
        cases = permute_stages(cases, source.fold_seed)
    parts = split(cases, folds, source.fold_seed)
    only = source.only
    if only is not None and only not in range(len(parts)):
        raise RunError(f"--fold {only}: a fold from 0 to {len(parts) - 1} is needed.")
    digests = [checked.digests(case) for case in cases]
    trained = range(len(parts)) if only is None else [only]
    if source.start_from is not None:
        held_out = {cases[i].name: digests[i] for k in trained for i in parts[k].test}
        test_cases = test_checked.inclusion.included
        tested = {case.name: test_checked.digests(case) for case in test_cases}
        for found, title in ((held_out, HELD_OUT), (tested, TEST)):
            refuse_known(source.start_from, before, found, title)
    cts = {
        k: before.union(*(digests[i] for i in [*parts[k].train, *parts[k].validation]))
        for k in trained
    }
    return Inputs(source, checked, test_checked, cases, parts, cts)


def begin(inputs: Inputs, run: Path, settings: dict[str, Any]) -> None:
    """Write the plan and the tables of the cohorts.

    settings: of the training, in the plan. Raises RunError if RUN has another plan.
    """
    checkpoints = [run / f"fold_{k}" / "checkpoint.pt" for k in range(len(inputs.parts))]
    plan = _plan(inputs, settings)
    check_plan(run / "folds.json", plan, checkpoints, growing=("steps", "patience"))
    cohort_report.report(inputs.checked.inclusion, run)
    write_tables(inputs.checked, run)
    if inputs.source.test is not None:
        write_tables(inputs.test_checked, run / "test")
    for sentence in check_acquisition(inputs.cases, run):
        print(sentence, file=sys.stderr)


def permute_stages(cases: Sequence[Case], seed: int) -> list[Case]:
    """The cases with their stages permuted at random among the patients."""
    stages = {case.patient: case.stages for case in cases}
    order = np.random.default_rng(seed).permutation(len(stages))
    given = dict(zip(stages, [list(stages.values())[i] for i in order]))
    return [dataclasses.replace(case, stages=given[case.patient]) for case in cases]


def _checked(inclusion: Inclusion, folder: Path, patch: Patch | None, any_phase: bool) -> Checked:
    """`check_inputs` by the first process; the others then read what it has written."""
    first = process()[0] == 0
    if not first:
        wait_for_others()
    checked = check_inputs(inclusion, folder, patch, any_phase)
    if first:
        wait_for_others()
    return checked


def _read_test(source: Source, others: Sequence[Case]) -> Inclusion:
    """The cases of a test cohort; ManifestError if any is also among the others."""
    path = source.test
    inclusion = apply(read_manifest(path, source.grades), source.criteria)
    cases = inclusion.included
    both = sorted({case.patient for case in cases} & {case.patient for case in others})
    if both:
        shown = ", ".join(both[:5]) + (" ..." if len(both) > 5 else "")
        raise ManifestError(
            path, [f"{len(both)} patients are also in the training cohort: {shown}."]
        )
    lines = {digest(case.ct): case.line for case in others}
    same = [
        f"line {case.line}: the CT {case.ct.name} is also in line {lines[digest(case.ct)]} of the "
        "training cohort."
        for case in cases
        if digest(case.ct) in lines
    ]
    if same:
        raise ManifestError(path, same)
    return inclusion


def _trained_before(
    source: Source, cases: Sequence[Case], test_cases: Sequence[Case]
) -> frozenset[str]:
    """What the start was trained on. RunError if a case that is tested is known to be among it.

    With one fold alone, which cases it tests is known after the input checks only.
    """
    if source.start_from is None:
        return frozenset()
    before = training_cts(source.start_from)
    warn_of_unknown(source.start_from, before)
    held_out = cases if source.only is None else []
    for tested, title in ((held_out, HELD_OUT), (test_cases, TEST)):
        found = {case.name: [digest(case.ct)] for case in tested}
        refuse_known(source.start_from, before, found, title)
    return before


def _plan(inputs: Inputs, settings: dict[str, Any]) -> dict[str, Any]:
    """The inputs of a run, which must be the same when it is resumed; files as digests."""
    source, cases = inputs.source, inputs.cases
    names = [case.name for case in cases]
    how = "split by patient, with balanced stages"
    if source.leave_one_site_out:
        how = "one for each site"
    elif fold_names(cases):
        how = "those of the manifest"
    return {
        "stages": {case.name: str(case.stages) for case in cases},
        "folds": [
            {part: [names[i] for i in indices] for part, indices in fold._asdict().items()}
            for fold in inputs.parts
        ],
        "files": {case.name: case.content() for case in cases},
        "split": how,
        "labels": Counter(case.label for case in cases if case.label),
        "outlined": sum(case.outlined for case in cases),
        **settings,
        "start": source.start_from and digest(source.start_from),
        "software": __version__,
    }
