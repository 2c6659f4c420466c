"""`SignNetwork`s of an exported ONNX file, such as the shipped LFS.onnx, read back."""

from pathlib import Path

import torch

from lfs.imported import Imported, copy_dense, fixed
from painted.export import check_parity
from painted.maps import NAMES
from painted.network import Input, SignNetwork


def load(path: str | Path) -> list[SignNetwork]:
    """The `SignNetwork`s of a file, in evaluation mode; their mean logits are the file's.

    Raises StagingError for another file, also if PyTorch's logits or maps are not the file's.
    """
    return Imported(path).networks("SignNetwork", _member, check_parity)


def _member(file: Imported, number: int) -> SignNetwork:
    card = file.card
    given = Input(
        patch_size=card.patch_size,
        fill_mm=card.fill["beyond_mm"],
        fill_hu=card.fill["hu"],
        window_hu=card.window_hu,
        smoothing_mm=card.smoothing_mm,
    )
    network = SignNetwork(given)
    network.signs[0] = fixed(len(NAMES))
    linear = [
        layer
        for part in (network.signs, network.stages)
        for layer in part
        if isinstance(layer, torch.nn.Linear)
    ]
    copy_dense(linear, file.blocks(file.layers("Gemm"), number, shared=1))
    return network.eval()
