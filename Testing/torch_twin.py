"""The same network in PyTorch, made from the ONNX file's own nodes and weights.

An independent forward pass, and autograd, to compare our numbers with.
"""

from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn
from torch.nn import functional as F


class TorchTwin(nn.Module):
    """Runs an ONNX file of convolutions, poolings and dense layers, node by node, in PyTorch.

    `nodes` has one submodule a tensor, under the tensor's name, so that hooks find a layer; calling
    the network gives the logits.
    """

    def __init__(self, path: Path, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        graph = onnx.load(path).graph
        weights = {
            tensor.name: torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy()).to(dtype)
            for tensor in graph.initializer
        }
        self.nodes = nn.ModuleDict()
        self._inputs = []
        for node in graph.node:
            (name,) = node.output
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            constants = [weights[i] for i in node.input if i in weights]
            self.nodes[name] = _Operator(node.op_type, constants, attributes)
            (source,) = (i for i in node.input if i not in weights)
            self._inputs.append((name, source))

    def tensors(self, given: torch.Tensor, name: str = "volume") -> dict[str, torch.Tensor]:
        """All tensors that follow from one that is given, the input by default."""
        values = {name: given}
        for target, source in self._inputs:
            if source in values and target not in values:
                values[target] = self.nodes[target](values[source])
        return values

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        return self.tensors(volume)["logits"]


class _Operator(nn.Module):
    def __init__(self, op: str, constants: list[torch.Tensor], attributes: dict) -> None:
        super().__init__()
        self.op, self.attributes = op, attributes
        self.constants = nn.ParameterList(constants)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        c, a = self.constants, self.attributes
        if self.op == "Sub":
            return x - c[0]
        if self.op == "Div":
            return x / c[0]
        if self.op == "Mul":
            return x * c[0]
        if self.op == "Clip":
            return x.clamp(c[0], c[1] if len(c) > 1 else None)
        if self.op == "Conv":
            return F.conv3d(x, *c, padding=a["pads"][:3], groups=a.get("group", 1))
        if self.op == "LeakyRelu":
            return F.leaky_relu(x, a["alpha"])
        if self.op == "MaxPool":
            return F.max_pool3d(x, a["kernel_shape"], a["strides"])
        if self.op == "AveragePool":
            return F.avg_pool3d(x, a["kernel_shape"], a["strides"])
        if self.op == "Flatten":
            return x.flatten(1)
        if self.op == "Gemm":
            assert a.get("transB") == 1
            return F.linear(x, *c)
        if self.op == "Reshape":
            return x.reshape(*c[0].int().tolist())
        if self.op == "Softmax":
            return x.softmax(1)
        raise NotImplementedError(self.op)


def autograd_map(twin: TorchTwin, volume: np.ndarray, score, layer: str) -> np.ndarray:
    """Raw Grad-CAM [N, spatial...] by autograd; `score` takes the logits [N, C]."""
    values = twin.tensors(torch.tensor(volume))
    features = values[layer]
    (gradient,) = torch.autograd.grad(score(values["logits"]).sum(), features)
    alpha = gradient.mean(dim=(2, 3, 4), keepdim=True)
    return (alpha * features).sum(1).relu().detach().numpy()
