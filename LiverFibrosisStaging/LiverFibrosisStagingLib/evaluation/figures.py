"""Figures of an evaluation: those of the paper, calibration, confusion matrix, decision curves.

Each function draws one matplotlib figure; matplotlib is optional and imported when one is drawn.
The colours of Okabe and Ito can be distinguished with colour vision deficiency; lines also differ
in dash. `add_footer` adds the training data and the restriction to research use.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.metrics import roc_curve

from ..errors import StagingError
from ..report.summary import REGION_NAMES
from ..stages import GROUPS, RESEARCH_USE, STAGES, decided, exact
from .comparing import f0_against_f4, p_value
from .measures import group_probabilities, net_benefit
from .paper import LIVER_WEIGHT, SOURCE, TABLE_2
from .tables import NOT_DEFINED, NOT_SCORED, group_title, scored, with_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, SKY, PURPLE, GREY = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#56B4E9",
    "#CC79A7",
    "#777777",
)
GROUP_LOOK = {"significant": (BLUE, "-"), "advanced": (ORANGE, "--"), "cirrhosis": (GREEN, "-.")}
MIN_CASES = 5  # for a box
THRESHOLDS = np.arange(1, 100) / 100  # of decision curves


def check_matplotlib() -> None:
    """Raises StagingError if matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise StagingError(
            "The figures of an evaluation need matplotlib, which is not installed; "
            "install it with pip install matplotlib."
        )


def add_footer(figure: Figure, trained_on: str) -> None:
    """Add the training data and the restriction to research use below a figure."""
    words = f"Model trained on: {_no_math(trained_on.rstrip('.'))}. {RESEARCH_USE}"
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    width = int(figure.get_figwidth() * 15)
    figure.supxlabel("\n".join(textwrap.wrap(words, width)), fontsize=7.5, color="#444444")


def save(figure: Figure, stem: Path) -> None:
    """Write `stem`.png and .svg, without date and with fixed ids, so that reruns give equal files.

    The folder has to exist.
    """
    import matplotlib

    figure.savefig(stem.with_suffix(".png"), dpi=150, metadata={"Software": None})
    with matplotlib.rc_context({"svg.hashsalt": stem.name}):
        figure.savefig(stem.with_suffix(".svg"), metadata={"Date": None})


def roc_groups(stage: np.ndarray, probabilities: np.ndarray, found: Mapping[str, Any]) -> Figure:
    """Fig. 3a: ROC curves and AUCs of the groups, with their and the paper's operating points.

    stage: int [n], or [n, 2] with lowest and highest, by histology. probabilities: [n, 5]. found:
    of `cohort_measures`, and `evaluation`, on what, in words.
    """
    figure, axes = _roc_axes(f"Groups of stages, {found['evaluation']}")
    for name, scores in group_probabilities(probabilities).items():
        known, truth = decided(stage, GROUPS[name])
        color, dash = GROUP_LOOK[name]
        if not known.any():
            axes.plot([], [], dash, color=color, label=f"{group_title(name)}\n{NOT_SCORED}")
        if truth.all() or not truth.any():
            continue
        measured, paper = found["groups"][name], TABLE_2[name]
        label = f"{group_title(name)}\nAUC {with_interval(measured['auc'])}"
        axes.plot(*roc_curve(truth, scores[known])[:2], dash, color=color, lw=1.8, label=label)
        ours = 1 - measured["specificity"]["value"], measured["sensitivity"]["value"]
        theirs = 1 - paper["specificity"][0], paper["sensitivity"][0]
        axes.plot(*ours, "o", color=color, ms=8, mec="white", zorder=4)
        axes.plot(*theirs, "D", color=color, ms=6, mfc="white", zorder=3)
    axes.plot([], [], "o", color=GREY, ms=7, label="operating point")
    axes.plot([], [], "D", color=GREY, ms=6, mfc="white", label=f"{SOURCE}, Table 2")
    axes.legend(loc="lower right", fontsize=8.5, frameon=False)
    return figure


def roc_averages(stage: np.ndarray, probabilities: np.ndarray, found: Mapping[str, Any]) -> Figure:
    """Fig. 3b: micro- and macro-averaged ROC over F0 to F4, and ROC of each stage.

    Of the cases with one stage. Arguments as for `roc_groups`.
    """
    figure, axes = _roc_axes("Averages over the stages")
    known, stage = exact(stage)
    if not known.any():
        axes.text(0.5, 0.5, NOT_SCORED, ha="center", va="bottom")
        return figure
    probabilities = probabilities[known]
    grid = np.linspace(0, 1, 501)
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
    averages = [("micro", micro, BLUE, "-")]
    if curves:
        averages.append(("macro", (grid, np.mean(curves, axis=0)), "black", "--"))
    for name, curve, color, dash in averages:
        label = f"{name.title()}-average, AUC {with_interval(found['stages'][f'{name}_auc'])}"
        axes.plot(*curve, dash, color=color, lw=2.2, label=label)
    axes.legend(loc="lower right", fontsize=8.5, frameon=False)
    return figure


def reliability(found: Mapping[str, Any], about: str) -> Figure:
    """Observed frequency over probability for each group; about: how it is calibrated, in words."""
    figure = _figure((9.8, 4.6))
    for axes, name in zip(figure.subplots(1, len(GROUPS), sharey=True), GROUPS):
        group, color = found["groups"][name], GROUP_LOOK[name][0]
        axes.plot((0, 1), (0, 1), ":", color=GREY, lw=1)
        words = NOT_SCORED
        if group["reliability"]:
            x, y, cases = np.array([list(b.values()) for b in group["reliability"]]).T
            axes.plot(x, y, "-", color=color, lw=1.2)
            axes.scatter(x, y, 8 + 250 * cases / cases.sum(), color=color, alpha=0.8, zorder=3)
            error, brier = group["expected_calibration_error"], group["brier"]["value"]
            words = f"ECE {error:.3f}\nBrier {brier:.3f}"
        axes.set_title(group_title(name), fontsize=10)
        axes.text(0.03, 0.97, words, va="top", fontsize=8.5)
        axes.set(xlabel="Predicted probability", xlim=(-0.04, 1.04), ylim=(-0.04, 1.04))
        axes.set_box_aspect(1)
        _plain(axes)
    figure.axes[0].set_ylabel("Observed frequency")
    figure.suptitle(f"Reliability ({about}; marker area: cases)", fontsize=11)
    return figure


def decision_curves(stage: np.ndarray, probabilities: np.ndarray) -> Figure:
    """Net benefit over the threshold for each group, beside treating all cases and none.

    stage: int [n], or [n, 2] with lowest and highest, by histology. probabilities: [n, 5].
    """
    figure = _figure((9.8, 4.4))
    lines: tuple[list[Any], list[str]] = [], []
    scores = group_probabilities(probabilities)
    for axes, name in zip(figure.subplots(1, len(GROUPS)), GROUPS):
        (known, truth), color = decided(stage, GROUPS[name]), GROUP_LOOK[name][0]
        axes.set_title(group_title(name), fontsize=10)
        axes.set(xlabel="Threshold probability", xlim=(0, 1))
        _plain(axes)
        if not known.any():
            axes.text(0.5, 0.5, NOT_SCORED, ha="center")
            continue
        benefit = net_benefit(truth, scores[name][known], THRESHOLDS)
        everyone = net_benefit(truth, np.ones(len(truth)), THRESHOLDS)
        axes.plot(THRESHOLDS, benefit, color=color, lw=1.8, label="by the probability (coloured)")
        axes.plot(THRESHOLDS, everyone, "--", color=GREY, lw=1.2, label="all positive")
        axes.axhline(0, color="black", lw=0.8, label="none positive")
        top = max(truth.mean(), 0.05)
        axes.set_ylim(-0.25 * top, 1.1 * top)
        lines = axes.get_legend_handles_labels()
    figure.axes[0].set_ylabel("Net benefit")
    figure.legend(*lines, loc="outside upper center", ncols=3, fontsize=9, frameon=False)
    return figure


def areas(found: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> Figure:
    """AUCs with their intervals, one panel for each group.

    found: name of a score -> group -> value, low, high. A score without an AUC has no marker.
    """
    figure = _figure((9.8, 1.6 + 0.32 * len(found)))
    for axes, group in zip(figure.subplots(1, len(GROUPS), sharey=True), GROUPS):
        for place, by_group in enumerate(found.values()):
            one = by_group[group]
            color = GROUP_LOOK[group][0] if place == 0 else GREY
            if one["low"] is not None and one["high"] is not None:
                axes.plot((one["low"], one["high"]), (place, place), color=color, lw=1.6)
            if one["value"] is not None:
                axes.plot(one["value"], place, "o", color=color, ms=6)
        axes.axvline(0.5, color=GREY, lw=0.8, ls=":")
        axes.set_title(group_title(group), fontsize=10)
        axes.set(xlabel="AUC", xlim=(-0.02, 1.02), ylim=(len(found) - 0.5, -0.5))
        axes.set_yticks(range(len(found)), [textwrap.fill(_no_math(n), 40) for n in found])
        _plain(axes)
    return figure


def confusion(found: Mapping[str, Any]) -> Figure:
    """Counts by histology and prediction, shaded by the share of each row."""
    counts = np.array(found["stages"]["confusion"])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = _figure((5.2, 5.2))
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
    kappa = scored(found["stages"], "quadratic_kappa")
    axes.set_title(f"Quadratic-weighted kappa {kappa}", fontsize=10)
    return figure


def liver_weights(by_stage: Mapping[str, np.ndarray]) -> Figure:
    """Fig. 5: the liver's mean weight in cases predicted as F0 and F4, beside the paper's.

    by_stage: predicted stage -> weights, as of `cohort.weights_by_stage`.
    """
    groups = {name: by_stage[name] for name in LIVER_WEIGHT}
    figure = _figure((5.2, 5.0))
    axes = figure.subplots()
    rng = np.random.default_rng(0)
    for place, ((name, values), color) in enumerate(zip(groups.items(), (BLUE, ORANGE))):
        _box(axes, values, place, color, rng)
        median, low, high = LIVER_WEIGHT[name]
        x = place + 0.38
        axes.bar(x, high - low, 0.14, low, color="none", edgecolor=GREY, hatch="////", lw=0.8)
        axes.plot((x - 0.07, x + 0.07), (median, median), color="black", lw=1.6)
    axes.bar(0, 0, color="none", edgecolor=GREY, hatch="////", label=f"{SOURCE}, quartiles")
    axes.axhline(1, color=GREY, lw=0.8, ls=":")
    ticks = [f"{name}\n(n={len(values)})" for name, values in groups.items()]
    axes.set_xticks(range(len(groups)), ticks)
    axes.set(xlabel="Predicted stage", ylabel="Mean weight in the liver (body mean = 1)")
    axes.set(xlim=(-0.45, len(groups) - 0.4))
    axes.set_ylim(bottom=0)
    compared = f0_against_f4(groups["F0"], groups["F4"])
    tested = NOT_DEFINED if compared is None else p_value(compared["p"])
    axes.set_title(f"Mann-Whitney {tested}", fontsize=10)
    axes.legend(loc="upper left", fontsize=8.5, frameon=False)
    _plain(axes)
    return figure


def region_weights(grouped: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Mean weight of every region, by predicted stage; grouped: of `cohort.weights_by_stage`."""
    figure = _figure((10.5, 4.0))
    rng = np.random.default_rng(0)
    colors = (BLUE, SKY, GREEN, PURPLE, ORANGE)
    for axes, region in zip(figure.subplots(1, len(REGION_NAMES), sharey=True), REGION_NAMES):
        for place, (name, color) in enumerate(zip(STAGES, colors)):
            _box(axes, grouped[region][name], place, color, rng)
        axes.axhline(1, color=GREY, lw=0.8, ls=":")
        axes.set_xticks(range(len(STAGES)), STAGES)
        axes.set_title(REGION_NAMES[region], fontsize=10)
        axes.set(xlim=(-0.6, len(STAGES) - 0.4))
        _plain(axes)
    figure.axes[0].set_ylim(bottom=0)  # the axis is shared: set after all panels are drawn
    figure.axes[0].set_ylabel("Mean weight (body mean = 1)")
    figure.axes[len(REGION_NAMES) // 2].set_xlabel("Predicted stage")
    return figure


def _box(axes: Axes, values: np.ndarray, place: float, color: str, rng: Any) -> None:
    """Box plot with whiskers at the 2.5 and 97.5 percentiles, and a point for every case."""
    if not len(values):
        return
    axes.scatter(
        place + rng.uniform(-0.18, 0.18, len(values)), values, 7, color=color, alpha=0.45, lw=0
    )
    if len(values) >= MIN_CASES:
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


def _figure(size: tuple[float, float]) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")


def _roc_axes(title: str) -> tuple[Figure, Axes]:
    figure = _figure((5.6, 5.9))
    axes = figure.subplots()
    axes.plot((0, 1), (0, 1), ":", color=GREY, lw=1)
    axes.set(xlabel="1 - specificity", ylabel="Sensitivity", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.set_aspect("equal")
    axes.set_title(textwrap.fill(_no_math(title), 70), fontsize=9.5)
    _plain(axes)
    return figure, axes


def _no_math(text: str) -> str:
    """Text of a user, in which matplotlib shall not look for formulas."""
    return text.replace("$", r"\$")


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
