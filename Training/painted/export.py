"""Export of `OrganNetwork`s, one or an ensemble, to the ONNX file that the library loads.

As in `lfs.export`, the graph is built from the modules' layers: normalisations are folded into the
convolutions, an ensemble's members are groups of channels, and every tensor that the backward pass
in numpy reads is an output. The weights of the pooled regions depend on the masks only.
"""

import copy
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch.nn import functional

from common.resume import UNKNOWN
from lfs.export import (
    Graph,
    side_by_side,
    steps_of,
    tensor_info,
    write_model,
)
from painted.network import LIMIT, REGIONS, SCALE, TYPICAL_VOXELS, OrganNetwork

# Slack of the comparison with PyTorch, relative to the largest value if that exceeds 1.
TOLERANCE = 2e-4


def export(
    networks: OrganNetwork | Sequence[OrganNetwork],
    path: str | Path,
    metadata: dict,
    training_cts: Collection[str] = (UNKNOWN,),
) -> None:
    """Write a network, or an ensemble of networks of equal shape, to `path` with `metadata`.

    Outputs as those of `lfs.export.export`. Raises ValueError if ONNX Runtime's logits or feature
    maps differ from PyTorch's.
    """
    members = [networks] if isinstance(networks, OrganNetwork) else list(networks)
    members = [copy.deepcopy(member).cpu().float().eval() for member in members]
    first = members[0]
    for member in members:  # with zero mean, `contrast` no longer changes them
        member.head[0].weight.data = member.head[0].contrast().detach()
    graph = Graph()
    masked = first.given.masked
    if masked:
        _regions(graph)
    sizes = {"kernel_shape": [1, 1, 1], "pads": [0] * 6}
    graph.add("Conv", "volume", "shifted", [first.scaling, first.offset], **sizes)
    graph.add("Clip", "shifted", "scaled", [np.float32(-LIMIT), np.float32(LIMIT)])
    head = side_by_side([list(steps_of(member.head)) for member in members], one_input=True)
    graph.add_steps(head, "scaled", "head", "everywhere" if masked else "features")
    if masked:
        graph.join("Mul", ["everywhere", "near"], "features")

    last = side_by_side([list(steps_of(member.last)) for member in members])
    tail = graph.add_steps(last, "features", "tail", "maps")
    channels = len(members) * first.last[0].out_channels
    if masked:
        graph.add_reshape("maps", "voxels", (0, channels, -1))
        graph.join("MatMul", ["voxels", "region_weights"], "means")
        tail += [("Reshape", "voxels"), ("MatMul", "means")]
    else:
        graph.add("GlobalAveragePool", "maps", "means")
        tail += [("GlobalAveragePool", "means")]
    dense = [list(steps_of([*member.dense, member.stages])) for member in members]
    combined = side_by_side(dense)
    _, (weight, bias), attributes = combined[-1]
    mean = [weight.reshape(len(members), 5, -1).mean(axis=0), bias.reshape(-1, 5).mean(axis=0)]
    steps = [("Flatten", [], {"axis": 1}), *combined[:-1], ("Gemm", mean, attributes)]
    tail += graph.add_steps(steps, "means", "dense", "logits")
    temperature = np.float32(metadata["calibration"]["temperature"])
    graph.add("Div", "logits", "calibrated", [temperature])
    graph.add("Softmax", "calibrated", "probabilities", axis=1)

    outputs = ["logits", "probabilities", "features"]
    outputs += [name for _, name in tail[:-1]] + (["region_weights"] if masked else [])
    if len(members) > 1:
        graph.add("Gemm", tail[-2][1], "member_scores", [weight, bias], **attributes)
        graph.add_reshape("member_scores", "member_logits", (-1, len(members), 5))
        outputs.append("member_logits")
    shapes = _shapes(first, len(members))
    model = graph.model(
        "OrganNetwork",
        [tensor_info("volume", (len(first.given.channels), *first.given.patch_size))],
        [tensor_info(name, shape) for name, shape in zip(outputs, shapes)],
        metadata,
        tail,
        training_cts,
    )
    _check_parity(members, model.SerializeToString())
    write_model(model, Path(path))


def _regions(graph: Graph) -> None:
    """`network.near` and `network.region_weights` of the input's masks."""
    around = {"kernel_shape": [3, 3, 3], "pads": [1] * 6}
    blocks = {"kernel_shape": [*SCALE], "strides": [*SCALE]}
    graph.slice("volume", "masks", 1, 3)
    graph.slice("masks", "liver_mask", 0, 1)
    graph.slice("masks", "spleen_mask", 1, 2)
    graph.join("Max", ["liver_mask", "spleen_mask"], "organs")
    graph.add("MaxPool", "organs", "touched", **blocks)
    graph.add("MaxPool", "touched", "near", **around)

    graph.add("AveragePool", "masks", "share", **blocks)
    graph.slice("share", "liver", 0, 1)
    graph.slice("share", "spleen", 1, 2)
    graph.add("MaxPool", "liver", "grown", **around)
    graph.add("Neg", "liver", "negative")
    graph.add("MaxPool", "negative", "shrunk_negative", **around)
    graph.join("Add", ["grown", "shrunk_negative"], "surface")
    graph.join("Concat", ["liver", "surface", "spleen"], "regions", axis=1)
    graph.add_reshape("regions", "region_voxels", (0, 3, -1))
    graph.add("ReduceSum", "region_voxels", "region_sums", [np.array([2])], keepdims=1)
    graph.add("Add", "region_sums", "region_sizes", [np.float32(1)])
    graph.join("Div", ["region_voxels", "region_sizes"], "region_means")
    graph.add_reshape("share", "organ_voxels", (0, 2, -1))
    graph.add("Div", "organ_voxels", "organ_sums", [np.array(TYPICAL_VOXELS)[:, None]])
    graph.join("Concat", ["region_means", "organ_sums"], "weights", axis=1)
    graph.add("Transpose", "weights", "region_weights", perm=[0, 2, 1])


def _shapes(network: OrganNetwork, members: int) -> list[tuple[int, ...]]:
    """Shapes, without the batch, of the declared outputs, in their order."""
    grid = tuple(n // s for n, s in zip(network.given.patch_size, SCALE))
    voxels = grid[0] * grid[1] * grid[2]
    third, fourth = network.last[0].in_channels * members, network.last[0].out_channels * members
    dense = network.stages.in_features * members
    masked = network.given.masked
    shapes = [(5,), (5,), (third, *grid), (fourth, *grid), (fourth, *grid)]
    pooled = fourth * (REGIONS if masked else 1)
    shapes += [(fourth, voxels), (fourth, REGIONS)] if masked else [(fourth, 1, 1, 1)]
    shapes += [(pooled,), (dense,), (dense,)]
    return [*shapes, *([(voxels, REGIONS)] if masked else []), (members, 5)]


def _check_parity(members: Sequence[OrganNetwork], content: bytes) -> None:
    given = members[0].given
    generator = torch.Generator().manual_seed(0)
    volume = torch.rand(1, len(given.channels), *given.patch_size, generator=generator)
    if given.masked:
        volume[:, 1:] = (functional.avg_pool3d(volume[:, 1:], 5, 1, 2) > 0.5).float()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    exported = session.run(["logits", "features"], {"volume": volume.numpy()})
    with torch.no_grad():
        features = [member.features(volume) for member in members]
        logits = [member.outputs(maps, volume)[0] for member, maps in zip(members, features)]
        expected = [torch.stack(logits).mean(dim=0).numpy(), torch.cat(features, dim=1).numpy()]
    for name, ours, theirs in zip(("logits", "features"), exported, expected):
        difference = np.abs(ours - theirs).max() / max(1.0, np.abs(theirs).max())
        if not difference < TOLERANCE:
            raise ValueError(f"The exported {name} differ from PyTorch's by {difference:.2g}.")
