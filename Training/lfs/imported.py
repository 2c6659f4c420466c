"""Exported ONNX files read back: the networks that a training can start from.

A file of `lfs.export` or `painted.export` is an `LFSNetwork` or a `SignNetwork`, or an ensemble of
them, with the normalisations folded into the weights. This module has what both kinds share, and
`load` for the first; `painted.imported` reads the second.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from lfs.export import check_parity
from lfs.network import LFSNetwork
from LiverFibrosisStagingLib.card import Card
from LiverFibrosisStagingLib.errors import StagingError
from LiverFibrosisStagingLib.gradcam_onnx.onnx_file import read_onnx
from LiverFibrosisStagingLib.model import read_card

Network = TypeVar("Network", bound=nn.Module)
TRAINABLE = "LFSNetwork", "SignNetwork"
NEEDED = (
    "an LFSNetwork (train.py writes LFS.onnx and LFS_single.onnx) or a SignNetwork (the shipped "
    "LFS.onnx, or what train_insilico.py writes) is needed"
)


class Imported:
    """The weights of a file by name, its card and the number of its members."""

    def __init__(self, path: str | Path) -> None:
        """Raises StagingError for a file that is not a model, or not of a kind in TRAINABLE."""
        self.path = Path(path)
        read_onnx(self.path)  # refuses a damaged file in words
        self.graph = onnx.load(self.path).graph
        if self.graph.name not in TRAINABLE:
            raise StagingError(
                f"{self.path}: the network is a {self.graph.name or 'graph without a name'}, whose "
                f"training cannot be continued; {NEEDED}."
            )
        self.card: Card = read_card(self.path)
        self.weights = {w.name: numpy_helper.to_array(w) for w in self.graph.initializer}
        last = self.weights.get("member_scores_weight")
        self.members = 1 if last is None else len(last) // len(self.card.stages)

    def layers(self, operator: str) -> list[tuple[np.ndarray, np.ndarray]]:
        """Weight and bias of the nodes with this operator, in order; the last one is the members'.

        The mean of the members' last layers, which gives the ensemble's logits, is left out.
        """
        names = [node.output[0] for node in self.graph.node if node.op_type == operator]
        if operator == "Gemm" and self.members > 1:
            names.remove("logits")
        return [(self.weights[f"{name}_weight"], self.weights[f"{name}_bias"]) for name in names]

    def blocks(
        self, layers: Sequence[tuple[np.ndarray, np.ndarray]], member: int, shared: int
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """A member's part of dense layers, of which the first `shared` have a common input."""
        found = []
        for number, (weight, bias) in enumerate(layers):
            rows = np.array_split(np.arange(len(bias)), self.members)[member]
            columns = np.arange(weight.shape[1])
            if number >= shared:
                columns = np.array_split(columns, self.members)[member]
            found.append((tensor(weight[np.ix_(rows, columns)]), tensor(bias[rows])))
        return found

    def networks(
        self,
        kind: str,
        member: Callable[["Imported", int], Network],
        check_parity: Callable[[Sequence[Network], bytes], None],
    ) -> list[Network]:
        """The members; kind: one of TRAINABLE. member: makes the network with this number.

        check_parity: raises ValueError if PyTorch's outputs are not the file's. Raises StagingError
        for a file of another kind, with other layers, or without parity.
        """
        if self.graph.name != kind:
            raise StagingError(f"{self.path}: the network is a {self.graph.name}; {NEEDED}.")
        try:
            found = [member(self, number) for number in range(self.members)]
            check_parity(found, self.path.read_bytes())
        except (KeyError, ValueError, IndexError, RuntimeError, TypeError) as error:
            raise StagingError(
                f"{self.path}: the {kind} is not laid out as this version exports it ({error}); "
                f"{NEEDED}."
            ) from None
        return found


class FixedNorm3d(nn.BatchNorm3d):
    """A normalisation that was folded into weights: an identity whose weight and bias are trained.

    It keeps its statistics. With those of the batches, the first step would change what the network
    has learned.
    """

    def train(self, mode: bool = True) -> "FixedNorm3d":
        """Stays in evaluation mode."""
        return super().train(False)


class FixedNorm1d(nn.BatchNorm1d):
    """The same before a dense layer."""

    def train(self, mode: bool = True) -> "FixedNorm1d":
        """Stays in evaluation mode."""
        return super().train(False)


def load(path: str | Path) -> list[LFSNetwork]:
    """The `LFSNetwork`s of an exported file, in evaluation mode; their mean logits are the file's.

    Raises StagingError for another file, also if PyTorch's logits or features are not the file's.
    """
    return Imported(path).networks("LFSNetwork", _member, check_parity)


def _member(file: Imported, number: int) -> LFSNetwork:
    convolutions = [
        tuple(tensor(np.array_split(array, file.members)[number]) for array in layer)
        for layer in file.layers("Conv")
    ]
    dense = file.layers("Gemm")
    (pool,) = (node for node in file.graph.node if node.op_type == "AveragePool")
    window = next(a.ints for a in pool.attribute if a.name == "kernel_shape")
    last = [n // s for n, s in zip(file.card.patch_size, (4, 8, 8))]
    network = LFSNetwork(
        file.card.patch_size,
        tuple(len(bias) for _, bias in convolutions),
        pooled=tuple(n // size for n, size in zip(last, window)),
        dense=len(dense[0][1]) // file.members,
        mean=float(file.weights["centred_weight"]),
        std=float(file.weights["scaled_weight"]),
        limit=float(file.weights["standardised_bias"]),
    )
    parts = [network.head, network.tail]
    for part in parts:
        for place, layer in enumerate(part):
            if isinstance(layer, nn.BatchNorm3d | nn.BatchNorm1d):
                part[place] = fixed(layer.num_features, isinstance(layer, nn.BatchNorm3d))
    layers = [layer for part in parts for layer in part]
    norms = [layer for layer in layers if isinstance(layer, FixedNorm3d)]
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    kernels = [layer for layer in layers if isinstance(layer, nn.Conv3d)]
    with torch.no_grad():
        for layer, norm, (weight, bias) in zip(kernels, norms, convolutions, strict=True):
            layer.weight.copy_(weight)
            norm.bias.copy_(bias)
        copy_dense(linear, file.blocks(dense, number, shared=0))
    return network.eval()


def fixed(channels: int, volume: bool = False) -> FixedNorm3d | FixedNorm1d:
    """An identity in place of a normalisation."""
    norm = FixedNorm3d(channels) if volume else FixedNorm1d(channels)
    norm.running_var.fill_(1 - norm.eps)
    return norm.eval()


def copy_dense(
    layers: Sequence[nn.Linear], blocks: Sequence[tuple[torch.Tensor, torch.Tensor]]
) -> None:
    """Set weights and biases; ValueError if the numbers of layers differ."""
    with torch.no_grad():
        for layer, (weight, bias) in zip(layers, blocks, strict=True):
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)


def tensor(array: np.ndarray) -> torch.Tensor:
    """A copy that can be written."""
    return torch.from_numpy(np.array(array, np.float32))
