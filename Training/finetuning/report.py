"""Tables, figures and the model card's section of a comparison."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from common.tables import MISSING, markdown, notice_of, write_csv, write_table
from evaluation.figures import save
from finetuning.cohort import Cohort
from finetuning.compare import sentences, table
from finetuning.methods import ANEW, METHODS, TUNED
from finetuning.power import power_sentences, power_table
from LiverFibrosisStagingLib.evaluation.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY
from LiverFibrosisStagingLib.evaluation.tables import group_title
from LiverFibrosisStagingLib.stages import GROUPS

COLOURS = dict(zip(METHODS, (GREY, BLUE, ORANGE, GREEN, PURPLE, SKY)))
Curve = Sequence[Mapping[str, Any]]


def write(
    run: Path, found: Mapping[str, Any], curve: Curve, cohort: Cohort, trained_on: str
) -> str:
    """Write RUN/tables/comparison, power and learning_curve, and the figures.

    Returns the section of the model card.
    """
    tables, figures = run / "tables", run / "figures"
    lines = table(found)
    write_table(tables / "comparison", lines, trained_on)
    write_table(tables / "power", power_table(cohort), trained_on)
    save(_comparison(found), figures, "comparison", trained_on)
    parts = [
        f"## Comparison on the same cases, out of fold\n\n{markdown(lines)}",
        _about(found),
        "\n".join(f"- {sentence}" for sentence in [*sentences(found), *power_sentences(cohort)]),
        "![AUC of each method](figures/comparison.png)",
    ]
    if curve:
        rows = [[_cell(value) for value in row.values()] for row in curve]
        write_csv(tables / "learning_curve.csv", [[*curve[0]], *rows, [notice_of(trained_on)]])
        save(_learning(curve), figures, "learning_curve", trained_on)
        parts.append("![AUC against the number of patients](figures/learning_curve.png)")
    return "\n\n".join(parts)


def _about(found: Mapping[str, Any]) -> str:
    seeds = max(
        (len(m["seeds"]) for g in found["groups"].values() for m in g["methods"].values()),
        default=1,
    )
    text = "Only cases whose stage or range decides a cut-off are scored. "
    if seeds > 1:
        return text + (
            f"AUCs are means of {seeds} trainings with other seeds; the "
            "intervals include both the patients and the trainings."
        )
    return text + "Intervals: bootstrap over patients."


def _cell(value: Any) -> Any:
    missing = isinstance(value, float) and not np.isfinite(value)
    return MISSING if missing else round(value, 4) if isinstance(value, float) else value


def _comparison(found: Mapping[str, Any]) -> Figure:
    """AUC with interval of each method, by group."""
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.subplots()
    for place, name in enumerate(METHODS):
        for column, measured in enumerate(found["groups"].values()):
            one = measured["methods"].get(name)
            if one is None:
                continue
            one = one.get("auc_with_seeds", one["auc"])
            x = column + 0.14 * (place - 2)
            label = name if column == 0 else None
            axes.plot(x, one["value"], "o", color=COLOURS[name], label=label)
            if one["low"] is not None:
                axes.plot([x, x], [one["low"], one["high"]], color=COLOURS[name])
    axes.axhline(0.5, color="#999999", linewidth=0.8, linestyle=":")
    axes.set_xticks(range(len(GROUPS)), [group_title(group) for group in found["groups"]])
    axes.set(ylim=(0, 1.02), ylabel="AUC, 95 % interval")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower center", ncols=3, fontsize=8)
    return figure


def _learning(curve: Curve) -> Figure:
    """Mean AUC over the draws against the number of patients, by group."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, group in zip(figure.subplots(1, len(GROUPS), sharey=True), GROUPS):
        for name in (TUNED, ANEW):
            rows = [row for row in curve if row["group"] == group and row["method"] == name]
            sizes = sorted({row["share"] for row in rows})
            drawn = [[row for row in rows if row["share"] == size] for size in sizes]
            x = [each[0]["patients"] for each in drawn]
            y = [np.mean([row["auc"] for row in each]) for each in drawn]
            axes.plot(x, y, "o-", color=COLOURS[name], label=name)
            for row in rows:
                axes.plot(row["patients"], row["auc"], ".", color=COLOURS[name], alpha=0.4)
        axes.set(title=group_title(group), xlabel="Patients in training", ylim=(0, 1.02))
    figure.axes[0].set_ylabel("AUC, out of fold")
    figure.axes[0].legend(loc="lower right", fontsize=8)
    return figure
