"""The V-Net that segments liver and spleen, as a PyTorch module, and its export to ONNX.

Milletari et al. 2016 (3DV): residual stages of 5x5x5 convolutions, strided convolutions instead of
pooling, PReLU. Differences: 2 instead of 45 million parameters, and batch normalisation. Instance
normalisation, which was tried first, made the result depend on the surroundings of the patient: it
segmented more liver in images with more air, and a liver in a water phantom.
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

from common.files import unfinished
from common.resume import UNKNOWN, training_entry

OPSET = 17
METADATA_KEY = "liver_segmentation"
MOMENTUM = 0.05  # of the running statistics; small, because a step has only two patches
COUNTER = "num_batches_tracked"


class VNet(nn.Module):
    """Logits [N, classes, slices, rows, columns] for `volume` [N, 1, ...], 0..1.

    channels: of each stage, from the finest; the resolution halves at each stage. convolutions:
    number in each stage. The input's size must be a multiple of `multiple` in each direction.
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
        skipped = []
        for down, left in zip(self.downs, self.lefts):
            skipped.append(x)
            x = left(down(x))
        for up, right, finer in zip(self.ups, self.rights, skipped[::-1]):
            x = right(torch.cat([up(x), finer], dim=1))
        return self.last(x)


class _Stage(nn.Module):
    """Convolutions with a residual connection from the input's first channels or its only one."""

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
        residual = x[:, : self.outputs]
        for number, (layer, activation) in enumerate(zip(self.layers, self.activations)):
            x = layer(x)
            x = activation(x + residual if number == len(self.layers) - 1 else x)
        return x


def _scaled(convolution: nn.Module) -> nn.Sequential:
    outputs = convolution.out_channels
    return nn.Sequential(convolution, nn.BatchNorm3d(outputs, momentum=MOMENTUM), nn.PReLU(outputs))


def load_weights(network: VNet, path: Path) -> None:
    """Load the weights of a checkpoint.pt or an exported VNet.onnx.

    Raises ValueError if the shapes differ.
    """
    if path.suffix == ".onnx":
        graph = onnx.load(path).graph
        found = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
        for node in graph.node:
            if node.op_type == "Identity":  # the exporter stores equal weights once
                found[node.output[0]] = found[node.input[0]]
        found = {name.removeprefix("network."): values for name, values in found.items()}
    else:
        found = torch.load(path, map_location="cpu", weights_only=True)["network"]
    found = {name: torch.as_tensor(np.array(values)) for name, values in found.items()}
    wanted = {n: v for n, v in network.state_dict().items() if not n.endswith(COUNTER)}
    sizes = {name: found[name].numel() for name in wanted if name in found}
    if sizes != {name: values.numel() for name, values in wanted.items()}:
        raise ValueError(
            f"{path}: it has the weights of another network; a V-Net of the same shape is needed."
        )
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
    training_cts: Collection[str] = (UNKNOWN,),
) -> None:
    """Write the network with its metadata; its output is `probabilities`, its input size is free.

    training_cts: digests of the CTs (`resume`). Raises ValueError if ONNX Runtime's probabilities
    differ from PyTorch's by 1e-4 or more, checked on another size than the traced one.
    """
    network = _Probabilities(network.cpu().float()).eval()
    multiple = network.network.multiple
    axes = {0: "N", 2: "slices", 3: "rows", 4: "columns"}
    with unfinished(path) as file:
        torch.onnx.export(
            network,
            (torch.zeros(1, 1, 2 * multiple, 3 * multiple, 4 * multiple),),
            str(file),
            input_names=["volume"],
            output_names=["probabilities"],
            dynamic_axes={"volume": axes, "probabilities": axes},
            opset_version=OPSET,
            dynamo=False,
            # Weights keep their names and values, so that `load_weights` finds them.
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
        )
        model = onnx.load(file)
        entries = {METADATA_KEY: json.dumps(metadata), **training_entry(training_cts)}
        onnx.helper.set_model_props(model, entries)
        onnx.checker.check_model(model, full_check=True)
        content = model.SerializeToString()
        _check_parity(network, content, (4 * multiple, 2 * multiple, 3 * multiple))
        file.write_bytes(content)


def _check_parity(network: nn.Module, content: bytes, size: tuple[int, int, int]) -> None:
    volume = torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (ours,) = session.run(["probabilities"], {"volume": volume.numpy()})
    with torch.no_grad():
        difference = np.abs(ours - network(volume).numpy()).max()
    if not difference < 1e-4:
        raise ValueError(f"The exported probabilities differ from PyTorch's by {difference:.2g}.")
