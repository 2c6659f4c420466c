"""The model file is a contract: an ONNX network that says itself how it wants to be used.

Inputs: `volume` float32 [N, 1, slices, rows, columns], the CT windowed to 0..1. Outputs: `logits`
and `probabilities` [N, 5], the target layer's feature maps, and every tensor between those and the
logits, from which Grad-CAM's gradient is computed in numpy; an ensemble, whose logits are the mean
of its members', also has `member_logits` [N, members, 5]. The metadata entry
`liver_fibrosis_staging` is JSON; `card.Card` lists what it holds.
"""

from pathlib import Path

import numpy as np

from .card import METADATA_KEY, Card, parse_card
from .errors import CancelToken, StagingError
from .gradcam_onnx.explainable import ExplainableModel, Forward, Layer
from .gradcam_onnx.onnx_file import OnnxFile, listed, read_onnx
from .gradcam_onnx.session import described
from .stages import STAGES, score_gradient

MEMBERS = "member_logits"


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

    @classmethod
    def load(cls, path: str | Path, threads: int = 0) -> "StagingModel":
        """Read, check and prepare a model file; takes and raises what the constructor does."""
        return cls(path, threads)

    def run(self, volume: np.ndarray, cancel: CancelToken | None = None) -> Forward:
        """Logits and feature maps of patches float32 [N, 1, slices, rows, columns] in 0..1.

        Takes and raises what `ExplainableModel.run` does.
        """
        forward = super().run(volume, cancel)
        stages = len(STAGES)
        needed = {"logits": f"[N, {stages}]", self.layer.target: "[N, maps, slices, rows, columns]"}
        fits = {
            "logits": forward.logits.shape[1] == stages,
            self.layer.target: forward.tensors[self.layer.target].ndim == 5,
        }
        if MEMBERS in forward.tensors:
            found = forward.tensors[MEMBERS]
            shaped = found.ndim == 3 and found.size and found.shape[::2] == (len(volume), stages)
            needed[MEMBERS] = f"[N, members, {stages}], finite"
            fits[MEMBERS] = shaped and np.isfinite(found).all()
        for name in needed:
            if not fits[name]:
                raise StagingError(
                    f"The model {self.path} gave {name!r} the shape "
                    f"{list(forward.tensors[name].shape)}; needed is {needed[name]}."
                )
        return forward

    def location_map(
        self, forward: Forward, members: tuple[int, ...], method: str = "gradcam"
    ) -> np.ndarray:
        """Raw location map [N, slices', rows', columns'] at the target layer's resolution.

        members: indices of the stages that are explained together (`stages.explained_stages`).
        """
        weighting = np.stack([score_gradient(row, members) for row in forward.logits])
        return self.explain(forward, weighting, method)

    def _read_layer(self, file: OnnxFile) -> Layer:
        self.card = parse_card(file.metadata.get(METADATA_KEY), str(self.path))
        return Layer(self.card.target_layer, "logits")

    def _check_signature(self) -> None:
        inputs = {item.name: item for item in self._session.get_inputs()}
        wanted = [1, *self.card.patch_size]
        shape = inputs["volume"].shape[1:] if "volume" in inputs else []
        fits = len(shape) == 4 and all(
            not isinstance(a, int) or a == b for a, b in zip(shape, wanted)
        )
        if set(inputs) != {"volume"} or not fits or inputs["volume"].type != "tensor(float)":
            found = inputs.get("volume") if len(inputs) == 1 else None
            raise StagingError(
                f"The model {self.path} has {described(found, inputs)}; needed is one input, "
                f"volume, tensor(float) [N, {', '.join(map(str, wanted))}]."
            )
        outputs = {item.name: item for item in self._session.get_outputs()}
        needed = {"logits": 2, "probabilities": 2}
        if MEMBERS in outputs:
            needed[MEMBERS] = 3
        for name, axes in needed.items():
            item = outputs.get(name)
            fits = item is not None and item.type == "tensor(float)" and len(item.shape) == axes
            if not fits or item.shape[-1] != len(STAGES):
                sizes = ", ".join(["N", "members"][: axes - 1])
                raise StagingError(
                    f"The model {self.path} has {described(item, outputs)}; needed is {name} "
                    f"tensor(float) [{sizes}, {len(STAGES)}]."
                )
        if self.card.target_layer not in outputs:
            raise StagingError(
                f"The model {self.path} names the target layer {self.card.target_layer!r}, which "
                f"is not among its outputs ({listed([*outputs])})."
            )


def read_card(path: str | Path) -> Card:
    """What a model file says about itself; needs no onnxruntime.

    Raises StagingError where it says nothing that follows the contract.
    """
    path = Path(path)
    return parse_card(read_onnx(path).metadata.get(METADATA_KEY), str(path))
