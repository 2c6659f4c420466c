"""Rules on which part of the library may import which; see docs/architecture.md."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "LiverFibrosisStagingLib"
LIBRARY = ROOT / "LiverFibrosisStaging" / PACKAGE
TRAINING = ROOT / "Training"

# Modules at the package's root that know nothing of a staged CT.
GROUND = {"errors", "files", "resources", "settings", "stages"}
# Wing -> what its modules may import besides each other: other wings, or modules at the root.
MAY_IMPORT = {
    "gradcam_onnx": {"errors"},
    "imaging": {"errors", "resources", "settings", "training_record", "gradcam_onnx"},
    "report": {
        "errors",
        "files",
        "stages",
        "resources",
        "settings",
        "imaging",
        "signs",
        "location_map",
    },
    "signs": {"errors", "resources", "imaging"},
    "dicom_output": {"errors", "settings", "stages", "imaging", "signs"},
    "evaluation": {
        "errors",
        "files",
        "fingerprint",
        "stages",
        "resources",
        "report",
        "signs",
        "model",
        "batch",
    },
}
MAY_IMPORT_ALL_BUT_SCENE = {"batch"}
# The same for the packages of Training/; its commands, the scripts at the top, may import all.
TRAINING_MAY_IMPORT: dict[str, set[str]] = {
    "common": set(),
    "cases": {"common"},
    "public": {"common", "cases"},
    "lfs": {"common", "cases"},
    "insilico": {"common"},
    "painted": {"common", "insilico", "lfs", "evaluation"},
    "vnet": {"common"},
    "evaluation": {"common", "cases"},
    "finetuning": {"common", "cases", "lfs", "painted", "evaluation"},
    "runs": {"common", "cases", "lfs", "evaluation", "finetuning"},
}
# Third-party packages -> where they may be imported, by wing or module.
ONLY_IN = {
    "slicer": {"scene"},
    "qt": {"scene"},
    "ctk": {"scene"},
    "SampleData": {"scene"},
    "onnxruntime": {"gradcam_onnx", "staging"},
    "vtkmodules": {"scene", "report", "analysis"},
    "onnx": {"gradcam_onnx.make_explainable"},
    "pydicom": {"dicom_output"},
    "highdicom": {"dicom_output"},
    "torch": set(),
    "monai": set(),
    "matplotlib": {"report.pdf", "evaluation.figures"},
    "sklearn": {"evaluation"},
    "scipy": {"evaluation"},
    "pyarrow": {"batch.table_files"},
    "joblib": {"batch.workers"},
    "distributed": {"batch.cluster"},
    "tqdm": {"progress_line"},
}


def modules(folder: Path) -> dict[str, Path]:
    """Dotted names of the modules below a folder."""
    paths = [path for path in folder.rglob("*.py") if "__pycache__" not in path.parts]
    return {
        ".".join(path.relative_to(folder).with_suffix("").parts).removesuffix(".__init__"): path
        for path in paths
    }


def imports(name: str, path: Path, package: str) -> set[str]:
    """What a module imports, anywhere in it, as absolute dotted names."""
    found = set()
    parents = [package, *name.split(".")]
    if path.name == "__init__.py":
        parents = [*parents, "__init__"] if name != "__init__" else [package, "__init__"]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = parents[: -node.level] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def graph(folder: Path, package: str) -> dict[str, set[str]]:
    """Modules of a package -> the modules of it that each imports."""
    known = modules(folder)
    edges: dict[str, set[str]] = {}
    for name, path in known.items():
        edges[name] = set()
        for target in imports(name, path, package):
            if not target.startswith(package + "."):
                continue
            inside = target.removeprefix(package + ".")
            while inside and inside not in known:
                inside = inside.rpartition(".")[0]
            if inside and inside != name:
                edges[name].add(inside)
    return edges


def wing(module: str) -> str:
    return module.partition(".")[0]


def cycle(edges: dict[str, set[str]]) -> list[str]:
    """One circle of imports; empty if there is none."""
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for target in sorted(edges.get(module, ())):
            if found := visit(target, [*path, module]):
                return found
        done.add(module)
        return []

    return next((found for module in sorted(edges) if (found := visit(module, []))), [])


@pytest.fixture(scope="module")
def library() -> dict[str, set[str]]:
    return graph(LIBRARY, PACKAGE)


def test_no_circles(library):
    # The package's own __init__ hands out names of all wings, when they are asked for.
    assert cycle({m: t for m, t in library.items() if m != "__init__"}) == []


def test_wings_import_only_what_they_may(library):
    wings = {path.name for path in LIBRARY.iterdir() if (path / "__init__.py").is_file()}
    assert wings == {*MAY_IMPORT, *MAY_IMPORT_ALL_BUT_SCENE, "scene"}
    for module, targets in library.items():
        allowed = MAY_IMPORT.get(wing(module))
        if allowed is not None:
            assert {wing(t) for t in targets} <= {*allowed, wing(module), "__init__"}, module


def test_nothing_outside_imports_the_scene(library):
    for module, targets in library.items():
        if wing(module) != "scene":
            assert "scene" not in {wing(target) for target in targets}, module


def test_root_modules_import_root_modules_only(library):
    for module in GROUND:
        assert library[module] <= GROUND, module


@pytest.mark.parametrize("package", ONLY_IN)
def test_packages_are_imported_where_they_may(package):
    for name, path in modules(LIBRARY).items():
        used = {target.partition(".")[0] for target in imports(name, path, PACKAGE)}
        if package in used:
            assert {name, wing(name)} & ONLY_IN[package], name


@pytest.fixture(scope="module")
def training() -> dict[str, set[str]]:
    edges: dict[str, set[str]] = {}
    known = modules(TRAINING)
    for name, path in known.items():
        found = set()
        for target in imports(name, path, ""):
            while target and target not in known:
                target = target.rpartition(".")[0]
            found |= {target} - {"", name}
        edges[name] = found
    return edges


def test_training_has_no_circles_and_no_path_tricks(training):
    for path in TRAINING.rglob("*.py"):
        assert "sys.path" not in path.read_text(encoding="utf-8"), path
    assert cycle(training) == []


def test_training_has_only_commands_at_its_top(training):
    for path in TRAINING.glob("*.py"):
        assert "main" in path.read_text(encoding="utf-8").rsplit("\nif __name__", 1)[-1], path
    assert not {"data", "fit", "metrics"} & set(training)


def test_training_packages_import_only_what_they_may_and_no_command(training):
    packages = {path.parent.name for path in TRAINING.glob("*/__init__.py")}
    assert packages == set(TRAINING_MAY_IMPORT)
    for module, targets in training.items():
        if wing(module) in packages:
            allowed = {*TRAINING_MAY_IMPORT[wing(module)], wing(module)}
            assert {wing(target) for target in targets} <= allowed, module


def test_the_check_sees_lazy_and_typing_imports(tmp_path):
    (tmp_path / "a.py").write_text("def f():\n    from .b import x\n", encoding="utf-8")
    (tmp_path / "b.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from . import a\n",
        encoding="utf-8",
    )
    assert cycle(graph(tmp_path, "p")) == ["a", "b", "a"]
