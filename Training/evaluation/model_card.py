"""MODEL_CARD.md: description, training, evaluation and limitations of a model.

After Mitchell et al., "Model cards for model reporting" (FAT* 2019). All numbers are read from the
files of the run.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.files import write_text
from common.tables import markdown
from evaluation import acquisition
from evaluation.trainings import trainings_table
from LiverFibrosisStagingLib import StagingModel
from LiverFibrosisStagingLib.evaluation.tables import scored, table_2
from LiverFibrosisStagingLib.model import Card
from LiverFibrosisStagingLib.stages import RESEARCH_USE, STAGES

LIMITS = (
    "The results above apply only to cases like those of the evaluation.",
    "The input must be a portal-venous CT that covers the whole liver, with a mask of the liver.",
    "A location map shows which regions contributed to the prediction. It does not show disease.",
    "The least frequent stages were trained and evaluated on few cases: see the counts above.",
)
TRAININGS = (
    "The trainings have the same folds, and other initial weights and draws of patches. The mean's "
    "interval includes both the patients and the trainings. The exported networks, and all other "
    "results, are those of the first training."
)
PHANTOM_LIMIT = (
    "The model was not trained on patients. The phantoms demonstrate the workflow from a CT to a "
    "location map; predictions for patients are meaningless."
)


def write(run: Path, about: tuple[str, str] | None = None, comparison: str = "") -> Path:
    """Write RUN/MODEL_CARD.md from the models and metrics of RUN; returns its path.

    about: the sections on model and training of a fine-tuned network. comparison: a further section
    of the results.
    """
    model = StagingModel.load(run / "LFS.onnx")
    card = model.card
    if about is None:
        plan = read_plan(run)
        about = _model(card, model.path, run / "LFS_single.onnx"), _training(card, plan)
    sections = [
        f"# Model card: {card.name}",
        f"{RESEARCH_USE}\n\nTrained on: {card.trained_on}",
        *about,
        *_acquisition(run),
        _results(run),
        *([comparison] if comparison else []),
        "## Limitations\n\n" + "\n".join(f"- {limit}" for limit in _limits(card)),
    ]
    path = run / "MODEL_CARD.md"
    write_text(path, "\n\n".join(sections) + "\n")
    return path


def read_plan(run: Path) -> dict[str, Any]:
    """The inputs of a run, from RUN/folds.json."""
    return json.loads((run / "folds.json").read_text(encoding="utf-8"))


def cohort_lines(training: Mapping[str, Any], plan: Mapping[str, Any]) -> str:
    """Lines of a list: stages of the CTs, what the labels mean, automatic masks.

    training: of the model's metadata.
    """
    by_stage = dict(zip(STAGES, training["cases_per_stage"]))
    by_stage |= training.get("cases_per_range", {})
    counts = ", ".join(f"{s} {n}" for s, n in by_stage.items())
    labels = "".join(f"- Stages of {n} CTs: {text}\n" for text, n in plan["labels"].items())
    outlined = plan["outlined"]
    masks = f"- In {outlined} CTs the V-Net outlined the liver.\n" if outlined else ""
    return f"- CTs by stage: {counts}.\n{labels}{masks}"


def _limits(card: Card) -> list[str]:
    return [PHANTOM_LIMIT, *LIMITS] if "phantom" in card.trained_on else list(LIMITS)


def _model(card: Card, ensemble: Path, single: Path) -> str:
    low, high = card.window_hu
    return (
        "## Model\n\n"
        "Four convolutions (5x5x5), three max-poolings and two dense layers, after Yin et al., "
        "European Radiology 2021; `Training/lfs/network.py` lists the differences.\n\n"
        f"- `LFS.onnx` ({ensemble.stat().st_size / 1e6:.1f} MB): the ensemble of the networks of "
        f"{card.training['folds']} folds; results report the range of their predictions.\n"
        f"- `LFS_single.onnx` ({single.stat().st_size / 1e6:.1f} MB): the fold with the best "
        "validation.\n"
        f"- Input: {_times(card.patch_size)} voxels (slices, rows, columns) of "
        f"{_times(card.spacing_mm)} mm, {low:g} to {high:g} HU, over the liver's slices.\n"
        "- Location maps: Grad-CAM at the third convolution, with voxels of "
        f"{_times(_map_voxel(card))} mm.\n"
        f"- Probabilities are calibrated with temperature {card.temperature:.2f}, fitted on "
        "out-of-fold predictions."
    )


def _map_voxel(card: Card) -> list[float]:
    """Voxel size in mm of the target layer, which is pooled by 2, 4 and 4."""
    return [spacing * pooled for spacing, pooled in zip(card.spacing_mm, (2, 4, 4))]


def _training(card: Card, plan: dict[str, Any]) -> str:
    lengths = {key: _span(plan[key]) for key in ("steps", "crop_steps")}
    values = lengths | {"patience": plan["patience"]} | plan["schedule"]
    schedule = ", ".join(f"{key} {value}" for key, value in values.items())
    return (
        "## Training\n\n"
        f"{cohort_lines(card.training, plan)}"
        f"- {card.training['folds']} folds, {plan['split']}; in each fold, one of eight patients "
        "that are not tested on is used for validation (early stopping).\n"
        f"- Schedule: {schedule}.\n"
        f"- Trained on {card.training['date']} with version {card.training['code_version']}."
    )


def _acquisition(run: Path) -> list[str]:
    """The section on whether the acquisition tells the stage, if that was checked."""
    path = run / "tables" / "acquisition.json"
    if not path.exists():
        return []
    found = json.loads(path.read_text(encoding="utf-8"))
    said = "\n".join(found["warnings"] or [acquisition.quiet(found)])
    return [f"## Acquisition\n\n{said}\n\n{markdown(acquisition.table(found))}"]


def _span(numbers: list[int]) -> str:
    """Lowest and highest of the folds' numbers."""
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def _results(run: Path) -> str:
    found = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    parts = ["## Results", "### Cross-validation\n\n" + _measured(found, "")]
    if "trainings" in found:
        lines = markdown(trainings_table(found["trainings"]))
        parts.append(f"### Variance between trainings\n\n{lines}\n\n{TRAININGS}")
    path = run / "test" / "metrics.json"
    if path.exists():
        tested = json.loads(path.read_text(encoding="utf-8"))
        parts.append("### Test cohort\n\n" + _measured(tested, "test/"))
        for key, other in (("single", "single network"), ("start", "start network")):
            lines = [
                f"- {group}: {other} {one['second']:.3f}, this model {one['first']:.3f} "
                f"(DeLong p = {one['p']:.2g})"
                for group, one in tested.get(f"compared_with_{key}", {}).items()
                if one is not None
            ]
            if lines:
                parts.append(f"### Test cohort, AUC of the {other}\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def _measured(found: dict[str, Any], folder: str) -> str:
    agreement = f"Quadratic-weighted kappa {scored(found['stages'], 'quadratic_kappa')}."
    pictures = "\n".join(
        f"![{title}]({folder}figures/{name}.png)"
        for title, name in (
            ("ROC curves by group", "fig_3a_roc_groups"),
            ("Confusion matrix", "confusion"),
            ("Weights by region", "region_weights"),
        )
    )
    return f"{markdown(table_2({'this model': found}))}\n\n{agreement}\n\n{pictures}"


def _times(sizes: tuple[float, ...] | list[float]) -> str:
    return " x ".join(f"{size:g}" for size in sizes)
