"""Export of `SignNetwork`s, one or an ensemble, to the ONNX file that the library loads.

The maps are the same in all members and are traced by PyTorch. The layers from their means to the
logits are written as in `lfs.export`: an ensemble's members are groups of units, and every tensor
that the backward pass in numpy reads is an output.
"""

import io
import warnings
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn
from torch.nn import functional

from common.resume import UNKNOWN
from lfs.export import OPSET, Graph, side_by_side, steps_of, tensor_info, write_model
from painted.maps import NAMES, SCALE
from painted.network import SignNetwork

# Slack of the comparison with PyTorch, relative to the largest value if that exceeds 1.
TOLERANCE = 2e-4


def export(
    networks: SignNetwork | Sequence[SignNetwork],
    path: str | Path,
    metadata: dict,
    training_cts: Collection[str] = (UNKNOWN,),
) -> None:
    """Write a network, or an ensemble of networks for the same input, to `path` with `metadata`.

    Outputs as those of `lfs.export.export`. Raises ValueError if ONNX Runtime's logits or feature
    maps differ from PyTorch's.
    """
    members = [networks] if isinstance(networks, SignNetwork) else list(networks)
    members = [member.cpu().eval() for member in members]
    given = members[0].given
    graph = Graph()
    graph.nodes += _maps(members[0])
    graph.add("GlobalAveragePool", "features", "means")
    tail = [("GlobalAveragePool", "means")]
    layers = [list(steps_of([*member.signs, *member.stages])) for member in members]
    combined = side_by_side(layers, one_input=True)  # all members have the same maps
    _, (weight, bias), attributes = combined[-1]
    mean = [weight.reshape(len(members), 5, -1).mean(axis=0), bias.reshape(-1, 5).mean(axis=0)]
    steps = [("Flatten", [], {"axis": 1}), *combined[:-1], ("Gemm", mean, attributes)]
    tail += graph.add_steps(steps, "means", "dense", "logits")
    temperature = np.float32(metadata["calibration"]["temperature"])
    graph.add("Div", "logits", "calibrated", [temperature])
    graph.add("Softmax", "calibrated", "probabilities", axis=1)

    grid = tuple(n // s for n, s in zip(given.patch_size, SCALE))
    shapes = {"logits": (5,), "probabilities": (5,), "features": (len(NAMES), *grid)}
    shapes["means"] = (len(NAMES), 1, 1, 1)
    size = len(NAMES)
    for (op, name), (_, weights, _) in zip(tail[1:-1], steps):
        size = len(weights[1]) if op == "Gemm" else size
        shapes[name] = (size,)
    if len(members) > 1:
        graph.add("Gemm", tail[-2][1], "member_scores", [weight, bias], **attributes)
        graph.add_reshape("member_scores", "member_logits", (-1, len(members), 5))
        shapes["member_logits"] = (len(members), 5)
    model = graph.model(
        "SignNetwork",
        [tensor_info("volume", (3, *given.patch_size))],
        [tensor_info(name, shape) for name, shape in shapes.items()],
        metadata,
        tail,
        training_cts,
    )
    check_parity(members, model.SerializeToString())
    write_model(model, Path(path))


def _maps(network: SignNetwork) -> list[onnx.NodeProto]:
    """The nodes from `volume` to `features`."""

    class Features(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return network.features(x)

    file, x = io.BytesIO(), torch.zeros(1, 3, *network.given.patch_size)
    any_batch = {"volume": {0: "N"}, "features": {0: "N"}}
    with warnings.catch_warnings():  # the newer exporter needs two further packages
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Features(),
            (x,),
            file,
            input_names=["volume"],
            output_names=["features"],
            dynamic_axes=any_batch,
            opset_version=OPSET,
            dynamo=False,
        )
    return list(onnx.load_from_string(file.getvalue()).graph.node)


def check_parity(members: Sequence[SignNetwork], content: bytes) -> None:
    """Raise ValueError if a file's logits or features differ from those of its networks."""
    given = members[0].given
    generator = torch.Generator().manual_seed(0)
    volume = torch.rand(1, 3, *given.patch_size, generator=generator)
    volume[:, :1] = 0.6 + 0.1 * volume[:, :1]
    volume[:, 1:] = (functional.avg_pool3d(volume[:, 1:], 5, 1, 2) > 0.5).float()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    exported = session.run(["logits", "features"], {"volume": volume.numpy()})
    with torch.no_grad():
        features = members[0].features(volume)
        logits = torch.stack([member.outputs(features)[0] for member in members])
    expected = [logits.mean(dim=0).numpy(), features.numpy()]
    for name, ours, theirs in zip(("logits", "features"), exported, expected):
        difference = np.abs(ours - theirs).max() / max(1.0, np.abs(theirs).max())
        if not difference < TOLERANCE:
            raise ValueError(f"The file's {name} differ from PyTorch's by {difference:.2g}.")
