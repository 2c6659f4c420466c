"""Location of the shipped models: beside the module in Slicer, inside the package in a wheel."""

from pathlib import Path

from .errors import StagingError


def default_model_path(name: str = "LFS.onnx") -> Path:
    """The path of a shipped model. Raises StagingError if it is missing."""
    package = Path(__file__).parent
    for folder in (package.parent / "Resources" / "Models", package / "Models"):
        found = folder / name
        if found.is_file():
            return found
    raise StagingError(f"The shipped model {name} is missing in {package.parent}; reinstall.")
