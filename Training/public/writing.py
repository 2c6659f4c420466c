"""What `cohort.py` writes: the manifest, and beside it what was excluded, as tables and a chart."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cases.manifest import COLUMNS, REQUIRED
from cases.report import flow_figure
from common.figures import save_figure
from common.files import unfinished
from common.tables import write_csv

ACQUISITION = ("label", "site", "scanner", "kernel", "thickness")
FLOW, EXCLUSIONS, CHART = "flow.csv", "exclusions.csv", "flow_chart"
PATIENTS = "patients"


@dataclass(frozen=True)
class Exclusion:
    """Something that is not in the manifest.

    patient: code, "" if not known. unit: what is excluded, in the plural, such as PATIENTS.
    reason: a phrase without names and paths, because it is written to files.
    """

    patient: str
    unit: str
    reason: str
    count: int = 1


def write_manifest(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows, by names of columns, as a manifest that `cases.manifest.read_manifest` reads.

    A Path becomes relative to the manifest's folder; None is an empty cell. Columns without any
    value are left out, unless they are required.
    """
    known = dict.fromkeys((*COLUMNS, *ACQUISITION))
    given = {name: None for row in rows for name, value in row.items() if value not in (None, "")}
    names = [name for name in known if name in REQUIRED or name in given]
    names += [name for name in given if name not in known]
    folder = path.absolute().parent
    folder.mkdir(parents=True, exist_ok=True)
    body = [[_text(row.get(name), folder) for name in names] for row in rows]
    with unfinished(path) as partial:
        write_csv(partial, [names, *body])


def write_flow(
    folder: Path,
    found: Mapping[str, int],
    exclusions: Sequence[Exclusion],
    included: Mapping[str, int],
    stages: str = "",
    charted: str = PATIENTS,
) -> None:
    """Write flow.csv, exclusions.csv and flow_chart.png and .pdf.

    found, included: numbers by unit. Reasons are in the order of `exclusions`, in which they were
    applied. stages: the last line of the chart. charted: the unit that the chart counts.
    """
    lines: list[list[object]] = [["unit", "step", "count"]]
    for unit, count in found.items():
        lines.append([unit, "found", count])
        lines += [[unit, f"excluded: {why}", n] for why, n in by_reason(exclusions, unit).items()]
        lines.append([unit, "included", included.get(unit, 0)])
    others = dict.fromkeys(each.unit for each in exclusions if each.unit not in found)
    for unit in others:
        lines += [[unit, f"not used: {why}", n] for why, n in by_reason(exclusions, unit).items()]
    rows = [[each.patient, each.unit, each.reason, each.count] for each in exclusions]
    folder.mkdir(parents=True, exist_ok=True)
    with unfinished(folder / FLOW) as partial:
        write_csv(partial, lines)
    with unfinished(folder / EXCLUSIONS) as partial:
        write_csv(partial, [["patient", "unit", "reason", "count"], *rows])
    top = f"In table or images\n{found[charted]} {charted}"
    bottom = f"In the manifest\n{included[charted]} {charted}\n{stages}".rstrip()
    reasons = by_reason(exclusions, charted)
    title = f"Excluded: {sum(reasons.values())} {charted}"
    save_figure(flow_figure(top, bottom, title, reasons), folder, CHART)


def by_reason(exclusions: Iterable[Exclusion], unit: str) -> Counter[str]:
    """Reason -> number of excluded ones, in the order of the exclusions."""
    counts: Counter[str] = Counter()
    for each in exclusions:
        if each.unit == unit:
            counts[each.reason] += each.count
    return counts


def _text(value: object, folder: Path) -> str:
    if not isinstance(value, Path):
        return "" if value is None else str(value)
    try:
        return Path(os.path.relpath(value.absolute(), folder)).as_posix()
    except ValueError:  # on another drive
        return value.absolute().as_posix()
