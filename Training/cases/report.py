"""Flow chart (the paper's Fig. 1) and characteristics of the cohort (its Table 1)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from cases.manifest import Case, Inclusion, size
from common.figures import save_figure
from common.tables import MISSING, write_csv, write_markdown
from LiverFibrosisStagingLib.evaluation.cohort import cases_by_stage
from LiverFibrosisStagingLib.stages import RESEARCH_USE, STAGES, StageRange, stage_array

UNKNOWN = "not stated"


def report(inclusion: Inclusion, folder: Path) -> None:
    """Write figures/fig_1_flow_chart.png and .pdf, tables/table_1.csv and .md, excluded.csv."""
    save_figure(flow_chart(inclusion), folder / "figures", "fig_1_flow_chart")
    tables = folder / "tables"
    tables.mkdir(parents=True, exist_ok=True)
    lines = table_1(inclusion.included)
    write_csv(tables / "table_1.csv", lines)
    write_markdown(tables / "table_1.md", lines, RESEARCH_USE)
    reasons = [[case.name, str(case.line), why] for case, why in inclusion.excluded]
    write_csv(tables / "excluded.csv", [["name", "line", "reason"], *reasons])


def stage_counts(cases: Sequence[Case]) -> dict[str, Any]:
    """Numbers of CTs by stage, and of those of which a range of stages is known, by range."""
    counts = cases_by_stage(stage_array([case.stages for case in cases]))
    found: dict[str, Any] = {"cases_per_stage": [counts.pop(name) for name in STAGES]}
    return found | ({"cases_per_range": counts} if counts else {})


def flow_chart(inclusion: Inclusion) -> Figure:
    """All cases, included cases, and the numbers of excluded cases with the reasons."""
    reasons = Counter(why for _, why in inclusion.excluded)
    everyone = [*inclusion.included, *(case for case, _ in inclusion.excluded)]
    counts = Counter(case.stages for case in inclusion.included)
    stages = ", ".join(f"{range_} {counts[range_]}" for range_ in _columns(inclusion.included))
    return flow_figure(
        f"In the manifest\n{size(everyone)}",
        f"Included\n{size(inclusion.included)}\n{stages}",
        f"Excluded: {len(inclusion.excluded)} CTs",
        dict(reasons.most_common()),
    )


def flow_figure(top: str, bottom: str, title: str, reasons: Mapping[str, int]) -> Figure:
    """A box with all, one with the included, and one with the numbers of the excluded.

    title: of the excluded. reasons: reason -> number of excluded, in the order to be shown.
    """
    figure = Figure(figsize=(7.5, 3.2 + 0.5 * len(reasons)), layout="constrained")
    axes = figure.subplots()
    axes.set_axis_off()
    axes.set(xlim=(0, 10), ylim=(0, 10))
    boxed = {"boxstyle": "round,pad=0.6", "facecolor": "white", "edgecolor": "black"}
    axes.annotate(
        "", (2.6, 2.6), (2.6, 7.6), arrowprops={"arrowstyle": "-|>", "color": "black", "lw": 1.2}
    )
    axes.text(2.6, 8.6, top, ha="center", va="center", bbox=boxed)
    axes.text(2.6, 1.4, bottom, ha="center", va="center", bbox=boxed)
    out = "\n".join(f"{count} {why}" for why, count in reasons.items()) or "none"
    axes.annotate(
        "", (4.7, 5), (2.6, 5), arrowprops={"arrowstyle": "-|>", "color": "black", "lw": 1.2}
    )
    axes.text(4.9, 5, f"{title}\n{out}", ha="left", va="center", bbox=boxed, fontsize=9)
    return figure


def table_1(cases: Sequence[Case]) -> list[list[str]]:
    """A row for each characteristic, a column for each stage, range and for all cases, as text.

    The acquisition (site, scanner, kernel, slice thickness) has rows only where some case states
    it.
    """
    columns = _columns(cases)
    groups = [[case for case in cases if case.stages == range_] for range_ in columns]
    groups.append(list(cases))
    lines = [["Characteristic", *map(str, columns), "All"]]
    lines.append(["CTs", *(str(len(group)) for group in groups)])
    lines.append(["Patients", *(str(len({c.patient for c in group})) for group in groups)])
    lines.append(["Age, years: mean (SD)", *(_spread([c.age for c in g]) for g in groups)])
    days = [_spread([c.days for c in group]) for group in groups]
    lines.append(["Days between CT and histology: mean (SD)", *days])
    if any(case.thickness for case in cases):
        thickness = [_spread([case.thickness for case in group]) for group in groups]
        lines.append(["Slice thickness, mm: mean (SD)", *thickness])
    acquisition = [t for t in ("site", "scanner", "kernel") if any(getattr(c, t) for c in cases)]
    for title in ("sex", "etiology", "specimen", *acquisition):
        values = Counter(getattr(case, title) or UNKNOWN for case in cases)
        for value, _ in values.most_common():
            counts = [sum((getattr(c, title) or UNKNOWN) == value for c in g) for g in groups]
            cells = [
                f"{n} ({100 * n / len(g):.0f} %)" if g else "0" for n, g in zip(counts, groups)
            ]
            lines.append([f"{title.title()}: {value}", *cells])
    if any(case.outlined for case in cases):
        outlined = [str(sum(case.outlined for case in group)) for group in groups]
        lines.append(["Liver outlined automatically (V-Net)", *outlined])
    return lines


def _columns(cases: Sequence[Case]) -> list[StageRange]:
    """The five stages, and the ranges that occur."""
    stages = [StageRange(stage, stage) for stage in range(len(STAGES))]
    return stages + sorted({case.stages for case in cases} - set(stages))


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return MISSING
    deviation = f" ({np.std(known, ddof=1):.1f})" if len(known) > 1 else ""
    return f"{np.mean(known):.1f}{deviation}"
