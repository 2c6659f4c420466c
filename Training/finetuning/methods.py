"""Out-of-fold predictions of the methods that are compared on a cohort.

Everything that is fitted or chosen (weights, strength, imputation, scaling, the regression's
penalty) is so on the training part of each fold.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import logsumexp
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from finetuning.cohort import Cohort
from finetuning.fit import Fitted, Tuning, fine_tune, logits_of, train_anew
from LiverFibrosisStagingLib.stages import GROUPS, STAGES, decided
from painted.network import SignNetwork

SHIPPED, TUNED, ANEW = "start network", "fine-tuned", "trained anew"
SIGNS, BOTH = "measured signs", "fine-tuned and signs"
START_BOTH = "start network and signs"
METHODS = (SHIPPED, TUNED, ANEW, SIGNS, BOTH, START_BOTH)
NETWORKS = (SHIPPED, TUNED, ANEW)
PENALTIES = (0.01, 0.1, 1.0)  # C of the logistic regression on standardised signs
INNER = 4  # folds of the training part that choose C


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """Predictions for n cases, each by what was fitted without its fold.

    scores: method -> group -> float64 [n], higher for later stages; NaN where it could not be
    fitted. logits: method -> float64 [n, 5], of the networks.
    """

    scores: dict[str, dict[str, np.ndarray]]
    logits: dict[str, np.ndarray]


class Fold(NamedTuple):
    """Indices of the cases for training and for testing."""

    train: np.ndarray
    test: np.ndarray


def cross_validate(
    cohort: Cohort,
    starts: Sequence[SignNetwork],
    folds: Sequence[Fold],
    tuning: Tuning,
    methods: Sequence[str] = METHODS,
    temperature: float = 1.0,
) -> tuple[OutOfFold, list[Fitted]]:
    """Predictions of the methods, and what was fine-tuned in each fold.

    temperature: of the start networks, for their own predictions.
    """
    shape = len(cohort), len(STAGES)
    logits = {name: np.full(shape, np.nan) for name in NETWORKS if name in methods}
    if SHIPPED in methods:
        logits[SHIPPED] = logits_of(starts, cohort) / temperature
    fitted, regressed = [], {}
    if SIGNS in methods:
        regressed = regressions(cohort, folds, logits[SHIPPED], tuning.seed)
    if BOTH in methods:
        regressed[BOTH] = {group: np.full(len(cohort), np.nan) for group in GROUPS}
    for train, test in folds:
        tuned = fine_tune(starts, cohort, train, tuning)
        fitted.append(tuned)
        logits[TUNED][test] = tuned.logits[test]
        if ANEW in methods:
            logits[ANEW][test] = train_anew(starts, cohort, train, tuning).logits[test]
        for group, scores in regressed.get(BOTH, {}).items():
            first = GROUPS[group]
            values = np.column_stack([log_odds(tuned.logits, first), cohort.signs])
            scores[test] = _regression(cohort, values, first, train, test, tuning.seed)
    scores = {
        name: {group: log_odds(found, first) for group, first in GROUPS.items()}
        for name, found in logits.items()
    }
    return OutOfFold(scores | regressed, logits), fitted


def regressions(
    cohort: Cohort, folds: Sequence[Fold], logits: np.ndarray, seed: int = 0
) -> dict[str, dict[str, np.ndarray]]:
    """Method -> group -> scores [n], out of fold: the signs alone, and with a network's log-odds.

    logits: float64 [n, 5], of the start network, which has seen no case.
    """
    found: dict[str, dict[str, np.ndarray]] = {}
    for name in (SIGNS, START_BOTH):
        found[name] = {}
        for group, first in GROUPS.items():
            values = cohort.signs
            if name == START_BOTH:
                values = np.column_stack([log_odds(logits, first), values])
            found[name][group] = scores = np.full(len(cohort), np.nan)
            for train, test in folds:
                scores[test] = _regression(cohort, values, first, train, test, seed)
    return found


def log_odds(logits: np.ndarray, first: int) -> np.ndarray:
    """Log-odds [n] of `first` or a later stage, from logits [n, 5]."""
    return logsumexp(logits[:, first:], axis=1) - logsumexp(logits[:, :first], axis=1)


def _regression(
    cohort: Cohort, values: np.ndarray, first: int, train: np.ndarray, test: np.ndarray, seed: int
) -> np.ndarray:
    """Scores [tests] of a logistic regression on the cases that the cut-off decides."""
    (known, _), truth = decided(cohort.stages, first), cohort.lowest >= first
    among = train[known[train]]
    usable = ~np.isnan(values[among]).all(axis=0)
    if min(truth[among].sum(), (~truth[among]).sum()) < 2 or not usable.any():
        return np.full(len(test), np.nan)
    values = values[:, usable]
    model = make_pipeline(
        SimpleImputer(strategy="median", keep_empty_features=True),
        StandardScaler(),
        LogisticRegression(C=PENALTIES[len(PENALTIES) // 2], max_iter=1000),
    )
    places = np.full(len(cohort), -1)
    places[among] = np.arange(len(among))
    inner = [
        (places[rest], places[part])
        for rest, part in cohort.splits(among, INNER, seed)
        if len(set(truth[rest])) == len(set(truth[part])) == 2
    ]
    if inner:
        choices = {"logisticregression__C": PENALTIES}
        model = GridSearchCV(model, choices, scoring="neg_log_loss", cv=inner)
    return model.fit(values[among], truth[among]).decision_function(values[test])
