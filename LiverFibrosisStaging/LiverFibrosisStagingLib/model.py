"""The staging model: an ONNX network with metadata that describe its input and preprocessing.

Inputs: `volume` float32 [N, channels, slices, rows, columns], the CT windowed to 0..1, for some
models followed by masks of liver and spleen. Outputs: `logits`
and `probabilities` [N, 5], the target layer's feature maps, and the tensors from which Grad-CAM's
gradient is computed in numpy; an ensemble, whose logits are the mean of its members', also has
`member_logits` [N, members, 5]. The metadata entry `liver_fibrosis_staging` is JSON with the fields
of `card.Card`.
"""

from pathlib import Path

import numpy as np

from .card import METADATA_KEY, Card, parse_card
from .errors import StagingError
from .gradcam_onnx.explainable import ExplainableModel, Forward, Layer
from .gradcam_onnx.onnx_file import OnnxFile, listed, read_onnx
from .gradcam_onnx.session import CPU, described
from .stages import STAGES, score_gradient

MEMBERS = "member_logits"


class StagingModel(ExplainableModel):
    """A staging network that follows the format above, checked when it is loaded and run."""

    def __init__(self, path: str | Path, threads: int = 0, device: str = CPU) -> None:
        super().__init__(path, threads, device)
        if self._tail.operators != self.card.tail:
            raise StagingError(
                f"The model {self.path} is inconsistent: its metadata give the tail "
                f"{' '.join(self.card.tail)}, its network has {' '.join(self._tail.operators)}."
            )
        if MEMBERS in {output.name for output in self._session.get_outputs()}:
            self._fetched = (*self._fetched, MEMBERS)

    @classmethod
    def load(cls, path: str | Path, threads: int = 0, device: str = CPU) -> "StagingModel":
        """Read and check a model file.

        threads, device: as for `ExplainableModel`. Raises StagingError if the file does not follow
        the format or the device cannot be used.
        """
        return cls(path, threads, device)

    def location_map(
        self, forward: Forward, members: tuple[int, ...], method: str = "gradcam"
    ) -> np.ndarray:
        """Raw location map [N, slices', rows', columns'] at the target layer's resolution.

        members: indices of the explained stages (`stages.explained_stages`).
        """
        weighting = np.stack([score_gradient(row, members) for row in forward.logits])
        return self.explain(forward, weighting, method)

    def _read_layer(self, file: OnnxFile) -> Layer:
        self.card = parse_card(file.metadata.get(METADATA_KEY), str(self.path))
        return Layer(self.card.target_layer, "logits")

    def _check_signature(self) -> None:
        inputs = {item.name: item for item in self._session.get_inputs()}
        wanted = [len(self.card.channels), *self.card.patch_size]
        shape = inputs["volume"].shape[1:] if "volume" in inputs else []
        fits = len(shape) == 4 and all(
            not isinstance(a, int) or a == b for a, b in zip(shape, wanted)
        )
        if set(inputs) != {"volume"} or not fits or inputs["volume"].type != "tensor(float)":
            found = inputs.get("volume") if len(inputs) == 1 else None
            raise StagingError(
                f"The model {self.path} has the input {described(found, inputs)}; one input, "
                f"volume tensor(float) [N, {', '.join(map(str, wanted))}], is needed."
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
                    f"The model {self.path} has the output {described(item, outputs)}; {name} "
                    f"tensor(float) [{sizes}, {len(STAGES)}] is needed."
                )
        if self.card.target_layer not in outputs:
            raise StagingError(
                f"The model {self.path} names the target layer {self.card.target_layer!r}, which "
                f"is not among its outputs ({listed([*outputs])})."
            )

    def _check_outputs(self, tensors: dict[str, np.ndarray], count: int) -> None:
        super()._check_outputs(tensors, count)
        stages = len(STAGES)
        target = self.layer.target
        needed = {"logits": f"[N, {stages}]", target: "[N, maps, slices, rows, columns]"}
        fits = {
            "logits": tensors["logits"].shape[1] == stages,
            target: tensors[target].ndim == 5,
        }
        if MEMBERS in tensors:
            found = tensors[MEMBERS]
            shaped = found.ndim == 3 and found.size and found.shape[::2] == (count, stages)
            needed[MEMBERS] = f"[N, members, {stages}], finite"
            fits[MEMBERS] = shaped and np.isfinite(found).all()
        for name in needed:
            if not fits[name]:
                raise StagingError(
                    f"The model {self.path} gave {name!r} the shape "
                    f"{list(tensors[name].shape)}; {needed[name]} is needed."
                )


def read_card(path: str | Path) -> Card:
    """A model file's metadata, read without onnxruntime.

    Raises StagingError if they are missing or invalid.
    """
    path = Path(path)
    return parse_card(read_onnx(path).metadata.get(METADATA_KEY), str(path))
