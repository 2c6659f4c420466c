"""Where the shipped files are: in Slicer beside the module, in a wheel inside the package."""

from pathlib import Path

from .errors import StagingError


def default_model_path(name: str = "LFS.onnx") -> Path:
    """A shipped model: beside the module in Slicer, inside the package when installed."""
    package = Path(__file__).parent
    for folder in (package.parent / "Resources" / "Models", package / "Models"):
        found = folder / name
        if found.is_file():
            return found
    raise StagingError(f"The shipped model {name} is not in {package.parent}: reinstall, please.")
