"""MODEL_CARD.md: what a trained model is, on what it was measured, and what it is not.

After Mitchell et al., "Model cards for model reporting" (FAT* 2019). Every number is read from the
run's own files.
"""

import json
from pathlib import Path
from typing import Any

from evaluation.evaluate import table_2
from LiverFibrosisStagingLib import StagingModel
from LiverFibrosisStagingLib.model import Card
from LiverFibrosisStagingLib.stages import RESEARCH_USE, STAGES

LIMITS = (
    "The figures hold for cases like those that it was measured on, and for no others.",
    "It expects a portal-venous CT that covers the whole liver, and a mask of the liver.",
    "A location map says what the network used, not what is true of the patient.",
    "The least frequent stages are known from few cases: see the counts above.",
)
PHANTOM_LIMIT = (
    "It has seen no patient. Phantoms show that the way from a CT to a location map works; what it "
    "says about a patient means nothing until it is trained on patients."
)


def write(run: Path) -> Path:
    """Write RUN/MODEL_CARD.md from RUN's models and metrics; returns its path."""
    model = StagingModel.load(run / "LFS.onnx")
    card = model.card
    plan = json.loads((run / "folds.json").read_text(encoding="utf-8"))
    sections = [
        f"# Model card: {card.name}",
        f"{RESEARCH_USE}\n\nTrained on: {card.trained_on}",
        _model(card, model.path, run / "LFS_single.onnx"),
        _training(card, plan),
        _results(run),
        "## Limits\n\n" + "\n".join(f"- {limit}" for limit in _limits(card)),
    ]
    path = run / "MODEL_CARD.md"
    partial = path.with_suffix(".part")
    partial.write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    partial.replace(path)
    return path


def _limits(card: Card) -> list[str]:
    return [PHANTOM_LIMIT, *LIMITS] if "phantom" in card.trained_on else list(LIMITS)


def _model(card: Card, ensemble: Path, single: Path) -> str:
    low, high = card.window_hu
    return (
        "## Model\n\n"
        "Four convolutions (5x5x5), three max-poolings and two dense layers, after Yin et al., "
        "European Radiology 2021; differences are named in `Training/lfs/network.py`.\n\n"
        f"- `LFS.onnx` ({ensemble.stat().st_size / 1e6:.1f} MB): the ensemble of the "
        f"{card.training['folds']} folds' networks, whose spread is the uncertainty that a result "
        "reports.\n"
        f"- `LFS_single.onnx` ({single.stat().st_size / 1e6:.1f} MB): the fold that validated best."
        "\n"
        f"- Input: {_times(card.patch_size)} voxels (slices, rows, columns) of "
        f"{_times(card.spacing_mm)} mm, {low:g} to {high:g} HU, over the liver's slices.\n"
        "- Location maps: Grad-CAM at the third convolution, one voxel "
        f"{_times(_map_voxel(card))} mm.\n"
        f"- Probabilities are calibrated: temperature {card.temperature:.2f}, fitted on "
        "out-of-fold predictions."
    )


def _map_voxel(card: Card) -> list[float]:
    """Size in mm of a voxel of the target layer, which is pooled by 2, 4 and 4."""
    return [spacing * pooled for spacing, pooled in zip(card.spacing_mm, (2, 4, 4))]


def _training(card: Card, plan: dict[str, Any]) -> str:
    counts = ", ".join(f"{s} {n}" for s, n in zip(STAGES, card.training["cases_per_stage"]))
    schedule = ", ".join(f"{key} {value}" for key, value in plan["schedule"].items())
    return (
        "## Training\n\n"
        f"- CTs by stage: {counts}.\n"
        f"- {card.training['folds']} folds, split by patient, stages balanced; in each, one "
        "patient in eight decides when to stop and is not learned from.\n"
        f"- Schedule: {schedule}.\n"
        f"- Made on {card.training['date']} with version {card.training['code_version']}."
    )


def _results(run: Path) -> str:
    found = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    parts = ["## Results", "### Cross-validation\n\n" + _measured(found, "")]
    path = run / "test" / "metrics.json"
    if path.exists():
        tested = json.loads(path.read_text(encoding="utf-8"))
        parts.append("### Test cohort, ensemble\n\n" + _measured(tested, "test/"))
        compared = tested["compared_with_single"]
        lines = [
            f"- {group}: single network {one['second']:.3f}, ensemble {one['first']:.3f} "
            f"(DeLong p = {one['p']:.2g})"
            for group, one in compared.items()
            if one is not None
        ]
        parts.append("### Test cohort, AUC of the single network\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def _measured(found: dict[str, Any], folder: str) -> str:
    header, *body = table_2(found)
    rows = [header, ["---"] * len(header), *body]
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    kappa = found["stages"]["quadratic_kappa"]
    agreement = (
        f"Quadratic-weighted kappa {kappa['value']:.2f} [{kappa['low']:.2f}, {kappa['high']:.2f}]."
    )
    pictures = "\n".join(
        f"![{title}]({folder}figures/{name}.png)"
        for title, name in (
            ("ROC curves by group", "fig_3a_roc_groups"),
            ("Confusion", "confusion"),
            ("Weights by region", "region_weights"),
        )
    )
    return f"{table}\n\n{agreement}\n\n{pictures}"


def _times(sizes: tuple[float, ...] | list[float]) -> str:
    return " x ".join(f"{size:g}" for size in sizes)
