"""Staging of a cohort with an exported model, by the library's `stage`.

The result of a case is stored as JSON without voxels, so that an interrupted evaluation can be
resumed and measures can be recomputed without staging again.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from cases.manifest import Case
from common.files import write_text
from common.parallel import in_processes
from LiverFibrosisStagingLib import StagingModel, __version__
from LiverFibrosisStagingLib.errors import StagingError
from LiverFibrosisStagingLib.stages import RESEARCH_USE, StageRange, median_stage
from LiverFibrosisStagingLib.staging import stage

SCHEMA = 5


@dataclass(frozen=True, eq=False)
class Staged:
    """A staged case with its histological stage.

    stages: by histology. predicted: 0..4, by the model. logits, probabilities: float64 [5].
    measurements: region -> mean, share, volume_ml of the predicted stage's location map.
    member_probabilities: float64 [members, 5] of an ensemble, None for a single network.
    signs: measured on CT and masks, by key; None where not measurable. site: where the CT was
    taken, if known. means: float32 [patches, maps] of a `SignNetwork`'s maps, None for another.
    """

    name: str
    patient: str
    stages: StageRange
    logits: np.ndarray
    probabilities: np.ndarray
    predicted: int
    measurements: dict[str, dict[str, float]]
    member_probabilities: np.ndarray | None = None
    signs: Mapping[str, float | None] = field(default_factory=dict)
    site: str | None = None
    means: np.ndarray | None = None

    @property
    def stage(self) -> int | None:
        """The histological stage, 0..4; None if it is known as a range only."""
        return self.stages.exact


def stage_cases(
    cases: Sequence[Case], model: StagingModel | Path, folder: Path, workers: int = -1
) -> list[Staged]:
    """Stage every case, in the cases' order, and write `folder`/<model>/<case>.json.

    <model> is the first 12 digits of the file's SHA-256. A case is not staged again if its JSON
    exists, from files of the same content and from the same version of the library; the
    histological stage is always taken from the manifest. workers: processes, -1 for one per core;
    each runs the network in one thread.

    Raises StagingError with all cases that cannot be staged, after the others were staged.
    """
    path = model.path if isinstance(model, StagingModel) else Path(model)
    if not path.is_file():
        raise StagingError(f"There is no model file {path}.")
    folder = folder / hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    folder.mkdir(parents=True, exist_ok=True)
    found = [_read(case, folder) for case in cases]
    missing = [case for case, record in zip(cases, found) if record is None]
    if missing:
        work = [(case, path, folder) for case in missing]
        done = in_processes(_stage_one, work, "Staging", "CT", workers)
        refusals = [why for why in done if why]
        if refusals:
            raise StagingError(
                f"{len(refusals)} of {len(cases)} cases cannot be staged: " + " ".join(refusals)
            )
        found = [_read(case, folder) for case in cases]
    return [_staged(case, record) for case, record in zip(cases, found)]


def stage_out_of_fold(
    cases: Sequence[Case], tests: Sequence[Sequence[int]], run: Path, workers: int = -1
) -> tuple[list[Staged], dict[str, int]]:
    """Every case, in order, staged by RUN/fold_K/LFS.onnx of the fold K that tests it; and K.

    tests: the indices of each fold's cases.
    """
    staged: dict[str, Staged] = {}
    fold_of: dict[str, int] = {}
    for k, part in enumerate(tests):
        model = run / f"fold_{k}" / "LFS.onnx"
        for case in stage_cases([cases[i] for i in part], model, run / "staged", workers):
            staged[case.name], fold_of[case.name] = case, k
    return [staged[case.name] for case in cases], fold_of


def _stage_one(case: Case, model: Path, folder: Path) -> str | None:
    """Stage one case and write its JSON; returns the reason if it is refused."""
    try:
        # Another phase was refused before, unless the user wants any (`cases.inputs`).
        result = stage(case.ct, case.liver, case.spleen, _loaded(model), any_phase=True)
    except StagingError as refusal:
        return f"{case.name}: {refusal}"
    members = getattr(result, "member_probabilities", None)
    record = {
        "research_use": RESEARCH_USE,
        **_inputs(case),
        "logits": result.forward_pass.logits.tolist(),
        "probabilities": result.probabilities.tolist(),
        "measurements": result.measurements,
        "signs": {each.key: each.value for each in result.signs.measurements},
        "member_probabilities": None if members is None else np.asarray(members).tolist(),
        "means": [
            each.tensors["means"].reshape(-1).tolist()
            for each in result.forward_pass.forwards
            if "means" in each.tensors
        ],
    }
    write_text(folder / f"{case.name}.json", json.dumps(record, indent=1) + "\n")
    return None


@lru_cache(maxsize=1)
def _loaded(model: Path) -> StagingModel:
    return StagingModel.load(model, threads=1)


def _read(case: Case, folder: Path) -> dict[str, Any] | None:
    """The record of an earlier run with the same files and version, if there is one."""
    try:
        record = json.loads((folder / f"{case.name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    same = isinstance(record, dict) and _inputs(case).items() <= record.items()
    return record if same else None


def _inputs(case: Case) -> dict[str, Any]:
    """The inputs of a record; if any of them differs, the case is staged again."""
    return {"schema": SCHEMA, "software": __version__, "files": case.content()}


def _staged(case: Case, record: dict[str, Any]) -> Staged:
    members = record["member_probabilities"]
    probabilities = np.array(record["probabilities"])
    return Staged(
        name=case.name,
        patient=case.patient,
        stages=case.stages,
        logits=np.array(record["logits"]),
        probabilities=probabilities,
        predicted=int(median_stage(probabilities)),
        measurements=record["measurements"],
        member_probabilities=None if members is None else np.array(members),
        signs=record["signs"],
        site=case.site,
        means=np.array(record["means"], np.float32) if record["means"] else None,
    )
