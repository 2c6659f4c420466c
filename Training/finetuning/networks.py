"""The comparison for LFS networks, which were fine-tuned as a whole: start network, signs, both.

What `methods` fits within each fold's training part would take hours for the network. So the signs
are combined with the start network, which has seen no patient of the cohort, and not with the
fine-tuned one.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.metrics import Predictions, calibrate_folds
from evaluation.staged import Staged
from finetuning import report
from finetuning.cohort import assemble
from finetuning.compare import compare
from finetuning.methods import ANEW, SHIPPED, TUNED, Fold, OutOfFold, log_odds, regressions
from LiverFibrosisStagingLib.stages import GROUPS


def compare_networks(
    start: Sequence[Staged],
    trainings: Sequence[Sequence[Staged]],
    anew: Sequence[Staged] | None,
    fold_of: Mapping[str, int],
    run: Path,
    trained_on: str,
) -> tuple[dict[str, Any], str]:
    """The comparison as JSON, and the section of the model card; RUN receives tables and a figure.

    start: the cases, staged by the start network. trainings: the same cases out of fold, of each
    fine-tuning; anew: of networks trained anew. fold_of: case name -> fold.
    """
    cohort = assemble(start)
    fold = np.array([fold_of[case.name] for case in start])
    parts = [Fold(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in np.unique(fold)]
    before = np.log([case.probabilities for case in start])
    fitted = regressions(cohort, parts, before)
    found = []
    for number, staged in enumerate(trainings):
        logits = {SHIPPED: before, TUNED: _calibrated(staged, fold_of)}
        if number == 0 and anew is not None:
            logits[ANEW] = _calibrated(anew, fold_of)
        scores = {
            name: {group: log_odds(values, first) for group, first in GROUPS.items()}
            for name, values in logits.items()
        }
        found.append(OutOfFold(scores | fitted, logits))
    compared = compare(cohort, found)
    return compared, report.write(run, compared, [], cohort, trained_on)


def _calibrated(staged: Sequence[Staged], fold_of: Mapping[str, int]) -> np.ndarray:
    """Logits [n, 5] of the calibrated probabilities, as in the cross-validation's measures."""
    return np.log(calibrate_folds(Predictions.of(staged, fold_of))[0].probabilities)
