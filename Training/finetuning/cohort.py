"""What fine-tuning needs of a cohort: means of the network's maps, measured signs, known stages.

Nothing before the means is trained, so every case is staged once, by the library's `stage` with the
start model, and what follows takes seconds.
"""

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from sklearn.model_selection import StratifiedGroupKFold
from tqdm import tqdm

from cases.manifest import Case
from common.files import write_text
from LiverFibrosisStagingLib import StagingModel, __version__
from LiverFibrosisStagingLib.errors import StagingError
from LiverFibrosisStagingLib.signs.measure import UNITS
from LiverFibrosisStagingLib.stages import RESEARCH_USE, STAGES, StageRange
from LiverFibrosisStagingLib.staging import stage

SCHEMA = 1


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

    def decided(self, first: int) -> tuple[np.ndarray, np.ndarray]:
        """Of which cases it is known whether they have stage `first` or later, and whether."""
        return (self.lowest >= first) | (self.highest < first), self.lowest >= first

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
        splitter = StratifiedGroupKFold(parts, shuffle=True, random_state=seed)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The least populated class")
            found = [*splitter.split(among, labels, patients)]
        return [(among[rest], among[part]) for rest, part in found]


def read_cohort(cases: Sequence[Case], model: Path, folder: Path, workers: int = -1) -> Cohort:
    """The cohort, in the cases' order, staged with the model; kept in `folder`.

    A case is staged again if the content of its files, the model or the library's version changes.
    workers: processes, -1 for one per core. Raises StagingError with all cases that are refused.
    """
    folder = folder / hashlib.sha256(model.read_bytes()).hexdigest()[:12]
    folder.mkdir(parents=True, exist_ok=True)
    missing = [case for case in cases if _kept(case, folder) is None]
    if missing:
        work = (delayed(_read)(case, model, folder) for case in missing)
        parallel = Parallel(n_jobs=min(workers, len(missing)), return_as="generator_unordered")
        refusals = [why for why in tqdm(parallel(work), "Reading maps", len(missing)) if why]
        if refusals:
            raise StagingError(
                f"{len(refusals)} of {len(cases)} cases cannot be staged: " + " ".join(refusals)
            )
    return assemble(
        [_kept(case, folder) for case in cases],
        [case.stages for case in cases],
        [case.patient for case in cases],
    )


def assemble(
    records: Sequence[dict[str, Any]], stages: Sequence[StageRange], patients: Sequence[str]
) -> Cohort:
    """A cohort from the means and signs of its cases."""
    means = [np.array(record["means"], np.float32) for record in records]
    signs = [[record["signs"].get(name) for name in UNITS] for record in records]
    return Cohort(
        means=np.concatenate(means),
        case=np.repeat(np.arange(len(means)), [len(one) for one in means]),
        signs=np.array(signs, np.float64).reshape(len(means), len(UNITS)),
        lowest=np.array([each.lowest for each in stages], int),
        highest=np.array([each.highest for each in stages], int),
        patient=np.array(patients),
    )


def _read(case: Case, model: Path, folder: Path) -> str | None:
    """Stage a case and keep its means and signs; returns the reason if it is refused."""
    try:
        result = stage(case.ct, case.liver, case.spleen, _loaded(model), any_phase=True)
    except StagingError as refusal:
        return f"{case.name}: {refusal}"
    patches = [each.tensors["means"].reshape(-1) for each in result.forward_pass.forwards]
    record = {
        "research_use": RESEARCH_USE,
        **_inputs(case),
        "means": [patch.tolist() for patch in patches],
        "signs": {each.key: each.value for each in result.signs.measurements},
    }
    write_text(folder / f"{case.name}.json", json.dumps(record, indent=1) + "\n")
    return None


@lru_cache(maxsize=1)
def _loaded(model: Path) -> StagingModel:
    return StagingModel.load(model, threads=1)


def _kept(case: Case, folder: Path) -> dict[str, Any] | None:
    try:
        record = json.loads((folder / f"{case.name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    same = isinstance(record, dict) and _inputs(case).items() <= record.items()
    return record if same else None


def _inputs(case: Case) -> dict[str, Any]:
    return {"schema": SCHEMA, "software": __version__, "files": case.content()}
