"""Faithfulness of a location map, by two measures.

Deletion and insertion (Petsiuk 2018, RISE, section 4.1): when voxels are masked in the order of
decreasing importance in the map, the score should decrease quickly; when they are restored in the
same order, starting from the fully masked image, it should increase quickly. Model randomisation
(Adebayo 2018, section 3): the weights are shuffled layer by layer, from the scores to the input; a
map that does not change depends on the image's edges rather than on the model.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import SimpleITK as sitk

from .errors import CancelToken, StagingError
from .explaining import Progress, Steps
from .files import write_folder
from .gradcam_onnx.explainable import ExplainableModel
from .gradcam_onnx.onnx_file import OnnxFile, parse_onnx
from .imaging.grid import patch_array
from .location_map import enlarge, merge_patches
from .stages import explained_score, explained_stages

if TYPE_CHECKING:
    from .model import StagingModel
    from .result import StagingResult

Model = TypeVar("Model", bound=ExplainableModel)
FILES = ("faithfulness.png", "faithfulness.json")
STEPS = 10
_BLUR_MM = 16.0


@dataclass(frozen=True)
class Curves:
    """Scores by fraction (0 to 1) of the voxels masked (deletion) or restored (insertion).

    Scores are rescaled to 1 for the original image and 0 for the fully masked one.
    """

    fractions: tuple[float, ...]
    deletion: tuple[float, ...]
    insertion: tuple[float, ...]

    @property
    def deletion_area(self) -> float:
        """Area under the deletion curve; smaller is better."""
        return _area(self.deletion, self.fractions)

    @property
    def insertion_area(self) -> float:
        """Area under the insertion curve; larger is better."""
        return _area(self.insertion, self.fractions)


@dataclass(frozen=True)
class Faithfulness:
    """The measures of one case.

    curves, by_chance: in the order of the map, and in random order of blocks of the same size.
    shuffled: (weights, rank correlation of the map with the original) after each step of the
    randomisation, from the last layer to the first; None if the map is constant.
    """

    explained: str
    curves: Curves
    by_chance: Curves
    shuffled: tuple[tuple[str, float | None], ...]

    def summary(self) -> dict[str, Any]:
        """As written to faithfulness.json."""
        areas = {
            name: {"deletion": curves.deletion_area, "insertion": curves.insertion_area}
            for name, curves in (("map", self.curves), ("by_chance", self.by_chance))
        }
        return {"areas": areas, **asdict(self)}

    def save(self, folder: str | Path) -> Path:
        """Write faithfulness.json and faithfulness.png, both or none; returns the folder.

        The folder is created if missing. Raises StagingError if it cannot be written.
        """
        from .report.drawing import write_png
        from .report.faithfulness_figure import render

        def write(partial: Path) -> None:
            write_png(render(self.summary()), partial / FILES[0])
            text = json.dumps(self.summary(), indent=2)
            (partial / FILES[1]).write_text(text + "\n", encoding="utf-8")

        return write_folder(folder, FILES, write)

    def sentences(self) -> list[str]:
        """The findings as text, for consoles and logs."""
        deletion, insertion = self.curves.deletion_area, self.curves.insertion_area
        found = [
            f"Deletion: area {deletion:.2f}, in random order {self.by_chance.deletion_area:.2f} "
            "(smaller is better).",
            f"Insertion: area {insertion:.2f}, in random order {self.by_chance.insertion_area:.2f} "
            "(larger is better).",
        ]
        if self.shuffled:
            (first, rho), last = self.shuffled[0], self.shuffled[-1][1]
            found.append(
                f"Rank correlation with the original map: {_number(rho)} with {first} shuffled, "
                f"{_number(last)} with {len(self.shuffled)} layers shuffled (near 0 is desirable)."
            )
        return found


def deletion_and_insertion(
    score: Callable[[np.ndarray], float],
    x: np.ndarray,
    masked: np.ndarray,
    importance: np.ndarray,
    region: np.ndarray | None = None,
    steps: int = STEPS,
) -> Curves:
    """Curves of `score` while the voxels of x are masked, and restored, by importance.

    x, masked: an image and the same image fully masked, any shape. importance: of each voxel of x;
    ties are in the order of the array. region: voxels that are masked (default: all). Raises
    StagingError if both images have the same score.
    """
    voxels = np.arange(x.size) if region is None else np.flatnonzero(region)
    order = voxels[np.argsort(-importance.ravel()[voxels], kind="stable")]
    full, empty = score(x), score(masked)
    if not abs(full - empty) > 1e-6 * max(1.0, abs(full)):
        raise StagingError("Faithfulness cannot be measured: the masked image has the same score.")
    curves: tuple[list[float], list[float]] = ([], [])
    ends = np.linspace(0, len(order), steps + 1).round().astype(int)
    for curve, start, goal in zip(curves, (x, masked), (masked, x)):
        image = start.copy()
        for begin, end in zip((0, *ends), ends):
            chosen = order[begin:end]
            image.ravel()[chosen] = goal.ravel()[chosen]
            curve.append((score(image) - empty) / (full - empty))
    return Curves(tuple((ends / len(order)).tolist()), *map(tuple, curves))


def randomized(model: Model, layers: int, seed: int = 0) -> tuple[Model, str]:
    """The model with the weights of its last `layers` layers shuffled, and the name of the last.

    The weights of a layer are permuted, which preserves their distribution. Layers are counted from
    the scores; only arrays with at least two axes count. Raises StagingError if there are fewer.
    """
    # Raw weights are stored in the file as in memory, so they can be shuffled in place.
    data = bytearray(model.file.content)
    file = parse_onnx(memoryview(data), str(model.path))
    names = _weights(file, model.layer.scores)
    if layers > len(names):
        raise StagingError(f"The model {model.path} has {len(names)} layers of weights.")
    random = np.random.default_rng(seed)
    for name in names[:layers]:
        values = file.weights[name]
        if not values.flags.writeable:
            raise StagingError(
                f"The model {model.path} does not store {name!r} as raw bytes, as is needed."
            )
        values[...] = random.permutation(values.ravel()).reshape(values.shape)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / model.path.name
        path.write_bytes(data)
        return type(model)(path), names[layers - 1]


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Spearman's rank correlation, with shared ranks for ties; None if one is constant."""
    ranks = []
    for values in (a.ravel(), b.ravel()):
        _, place, count = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(count) - (count - 1) / 2)[place])
    if any(np.ptp(rank) == 0 for rank in ranks):
        return None
    return float(np.corrcoef(*ranks)[0, 1])


def measure_faithfulness(
    result: StagingResult,
    steps: int = STEPS,
    layers: int | None = None,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> Faithfulness:
    """Both measures for a staged case.

    Masked voxels are replaced by a copy of the CT smoothed with 16 mm (sigma), since constant
    values would be unlike any CT. Only voxels of the body are masked; the random order is one of
    the location map's voxels. steps: of the curves. layers: number of layers to shuffle, by default
    all. progress and cancel as for `stage`. Raises StagingError and Cancelled.
    """
    forward_pass = result.forward_pass
    model, grid = forward_pass.model, forward_pass.grid
    members = explained_stages(result.explained, 0)
    size = model.card.patch_size
    begin = Steps(progress, cancel).begin

    def logits(volume: np.ndarray) -> np.ndarray:
        found = []
        for start in grid.starts:
            patch = patch_array(grid, start, size[0])
            patch[0, 0] = volume[start : start + size[0]]
            found.append(model.run(patch, cancel).logits[0])
        return np.mean(found, axis=0)

    def score(volume: np.ndarray) -> float:
        begin(0.2, "Deletion and insertion")
        return explained_score(logits(volume), members)

    def maps(other: StagingModel) -> list[np.ndarray]:
        forwards = (other.run(patch_array(grid, start, size[0]), cancel) for start in grid.starts)
        return [other.location_map(forward, members)[0] for forward in forwards]

    x = sitk.GetArrayFromImage(grid.volume).astype(np.float32)
    smoothed = sitk.SmoothingRecursiveGaussian(grid.volume, _BLUR_MM)
    masked = sitk.GetArrayFromImage(smoothed).astype(np.float32)
    body = sitk.GetArrayViewFromImage(grid.body) > 0
    original = maps(model)
    merged = sitk.GetArrayFromImage(merge_patches(original, grid, size).relative)
    curves = deletion_and_insertion(score, x, masked, merged, body, steps)
    random = np.random.default_rng(0)
    random_map = np.zeros_like(x)
    for start, raw in zip(grid.starts, original):
        random_map[start : start + size[0]] = enlarge(random.random(raw.shape), size)
    by_chance = deletion_and_insertion(score, x, masked, random_map, body, steps)

    shuffled = []
    before = np.concatenate([raw.ravel() for raw in original])
    if layers is None:
        layers = len(_weights(model.file, model.layer.scores))
    for layer in range(1, 1 + layers):
        begin(0.6, "Shuffling the model's weights")
        other, name = randomized(model, layer)
        after = np.concatenate([raw.ravel() for raw in maps(other)])
        shuffled.append((name, rank_correlation(before, after)))
    return Faithfulness(result.explained, curves, by_chance, tuple(shuffled))


def _weights(file: OnnxFile, scores: str) -> list[str]:
    """Names of the weights on which the scores depend, from the scores to the input."""
    needed = {scores}
    found: dict[str, None] = {}
    for node in reversed(file.nodes):
        if needed.intersection(node.outputs):
            needed.update(node.inputs)
            found.update(dict.fromkeys(name for name in node.inputs if name in file.weights))
    return [name for name in found if np.ndim(file.weights[name]) >= 2]


def _number(rho: float | None) -> str:
    return "none" if rho is None else f"{rho:.2f}"


def _area(values: tuple[float, ...], fractions: tuple[float, ...]) -> float:
    """By the trapezoidal rule."""
    height = (np.array(values[1:]) + values[:-1]) / 2
    return float(height @ np.diff(fractions))
