"""The model file is a contract: an ONNX network that says itself how it wants to be used.

Inputs: `volume` float32 [N, 1, slices, rows, columns], the CT windowed to 0..1. Outputs: `logits`
and `probabilities` [N, 5], the target layer's feature maps, and every tensor between those and the
logits, from which Grad-CAM's gradient is computed in numpy. The metadata entry
`liver_fibrosis_staging` is JSON; `Card` lists what it holds.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .backprop import Tail
from .errors import Cancelled, CancelToken, StagingError
from .gradcam import grad_cam
from .onnx_file import OnnxFile, read_onnx
from .stages import STAGES, score_gradient

METADATA_KEY = "liver_fibrosis_staging"
CONTRACT = 1
# What every onnxruntime that a Slicer >= 5.8 can install is able to load.
SAFE_OPSET, SAFE_IR = 18, 10
CANCEL_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Card:
    """The model's own metadata, as read from the file.

    window_hu: (low, high) HU that become 0 and 1. spacing_mm and patch_size: (slice, row, column).
    smoothing_mm: sigma of the Gaussian that the working grid is smoothed with. patch_overlap: least
    shared fraction of neighbouring patches. target_layer: tensor that the
    location map looks at. tail: operators between it and the logits, for the reader. calibration:
    `temperature` that divides the logits. reference: distributions of the location map's
    measurements by stage. training: what the model was trained and evaluated on.
    """

    contract: int
    name: str
    stages: tuple[str, ...]
    window_hu: tuple[float, float]
    spacing_mm: tuple[float, float, float]
    patch_size: tuple[int, int, int]
    patch_overlap: float
    target_layer: str
    tail: tuple[str, ...]
    intended_use: str
    smoothing_mm: float = 0.0
    calibration: dict[str, float] = field(default_factory=dict)
    reference: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)

    @property
    def temperature(self) -> float:
        """Divisor of the logits before the softmax (Guo 2017, temperature scaling)."""
        return float(self.calibration.get("temperature", 1.0))

    @property
    def trained_on(self) -> str:
        """One sentence on the training data."""
        return str(self.training.get("data", "Training data not stated."))


@dataclass(frozen=True)
class Forward:
    """What one run gives: logits [N, 5] and the tensors that a location map needs."""

    logits: np.ndarray
    tensors: dict[str, np.ndarray]


class StagingModel:
    """A staging network that has passed the contract; make one with `StagingModel.load`."""

    def __init__(self, path: Path, card: Card, tail: Tail, session: Any, sha256: str) -> None:
        self.path = path
        self.card = card
        self.sha256 = sha256
        self._tail = tail
        self._session = session

    @classmethod
    def load(cls, path: str | Path, threads: int = 0) -> "StagingModel":
        """Read, check and prepare a model file.

        threads: that the network may use; 0 leaves it to onnxruntime, which takes one for each
        core. Raises StagingError, with the reason, for anything that breaks the contract.
        """
        path = Path(path)
        file = read_onnx(path)
        card = _card(file, path)
        _check_weights(file, path)
        session = _session(file, path, threads)
        _check_signature(session, card, path)
        tail = Tail.of(file, card.target_layer, "logits", str(path))
        found = tuple(node.op for node in tail.nodes)
        if found != card.tail:
            raise StagingError(
                f"The model {path} contradicts itself: its metadata names the tail "
                f"{' '.join(card.tail)}, its network has {' '.join(found)}."
            )
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        return cls(path, card, tail, session, sha256)

    def run(self, volume: np.ndarray, cancel: CancelToken | None = None) -> Forward:
        """Logits and feature maps of patches float32 [N, 1, slices, rows, columns] in 0..1.

        cancel: also heard while the network runs, at its next operator. Raises StagingError where
        the network fails or gives numbers that are not finite, and Cancelled.
        """
        names = ("logits", *(name for name in self._tail.tensors if name != "logits"))
        try:
            with _terminable(cancel) as options:
                values = self._session.run(names, {"volume": volume}, options)
        except Exception as error:  # onnxruntime raises a class of its own for every status
            if cancel is not None and cancel.is_set():
                raise Cancelled("Staging was cancelled.") from None
            raise StagingError(
                f"The model {self.path} failed to run: {_first_line(error)}"
            ) from None
        tensors = dict(zip(names, values))
        logits = tensors["logits"]
        if not np.isfinite(logits).all():
            raise StagingError(f"The model {self.path} gave scores that are not finite numbers.")
        return Forward(logits, tensors)

    def location_map(self, forward: Forward, members: tuple[int, ...]) -> np.ndarray:
        """Raw Grad-CAM [N, slices', rows', columns'] at the target layer's resolution.

        members: indices of the stages that are explained together (`stages.explained_stages`).
        """
        dlogits = np.stack([score_gradient(row, members) for row in forward.logits])
        gradient = self._tail.gradient(forward.tensors, dlogits)
        return grad_cam(forward.tensors[self._tail.target], gradient)


def read_card(path: str | Path) -> Card:
    """What a model file says about itself; needs no onnxruntime.

    Raises StagingError where it says nothing that follows the contract.
    """
    path = Path(path)
    return _card(read_onnx(path), path)


def default_model_path() -> Path:
    """The shipped model: beside the module in Slicer, inside the package when installed."""
    package = Path(__file__).parent
    for folder in (package.parent / "Resources" / "Models", package / "Models"):
        found = folder / "LFS.onnx"
        if found.is_file():
            return found
    raise StagingError(f"The shipped model LFS.onnx is not in {package.parent}: reinstall, please.")


def _card(file: OnnxFile, path: Path) -> Card:
    text = file.metadata.get(METADATA_KEY)
    if text is None:
        raise StagingError(
            f"The model {path} has no {METADATA_KEY!r} metadata, so its window, spacing and stages "
            "are unknown; export it with Training/export.py."
        )
    try:
        data = json.loads(text)
        contract = data["contract"]
    except (ValueError, TypeError, KeyError):
        raise StagingError(f"The model {path} has metadata that is not readable JSON.") from None
    if contract != CONTRACT:
        raise StagingError(
            f"The model {path} follows contract version {contract}; this version of the software "
            f"knows version {CONTRACT}."
        )
    known = Card.__dataclass_fields__
    try:
        card = Card(
            **{k: tuple(v) if isinstance(v, list) else v for k, v in data.items() if k in known}
        )
        sizes = (len(card.window_hu), len(card.spacing_mm), len(card.patch_size))
        numbers = [*card.window_hu, *card.spacing_mm, *card.patch_size, card.temperature]
        sensible = (
            sizes == (2, 3, 3)
            and card.stages == STAGES
            and card.window_hu[0] < card.window_hu[1]
            and all(np.isfinite(float(number)) for number in numbers)
            and min(*card.spacing_mm, *card.patch_size, card.temperature) > 0
            and all(isinstance(size, int) for size in card.patch_size)
            and 0 <= card.patch_overlap < 1
            and 0 <= card.smoothing_mm < 10
        )
    except (TypeError, ValueError) as error:
        raise StagingError(f"The model {path} has incomplete metadata: {error}.") from None
    if not sensible:
        raise StagingError(
            f"The model {path} has metadata out of range: stages {'/'.join(card.stages)}, window "
            f"{card.window_hu}, spacing {card.spacing_mm} mm, patch {card.patch_size}, overlap "
            f"{card.patch_overlap}."
        )
    return card


def _check_weights(file: OnnxFile, path: Path) -> None:
    folder = path.resolve().parent
    for name, tensor in file.weights.items():
        if tensor.external is not None:
            place = (folder / tensor.external).resolve()
            if not place.is_relative_to(folder):
                raise StagingError(
                    f"The model {path} keeps weights outside its own folder ({tensor.external}); "
                    "such a file is not opened."
                )
            raise StagingError(
                f"The model {path} keeps weights in another file ({tensor.external}); export it as "
                "one file."
            )
        values = tensor.values
        if values is not None and values.dtype.kind == "f" and not np.isfinite(values).all():
            raise StagingError(f"The model {path} has weights that are not numbers, in {name!r}.")


def _session(file: OnnxFile, path: Path, threads: int) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise StagingError(
            "Staging needs the Python package onnxruntime, which is not installed."
        ) from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises a class of its own for every status
        version = onnxruntime.__version__
        if file.opset > SAFE_OPSET or file.ir_version > SAFE_IR:
            raise StagingError(
                f"The model {path} uses ONNX opset {file.opset} and IR version {file.ir_version}, "
                f"too new for the installed onnxruntime {version}; export it with opset "
                f"{SAFE_OPSET} and IR version {SAFE_IR} at most."
            ) from None
        raise StagingError(
            f"onnxruntime {version} cannot load the model {path}: {_first_line(error)}"
        ) from None


@contextmanager
def _terminable(cancel: CancelToken | None) -> Iterator[Any]:
    """Options of one run, which a watching thread ends when the user cancels."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    if cancel is None:
        yield options
        return
    over = threading.Event()

    def watch() -> None:
        while not over.wait(CANCEL_POLL_SECONDS):
            if cancel.is_set():
                options.terminate = True
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield options
    finally:
        over.set()
        watcher.join()


def _check_signature(session: Any, card: Card, path: Path) -> None:
    inputs = {item.name: item for item in session.get_inputs()}
    wanted = [1, *card.patch_size]
    shape = inputs["volume"].shape[1:] if "volume" in inputs else []
    fits = len(shape) == 4 and all(not isinstance(a, int) or a == b for a, b in zip(shape, wanted))
    if set(inputs) != {"volume"} or not fits or inputs["volume"].type != "tensor(float)":
        found = ", ".join(f"{item.name} {item.type} {item.shape}" for item in inputs.values())
        raise StagingError(
            f"The model {path} has the input {found}; needed is one input, volume, "
            f"tensor(float) [N, {', '.join(map(str, wanted))}]."
        )
    outputs = {item.name: item.shape for item in session.get_outputs()}
    for name in ("logits", "probabilities"):
        if name not in outputs or len(outputs[name]) != 2 or outputs[name][1] != len(STAGES):
            found = ", ".join(f"{n} {s}" for n, s in outputs.items())
            raise StagingError(
                f"The model {path} has the outputs {found}; needed is {name} [N, {len(STAGES)}]."
            )
    if card.target_layer not in outputs:
        raise StagingError(
            f"The model {path} names the target layer {card.target_layer!r}, which is not among "
            f"its outputs ({', '.join(outputs)})."
        )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
