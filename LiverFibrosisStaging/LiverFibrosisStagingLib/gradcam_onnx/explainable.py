"""Grad-CAM for any ONNX classifier, with onnxruntime and numpy only.

>>> model = ExplainableModel("resnet.gradcam.onnx")
>>> location = model.grad_cam(image, target=3)

The file has been prepared from an ONNX classifier with `make_explainable`: besides the scores it
outputs the target layer's feature maps and the tensors that backpropagation needs. Its metadata
entry `explainable` is JSON: `version` (1), `target_layer` and `scores` (tensor names),
`channel_axis` of the target layer (1, or -1 for transformers), and `grid`, the spatial shape of the
target layer's last tokens in transformers, otherwise null.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from ..errors import CancelToken, StagingError
from .backprop import PREPARE, Tail
from .gradcam import METHODS, weighted
from .metadata import exactly, fields, items, line, nullable, read_fields, version, whole
from .onnx_file import OnnxFile, listed, read_onnx
from .session import CPU, check_weights, device_of, open_session, run_session

EXPLAINABLE_KEY = "explainable"
EXPLAINABLE_VERSION = 1

_METADATA = fields(
    {
        "version": version(EXPLAINABLE_VERSION),
        "target_layer": line,
        "scores": line,
        "channel_axis": exactly(1, -1),
        "grid": nullable(items(whole(1, 1 << 20), 1, 2, 3)),
    },
    optional=(),
)
_FLOATS = {"tensor(float16)", "tensor(float)", "tensor(double)"}

Target = int | Sequence[int] | np.ndarray


@dataclass(frozen=True)
class Layer:
    """Tensor names of the target layer and the scores, and the target layer's layout.

    channel_axis: 1 or -1. grid: spatial shape of the layer's last tokens [N, tokens, K], or None.
    """

    target: str
    scores: str
    channel_axis: int = 1
    grid: tuple[int, ...] | None = None

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of this shape can be the target layer."""
        if self.grid is None:
            return len(shape) >= 3 and 0 not in shape
        tokens = 1 if self.channel_axis == -1 else 2
        return len(shape) == 3 and 0 not in shape and shape[tokens] >= prod(self.grid)

    def maps(self, values: np.ndarray) -> np.ndarray:
        """The target layer, or its gradient, as feature maps [N, K, spatial...]."""
        if self.channel_axis == -1:
            values = np.moveaxis(values, -1, 1)
        if self.grid is None:
            return values
        return values[:, :, -prod(self.grid) :].reshape(*values.shape[:2], *self.grid)


@dataclass(frozen=True)
class Forward:
    """Result of one forward pass: logits [N, C] and the tensors that a location map needs."""

    logits: np.ndarray
    tensors: dict[str, np.ndarray]


class ExplainableModel:
    """An ONNX classifier with Grad-CAM location maps.

    path: a prepared file, which is read once; `file` is its content. threads: number of threads;
    with 0, onnxruntime uses one per core. device: a choice of `session.DEVICE_CHOICES`. Raises
    StagingError if the file has not been prepared or is not valid, or the device cannot be used.
    """

    def __init__(self, path: str | Path, threads: int = 0, device: str = CPU) -> None:
        self.path, self.threads = Path(path), threads
        self.file = read_onnx(self.path)
        self.layer = self._read_layer(self.file)
        check_weights(self.file, self.path)
        self._session = open_session(self.file, self.path, threads, device)
        self._check_signature()
        self._tail = Tail.of(self.file, self.layer.target, self.layer.scores, str(self.path))
        self._fetched = self._tail.tensors

    @property
    def sha256(self) -> str:
        """SHA-256 of the bytes that were read; the file may have changed since."""
        return self.file.sha256

    @property
    def device(self) -> str:
        """The device that computes, a key of `session.DEVICES`."""
        return device_of(self._session)

    def run(self, x: np.ndarray, cancel: CancelToken | None = None) -> Forward:
        """Scores and feature maps in one forward pass.

        x: the model's input, a batch. cancel: also checked while the network runs, at its next
        operator. Raises StagingError if the network fails, or its scores or feature maps are not
        finite or do not have the expected shape, and Cancelled.
        """
        values = run_session(self._session, self._fetched, x, self.path, cancel)
        tensors = dict(zip(self._fetched, values))
        self._check_outputs(tensors, len(x))
        return Forward(tensors[self.layer.scores], tensors)

    def explain(self, forward: Forward, target: Target, method: str = "gradcam") -> np.ndarray:
        """Location map [N, spatial...] of a run, at the target layer's resolution, not normalised.

        target: a class; several classes, whose scores are summed; or weights of the scores, float
        [C] or [N, C]. method: a key of `gradcam.METHODS`. Raises StagingError for anything else.
        """
        if method not in METHODS:
            raise StagingError(
                f"The method {method!r} is unknown; expected one of {', '.join(METHODS)}."
            )
        dscore = self._weighting(forward.logits, target)
        with np.errstate(all="ignore"):  # an overflow is refused below
            location = self._map(forward, dscore, method)
        if not np.isfinite(location).all():
            raise StagingError(
                f"The model {self.path} gives a location map that is not finite: the gradient of "
                f"its scores {self.layer.scores!r} overflows."
            )
        return location

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
        """`run` and `explain` in one call."""
        return self.explain(self.run(x, cancel), target, method)

    def _read_layer(self, file: OnnxFile) -> Layer:
        found = read_fields(
            file.metadata.get(EXPLAINABLE_KEY),
            EXPLAINABLE_KEY,
            _METADATA,
            str(self.path),
            f"its target layer is unknown: prepare it with {PREPARE}",
        )
        grid = None if found["grid"] is None else tuple(found["grid"])
        return Layer(found["target_layer"], found["scores"], found["channel_axis"], grid)

    def _check_signature(self) -> None:
        inputs = [item.name for item in self._session.get_inputs()]
        if len(inputs) != 1:
            raise StagingError(
                f"The model {self.path} has the inputs {listed(inputs)}; one input is needed."
            )
        outputs = {item.name: item for item in self._session.get_outputs()}
        for name in (self.layer.target, self.layer.scores):
            if name not in outputs:
                raise StagingError(
                    f"The model {self.path} names {name!r}, which is not among its outputs "
                    f"({listed([*outputs])})."
                )
            if outputs[name].type not in _FLOATS:
                raise StagingError(
                    f"The model {self.path} has the output {name!r} of type {outputs[name].type}; "
                    "a floating-point type is needed."
                )
        shape = outputs[self.layer.scores].shape
        if len(shape) != 2:
            raise StagingError(
                f"The model {self.path} has scores {self.layer.scores!r} of shape {shape}; [N, "
                "classes] is needed."
            )

    def _check_outputs(self, tensors: dict[str, np.ndarray], count: int) -> None:
        """Check the outputs for `count` inputs. Raises StagingError."""
        logits, features = tensors[self.layer.scores], tensors[self.layer.target]
        if logits.ndim != 2 or not logits.shape[1] or len(logits) != count:
            raise StagingError(
                f"The model {self.path} gave scores of shape {list(logits.shape)}; "
                f"[{count}, classes] is needed."
            )
        if len(features) != count or not self.layer.fits(features.shape):
            grid = "feature maps" if self.layer.grid is None else f"a grid of {self.layer.grid}"
            raise StagingError(
                f"The model {self.path} gave the target layer {self.layer.target!r} the shape "
                f"{list(features.shape)}; {grid} for each of {count} inputs is needed."
            )
        for name, found in (("scores", logits), ("feature maps", features)):
            if not np.isfinite(found).all():
                raise StagingError(f"The model {self.path} gave {name} that are not finite.")

    def _map(self, forward: Forward, dscore: np.ndarray, method: str) -> np.ndarray:
        features = self.layer.maps(forward.tensors[self.layer.target])
        if method == "gradcam" and self.layer == Layer(self.layer.target, self.layer.scores):
            return weighted(features, self._tail.mean_gradient(forward.tensors, dscore))
        gradient = self.layer.maps(self._tail.gradient(forward.tensors, dscore))
        return METHODS[method](features, gradient)

    def _weighting(self, logits: np.ndarray, target: Target) -> np.ndarray:
        """Gradient of the explained score with respect to the scores, float64 [N, C]."""
        classes = logits.shape[1]
        try:
            given = np.asarray(target)
        except ValueError:  # lists of different lengths
            given = np.empty(0)
        if given.dtype.kind == "f" and given.shape in {(classes,), logits.shape}:
            return np.broadcast_to(given.astype(np.float64), logits.shape)
        whole = given.dtype.kind in "iu" and given.ndim <= 1 and given.size
        if not whole or given.min() < 0 or given.max() >= classes:
            raise StagingError(
                f"Cannot explain {target!r}; expected classes from 0 to {classes - 1}, or weights "
                f"of the {classes} scores."
            )
        weighting = np.zeros(logits.shape)
        np.add.at(weighting, (slice(None), given), 1.0)
        return weighting
