"""What fine-tuning needs of a cohort: means of the network's maps, measured signs, known stages.

Nothing before the means is trained, so every case is staged once, with the start model, and what
follows takes seconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cases.folds import grouped_parts
from cases.manifest import Case
from evaluation.staged import Staged, stage_cases
from LiverFibrosisStagingLib.errors import StagingError
from LiverFibrosisStagingLib.signs.measure import UNITS
from LiverFibrosisStagingLib.stages import STAGES


@dataclass(frozen=True, eq=False)
class Cohort:
    """n cases with p patches.

    means: float32 [p, maps], of the maps in a patch. case: int [p], the patch's case. signs:
    float64 [n, signs] in the order of `signs.measure.UNITS`, NaN where not measurable. lowest,
    highest: int [n], the stages that the reference leaves possible. patient: str [n].
    """

    means: np.ndarray
    case: np.ndarray
    signs: np.ndarray
    lowest: np.ndarray
    highest: np.ndarray
    patient: np.ndarray

    def __len__(self) -> int:
        return len(self.lowest)

    @property
    def stages(self) -> np.ndarray:
        """Lowest and highest stage, int [n, 2], as the functions of `stages` take them."""
        return np.stack([self.lowest, self.highest], axis=1)

    def splits(
        self, among: np.ndarray, parts: int, seed: int
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Cases `among` for training and for testing, by patient, known stages in equal shares.

        Raises StagingError if they are of fewer than two patients.
        """
        labels = (self.lowest * len(STAGES) + self.highest)[among]
        patients = self.patient[among]
        parts = min(parts, len(set(patients)))
        if parts < 2:
            raise StagingError("The training part of a fold has one patient; two are needed.")
        if np.bincount(labels).max() < parts:  # no stage has a case for each part
            labels = np.zeros_like(labels)
        return grouped_parts(among, labels, patients, parts, seed)


def read_cohort(cases: Sequence[Case], model: Path, folder: Path, workers: int = -1) -> Cohort:
    """The cohort, in the cases' order, staged with the model; see `stage_cases`."""
    return assemble(stage_cases(cases, model, folder, workers))


def assemble(staged: Sequence[Staged]) -> Cohort:
    """A cohort of staged cases; without maps if their network is no `SignNetwork`."""
    means = [np.empty((1, 0), np.float32) if one.means is None else one.means for one in staged]
    signs = [[case.signs.get(name) for name in UNITS] for case in staged]
    return Cohort(
        means=np.concatenate(means),
        case=np.repeat(np.arange(len(means)), [len(one) for one in means]),
        signs=np.array(signs, np.float64).reshape(len(staged), len(UNITS)),
        lowest=np.array([case.stages.lowest for case in staged], int),
        highest=np.array([case.stages.highest for case in staged], int),
        patient=np.array([case.patient for case in staged]),
    )
