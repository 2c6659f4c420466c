"""Location of the shipped files: beside the module in Slicer, inside the package in a wheel."""

from pathlib import Path

from .errors import StagingError


def default_model_path(name: str = "LFS.onnx") -> Path:
    """The path of a shipped model. Raises StagingError if it is missing."""
    return _shipped("Models", name, "model")


def published_signs_path() -> Path:
    """The path of the published values of signs. Raises StagingError if it is missing."""
    return _shipped("Published", "signs.json", "file")


def report_template(name: str) -> str:
    """Text of a part of the report's template. Raises StagingError if it is missing."""
    return _shipped("ReportTemplate", name, "file").read_text(encoding="utf-8")


def _shipped(folder: str, name: str, kind: str) -> Path:
    package = Path(__file__).parent
    for parent in (package.parent / "Resources", package):
        found = parent / folder / name
        if found.is_file():
            return found
    raise StagingError(f"The shipped {kind} {name} is missing in {package.parent}; reinstall.")
