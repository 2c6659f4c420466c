"""Figures of an evaluation: those of the paper, calibration, confusion matrix.

Each function draws one matplotlib figure. The colours of Okabe and Ito can be distinguished with
colour vision deficiency; lines also differ in dash. `save` adds a footer with the training data and
the restriction to research use.
"""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from common.figures import save_figure
from evaluation import cohort_maps
from evaluation.metrics import PAPER_TABLE_2, Predictions, group_probabilities
from evaluation.staged import Staged
from LiverFibrosisStagingLib.report.summary import REGION_NAMES, group_stages
from LiverFibrosisStagingLib.stages import GROUPS, RESEARCH_USE, STAGES

BLUE, ORANGE, GREEN, SKY, PURPLE, GREY = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#56B4E9",
    "#CC79A7",
    "#777777",
)
GROUP_LOOK = {"significant": (BLUE, "-"), "advanced": (ORANGE, "--"), "cirrhosis": (GREEN, "-.")}
GROUP_TITLES = {
    "significant": "Significant fibrosis",
    "advanced": "Advanced fibrosis",
    "cirrhosis": "Cirrhosis",
}


def group_title(name: str) -> str:
    """The name of a group of stages with its stages: "Cirrhosis (F4)"."""
    return f"{GROUP_TITLES[name]} ({group_stages(name)})"


def save(figure: Figure, folder: Path, name: str, trained_on: str) -> None:
    """Write `folder`/`name`.png and .pdf with the footer."""
    words = f"Model trained on: {trained_on.rstrip('.')}. {RESEARCH_USE}"
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    width = int(figure.get_figwidth() * 15)
    figure.supxlabel("\n".join(textwrap.wrap(words, width)), fontsize=7.5, color="#444444")
    save_figure(figure, folder, name)


def roc_groups(
    predictions: Predictions, probabilities: np.ndarray, found: dict[str, Any]
) -> Figure:
    """Fig. 3a: ROC curves and AUCs of the three groups, with the model's and the paper's
    operating points.
    """
    figure, axes = _roc_axes(f"Groups of stages, {found['evaluation']}")
    for name, scores in group_probabilities(probabilities).items():
        truth = predictions.stage >= GROUPS[name]
        if truth.all() or not truth.any():
            continue
        color, dash = GROUP_LOOK[name]
        measured, paper = found["groups"][name], PAPER_TABLE_2[name]
        label = f"{group_title(name)}\nAUC {_with_interval(measured['auc'])}"
        axes.plot(*roc_curve(truth, scores)[:2], dash, color=color, lw=1.8, label=label)
        ours = 1 - measured["specificity"]["value"], measured["sensitivity"]["value"]
        theirs = 1 - paper["specificity"][0], paper["sensitivity"][0]
        axes.plot(*ours, "o", color=color, ms=8, mec="white", zorder=4)
        axes.plot(*theirs, "D", color=color, ms=6, mfc="white", zorder=3)
    axes.plot([], [], "o", color=GREY, ms=7, label="operating point")
    axes.plot([], [], "D", color=GREY, ms=6, mfc="white", label="Yin et al. 2021, Table 2")
    axes.legend(loc="lower right", fontsize=8.5, frameon=False)
    return figure


def roc_averages(
    predictions: Predictions, probabilities: np.ndarray, found: dict[str, Any]
) -> Figure:
    """Fig. 3b: micro- and macro-averaged ROC over F0 to F4, and ROC of each stage."""
    figure, axes = _roc_axes("Averages over the stages")
    stage, grid = predictions.stage, np.linspace(0, 1, 501)
    curves = []
    for s, color in zip(np.unique(stage), (SKY, PURPLE, ORANGE, GREEN, GREY)):
        if (stage == s).all():
            continue
        x, y, _ = roc_curve(stage == s, probabilities[:, s])
        curves.append(np.interp(grid, x, y))
        area = found["stages"]["auc"][STAGES[s]]["value"]
        label = f"{STAGES[s]} against the others, AUC {area:.2f}"
        axes.plot(x, y, color=color, lw=0.9, label=label)
    truth = np.equal.outer(stage, np.arange(len(STAGES)))
    micro = roc_curve(truth.ravel(), probabilities.ravel())[:2]
    macro = grid, np.mean(curves, axis=0)
    for name, curve, color, dash in (
        ("micro", micro, BLUE, "-"),
        ("macro", macro, "black", "--"),
    ):
        label = f"{name.title()}-average, AUC {_with_interval(found['stages'][f'{name}_auc'])}"
        axes.plot(*curve, dash, color=color, lw=2.2, label=label)
    axes.legend(loc="lower right", fontsize=8.5, frameon=False)
    return figure


def reliability(found: dict[str, Any]) -> Figure:
    """Observed frequency over calibrated probability for each group."""
    figure = Figure(figsize=(9.8, 4.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(GROUPS), sharey=True), GROUPS):
        group, color = found["groups"][name], GROUP_LOOK[name][0]
        x, y, cases = np.array([list(b.values()) for b in group["reliability"]]).T
        axes.plot((0, 1), (0, 1), ":", color=GREY, lw=1)
        axes.plot(x, y, "-", color=color, lw=1.2)
        axes.scatter(x, y, 8 + 250 * cases / cases.sum(), color=color, alpha=0.8, zorder=3)
        error, brier = group["expected_calibration_error"], group["brier"]["value"]
        axes.set_title(group_title(name), fontsize=10)
        axes.text(0.03, 0.97, f"ECE {error:.3f}\nBrier {brier:.3f}", va="top", fontsize=8.5)
        axes.set(xlabel="Predicted probability", xlim=(-0.04, 1.04), ylim=(-0.04, 1.04))
        axes.set_box_aspect(1)
        _plain(axes)
    figure.axes[0].set_ylabel("Observed frequency")
    temperature = f"temperature {found['temperature']:.2f}"
    if "folds" in found:
        temperature = "temperature fitted on the other folds"
    figure.suptitle(f"Reliability ({temperature}; marker area: cases)", fontsize=11)
    return figure


def confusion(found: dict[str, Any]) -> Figure:
    """Counts by histology and prediction, shaded by the share of each row."""
    counts = np.array(found["stages"]["confusion"])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(5.2, 5.2), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(shares, cmap="cividis", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        share = shares[row, column]
        text = f"{count}\n{100 * share:.0f} %" if counts[row].sum() else "-"
        ink = "black" if share > 0.5 else "white"
        axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=9)
    axes.set_xticks(range(len(STAGES)), STAGES)
    names = [f"{name} (n={n})" for name, n in zip(STAGES, counts.sum(axis=1))]
    axes.set_yticks(range(len(STAGES)), names)
    axes.set(xlabel="Predicted stage", ylabel="Stage by histology")
    figure.colorbar(picture, ax=axes, shrink=0.75, label="Share of the row")
    kappa = _with_interval(found["stages"]["quadratic_kappa"])
    axes.set_title(f"Quadratic-weighted kappa {kappa}", fontsize=10)
    return figure


def liver_weights(cases: Sequence[Staged]) -> Figure:
    """Fig. 5: the liver's mean weight in cases predicted as F0 and F4, beside the paper's."""
    groups = {s: cohort_maps.weights(cohort_maps.predicted_as(cases, s), "liver") for s in (0, 4)}
    figure = Figure(figsize=(5.2, 5.0), layout="constrained")
    axes = figure.subplots()
    rng = np.random.default_rng(0)
    for place, ((s, values), color) in enumerate(zip(groups.items(), (BLUE, ORANGE))):
        _box(axes, values, place, color, rng)
        median, low, high = cohort_maps.PAPER_LIVER_WEIGHT[STAGES[s]]
        x = place + 0.38
        axes.bar(x, high - low, 0.14, low, color="none", edgecolor=GREY, hatch="////", lw=0.8)
        axes.plot((x - 0.07, x + 0.07), (median, median), color="black", lw=1.6)
    axes.bar(0, 0, color="none", edgecolor=GREY, hatch="////", label="Yin et al. 2021, quartiles")
    axes.axhline(1, color=GREY, lw=0.8, ls=":")
    ticks = [f"{STAGES[s]}\n(n={len(values)})" for s, values in groups.items()]
    axes.set_xticks(range(len(groups)), ticks)
    axes.set(xlabel="Predicted stage", ylabel="Mean weight in the liver (body mean = 1)")
    axes.set(xlim=(-0.45, len(groups) - 0.4))
    axes.set_ylim(bottom=0)
    compared = cohort_maps.analyse(cases)["f0_against_f4"]["liver"]
    if compared is not None:
        axes.set_title(f"Mann-Whitney {p_value(compared['p'])}", fontsize=10)
    axes.legend(loc="upper left", fontsize=8.5, frameon=False)
    _plain(axes)
    return figure


def region_weights(cases: Sequence[Staged]) -> Figure:
    """Mean weight of every region, by predicted stage."""
    figure = Figure(figsize=(10.5, 4.0), layout="constrained")
    rng = np.random.default_rng(0)
    colors = (BLUE, SKY, GREEN, PURPLE, ORANGE)
    for axes, region in zip(figure.subplots(1, len(REGION_NAMES), sharey=True), REGION_NAMES):
        for s, color in enumerate(colors):
            values = cohort_maps.weights(cohort_maps.predicted_as(cases, s), region)
            _box(axes, values, s, color, rng)
        axes.axhline(1, color=GREY, lw=0.8, ls=":")
        axes.set_xticks(range(len(STAGES)), STAGES)
        axes.set_title(REGION_NAMES[region], fontsize=10)
        axes.set(xlim=(-0.6, len(STAGES) - 0.4))
        _plain(axes)
    figure.axes[0].set_ylim(bottom=0)  # the axis is shared: set after all panels are drawn
    figure.axes[0].set_ylabel("Mean weight (body mean = 1)")
    figure.axes[len(REGION_NAMES) // 2].set_xlabel("Predicted stage")
    return figure


def p_value(p: float) -> str:
    """A p-value as text."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _box(axes: Axes, values: np.ndarray, place: float, color: str, rng: Any) -> None:
    """Box plot with whiskers at the 2.5 and 97.5 percentiles, and a point for every case."""
    if not len(values):
        return
    axes.scatter(
        place + rng.uniform(-0.18, 0.18, len(values)), values, 7, color=color, alpha=0.45, lw=0
    )
    if len(values) >= cohort_maps.MIN_CASES:
        axes.boxplot(
            values,
            positions=[place],
            widths=0.48,
            whis=(2.5, 97.5),
            showfliers=False,
            manage_ticks=False,
            medianprops={"color": "black", "lw": 1.6},
            boxprops={"color": color, "lw": 1.4},
            whiskerprops={"color": color},
            capprops={"color": color},
        )


def _roc_axes(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.6, 5.9), layout="constrained")
    axes = figure.subplots()
    axes.plot((0, 1), (0, 1), ":", color=GREY, lw=1)
    axes.set(xlabel="1 - specificity", ylabel="Sensitivity", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.set_aspect("equal")
    axes.set_title(title, fontsize=9.5)
    _plain(axes)
    return figure, axes


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def _with_interval(measured: dict[str, float | None]) -> str:
    value, low, high = measured["value"], measured["low"], measured["high"]
    return "-" if value is None else f"{value:.2f} [{low:.2f}, {high:.2f}]"
