"""Tables of an evaluation, as rows of text with the header first."""

from collections.abc import Callable, Mapping
from typing import Any

from ..report.content import SIGN_NAMES
from ..report.summary import REGION_NAMES, group_stages
from ..signs.measure import UNITS
from ..stages import GROUPS, STAGES
from .comparing import p_value
from .paper import LIVER_WEIGHT, SOURCE, TABLE_2

Table = list[list[str]]

NOT_DEFINED = "not defined"
NOT_SCORED = "not scored"  # no case has a stage, or a range of stages, that decides it
MISSING = "-"  # what a source does not report
MEASURES = {
    "auc": "AUC",
    "specificity": "Specificity (%)",
    "sensitivity": "Sensitivity (%)",
    "accuracy": "Accuracy (%)",
}
_FORMAT = {key: (2, 1) if key == "auc" else (1, 100) for key in MEASURES}  # decimals and factor
GROUP_TITLES = {
    "significant": "Significant fibrosis",
    "advanced": "Advanced fibrosis",
    "cirrhosis": "Cirrhosis",
}


STAGE_ROWS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "Cases": lambda one: str(one["cases"]),
    "Patients": lambda one: str(one["patients"]),
    "Cases by stage": lambda one: ", ".join(f"{s} {n}" for s, n in one["cases_by_stage"].items()),
    "Cases with one stage, measured below": lambda one: str(one["stages"]["cases"]),
    "Quadratic-weighted kappa": lambda one: scored(one["stages"], "quadratic_kappa"),
    "Obuchowski measure": lambda one: scored(one["stages"], "obuchowski"),
    "Macro-average AUC": lambda one: scored(one["stages"], "macro_auc"),
    "Micro-average AUC": lambda one: scored(one["stages"], "micro_auc"),
    "Same stage (%)": lambda one: scored(one["stages"], "accuracy", 1, 100),
    "Brier score, five stages": lambda one: scored(one["stages"], "brier", 3),
}


def group_title(name: str) -> str:
    """The name of a group of stages with its stages: "Cirrhosis (F4)"."""
    return f"{GROUP_TITLES[name]} ({group_stages(name)})"


def with_interval(measured: Mapping[str, float | None], decimals: int = 2, factor: int = 1) -> str:
    """A measure with its interval: "0.92 [0.86, 0.97]"."""
    value, low, high = (measured[key] for key in ("value", "low", "high"))
    if value is None:
        return NOT_DEFINED
    ends = NOT_DEFINED
    if low is not None and high is not None:
        ends = f"{factor * low:.{decimals}f}, {factor * high:.{decimals}f}"
    return f"{factor * value:.{decimals}f} [{ends}]"


def scored(measures: Mapping[str, Any], key: str, decimals: int = 2, factor: int = 1) -> str:
    """One of the measures of `cases` with its interval; NOT_SCORED if there are none."""
    if not measures["cases"]:
        return NOT_SCORED
    return with_interval(measures[key], decimals, factor)


def table_2(found: Mapping[str, Mapping[str, Any]]) -> Table:
    """Table 2 beside the paper's: a row for each measure and source, a column for each group.

    found: name of a source, such as "this model", -> measures as of `cohort_measures`. If a source
    has ranges of stages that do not decide a group, rows say how many cases are scored.
    """
    lines = [["Measure [95 % interval]", "Source", *map(group_title, GROUPS)]]
    for key, title in MEASURES.items():
        for source, measures in found.items():
            cells = [scored(measures["groups"][name], key, *_FORMAT[key]) for name in GROUPS]
            lines.append([title, source, *cells])
        paper = (dict(zip(("value", "low", "high"), TABLE_2[name][key])) for name in GROUPS)
        lines.append([title, SOURCE, *(with_interval(one, *_FORMAT[key]) for one in paper)])
    for source, measures in found.items():
        groups = measures["groups"]
        if any(group["undecided"] for group in groups.values()):
            cells = (f"{groups[name]['cases']} of {measures['cases']}" for name in GROUPS)
            lines.append(["Cases whose stages decide it", source, *cells])
    return lines


def confusion_table(found: Mapping[str, Any]) -> Table:
    """Counts by histology (rows) and prediction."""
    header = ["Histology", *(f"predicted {name}" for name in STAGES)]
    counts = found["stages"]["confusion"]
    return [header, *([name, *map(str, row)] for name, row in zip(STAGES, counts))]


def region_table(maps: Mapping[str, Any]) -> Table:
    """Median weight (quartiles) by region and predicted stage, and F0 against F4.

    maps: of `cohort.describe_weights`. The last row is the paper's.
    """
    by_region = maps["weights_by_predicted_stage"]
    lines = [["Mean weight by predicted stage", *STAGES, "F0 against F4 (Mann-Whitney)"]]
    for region, name in REGION_NAMES.items():
        cells = [
            NOT_DEFINED
            if one["median"] is None
            else f"{one['median']:.2f} ({one['lower_quartile']:.2f}-{one['upper_quartile']:.2f}), "
            f"n={one['cases']}"
            for one in by_region[region].values()
        ]
        compared = maps["f0_against_f4"][region]
        lines.append([name, *cells, NOT_DEFINED if compared is None else p_value(compared["p"])])
    paper = {
        stage: f"{median:.2f} ({low:.2f}-{high:.2f})"
        for stage, (median, low, high) in LIVER_WEIGHT.items()
    }
    cells = [paper.get(stage, MISSING) for stage in STAGES]
    return [*lines, [f"Liver, {SOURCE} (reference assumed)", *cells, "p < 0.001"]]


def stages_table(found: Mapping[str, Mapping[str, Any] | None]) -> Table:
    """Cases, and agreement and calibration over all stages; a column for each of `found`."""
    lines = [["Measure [95 % interval]", *found]]
    for title, of in STAGE_ROWS.items():
        lines.append([title, *(NOT_DEFINED if one is None else of(one) for one in found.values())])
    return lines


def calibration_table(found: Mapping[str, Mapping[str, Any] | None]) -> Table:
    """Calibration of the groups' probabilities; a row for each group and each of `found`."""
    header = ["Group", "Cases", "Brier score", "ECE", "Intercept", "Slope"]
    lines = [header]
    for group in GROUPS:
        for name, measures in found.items():
            cells = [NOT_DEFINED] * 4
            if measures is not None:
                one = measures["groups"][group]
                line = one["calibration"]
                error = one["expected_calibration_error"]
                cells = [NOT_SCORED] * 4
                if error is not None:
                    cells = [
                        scored(one, "brier", 3),
                        f"{error:.3f}",
                        plain(line["intercept"]),
                        plain(line["slope"]),
                    ]
            lines.append([group_title(group), name, *cells])
    return lines


def sign_title(key: str) -> str:
    """The name of a sign with its unit: "Spleen volume (mL)"."""
    return f"{SIGN_NAMES[key]} ({UNITS[key]})" if UNITS[key] else SIGN_NAMES[key]


def sign_table(found: Mapping[str, Mapping[str, Any]]) -> Table:
    """Measures of each sign, a row for each group; found: sign -> measures."""
    header = ["Sign", "Fibrosis if", "Group", "Cases", "AUC", "Sensitivity (%)", "Specificity (%)"]
    lines = [[*header, "Cutoff", "Source of the cutoff", "Network against the sign"]]
    for key, sign in found.items():
        side = "high" if sign["rises"] else "low"
        for group, one in sign["groups"].items():
            cells = [NOT_DEFINED] * 6
            if one is not None:
                tested = one["network_against_sign"]
                cells = [
                    with_interval(one["auc"]),
                    *(with_interval(one[k], 1, 100) for k in ("sensitivity", "specificity")),
                    plain(one["cutoff"]),
                    one["cutoff_source"],
                    NOT_DEFINED
                    if tested is None
                    else f"AUC {tested['difference']:+.3f}, {p_value(tested['p'])}",
                ]
            cases = str(sign["cases"] if one is None else one["cases"])
            lines.append([sign_title(key), side, group_title(group), cases, *cells])
    return lines


def plain(value: float | None) -> str:
    """A number with three significant digits, or that it is not defined."""
    return NOT_DEFINED if value is None else f"{value:.3g}"


def comparison_table(
    compared: Mapping[str, Mapping[str, float] | None], first: str, second: str
) -> Table:
    """DeLong's comparison of the AUCs of two scores, a row for each group."""
    difference = "Difference [95 % interval]"
    lines = [["Group", f"AUC of {first}", f"AUC of {second}", difference, "DeLong"]]
    return lines + [[group_title(name), *_compared(one)] for name, one in compared.items()]


def _compared(one: Mapping[str, float] | None) -> list[str]:
    if one is None:
        return [NOT_DEFINED] * 4
    difference = f"{one['difference']:+.3f} [{one['low']:+.3f}, {one['high']:+.3f}]"
    return [f"{one['first']:.3f}", f"{one['second']:.3f}", difference, p_value(one["p"])]
