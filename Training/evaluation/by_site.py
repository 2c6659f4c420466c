"""AUCs by site: whether a model that works on average also works at each of several sites."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cases.manifest import Case
from common.tables import MISSING, write_csv, write_markdown
from evaluation.metrics import Calibrated
from LiverFibrosisStagingLib.evaluation.cohort import binary_measures
from LiverFibrosisStagingLib.evaluation.measures import (
    Interval,
    draw_patients,
    group_probabilities,
)
from LiverFibrosisStagingLib.evaluation.tables import group_title, with_interval
from LiverFibrosisStagingLib.stages import GROUPS, RESEARCH_USE

NOT_STATED = "not stated"


def aucs_by_site(
    cases: Sequence[Case], calibrated: Calibrated, repeats: int = 2000, seed: int = 0
) -> dict[str, dict[str, Interval]]:
    """Site -> group -> AUC with its interval, and `with` and `without`: the numbers of patients.

    calibrated: predictions of the cases, in their order. Cases whose stages leave a group open are
    left out of it; an AUC without cases on both sides is None.
    """
    sites = np.array([case.site or NOT_STATED for case in cases])
    patient = np.array([case.patient for case in cases])
    scores = group_probabilities(calibrated.probabilities)
    found: dict[str, dict[str, Interval]] = {}
    for site in dict.fromkeys(sites.tolist()):
        found[site] = {}
        for name, first in GROUPS.items():
            answers = np.array([case.stages.decides(first) for case in cases], object)
            own = (sites == site) & (answers != None)  # noqa: E711 (an array of True, False, None)
            truth = answers[own].astype(bool)
            sides = {
                "with": len(set(patient[own][truth])),
                "without": len(set(patient[own][~truth])),
            }
            area: Interval = dict.fromkeys(("value", "low", "high"))
            if min(sides.values()):
                weights = draw_patients(patient[own], repeats, seed)
                positive = calibrated.positive[name][own]
                area = binary_measures(truth, scores[name][own], positive, patient[own], weights)[
                    "auc"
                ]
            found[site][name] = {**area, **sides}
    return found


def report(
    cases: Sequence[Case], calibrated: Calibrated, folder: Path, trained_on: str
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
    notice = f"Model trained on: {trained_on.rstrip('.')}. {RESEARCH_USE}"
    stem = folder / "tables" / "by_site"
    stem.parent.mkdir(parents=True, exist_ok=True)
    write_csv(stem.with_suffix(".csv"), [*lines, [notice]])
    write_markdown(stem.with_suffix(".md"), lines, notice)
    return found


def _cell(measured: Interval) -> str:
    area = MISSING if measured["value"] is None else with_interval(measured)
    return f"{area}, {measured['with']}/{measured['without']}"
