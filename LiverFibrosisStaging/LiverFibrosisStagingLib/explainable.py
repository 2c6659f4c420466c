"""Grad-CAM for any ONNX classifier, with onnxruntime and numpy alone.

>>> model = ExplainableModel("resnet.gradcam.onnx")
>>> location = model.grad_cam(image, target=3)

The file is one that Training/make_explainable.py has prepared from any ONNX classifier: besides the
scores it outputs the target layer's feature maps and what the backward pass reads of the tail, and
its metadata entry `explainable` says, in JSON, `version` (1), `target_layer` and `scores` (tensor
names), `channel_axis` of the target layer (1, or -1 for transformers), and `grid`, where the target
layer is a list of tokens: the spatial shape of its last tokens, or null.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from .backprop import Tail
from .errors import CancelToken, StagingError
from .gradcam import METHODS, weighted
from .onnx_file import OnnxFile, read_onnx
from .session import check_weights, open_session, run_session

EXPLAINABLE_KEY = "explainable"
EXPLAINABLE_VERSION = 1

Target = int | Sequence[int] | np.ndarray


@dataclass(frozen=True)
class Layer:
    """Where to look, and at what: tensor names, and how the target layer's numbers lie.

    channel_axis: 1 or -1. grid: spatial shape of the layer's last tokens [N, tokens, K], or None.
    """

    target: str
    scores: str
    channel_axis: int = 1
    grid: tuple[int, ...] | None = None

    def maps(self, values: np.ndarray) -> np.ndarray:
        """The target layer, or its gradient, as feature maps [N, K, spatial...]."""
        if self.channel_axis == -1:
            values = np.moveaxis(values, -1, 1)
        if self.grid is None:
            return values
        return values[:, :, -prod(self.grid) :].reshape(*values.shape[:2], *self.grid)


@dataclass(frozen=True)
class Forward:
    """What one run gives: logits [N, C] and the tensors that a location map needs."""

    logits: np.ndarray
    tensors: dict[str, np.ndarray]


class ExplainableModel:
    """An ONNX classifier that can say where it looked.

    path: a prepared file. threads: that the network may use; 0 leaves it to onnxruntime, which
    takes one for each core. Raises StagingError, with the reason, for a file that is not prepared.
    """

    def __init__(self, path: str | Path, threads: int = 0) -> None:
        self.path, self.threads = Path(path), threads
        file = read_onnx(self.path)
        self.layer = self._read_layer(file)
        check_weights(file, self.path)
        self._session = open_session(file, self.path, threads)
        self._check_signature()
        self._tail = Tail.of(file, self.layer.target, self.layer.scores, str(self.path))
        self._fetched = self._tail.tensors

    def run(self, x: np.ndarray, cancel: CancelToken | None = None) -> Forward:
        """Scores and feature maps together, in one forward pass.

        x: the model's input, a batch. cancel: also heard while the network runs, at its next
        operator. Raises StagingError where the network fails or gives scores that are not finite,
        and Cancelled.
        """
        values = run_session(self._session, self._fetched, x, self.path, cancel)
        tensors = dict(zip(self._fetched, values))
        logits = tensors[self.layer.scores]
        if not np.isfinite(logits).all():
            raise StagingError(f"The model {self.path} gave scores that are not finite numbers.")
        return Forward(logits, tensors)

    def explain(self, forward: Forward, target: Target, method: str = "gradcam") -> np.ndarray:
        """Location map [N, spatial...] of a run, at the target layer's resolution, not normalised.

        target: a class; several classes, whose scores are summed; or a weighting of the scores,
        float [C] or [N, C]. method: a name of `gradcam.METHODS`. Raises StagingError for others.
        """
        if method not in METHODS:
            raise StagingError(
                f"The method {method!r} is unknown: expected one of {', '.join(METHODS)}."
            )
        dscore = self._weighting(forward.logits, target)
        features = self.layer.maps(forward.tensors[self.layer.target])
        if method == "gradcam" and self.layer == Layer(self.layer.target, self.layer.scores):
            return weighted(features, self._tail.mean_gradient(forward.tensors, dscore))
        gradient = self.layer.maps(self._tail.gradient(forward.tensors, dscore))
        return METHODS[method](features, gradient)

    def gradient(self, forward: Forward, target: Target) -> np.ndarray:
        """Gradient of the target's score with respect to the target layer, in the layer's shape."""
        return self._tail.gradient(forward.tensors, self._weighting(forward.logits, target))

    def grad_cam(
        self,
        x: np.ndarray,
        target: Target,
        method: str = "gradcam",
        cancel: CancelToken | None = None,
    ) -> np.ndarray:
        """`run` and `explain` in one: where in x the network saw the target."""
        return self.explain(self.run(x, cancel), target, method)

    def _read_layer(self, file: OnnxFile) -> Layer:
        text = file.metadata.get(EXPLAINABLE_KEY)
        if text is None:
            raise StagingError(
                f"The model {self.path} has no {EXPLAINABLE_KEY!r} metadata, so its target layer "
                "is unknown; prepare it with Training/make_explainable.py."
            )
        try:
            data = json.loads(text)
            version = data["version"]
            grid = data["grid"]
            layer = Layer(
                str(data["target_layer"]),
                str(data["scores"]),
                int(data["channel_axis"]),
                None if grid is None else tuple(map(int, grid)),
            )
        except (ValueError, TypeError, KeyError):
            raise StagingError(
                f"The model {self.path} has {EXPLAINABLE_KEY!r} metadata that is incomplete."
            ) from None
        if version != EXPLAINABLE_VERSION:
            raise StagingError(
                f"The model {self.path} was prepared for version {version} of this software's "
                f"reader; this one knows version {EXPLAINABLE_VERSION}."
            )
        return layer

    def _check_signature(self) -> None:
        inputs = [item.name for item in self._session.get_inputs()]
        if len(inputs) != 1:
            raise StagingError(
                f"The model {self.path} has the inputs {', '.join(inputs)}; needed is one."
            )
        outputs = {item.name: item.shape for item in self._session.get_outputs()}
        for name in (self.layer.target, self.layer.scores):
            if name not in outputs:
                raise StagingError(
                    f"The model {self.path} names {name!r}, which is not among its outputs "
                    f"({', '.join(outputs)})."
                )
        shape = outputs[self.layer.scores]
        if len(shape) != 2:
            raise StagingError(
                f"The model {self.path} has scores {self.layer.scores!r} of shape {shape}; needed "
                "is [N, classes]."
            )

    def _weighting(self, logits: np.ndarray, target: Target) -> np.ndarray:
        """The explained score as its gradient with respect to the scores, float64 [N, C]."""
        given, classes = np.asarray(target), logits.shape[1]
        if given.dtype.kind == "f" and given.shape in {(classes,), logits.shape}:
            return np.broadcast_to(given.astype(np.float64), logits.shape)
        whole = given.dtype.kind in "iu" and given.ndim <= 1 and given.size
        if not whole or given.min() < 0 or given.max() >= classes:
            raise StagingError(
                f"Cannot explain {target!r}: expected classes from 0 to {classes - 1}, or a "
                f"weighting of the {classes} scores."
            )
        weighting = np.zeros(logits.shape)
        np.add.at(weighting, (slice(None), given), 1.0)
        return weighting
