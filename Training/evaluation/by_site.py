"""AUCs by site: whether a model that works on average also works at each of several sites."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.tables import MISSING, write_table
from evaluation.metrics import Calibrated
from evaluation.staged import Staged
from LiverFibrosisStagingLib.evaluation.cohort import binary_measures
from LiverFibrosisStagingLib.evaluation.measures import (
    UNDEFINED,
    Interval,
    draw_patients,
    group_probabilities,
)
from LiverFibrosisStagingLib.evaluation.tables import group_title, with_interval
from LiverFibrosisStagingLib.stages import GROUPS, decided, stage_array

NOT_STATED = "not stated"


def aucs_by_site(
    cases: Sequence[Staged], calibrated: Calibrated, repeats: int = 2000, seed: int = 0
) -> dict[str, dict[str, Interval]]:
    """Site -> group -> AUC with its interval, and `with` and `without`: the numbers of patients.

    calibrated: predictions of the cases, in their order. Cases whose stages leave a group open are
    left out of it; an AUC without cases on both sides is None.
    """
    sites = np.array([case.site or NOT_STATED for case in cases])
    patients = np.array([case.patient for case in cases])
    stages = stage_array([case.stages for case in cases])
    scores = group_probabilities(calibrated.probabilities)
    found: dict[str, dict[str, Interval]] = {}
    for site in dict.fromkeys(sites.tolist()):
        found[site] = {}
        at_site = np.flatnonzero(sites == site)
        for name, first in GROUPS.items():
            known, truth = decided(stages[at_site], first)
            own = at_site[known]
            patient = patients[own]
            sides = {"with": len({*patient[truth]}), "without": len({*patient[~truth]})}
            area = UNDEFINED
            if min(sides.values()):
                weights = draw_patients(patient, repeats, seed)
                positive = calibrated.positive[name][own]
                area = binary_measures(truth, scores[name][own], positive, patient, weights)["auc"]
            found[site][name] = {**area, **sides}
    return found


def report(
    cases: Sequence[Staged], calibrated: Calibrated, folder: Path, trained_on: str
) -> dict[str, dict[str, Interval]]:
    """Write `folder`/tables/by_site.csv and .md, if the cases are from several sites.

    cases, calibrated: as for `aucs_by_site`, whose result is returned; {} for one site.
    """
    if len({case.site for case in cases}) < 2:
        return {}
    found = aucs_by_site(cases, calibrated)
    titles = [group_title(name) for name in GROUPS]
    lines = [["Site", "CTs", *(f"{title}: AUC, patients with/without" for title in titles)]]
    for site, of_groups in found.items():
        count = sum((case.site or NOT_STATED) == site for case in cases)
        lines.append([site, str(count), *map(_cell, of_groups.values())])
    write_table(folder / "tables" / "by_site", lines, trained_on)
    return found


def _cell(measured: Interval) -> str:
    area = MISSING if measured["value"] is None else with_interval(measured)
    return f"{area}, {measured['with']}/{measured['without']}"
