"""The model file is a contract: an ONNX network that says itself how it wants to be used.

Inputs: `volume` float32 [N, 1, slices, rows, columns], the CT windowed to 0..1. Outputs: `logits`
and `probabilities` [N, 5], the target layer's feature maps, and every tensor between those and the
logits, from which Grad-CAM's gradient is computed in numpy; an ensemble, whose logits are the mean
of its members', also has `member_logits` [N, members, 5]. The metadata entry
`liver_fibrosis_staging` is JSON; `Card` lists what it holds.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .errors import CancelToken, StagingError
from .explainable import ExplainableModel, Forward, Layer
from .onnx_file import OnnxFile, read_onnx
from .stages import STAGES, score_gradient

METADATA_KEY = "liver_fibrosis_staging"
CONTRACT = 1
MEMBERS = "member_logits"


@dataclass(frozen=True)
class Card:
    """The model's own metadata, as read from the file.

    window_hu: (low, high) HU that become 0 and 1. spacing_mm and patch_size: (slice, row, column).
    smoothing_mm: sigma of the Gaussian that the working grid is smoothed with. patch_overlap: least
    shared fraction of neighbouring patches. target_layer: tensor that the location map looks at.
    tail: operators between it and the logits, for the reader. calibration: `temperature` that
    divides the logits. reference: distributions of the location map's measurements by stage.
    training: what the model was trained and evaluated on.
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
    def preprocessing(self) -> dict[str, Any]:
        """What `grid.working_grid` has to know, as its keyword arguments."""
        return {
            "spacing": self.spacing_mm,
            "patch_size": self.patch_size,
            "window": self.window_hu,
            "overlap": self.patch_overlap,
            "smoothing_mm": self.smoothing_mm,
        }

    @property
    def temperature(self) -> float:
        """Divisor of the logits before the softmax (Guo 2017, temperature scaling)."""
        return float(self.calibration.get("temperature", 1.0))

    @property
    def trained_on(self) -> str:
        """One sentence on the training data."""
        return str(self.training.get("data", "Training data not stated."))


class StagingModel(ExplainableModel):
    """A staging network that has passed the contract.

    Raises StagingError, with the reason, for anything that breaks it.
    """

    def __init__(self, path: str | Path, threads: int = 0) -> None:
        super().__init__(path, threads)
        if self._tail.operators != self.card.tail:
            raise StagingError(
                f"The model {self.path} contradicts itself: its metadata names the tail "
                f"{' '.join(self.card.tail)}, its network has {' '.join(self._tail.operators)}."
            )
        if MEMBERS in {output.name for output in self._session.get_outputs()}:
            self._fetched = (*self._fetched, MEMBERS)
        self.sha256 = hashlib.sha256(self.path.read_bytes()).hexdigest()

    @classmethod
    def load(cls, path: str | Path, threads: int = 0) -> "StagingModel":
        """Read, check and prepare a model file; takes and raises what the constructor does."""
        return cls(path, threads)

    def run(self, volume: np.ndarray, cancel: CancelToken | None = None) -> Forward:
        """Logits and feature maps of patches float32 [N, 1, slices, rows, columns] in 0..1.

        Takes and raises what `ExplainableModel.run` does.
        """
        return super().run(volume, cancel)

    def location_map(
        self, forward: Forward, members: tuple[int, ...], method: str = "gradcam"
    ) -> np.ndarray:
        """Raw location map [N, slices', rows', columns'] at the target layer's resolution.

        members: indices of the stages that are explained together (`stages.explained_stages`).
        """
        weighting = np.stack([score_gradient(row, members) for row in forward.logits])
        return self.explain(forward, weighting, method)

    def _read_layer(self, file: OnnxFile) -> Layer:
        self.card = _card(file, self.path)
        return Layer(self.card.target_layer, "logits")

    def _check_signature(self) -> None:
        inputs = {item.name: item for item in self._session.get_inputs()}
        wanted = [1, *self.card.patch_size]
        shape = inputs["volume"].shape[1:] if "volume" in inputs else []
        fits = len(shape) == 4 and all(
            not isinstance(a, int) or a == b for a, b in zip(shape, wanted)
        )
        if set(inputs) != {"volume"} or not fits or inputs["volume"].type != "tensor(float)":
            found = ", ".join(f"{item.name} {item.type} {item.shape}" for item in inputs.values())
            raise StagingError(
                f"The model {self.path} has the input {found}; needed is one input, volume, "
                f"tensor(float) [N, {', '.join(map(str, wanted))}]."
            )
        outputs = {item.name: item.shape for item in self._session.get_outputs()}
        for name in ("logits", "probabilities"):
            if name not in outputs or len(outputs[name]) != 2 or outputs[name][1] != len(STAGES):
                found = ", ".join(f"{n} {s}" for n, s in outputs.items())
                raise StagingError(
                    f"The model {self.path} has the outputs {found}; needed is {name} "
                    f"[N, {len(STAGES)}]."
                )
        if MEMBERS in outputs and (
            len(outputs[MEMBERS]) != 3 or outputs[MEMBERS][2] != len(STAGES)
        ):
            raise StagingError(
                f"The model {self.path} has the output {MEMBERS} {outputs[MEMBERS]}; needed is "
                f"[N, members, {len(STAGES)}]."
            )
        if self.card.target_layer not in outputs:
            raise StagingError(
                f"The model {self.path} names the target layer {self.card.target_layer!r}, which "
                f"is not among its outputs ({', '.join(outputs)})."
            )


def read_card(path: str | Path) -> Card:
    """What a model file says about itself; needs no onnxruntime.

    Raises StagingError where it says nothing that follows the contract.
    """
    path = Path(path)
    return _card(read_onnx(path), path)


def default_model_path(name: str = "LFS.onnx") -> Path:
    """A shipped model: beside the module in Slicer, inside the package when installed."""
    package = Path(__file__).parent
    for folder in (package.parent / "Resources" / "Models", package / "Models"):
        found = folder / name
        if found.is_file():
            return found
    raise StagingError(f"The shipped model {name} is not in {package.parent}: reinstall, please.")


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
