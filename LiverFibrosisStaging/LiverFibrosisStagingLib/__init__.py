"""Staging of liver fibrosis (F0 to F4) on portal-venous CT with location maps. Research use only.

>>> from LiverFibrosisStagingLib import stage
>>> result = stage("ct.nii.gz")  # or with liver="liver.nii.gz", spleen="spleen.nii.gz"
>>> result.stage, result.probabilities
>>> result.save("result")

Names are imported on first use: importing the package imports neither SimpleITK nor onnxruntime, so
that Slicer starts quickly, and without them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .batch.run import stage_folder
    from .errors import Cancelled, StagingError
    from .gradcam_onnx.explainable import ExplainableModel
    from .imaging.reading import read_ct, read_mask
    from .imaging.segmentation import segment_organs
    from .model import StagingModel
    from .result import StagingResult
    from .staging import stage

__version__ = "0.1.0"
__all__ = [
    "Cancelled",
    "ExplainableModel",
    "StagingError",
    "StagingModel",
    "StagingResult",
    "read_ct",
    "read_mask",
    "segment_organs",
    "stage",
    "stage_folder",
]

_MODULES = {
    "Cancelled": "errors",
    "ExplainableModel": "gradcam_onnx.explainable",
    "StagingError": "errors",
    "StagingModel": "model",
    "StagingResult": "result",
    "read_ct": "imaging.reading",
    "read_mask": "imaging.reading",
    "segment_organs": "imaging.segmentation",
    "stage": "staging",
    "stage_folder": "batch.run",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value
