"""Does the acquisition tell the stage? A model that sees no image, only how the CTs were taken.

    python Training/acquisition.py TABLE.csv -o FOLDER

TABLE.csv has a row for each CT, with its patient, stage and properties of the acquisition, such as
site, scanner, kernel, slice thickness. If these predict the stage, a network can learn them instead
of the liver, and its AUC in the same cohort does not show it.

The AUC for F2-F4, F3-F4 and F4 is cross-validated by patient, of all properties together and of
each alone. FOLDER receives acquisition.csv and acquisition.json.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata
from sklearn.impute import SimpleImputer
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, QuantileTransformer, SplineTransformer

from common.files import write_text
from common.tables import markdown, write_csv
from LiverFibrosisStagingLib.errors import StagingError
from LiverFibrosisStagingLib.evaluation.evaluate import rounded
from LiverFibrosisStagingLib.evaluation.measures import (
    INTERVAL,
    MIN_PATIENTS,
    Interval,
    auc,
    draw_patients,
    interval,
    ratio,
)
from LiverFibrosisStagingLib.evaluation.reading import read_rows, stage_of
from LiverFibrosisStagingLib.evaluation.tables import with_interval
from LiverFibrosisStagingLib.files import check_writable
from LiverFibrosisStagingLib.report.summary import group_stages
from LiverFibrosisStagingLib.stages import GROUPS, RESEARCH_USE, StageRange, decided

FOLDS, SPLITS = 5, 5  # of the cross-validation, and how often the patients are split anew
RARE = 4  # categories of fewer cases are one category
LEVEL = 0.05  # share of cohorts without a shortcut that may be warned of
ALL = "All together"
NO_VALUE = {"", "-", "na", "n/a", "nan", "none", "null", "unknown"}
Split = tuple[np.ndarray, np.ndarray]  # indices of the cases for training and for testing
_ALPHA = 5.0  # ridge penalty: about the weight of five cases for each category
_KNOTS = np.linspace(0, 1, 4)[:, None]
_QUANTILES = 20


def features_of(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Property -> its features, float64 [n, k]; and column -> why it is left out.

    A column is numeric if all its values are numbers, else it has categories. None, NaN and words
    such as "n/a" are missing values; that a value is missing may also tell the stage. Columns with
    a single value and text that hardly ever recurs are left out. The features are prepared on all
    cases: that uses no stage, so it cannot carry one from a test part to a training part.

    Raises StagingError if no column is left.
    """
    kept, left_out = {}, {}
    for name in names:
        texts = [_text(row.get(name)) for row in rows]
        numbers = [np.nan if text is None else _number(text) for text in texts]
        common = Counter(texts).most_common()
        if len(common) < 2:
            left_out[name] = "the same in all cases"
        elif None not in numbers:
            kept[name] = _numeric(np.array(numbers, float))
        elif common[0][1] < RARE:
            left_out[name] = f"text that is the same in fewer than {RARE} cases"
        else:
            one_hot = OneHotEncoder(min_frequency=RARE, sparse_output=False)
            kept[name] = one_hot.fit_transform(np.array(texts, object)[:, None])
    if not kept:
        why = "; ".join(f"{name} is {reason}" for name, reason in left_out.items())
        raise StagingError(
            f"No property of the acquisition can be compared ({why or 'none is given'}); at least "
            "one that differs between the cases is needed."
        )
    return kept, left_out


def splits_of(patient: np.ndarray, seed: int = 0) -> list[Split]:
    """Indices of the cases for training and for testing in SPLITS cross-validations by patient.

    Parts do not depend on the stage, so that they are as good for permuted stages as for true ones.
    """
    patients, index = np.unique(patient, return_inverse=True)
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(SPLITS):
        groups = rng.permutation(len(patients))[index]
        found += GroupKFold(FOLDS).split(index, groups=groups)
    return found


def predictions(
    splits: Sequence[Split], features: np.ndarray, truth: np.ndarray
) -> list[np.ndarray]:
    """Scores [n_test, targets] of each test part, for targets bool [n, targets].

    Ridge regression of the classes, a regularised linear discriminant. It is solved for all targets
    at once, so that a thousand permutations cost little more than one fit, which neither logistic
    regression nor boosted trees allow.
    """
    # Equal acquisitions must remain ties, which rounding errors would break.
    return [
        Ridge(_ALPHA)
        .fit(features[train], truth[train].astype(float))
        .predict(features[test])
        .reshape(len(test), -1)
        .round(9)
        for train, test in splits
    ]


def shortcut(
    rows: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    stage: Sequence[int] | Sequence[StageRange],
    patient: Sequence[str],
    permutations: int = 999,
    repeats: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """How well the acquisition alone predicts the stage.

    rows: the acquisition of each case, with the properties `names`. stage: 0..4, or ranges; a group
    of stages is compared in the cases whose ranges decide it. patient: all CTs of a patient are in
    the same part of a fold, and are permuted and drawn together.

    The AUC compares cases of the same test part only: pooled over parts, it would be below 0.5
    without a shortcut, because a training part has fewer of what its test part has more. p: share
    of permutations of the stages over the patients in which any of the AUCs is as high, in standard
    deviations from its mean over the permutations: corrected for the number of AUCs (single-step
    maxT of Westfall and Young 1993, Resampling-Based Multiple Testing; groups that other cases
    decide are permuted independently, which makes p larger). The interval alone would be too
    narrow, as it ignores how the model depends on its training cases; so an AUC is warned of if its
    interval is above 0.5 and p is at most LEVEL. Of the cohorts without a shortcut, that many get a
    warning at most.

    Raises StagingError if no property differs.
    """
    stages, who = np.asarray(stage, int), np.asarray(patient)
    features, left_out = features_of(rows, names)
    sides = {}
    for name, first in GROUPS.items():
        known, truth = decided(stages, first)
        sides[name] = [len(set(who[known][~truth])), len(set(who[known][truth]))]
    defined = [name for name, counts in sides.items() if min(counts) >= MIN_PATIENTS]
    splits = splits_of(who, seed) if defined else []

    def measured(own: np.ndarray) -> dict[str, Interval]:
        intervals = {}
        for name in defined:
            known, truth = decided(stages, GROUPS[name])
            parts = _restricted(splits, known)
            scores = [score[:, 0] for score in predictions(parts, own[known], truth[:, None])]
            measure = partial(_within_parts, parts, scores, truth)
            weights = draw_patients(who[known], repeats, seed)
            intervals[name] = interval(measure, weights, min(sides[name]))
        return intervals

    models = {ALL: np.hstack(list(features.values())), **features}
    nothing = {"value": None, "low": None, "high": None, "p": None}
    found: dict[str, dict[str, Any]] = {name: dict.fromkeys(GROUPS, nothing) for name in models}
    if defined:
        p = _p_values(splits, list(models.values()), stages, who, defined, permutations, seed)
        for (name, own), of_groups in zip(models.items(), p):
            found[name] |= {
                group: {**one, "p": float(value)}
                for (group, one), value in zip(measured(own).items(), of_groups)
            }
    return {
        "cases": len(stages),
        "patients": {name: dict(zip(("without", "with"), sides[name])) for name in GROUPS},
        "interval": INTERVAL,
        "auc": found,
        "left_out": left_out,
        "warnings": [text for group in defined if (text := _warning(group, found))],
    }


def table(found: Mapping[str, Any]) -> list[list[str]]:
    """The AUCs of all properties and of each, by group, with p, and the number of patients."""
    return [
        ["AUC [95 % interval], p", *(group_stages(name) for name in GROUPS)],
        *([name, *map(_shown, own.values())] for name, own in found["auc"].items()),
        [
            "Patients without, with",
            *(f"{one['without']}, {one['with']}" for one in found["patients"].values()),
        ],
    ]


def _shown(measured: Mapping[str, float | None]) -> str:
    p = measured["p"]
    return with_interval(measured) + ("" if p is None else f", {p:.3f}")


def _text(value: Any) -> str | None:
    text = "" if value is None else str(value).strip()
    return None if text.lower() in NO_VALUE else text


def _number(text: str) -> float | None:
    """A finite number, also with a decimal comma; None for other text."""
    try:
        value = float(text.replace(",", "."))
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def _numeric(values: np.ndarray) -> np.ndarray:
    """Piecewise linear functions of the rank, and whether the value is missing, [n, 5].

    So units and outliers do not matter, and a stage with medium values only is seen.
    """
    prepare = make_pipeline(
        SimpleImputer(strategy="median"),
        QuantileTransformer(n_quantiles=min(_QUANTILES, len(values))),
        SplineTransformer(degree=1, knots=_KNOTS),
    )
    return np.hstack([prepare.fit_transform(values[:, None]), np.isnan(values)[:, None]])


def _restricted(splits: Sequence[Split], known: np.ndarray) -> list[Split]:
    """The splits of some of the cases, bool [n], as indices among these; without empty parts."""
    place = np.cumsum(known) - 1
    parts = [tuple(place[part[known[part]]] for part in split) for split in splits]
    return [split for split in parts if all(map(len, split))]


def _within_parts(
    splits: Sequence[Split],
    scores: Sequence[np.ndarray],
    truth: np.ndarray,
    weights: np.ndarray,
) -> np.ndarray:
    """AUC [repeats] over all pairs of cases that were tested together, for case weights."""
    won, pairs = np.zeros(len(weights)), np.zeros(len(weights))
    for (_, test), score in zip(splits, scores):
        positive, own = truth[test], weights[:, test]
        count = own[:, positive].sum(axis=1) * own[:, ~positive].sum(axis=1)
        won += np.where(count > 0, auc(positive, score, own), 0) * count
        pairs += count
    return ratio(won, pairs)


def _p_values(
    splits: Sequence[Split],
    models: Sequence[np.ndarray],
    stage: np.ndarray,
    patient: np.ndarray,
    groups: Sequence[str],
    permutations: int,
    seed: int,
) -> np.ndarray:
    """p [models, groups] of the AUCs, corrected for their number; models: features [n, k].

    Stages are permuted among the cases that decide a group.
    """
    of_models: list[list[np.ndarray]] = [[] for _ in models]
    for name in groups:
        known, own = decided(stage, GROUPS[name])
        permuted = _permuted(own, patient[known], permutations, seed)
        truth, parts = np.vstack([own, permuted]).T, _restricted(splits, known)
        for found, features in zip(of_models, models):
            found.append(_aucs(parts, features[known], truth))
    aucs = np.stack([one for found in of_models for one in found], axis=1)
    scale = aucs.std(axis=0)
    z = np.divide(aucs - aucs.mean(axis=0), scale, out=np.zeros_like(aucs), where=scale > 0)
    # The first row is the true one.
    corrected = (z.max(axis=1) >= z[0][:, None]).mean(axis=1)
    return corrected.reshape(len(models), len(groups))


def _aucs(splits: Sequence[Split], features: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """AUC [targets] as of `_within_parts`, for many targets bool [n, targets] of equal cases."""
    won, pairs = np.zeros(truth.shape[1]), np.zeros(truth.shape[1])
    for (_, test), score in zip(splits, predictions(splits, features, truth)):
        positive = truth[test]
        count = positive.sum(axis=0)
        # Mann and Whitney's U from the ranks.
        won += (rankdata(score, axis=0) * positive).sum(axis=0) - count * (count + 1) / 2
        pairs += count * (len(positive) - count)
    return ratio(won, pairs).round(9)


def _permuted(truth: np.ndarray, patient: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Truth [count, n] in which every patient has those of another, in the order of the CTs.

    If the other patient has fewer CTs, theirs are repeated.
    """
    patients, index = np.unique(patient, return_inverse=True)
    sizes = np.bincount(index)
    order = np.argsort(index, kind="stable")
    first = np.cumsum(sizes) - sizes
    place = np.empty(len(truth), int)
    place[order] = np.arange(len(truth)) - np.repeat(first, sizes)
    rng = np.random.default_rng(seed)
    donors = np.stack([rng.permutation(len(patients))[index] for _ in range(count)])
    return truth[order[first[donors] + place % sizes[donors]]]


def _warning(group: str, found: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The sentence for a group that the acquisition predicts; None if it does not."""
    telling = {
        name: own[group]
        for name, own in found.items()
        if own[group]["p"] <= LEVEL and own[group]["low"] > 0.5
    }
    if not telling:
        return None
    together = telling.pop(ALL, None)
    parts = [
        f"{name} alone with an AUC of {with_interval(one)}"
        for name, one in sorted(telling.items(), key=lambda item: -item[1]["value"])
    ]
    if together is not None:
        parts.append(f"all properties together with an AUC of {with_interval(together)}")
    return (
        f"The acquisition, without the image, predicts {group_stages(group)}: {', '.join(parts)}; "
        "a network can learn it instead of the liver."
    )


def _read(
    path: Path, stage: str, patient: str, columns: Sequence[str] | None
) -> tuple[list[dict[str, str]], list[str], list[StageRange]]:
    """Rows with a stage, the columns of properties, and the stages. Raises StagingError."""
    rows = read_rows(path)
    if not rows:
        raise StagingError(f"{path}: no rows; a header and a row for each CT are needed.")
    for name in (stage, patient, *(columns or ())):
        if name not in rows[0]:
            raise StagingError(f"{path}: no column {name}; the file has {', '.join(rows[0])}.")
    names = columns or [name for name in rows[0] if name not in ("", stage, patient)]
    kept, stages = [], []
    for line, row in enumerate(rows, start=2):
        found = stage_of(path, line, row[stage])
        if found is None:
            continue
        if not row[patient]:
            raise StagingError(f"{path}, line {line}: the patient is empty; a code is needed.")
        kept.append(row)
        stages.append(found)
    if not kept:
        raise StagingError(f"{path}: no row has a stage; F0 to F4, or a range, is needed.")
    return kept, list(names), stages


def write(found: Mapping[str, Any], folder: Path) -> None:
    """Write what `shortcut` found to `folder`/acquisition.csv and .json."""
    lines: list[list[object]] = [["property", "stages", "auc", "low", "high", "p"]]
    for name, own in found["auc"].items():
        lines += [
            [name, group_stages(group), *(one[k] for k in ("value", "low", "high", "p"))]
            for group, one in rounded(own).items()
        ]
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / "acquisition.csv", lines)
    text = json.dumps(rounded({**found, "notice": RESEARCH_USE}), indent=2, allow_nan=False)
    write_text(folder / "acquisition.json", text + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status, 0 also if there is a warning."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", type=Path, help="CSV or Parquet with a row for each CT")
    parser.add_argument("--stage", default="stage", metavar="COLUMN", help="default: stage")
    parser.add_argument("--patient", default="patient", metavar="COLUMN", help="default: patient")
    parser.add_argument(
        "--columns", nargs="+", metavar="COLUMN", help="of the acquisition; default: all others"
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER")
    options = parser.parse_args(arguments)
    try:
        if options.output is not None:
            check_writable(options.output)
        rows, names, stages = _read(options.table, options.stage, options.patient, options.columns)
        patients = [row[options.patient] for row in rows]
        found = shortcut(rows, names, stages, patients)
        if options.output is not None:
            write(found, options.output)
    except (StagingError, OSError) as refusal:
        print(refusal, file=sys.stderr)
        return 1
    print(markdown(table(found)), end="\n\n")
    for name, reason in found["left_out"].items():
        print(f"Left out: {name}, {reason}.")
    print(*(found["warnings"] or [quiet(found)]), RESEARCH_USE, sep="\n")
    return 0


def quiet(found: Mapping[str, Any]) -> str:
    """What is said without a warning."""
    if all(one["value"] is None for one in found["auc"][ALL].values()):
        return f"{MIN_PATIENTS} patients with and without a group's stages are needed."
    return "The acquisition does not tell the stage measurably better than chance."


if __name__ == "__main__":
    sys.exit(main())
