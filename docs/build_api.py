"""Build the API reference from the library's docstrings.

    python docs/build_api.py [FOLDER]      (default: docs/api, which git ignores)

Needs pdoc, and `onnx` for the module that prepares models. Exits with 1 if pdoc warns, for example
because a module cannot be imported.
"""

import importlib
import pkgutil
import sys
import warnings
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "LiverFibrosisStagingLib"
# scene imports Slicer; Models holds the shipped files where the package is installed.
LEFT_OUT = {"scene", "Models", "__main__"}


def build(folder: Path) -> None:
    """Write the reference as HTML, index.html first. Raises RuntimeError if pdoc warns."""
    import pdoc

    _list_modules(importlib.import_module(PACKAGE))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pdoc.pdoc(PACKAGE, output_directory=folder)
    found = [str(warning.message) for warning in caught if warning.category is UserWarning]
    if found:
        raise RuntimeError("\n".join(found))


def _list_modules(package: ModuleType) -> None:
    """Add a package's modules to its `__all__`, without which pdoc does not document them.

    Names that the package imports only when they are used are imported, so that pdoc finds them.
    """
    for name in getattr(package, "__all__", ()):
        setattr(package, name, getattr(package, name))
    for module in pkgutil.iter_modules(package.__path__):
        if module.name in LEFT_OUT:
            continue
        if hasattr(package, "__all__") and module.name not in package.__all__:
            package.__all__.append(module.name)
        if module.ispkg:
            _list_modules(importlib.import_module(f"{package.__name__}.{module.name}"))


def main(arguments: list[str]) -> int:
    """Build into the folder that is given, or into docs/api."""
    sys.path.insert(0, str(ROOT / "LiverFibrosisStaging"))
    folder = Path(arguments[0]) if arguments else ROOT / "docs" / "api"
    try:
        build(folder)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"API reference: {folder / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
