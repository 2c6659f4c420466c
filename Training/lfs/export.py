"""Export of trained networks to the ONNX file that the library loads.

The graph is built from the modules' layers, not traced: names are readable, batch normalisation is
folded into the convolutions, and every tensor between the target layer and the logits is an output,
as the library's backward pass in numpy needs it.

An ensemble (the folds of a cross-validation) is exported as one network whose channels are the
members' channels in groups, and whose logits are the mean of the members' logits. It has the same
layers as a member, and its Grad-CAM map is computed from the features of all members.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from scipy.linalg import block_diag
from torch import nn

from common.files import unfinished
from common.resume import UNKNOWN, training_entry
from lfs.network import LFSNetwork

OPSET = 17
IR_VERSION = 8
METADATA_KEY = "liver_fibrosis_staging"

Steps = list[tuple[str, list[np.ndarray], dict]]


def export(
    networks: LFSNetwork | Sequence[LFSNetwork],
    path: str | Path,
    metadata: dict,
    training_cts: Collection[str] = (UNKNOWN,),
) -> None:
    """Write a network, or an ensemble of networks with equal shapes, to `path` with `metadata`.

    Outputs: `logits` and `probabilities` (softmax of the logits over the calibration temperature),
    [N, 5]; `features`, the target layer's activation; every further tensor from `features` to
    `logits`, in order; for an ensemble also `member_logits`, [N, members, 5]. The operators of the
    tail are added to the metadata. training_cts: digests of the CTs (`resume`). Raises ValueError
    if ONNX Runtime's logits or feature maps differ from PyTorch's by 1e-4 or more (relative to the
    largest value if that exceeds 1).
    """
    path = Path(path)
    members = [networks] if isinstance(networks, LFSNetwork) else list(networks)
    for member in members:
        member.eval()
    first = members[0]
    graph = Graph()
    graph.add("Sub", "volume", "centred", [np.float32(first.mean)])
    graph.add("Div", "centred", "scaled", [np.float32(first.std)])
    limits = [np.float32(-first.limit), np.float32(first.limit)]
    graph.add("Clip", "scaled", "standardised", limits)
    head = side_by_side([list(steps_of(member.head)) for member in members], one_input=True)
    graph.add_steps(head, "standardised", "head", "features")
    steps = side_by_side([list(steps_of(member.tail)) for member in members])
    (*_, (_, (weight, bias), attributes)) = steps
    mean = [weight.reshape(len(members), 5, -1).mean(axis=0), bias.reshape(-1, 5).mean(axis=0)]
    tail = graph.add_steps([*steps[:-1], ("Gemm", mean, attributes)], "features", "tail", "logits")
    temperature = np.float32(metadata["calibration"]["temperature"])
    graph.add("Div", "logits", "calibrated", [temperature])
    graph.add("Softmax", "calibrated", "probabilities", axis=1)
    outputs = ["logits", "probabilities", "features", *(name for _, name in tail[:-1])]
    shapes = dict(zip(outputs, _output_shapes(first, len(members))))
    if len(members) > 1:
        graph.add("Gemm", tail[-2][1], "member_scores", [weight, bias], **attributes)
        graph.add_reshape("member_scores", "member_logits", (-1, len(members), 5))
        shapes["member_logits"] = (len(members), 5)

    info = (
        [tensor_info("volume", (1, *first.patch_size))],
        [tensor_info(*s) for s in shapes.items()],
    )
    model = graph.model("LFSNetwork", *info, metadata, tail, training_cts)
    check_parity(members, model.SerializeToString())
    write_model(model, path)


def describe(path: str | Path, metadata: dict) -> None:
    """Replace entries of an exported file's metadata; the network is not changed."""
    model = onnx.load(path)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    described = json.loads(properties[METADATA_KEY]) | metadata
    helper.set_model_props(model, {**properties, METADATA_KEY: json.dumps(described)})
    write_model(model, Path(path))


def write_model(model: onnx.ModelProto, path: Path) -> None:
    """Write a model, completely or not at all."""
    with unfinished(path) as file:
        file.write_bytes(model.SerializeToString())


class Graph:
    """Nodes and weights of a graph, added in order; tensors are named by the caller."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def add(
        self,
        op: str,
        source: str,
        target: str,
        weights: list[np.ndarray] = (),
        **attributes: object,
    ) -> None:
        """Append a node with one input and constants."""
        names = [f"{target}_{kind}" for kind, _ in zip(("weight", "bias"), weights)]
        for name, values in zip(names, weights):
            whole = np.asarray(values).dtype.kind == "i"
            array = np.ascontiguousarray(values, np.int64 if whole else np.float32)
            self.weights.append(numpy_helper.from_array(array.reshape(np.shape(values)), name))
        self.nodes.append(
            helper.make_node(op, [source, *names], [target], name=target, **attributes)
        )

    def add_steps(self, steps: Steps, source: str, prefix: str, last: str) -> list[tuple[str, str]]:
        """Append `steps` from the tensor `source` to `last`; returns (op, output) of each node."""
        added = []
        for number, (op, weights, attributes) in enumerate(steps, start=1):
            target = last if number == len(steps) else f"{prefix}{number}_{op.lower()}"
            self.add(op, source, target, weights, **attributes)
            added.append((op, target))
            source = target
        return added

    def model(
        self,
        name: str,
        inputs: list[onnx.ValueInfoProto],
        outputs: list[onnx.ValueInfoProto],
        metadata: dict,
        tail: list[tuple[str, str]],
        training_cts: Collection[str],
    ) -> onnx.ModelProto:
        """The checked model with its description; tail: (op, output) from features to logits."""
        model = helper.make_model(
            helper.make_graph(self.nodes, name, inputs, outputs, self.weights),
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="LiverFibrosisStaging",
        )
        described = {**metadata, "target_layer": "features", "tail": [op for op, _ in tail]}
        helper.set_model_props(
            model, {METADATA_KEY: json.dumps(described), **training_entry(training_cts)}
        )
        onnx.checker.check_model(model, full_check=True)
        return model

    def join(self, op: str, sources: list[str], target: str, **attributes: object) -> None:
        """Append a node with several inputs, or with constants that are added separately."""
        self.nodes.append(helper.make_node(op, sources, [target], name=target, **attributes))

    def slice(self, source: str, target: str, first: int, last: int) -> None:
        """The channels from `first` up to `last`."""
        names = [f"{target}_{bound}" for bound in ("first", "last", "axis")]
        for name, value in zip(names, (first, last, 1)):
            self.weights.append(numpy_helper.from_array(np.array([value], np.int64), name))
        self.join("Slice", [source, *names], target)

    def add_reshape(self, source: str, target: str, shape: tuple[int, ...]) -> None:
        """Append a Reshape; 0 keeps an axis, -1 is what is left."""
        name = f"{target}_shape"
        self.weights.append(numpy_helper.from_array(np.array(shape, np.int64), name))
        self.join("Reshape", [source, name], target)


def side_by_side(members: list[Steps], one_input: bool = False) -> Steps:
    """The members' steps combined into those of one network with all their channels.

    one_input: the members share the input of the first convolution or dense layer.
    """
    if len(members) == 1:
        return members[0]
    steps = []
    for same in zip(*members):
        op, _, attributes = same[0]
        weights = [np.concatenate(arrays) for arrays in zip(*(weights for _, weights, _ in same))]
        shared = one_input and not steps
        if op == "Gemm" and not shared:
            weights[0] = block_diag(*(weight for _, (weight, _), _ in same))
        elif op == "Conv" and not shared:
            attributes = {**attributes, "group": len(members)}
        steps.append((op, weights, attributes))
    return steps


def steps_of(layers: Iterable[nn.Module]) -> Iterator[tuple[str, list[np.ndarray], dict]]:
    """ONNX op, weights and attributes of every layer that is needed for inference."""
    modules = [layer for layer in layers if not isinstance(layer, nn.Dropout)]
    following = [*modules[1:], None, None]
    for number, (before, layer) in enumerate(zip([None, *modules], modules)):
        if isinstance(layer, nn.Conv3d):
            sizes = {"pads": list(layer.padding) * 2, "kernel_shape": list(layer.kernel_size)}
            if max(layer.stride) > 1:
                sizes["strides"] = list(layer.stride)
            after = following[number]
            if isinstance(after, nn.MaxPool3d) and isinstance(
                following[number + 1], nn.BatchNorm3d
            ):
                after = following[number + 1]
                if not (after.weight > 0).all():
                    raise ValueError("A normalisation with a negative weight cannot be exported.")
            yield "Conv", _convolution(layer, after), sizes
        elif isinstance(layer, nn.BatchNorm3d | nn.BatchNorm1d):
            continue
        elif isinstance(layer, nn.MaxPool3d | nn.AvgPool3d | nn.AdaptiveAvgPool3d):
            size = layer.kernel_size
            size = [size] * 3 if isinstance(size, int) else list(size)
            op = "MaxPool" if isinstance(layer, nn.MaxPool3d) else "AveragePool"
            yield op, [], {"kernel_shape": size, "strides": size}
        elif isinstance(layer, nn.LeakyReLU):
            yield "LeakyRelu", [], {"alpha": layer.negative_slope}
        elif isinstance(layer, nn.Flatten):
            yield "Flatten", [], {"axis": 1}
        elif isinstance(layer, nn.Linear):
            yield "Gemm", _dense(layer, before), {"transB": 1}
        else:
            raise ValueError(f"The layer {layer} cannot be exported.")


def _convolution(layer: nn.Conv3d, after: nn.Module | None) -> list[np.ndarray]:
    """Weight and bias of a convolution, with a following batch normalisation folded in."""
    weight = _numpy(layer.weight)
    bias = np.zeros(len(weight)) if layer.bias is None else _numpy(layer.bias)
    if isinstance(after, nn.BatchNorm3d):
        scale, offset = _normalisation(after)
        weight, bias = weight * scale[:, None, None, None, None], bias * scale + offset
    return [weight, bias]


def _dense(layer: nn.Linear, before: nn.Module | None) -> list[np.ndarray]:
    """Weight and bias of a dense layer, with a preceding batch normalisation folded in."""
    weight, bias = _numpy(layer.weight), _numpy(layer.bias)
    if isinstance(before, nn.BatchNorm1d):
        scale, offset = _normalisation(before)
        weight, bias = weight * scale, bias + weight @ offset
    return [weight, bias]


def _normalisation(layer: nn.BatchNorm1d | nn.BatchNorm3d) -> tuple[np.ndarray, np.ndarray]:
    """Factor and offset per channel of a batch normalisation at inference."""
    scale = _numpy(layer.weight) / np.sqrt(_numpy(layer.running_var) + layer.eps)
    return scale, _numpy(layer.bias) - _numpy(layer.running_mean) * scale


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().cpu().numpy()


def tensor_info(name: str, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
    """Declaration of a float tensor [N, *shape]."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *shape])


def _output_shapes(network: LFSNetwork, members: int) -> Iterator[tuple[int, ...]]:
    """Shapes, without the batch, of the outputs that `export` declares, in their order."""
    yield (5,)
    yield (5,)
    with torch.no_grad():
        maps = network.features(torch.zeros(1, 1, *network.patch_size))
        yield members * maps.shape[1], *maps.shape[2:]
        for layer in network.tail:
            maps = layer(maps)
            if not isinstance(layer, nn.Dropout | nn.BatchNorm3d | nn.BatchNorm1d):
                yield members * maps.shape[1], *maps.shape[2:]


def check_parity(members: Sequence[LFSNetwork], content: bytes) -> None:
    """Raise ValueError if a file's logits or features differ from those of its networks."""
    generator = torch.Generator().manual_seed(0)
    volume = torch.rand(2, 1, *members[0].patch_size, generator=generator)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    exported = session.run(["logits", "features"], {"volume": volume.numpy()})
    with torch.no_grad():
        features = [member.features(volume) for member in members]
        logits = torch.stack([member.tail(maps) for member, maps in zip(members, features)])
        expected = [logits.mean(dim=0).numpy(), torch.cat(features, dim=1).numpy()]
    for name, ours, theirs in zip(("logits", "features"), exported, expected):
        difference = np.abs(ours - theirs).max() / max(1.0, np.abs(theirs).max())
        if not difference < 1e-4:
            raise ValueError(f"The file's {name} differ from PyTorch's by {difference:.2g}.")
