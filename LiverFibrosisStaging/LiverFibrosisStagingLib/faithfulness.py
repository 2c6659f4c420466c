"""Does a location map tell the truth? Two measures, neither of which looks at the picture.

Deletion and insertion (Petsiuk 2018, RISE, section 4.1): blot out what the map calls important,
most important first, and the score should fall fast; begin with everything blotted out, bring it
back in the same order, and the score should rise fast. Model randomisation (Adebayo 2018, section
3): shuffle the weights layer by layer, from the scores down; a map that stays the same explains the
picture's edges, not the model.
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

from .errors import Cancelled, CancelToken, StagingError
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
    """Scores along the way. fractions: of the voxels that are deleted, or inserted, 0 to 1.

    Scores are rescaled so that the whole picture has 1 and the blotted-out one 0.
    """

    fractions: tuple[float, ...]
    deletion: tuple[float, ...]
    insertion: tuple[float, ...]

    @property
    def deletion_area(self) -> float:
        """Area under the deletion curve: the smaller, the better."""
        return _area(self.deletion, self.fractions)

    @property
    def insertion_area(self) -> float:
        """Area under the insertion curve: the larger, the better."""
        return _area(self.insertion, self.fractions)


@dataclass(frozen=True)
class Faithfulness:
    """What is found for one case.

    curves, by_chance: in the map's order, and in an order by chance of equally large pieces.
    shuffled: (weights, rank correlation of the map with the original) after each step of the
    randomisation, from the last layer to the first; None where the map became constant.
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

        The folder is made where it is missing. Raises StagingError where it cannot be written.
        """
        from .report.drawing import write_png
        from .report.faithfulness_figure import render

        def write(partial: Path) -> None:
            write_png(render(self.summary()), partial / FILES[0])
            text = json.dumps(self.summary(), indent=2)
            (partial / FILES[1]).write_text(text + "\n", encoding="utf-8")

        return write_folder(folder, FILES, write)


def deletion_and_insertion(
    score: Callable[[np.ndarray], float],
    x: np.ndarray,
    blotted: np.ndarray,
    importance: np.ndarray,
    counted: np.ndarray | None = None,
    steps: int = STEPS,
) -> Curves:
    """Curves of `score` while x is deleted, and inserted, in the order of importance.

    x, blotted: a picture and the same picture with nothing to see, any shape. importance: of each
    number of x; equals count in the order of the array. counted: which numbers take part (all).
    Raises StagingError where both pictures have the same score, so that there is nothing to lose.
    """
    places = np.arange(x.size) if counted is None else np.flatnonzero(counted)
    order = places[np.argsort(-importance.ravel()[places], kind="stable")]
    full, nothing = score(x), score(blotted)
    if not abs(full - nothing) > 1e-6 * max(1.0, abs(full)):
        raise StagingError("Nothing can be measured: the blotted-out picture has the same score.")
    curves: tuple[list[float], list[float]] = ([], [])
    ends = np.linspace(0, len(order), steps + 1).round().astype(int)
    for curve, start, goal in zip(curves, (x, blotted), (blotted, x)):
        picture = start.copy()
        for begin, end in zip((0, *ends), ends):
            chosen = order[begin:end]
            picture.ravel()[chosen] = goal.ravel()[chosen]
            curve.append((score(picture) - nothing) / (full - nothing))
    return Curves(tuple((ends / len(order)).tolist()), *map(tuple, curves))


def randomized(model: Model, layers: int, seed: int = 0) -> tuple[Model, str]:
    """The model with the weights of its last `layers` layers shuffled, and the last one's name.

    Weights keep their values, hence their distribution, and lose their order. Layers are counted
    from the scores; only arrays of two and more axes count. Raises StagingError where there are
    fewer.
    """
    # The weights lie in the file as they are in memory: shuffling them there needs no writer.
    data = bytearray(model.file.content)
    file = parse_onnx(memoryview(data), str(model.path))
    names = _weights(file, model.layer.scores)
    if layers > len(names):
        raise StagingError(f"The model {model.path} has {len(names)} layers of weights.")
    random = np.random.default_rng(seed)
    for name in names[:layers]:
        values = file.weights[name]
        if not values.flags.writeable:
            raise StagingError(f"The model {model.path} does not keep {name!r} as raw bytes.")
        values[...] = random.permutation(values.ravel()).reshape(values.shape)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / model.path.name
        path.write_bytes(data)
        return type(model)(path), names[layers - 1]


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Spearman's rank correlation, equals sharing their rank; None where one is constant."""
    ranks = []
    for values in (a.ravel(), b.ravel()):
        _, place, count = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(count) - (count - 1) / 2)[place])
    if any(np.ptp(rank) == 0 for rank in ranks):
        return None
    return float(np.corrcoef(*ranks)[0, 1])


def check_explanation(
    result: StagingResult,
    steps: int = STEPS,
    layers: int | None = None,
    progress: Callable[[float, str], None] | None = None,
    cancel: CancelToken | None = None,
) -> Faithfulness:
    """Both measures on a staged case.

    What is blotted out is smoothed over 16 mm, since a black hole in a CT would be news of its own
    kind. Pieces are the location map's voxels, and the body's alone count. steps: of the curves.
    layers: how many are shuffled, all by default. progress and cancel as for `stage`. Raises
    StagingError and Cancelled.
    """
    seen = result.forward_pass
    model, grid = seen.model, seen.grid
    members = explained_stages(result.explained, 0)
    size = model.card.patch_size

    def say(fraction: float, step: str) -> None:
        if cancel is not None and cancel.is_set():
            raise Cancelled("The check was cancelled.")
        if progress is not None:
            progress(fraction, step)

    def logits(volume: np.ndarray) -> np.ndarray:
        patches = (volume[start : start + size[0]][None, None] for start in grid.starts)
        return np.mean([model.run(patch, cancel).logits[0] for patch in patches], axis=0)

    def score(volume: np.ndarray) -> float:
        say(0.2, "Deleting and inserting")
        return explained_score(logits(volume), members)

    def maps(other: StagingModel) -> list[np.ndarray]:
        forwards = (other.run(patch_array(grid, start, size[0]), cancel) for start in grid.starts)
        return [other.location_map(forward, members)[0] for forward in forwards]

    x = sitk.GetArrayFromImage(grid.volume).astype(np.float32)
    blurred = sitk.SmoothingRecursiveGaussian(grid.volume, _BLUR_MM)
    blotted = sitk.GetArrayFromImage(blurred).astype(np.float32)
    body = sitk.GetArrayViewFromImage(grid.body) > 0
    original = maps(model)
    merged = sitk.GetArrayFromImage(merge_patches(original, grid, size).relative)
    curves = deletion_and_insertion(score, x, blotted, merged, body, steps)
    random = np.random.default_rng(0)
    pieces = [enlarge(random.random(raw.shape), size) for raw in original]
    chance = np.zeros_like(x)
    for start, piece in zip(grid.starts, pieces):
        chance[start : start + size[0]] = piece
    by_chance = deletion_and_insertion(score, x, blotted, chance, body, steps)

    shuffled = []
    before = np.concatenate([raw.ravel() for raw in original])
    if layers is None:
        layers = len(_weights(model.file, model.layer.scores))
    for layer in range(1, 1 + layers):
        say(0.6, "Shuffling the model's weights")
        other, name = randomized(model, layer)
        after = np.concatenate([raw.ravel() for raw in maps(other)])
        shuffled.append((name, rank_correlation(before, after)))
    return Faithfulness(result.explained, curves, by_chance, tuple(shuffled))


def _weights(file: OnnxFile, scores: str) -> list[str]:
    """Names of the arrays of weights that the scores depend on, from there to the input."""
    needed = {scores}
    found: dict[str, None] = {}
    for node in reversed(file.nodes):
        if needed.intersection(node.outputs):
            needed.update(node.inputs)
            found.update(dict.fromkeys(name for name in node.inputs if name in file.weights))
    return [name for name in found if np.ndim(file.weights[name]) >= 2]


def _area(values: tuple[float, ...], fractions: tuple[float, ...]) -> float:
    """By the trapezoidal rule."""
    height = (np.array(values[1:]) + values[:-1]) / 2
    return float(height @ np.diff(fractions))


def sentences(found: Faithfulness) -> list[str]:
    """The findings in words, for consoles and logs."""
    ours, chance = found.curves, found.by_chance
    last = [rho for _, rho in found.shuffled if rho is not None]
    least = "" if not last else f", {last[-1]:.2f} with all weights shuffled"
    return [
        f"Deletion: area {ours.deletion_area:.2f}, by chance {chance.deletion_area:.2f} "
        "(smaller is better).",
        f"Insertion: area {ours.insertion_area:.2f}, by chance {chance.insertion_area:.2f} "
        "(larger is better).",
        "Rank correlation with the original map: "
        + ", ".join(f"{'none' if r is None else f'{r:.2f}'} ({n})" for n, r in found.shuffled[:1])
        + f"{least} (near 0 is right).",
    ]
