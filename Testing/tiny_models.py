"""Model files of a few hundred bytes that the library loads: a staging network, a classifier that
was prepared for Grad-CAM, and a network that segments.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from LiverFibrosisStagingLib.card import METADATA_KEY
from LiverFibrosisStagingLib.gradcam_onnx.explainable import EXPLAINABLE_KEY
from LiverFibrosisStagingLib.imaging.segmentation import METADATA_KEY as SEGMENTATION_KEY
from LiverFibrosisStagingLib.stages import RESEARCH_USE

PATCH = (4, 8, 6)
CARD = {
    "contract": 1,
    "name": "tiny",
    "stages": ["F0", "F1", "F2", "F3", "F4"],
    "window_hu": [-125, 225],
    "spacing_mm": [4, 2, 2],
    "patch_size": list(PATCH),
    "patch_overlap": 0.5,
    "target_layer": "features",
    "tail": ["MaxPool", "Conv", "LeakyRelu", "AveragePool", "Flatten", "Gemm"],
    "intended_use": RESEARCH_USE,
    "smoothing_mm": 2,
    "calibration": {
        "temperature": 0.5,
        "operating_points": {"significant": 0.3, "advanced": 0.4, "cirrhosis": 0.5},
    },
    "reference": {
        "source": "40 cases",
        "percentiles": [2.5, 25, 50, 75, 97.5],
        "stages": {
            "F4": {"cases": 40, "liver": [0.5, 0.8, 1, 1.2, 2], "rest": [0.1, 0.2, 0.3, 0.4, 0.5]}
        },
    },
    "training": {
        "data": "no patient",
        "cases_per_stage": [3, 1, 1, 1, 2],
        "date": "2026-01-01",
        "code_version": "0.1.0",
        "folds": 5,
        "auc": {"cirrhosis": {"value": 0.9, "low": 0.8, "high": 0.95}},
        "evaluated_on": "8 cases",
    },
}
EXPLAINABLE = {
    "version": 1,
    "target_layer": "relu",
    "scores": "scores",
    "channel_axis": 1,
    "grid": None,
    "tail": ["GlobalAveragePool", "Flatten", "Gemm"],
}
SEGMENTATION_CARD = {
    "contract": 1,
    "name": "tiny",
    "classes": ["background", "liver", "spleen"],
    "window_hu": [-150, 250],
    "spacing_mm": [4, 4, 4],
    "multiple_of": 2,
    "intended_use": RESEARCH_USE,
    "training": {"data": "no patient", "cases": 6},
}

_node = helper.make_node


def staging_model(card: dict[str, Any] | None = None) -> onnx.ModelProto:
    """Two convolutions and a dense layer, with every operator of the shipped model's tail."""
    random = np.random.default_rng(5)
    weights = {
        "w1": random.normal(size=(2, 1, 3, 3, 3)),
        "b1": random.normal(size=2),
        "w2": random.normal(size=(3, 2, 1, 3, 3)),
        "dense": random.normal(size=(5, 12)),
        "bias": random.normal(size=5),
        "temperature": np.array(0.5),
    }
    flat = {"kernel_shape": [1, 2, 2], "strides": [1, 2, 2]}
    nodes = [
        _node("Conv", ["volume", "w1", "b1"], ["conv"], pads=[1] * 6),
        _node("LeakyRelu", ["conv"], ["features"], alpha=0.01),
        _node("MaxPool", ["features"], ["pooled"], **flat),
        _node("Conv", ["pooled", "w2"], ["conv2"], pads=[0, 1, 1, 0, 1, 1]),
        _node("LeakyRelu", ["conv2"], ["relu2"], alpha=0.01),
        _node("AveragePool", ["relu2"], ["mean"], kernel_shape=[1, 4, 3], strides=[1, 4, 3]),
        _node("Flatten", ["mean"], ["flat"], axis=1),
        _node("Gemm", ["flat", "dense", "bias"], ["logits"], transB=1),
        _node("Div", ["logits", "temperature"], ["calibrated"]),
        _node("Softmax", ["calibrated"], ["probabilities"], axis=1),
    ]
    outputs = {
        "logits": (5,),
        "probabilities": (5,),
        "features": (2, *PATCH),
        "pooled": (2, 4, 4, 3),
        "conv2": (3, 4, 4, 3),
        "relu2": (3, 4, 4, 3),
        "mean": (3, 4, 1, 1),
        "flat": (12,),
    }
    return _model(nodes, ("volume", (1, *PATCH)), outputs, weights, METADATA_KEY, card or CARD)


def masked_model(inside: bool) -> onnx.ModelProto:
    """A network whose expected stage rises with the CT's sum in the liver, or outside of it.

    Contract 2, masks as channels; voxels of 8 mm.
    """
    size = (16, 32, 48)
    card = {key: CARD[key] for key in ("name", "stages", "window_hu", "intended_use")} | {
        "contract": 2,
        "channels": ["ct", "liver", "spleen"],
        "patch_size": list(size),
        "spacing_mm": [8, 8, 8],
        "patch_overlap": 0.5,
        "target_layer": "features",
        "tail": ["GlobalAveragePool", "Flatten", "Gemm"],
    }
    stages, centre = np.arange(5.0), 0.06 if inside else 0.15
    weights = {
        "w": np.ones((1, 1, 1, 1, 1)),
        "dense": 50 * stages[:, None],
        "bias": -50 * centre * stages,
        "one": np.ones(1),
    }
    nodes = [
        _node("Split", ["volume"], ["ct", "liver", "spleen"], axis=1),
        _node("Sub", ["one", "liver"], ["outside"]),
        _node("Mul", ["ct", "liver" if inside else "outside"], ["seen"]),
        _node("Conv", ["seen", "w"], ["conv"]),
        _node("Relu", ["conv"], ["features"]),
        _node("GlobalAveragePool", ["features"], ["mean"]),
        _node("Flatten", ["mean"], ["flat"], axis=1),
        _node("Gemm", ["flat", "dense", "bias"], ["logits"], transB=1),
        _node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    outputs = {"logits": (5,), "probabilities": (5,), "features": (1, *size)}
    outputs |= {"mean": (1, 1, 1, 1), "flat": (1,)}
    return _model(nodes, ("volume", (3, *size)), outputs, weights, METADATA_KEY, card)


def explainable_model(described: dict[str, Any] | None = None) -> onnx.ModelProto:
    """A classifier of small pictures [N, 1, 6, 5]."""
    random = np.random.default_rng(6)
    weights = {"w": random.normal(size=(4, 1, 3, 3)), "dense": random.normal(size=(4, 3))}
    nodes = [
        _node("Conv", ["image", "w"], ["conv"], pads=[1] * 4),
        _node("Relu", ["conv"], ["relu"]),
        _node("GlobalAveragePool", ["relu"], ["mean"]),
        _node("Flatten", ["mean"], ["flat"]),
        _node("Gemm", ["flat", "dense"], ["scores"]),
    ]
    outputs = {"scores": (3,), "relu": (4, 6, 5), "mean": (4, 1, 1)}
    described = described or EXPLAINABLE
    return _model(nodes, ("image", (1, 6, 5)), outputs, weights, EXPLAINABLE_KEY, described)


def segmentation_model(card: dict[str, Any] | None = None) -> onnx.ModelProto:
    """One convolution that gives every voxel three probabilities."""
    random = np.random.default_rng(7)
    nodes = [
        _node("Conv", ["volume", "w"], ["conv"], pads=[1] * 6),
        _node("Softmax", ["conv"], ["probabilities"], axis=1),
    ]
    given, outputs = ("volume", (1, "D", "H", "W")), {"probabilities": (3, "D", "H", "W")}
    weights = {"w": random.normal(size=(3, 1, 3, 3, 3))}
    return _model(nodes, given, outputs, weights, SEGMENTATION_KEY, card or SEGMENTATION_CARD)


def written(
    model: onnx.ModelProto, path: Path, change: Callable[[onnx.ModelProto], None] | None = None
) -> Path:
    """The model in a file, with a change to it."""
    if change is not None:
        change(model)
    path.write_bytes(model.SerializeToString())
    return path


def _model(
    nodes: list[onnx.NodeProto],
    given: tuple[str, tuple],
    outputs: dict[str, tuple],
    weights: dict[str, np.ndarray],
    key: str,
    described: dict[str, Any],
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "tiny",
        [_info(*given)],
        [_info(name, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(v.astype(np.float32), n) for n, v in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {key: json.dumps(described)})
    onnx.checker.check_model(model, full_check=True)
    return model


def _info(name: str, shape: tuple) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *shape])
