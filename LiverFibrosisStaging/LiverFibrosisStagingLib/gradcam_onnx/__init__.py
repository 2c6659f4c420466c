"""Grad-CAM for ONNX classifiers in numpy; can be used on its own.

>>> from LiverFibrosisStagingLib.gradcam_onnx import ExplainableModel
>>> model = ExplainableModel("resnet.gradcam.onnx")
>>> location = model.grad_cam(image, target=3)

`make_explainable` prepares the file and `explainable` runs it; `onnx_file` reads it, `backprop` and
`vjp_*` propagate the score's gradient back to the target layer, and `gradcam` computes the map.
Nothing here is specific to the liver; of the rest of the package only `errors` is used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .explainable import ExplainableModel

__all__ = ["ExplainableModel"]


def __getattr__(name: str) -> Any:
    if name != "ExplainableModel":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .explainable import ExplainableModel

    return ExplainableModel
