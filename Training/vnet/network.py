"""The V-Net that finds liver and spleen, as a PyTorch module, and its ONNX file.

Milletari et al. 2016 (3DV): residual stages of 5x5x5 convolutions, strided convolutions instead of
pooling, PReLU. Far narrower than the original, whose 45 million parameters no laptop needs, and
with batch normalisation: HU mean something, and what surrounds the patient must not change what is
liver. Instance normalisation, tried first, found more liver where there was more air, and one in
water.
"""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

from common.resume import UNKNOWN, learned_entry

OPSET = 17
METADATA_KEY = "liver_segmentation"
MOMENTUM = 0.05  # of the running statistics; a step sees two patches only
COUNTER = "num_batches_tracked"


class VNet(nn.Module):
    """Logits [N, classes, slices, rows, columns] for `volume` [N, 1, ...], 0..1.

    channels: of the stages, from the finest; each is half as fine as the one before. convolutions:
    of each stage. Every length of the input has to be a multiple of `multiple`.
    """

    def __init__(
        self,
        channels: tuple[int, ...] = (8, 16, 32, 48),
        convolutions: tuple[int, ...] = (1, 2, 3, 3),
        classes: int = 3,
    ) -> None:
        super().__init__()
        self.multiple = 2 ** (len(channels) - 1)
        self.first = _Stage(1, channels[0], convolutions[0])
        self.downs, self.lefts, self.ups, self.rights = (nn.ModuleList() for _ in range(4))
        for above, here, count in zip(channels, channels[1:], convolutions[1:]):
            self.downs.append(_scaled(nn.Conv3d(above, here, 2, 2, bias=False)))
            self.lefts.append(_Stage(here, here, count))
        for here, above, count in list(zip(channels[1:], channels, convolutions))[::-1]:
            self.ups.append(_scaled(nn.ConvTranspose3d(here, above, 2, 2, bias=False)))
            self.rights.append(_Stage(2 * above, above, count))
        self.last = nn.Conv3d(channels[0], classes, 1)

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        """Logits on the input's grid."""
        x = self.first(volume)
        seen = []
        for down, left in zip(self.downs, self.lefts):
            seen.append(x)
            x = left(down(x))
        for up, right, finer in zip(self.ups, self.rights, seen[::-1]):
            x = right(torch.cat([up(x), finer], dim=1))
        return self.last(x)


class _Stage(nn.Module):
    """Convolutions around which their input is added (its first channels, or its only one)."""

    def __init__(self, inputs: int, outputs: int, count: int) -> None:
        super().__init__()
        self.outputs = outputs
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Conv3d(inputs if n == 0 else outputs, outputs, 5, padding=2, bias=False),
                nn.BatchNorm3d(outputs, momentum=MOMENTUM),
            )
            for n in range(count)
        )
        self.activations = nn.ModuleList(nn.PReLU(outputs) for _ in range(count))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        around = x[:, : self.outputs]
        for number, (layer, activation) in enumerate(zip(self.layers, self.activations)):
            x = layer(x)
            x = activation(x + around if number == len(self.layers) - 1 else x)
        return x


def _scaled(convolution: nn.Module) -> nn.Sequential:
    outputs = convolution.out_channels
    return nn.Sequential(convolution, nn.BatchNorm3d(outputs, momentum=MOMENTUM), nn.PReLU(outputs))


def load_weights(network: VNet, path: Path) -> None:
    """Take over the weights of a checkpoint.pt, or of an exported VNet.onnx of the same shape.

    Raises ValueError where the shapes differ.
    """
    if path.suffix == ".onnx":
        graph = onnx.load(path).graph
        found = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
        for node in graph.node:
            if node.op_type == "Identity":  # the exporter keeps equal weights once
                found[node.output[0]] = found[node.input[0]]
        found = {name.removeprefix("network."): values for name, values in found.items()}
    else:
        found = torch.load(path, map_location="cpu", weights_only=True)["network"]
    found = {name: torch.as_tensor(np.array(values)) for name, values in found.items()}
    wanted = {n: v for n, v in network.state_dict().items() if not n.endswith(COUNTER)}
    sizes = {name: found[name].numel() for name in wanted if name in found}
    if sizes != {name: values.numel() for name, values in wanted.items()}:
        raise ValueError(f"The weights in {path} are those of another network.")
    taken = {name: found[name].view_as(values) for name, values in wanted.items()}
    network.load_state_dict(taken, strict=False)


class _Probabilities(nn.Module):
    def __init__(self, network: VNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        return self.network(volume).softmax(dim=1)


def export(
    network: VNet,
    path: Path,
    metadata: dict[str, Any],
    learned_from: Collection[str] = (UNKNOWN,),
) -> None:
    """Write the network with its metadata; output `probabilities` for any size.

    learned_from: digests of CTs (`resume`). Raises ValueError where ONNX Runtime's probabilities
    differ from PyTorch's by 1e-4 or more, on a size other than the one it was traced with.
    """
    network = _Probabilities(network.cpu().float()).eval()
    multiple = network.network.multiple
    unfinished = path.with_name(path.name + ".part")
    axes = {0: "N", 2: "slices", 3: "rows", 4: "columns"}
    torch.onnx.export(
        network,
        (torch.zeros(1, 1, 2 * multiple, 3 * multiple, 4 * multiple),),
        str(unfinished),
        input_names=["volume"],
        output_names=["probabilities"],
        dynamic_axes={"volume": axes, "probabilities": axes},
        opset_version=OPSET,
        dynamo=False,
        # Weights keep their names and values, so that `load_weights` finds them.
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
    )
    model = onnx.load(unfinished)
    entries = {METADATA_KEY: json.dumps(metadata), **learned_entry(learned_from)}
    onnx.helper.set_model_props(model, entries)
    onnx.checker.check_model(model, full_check=True)
    content = model.SerializeToString()
    shape = (1, 1, 4 * multiple, 2 * multiple, 3 * multiple)
    volume = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (ours,) = session.run(["probabilities"], {"volume": volume.numpy()})
    with torch.no_grad():
        difference = np.abs(ours - network(volume).numpy()).max()
    if not difference < 1e-4:
        unfinished.unlink()
        raise ValueError(f"The exported probabilities differ from PyTorch's by {difference:.2g}.")
    unfinished.write_bytes(content)
    unfinished.replace(path)
