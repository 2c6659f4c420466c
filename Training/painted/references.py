"""Temperature, operating points and reference maps of networks on painted cases.

Cases are painted at the spacing of a CT and staged by the library, each with the exported network
of the fold that left its body out, never with the ensemble, whose other networks have seen the
body. The mean of several networks varies less, so that the ensemble's probabilities are rather too
cautious with this temperature.
"""

import copy
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from common.calibration import fit_temperature
from common.files import write_text
from common.resume import check_plan
from evaluation import cohort_maps
from evaluation.evaluate import aucs, report_cross_validation, write_metrics
from evaluation.staged import Staged
from insilico.cohort import images
from insilico.paint import CANVAS_MM, Painter
from LiverFibrosisStagingLib import StagingModel, __version__
from LiverFibrosisStagingLib.errors import StagingError
from LiverFibrosisStagingLib.stages import RESEARCH_USE, STAGES, StageRange, median_stage, softmax
from LiverFibrosisStagingLib.staging import stage
from painted.cases import HELD_SEED
from painted.export import export
from painted.network import SignNetwork

FIRST_SEED = 4 * HELD_SEED  # other patients than those of `check` and `truth`
MOST = 1000  # cases per body
Place = tuple[int, int, int]  # fold, body, number
Record = dict[str, Any]


def calibrate(
    networks: Sequence[SignNetwork],
    held: Sequence[Sequence[int]],
    painter: Painter,
    described: dict[str, Any],
    digests: Sequence[str],
    folder: Path,
    per_body: int,
    spacing: tuple[float, float, float] = CANVAS_MM,
) -> dict[str, Any]:
    """Measure the networks on `per_body` cases of each body; writes the calibrated model.

    held: bodies that each network has not seen. described: the model's metadata. digests: of the
    bodies' files. spacing: of the cases in mm (slice, row, column).

    `folder` receives fold_K.onnx, without calibration; staged/, a file for each case, from which
    the same command resumes; metrics.json, tables/ and figures/ as from a cross-validation; and
    LFS.onnx, the ensemble with calibration and references. Returns the metrics, with the number of
    cases that the library refuses. Raises StagingError for fewer than two folds, more than 1000
    cases per body, if all cases of a fold are refused, or if `folder` contains another run.
    """
    if len(networks) < 2 or not 0 < per_body <= MOST:
        raise StagingError(
            f"{len(networks)} folds and {per_body} cases per body; at least 2 folds and 1 to "
            f"{MOST} cases are needed."
        )
    described = copy.deepcopy(described)
    plan = {
        "networks": [_digest(network) for network in networks],
        "input": dataclasses.asdict(networks[0].given),
        "bodies": list(digests),
        "spacing": list(spacing),
        "software": __version__,
    }
    check_plan(folder / "plan.json", plan, folder.glob("staged/*.json"))
    models = []
    for fold, (network, bodies) in enumerate(zip(networks, held)):
        file = folder / f"fold_{fold}.onnx"
        about = described | {"name": f"{described['name']}, fold {fold}"}
        learned = {one for body, one in enumerate(digests) if body not in bodies}
        export(network, file, about, learned)
        models.append(StagingModel.load(file))

    places = [
        (fold, body, number)
        for fold, bodies in enumerate(held)
        for body in bodies
        for number in range(per_body)
    ]

    def stage_one(place: Place, explain: str) -> Record:
        fold, body, number = place
        own = folder / "staged" / f"{painter.bodies[body].name}_{number:03d}.json"
        return _record(own, explain, models[fold], painter, body, number, spacing)

    first = {place: stage_one(place, "predicted") for place in tqdm(places, "Staging", unit="CT")}
    places = [place for place, record in first.items() if "refused" not in record]
    if len({fold for fold, _, _ in places}) < len(held):
        raise StagingError(f"{folder}: all cases of a fold are refused; see the files in staged.")
    logits = np.array([first[place]["logits"] for place in places])
    stages = np.array([first[place]["stage"] for place in places])
    probabilities = softmax(logits, fit_temperature(logits, stages))
    # The temperature changes some predicted stages, so that their maps are needed as well.
    predicted = median_stage(probabilities)
    staged, fold_of = [], {}
    for k, (fold, body, number) in enumerate(tqdm(places, "Explaining", unit="CT")):
        explained = STAGES[predicted[k]]
        patient = painter.bodies[body].name
        own = Staged(
            name=f"{patient}_{number:03d}",
            patient=patient,
            stages=StageRange(int(stages[k]), int(stages[k])),
            logits=logits[k],
            probabilities=probabilities[k],
            predicted=int(predicted[k]),
            measurements=stage_one(places[k], explained)["measurements"][explained],
        )
        staged.append(own)
        fold_of[own.name] = fold
    found = report_cross_validation(staged, fold_of, folder, described["training"]["data"])
    found["refused"] = len(first) - len(places)
    write_metrics(found, folder)
    about = (
        f"{len(staged)} cases painted into {len(digests)} real bodies, each staged by the network "
        "that has not seen its body"
    )
    described["calibration"] = {key: found[key] for key in ("temperature", "operating_points")}
    described["reference"] = cohort_maps.reference(staged, about)
    described["training"] |= {"folds": len(held), "auc": aucs(found), "evaluated_on": about}
    export(networks, folder / "LFS.onnx", described, set(digests))
    return found


def _record(
    file: Path,
    explain: str,
    model: StagingModel,
    painter: Painter,
    body: int,
    number: int,
    spacing: tuple[float, float, float],
) -> Record:
    """The case's stage, logits, and measurements by explained stage; staged if not yet in `file`.

    The stages of a body's cases go round from F0 to F4, from another one for each body. Of a case
    that is refused, only the sentence.
    """
    record: Record = {"research_use": RESEARCH_USE, "measurements": {}}
    if file.exists():
        record = json.loads(file.read_text(encoding="utf-8"))
        if explain == "predicted" or explain in record["measurements"]:
            return record
    drawn = (body + number) % len(STAGES)
    case = painter.case(FIRST_SEED + MOST * body + number, body, drawn, None, spacing)
    try:  # the phase is drawn as well, and is not clear in some cases
        result = stage(*images(case).values(), model, explain, any_phase=True)
    except StagingError as refusal:
        record["refused"] = str(refusal)
    else:
        record["measurements"][result.explained] = result.measurements
        record |= {"stage": drawn, "logits": result.forward_pass.logits.tolist()}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(record, indent=1) + "\n")
    return record


def _digest(network: SignNetwork) -> str:
    """First 16 digits of the SHA-256 of a network's weights."""
    found = hashlib.sha256()
    for values in network.state_dict().values():
        found.update(values.cpu().numpy().tobytes())
    return found.hexdigest()[:16]
