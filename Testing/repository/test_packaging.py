"""Packaging: file lists are complete, metadata agree, and imports are lazy."""

import ast
import importlib.metadata
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import LiverFibrosisStagingLib

ROOT = Path(__file__).resolve().parents[2]
MODULE = ROOT / "LiverFibrosisStaging"
SOURCE = (MODULE / "LiverFibrosisStaging.py").read_text(encoding="utf-8")
SCENE = MODULE / "LiverFibrosisStagingLib" / "scene"
UI = MODULE / "Resources" / "UI" / "LiverFibrosisStaging.ui"
CMAKE = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
LARGEST = 20e6  # bytes; the whole clone may have 100 MB in Slicer's index
# Slicer's catalogue takes a category from a closed list.
CATEGORIES = {"Quantification", "Analysis", "Segmentation", "Informatics"}
# Of the EXTENSION_ variables; in lower case, the keywords of the s4ext.
SHARED_NAMES = (
    "HOMEPAGE",
    "CATEGORY",
    "CONTRIBUTORS",
    "DESCRIPTION",
    "ICONURL",
    "SCREENSHOTURLS",
    "DEPENDS",
)


def listed(name):
    """Files in a list of the module's CMakeLists.txt."""
    text = (MODULE / "CMakeLists.txt").read_text(encoding="utf-8")
    body = re.search(rf"set\({name}\s([^)]*)\)", text)[1]
    return sorted(body.replace("${MODULE_NAME}", "LiverFibrosisStaging").split())


def listed_requirements():
    lines = (MODULE / "Resources" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def on_disk(*patterns):
    found = [path for pattern in patterns for path in MODULE.glob(pattern) if path.is_file()]
    return sorted(
        path.relative_to(MODULE).as_posix()
        for path in found
        if "__pycache__" not in path.parts and not path.name.startswith(".")
    )


def extension(name):
    """Value of an EXTENSION_ variable, as the index's checker reads it: one quoted string."""
    return re.search(rf'set\(EXTENSION_{name} "([^"]*)"\)', CMAKE)[1]


def s4ext():
    lines = (ROOT / "LiverFibrosisStaging.s4ext").read_text(encoding="utf-8").splitlines()
    words = [line.partition(" ") for line in lines if line and not line.startswith("#")]
    return {keyword: value for keyword, _, value in words}


def test_cmake_lists_every_script_and_nothing_else():
    assert listed("MODULE_PYTHON_SCRIPTS") == on_disk("*.py", "LiverFibrosisStagingLib/**/*.py")


def test_cmake_lists_every_resource_and_nothing_else():
    assert listed("MODULE_PYTHON_RESOURCES") == on_disk("Resources/**/*")


def test_wheel_has_every_package_and_the_resources_of_the_library():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    packages = re.findall(r'"([\w.]+)"', re.search(r"^packages = \[(.*?)\]", text, re.M | re.S)[1])
    found = on_disk("LiverFibrosisStagingLib/**/__init__.py")
    names = [path.removesuffix("/__init__.py").replace("/", ".") for path in found]
    folders = ("Models", "Published", "ReportTemplate")
    data = [f"LiverFibrosisStagingLib.{folder}" for folder in folders]
    assert sorted(packages) == sorted([*names, *data])
    # Where the file system ignores case, two such packages would be one folder.
    assert len({package.lower() for package in packages}) == len(packages)


def test_the_package_offers_its_public_names_on_first_use():
    assert "ExplainableModel" in LiverFibrosisStagingLib.__all__
    for name in LiverFibrosisStagingLib.__all__:
        assert getattr(LiverFibrosisStagingLib, name).__name__ == name
    from LiverFibrosisStagingLib.gradcam_onnx import ExplainableModel

    assert LiverFibrosisStagingLib.ExplainableModel is ExplainableModel
    with pytest.raises(AttributeError, match="no attribute 'explainable_model'"):
        _ = LiverFibrosisStagingLib.explainable_model


def test_cmake_s4ext_and_catalogue_entry_agree():
    entry = json.loads((ROOT / "LiverFibrosisStaging.json").read_text(encoding="utf-8"))
    description = s4ext()
    assert re.search(r"project\((\w+)\)", CMAKE)[1] == "LiverFibrosisStaging"
    for name in SHARED_NAMES:
        assert description[name.lower()] == extension(name), name
    assert entry["category"] == extension("CATEGORY")
    assert entry["scm_url"] == description["scmurl"] == extension("HOMEPAGE")
    assert entry["scm_revision"] == description["scmrevision"]
    assert entry["scm_type"] == description["scm"]
    assert entry["build_subdirectory"] == description["build_subdirectory"]
    assert str(entry["tier"]) == description["tier"]
    assert str(int(entry["enabled"])) == description["enabled"]
    assert entry["build_dependencies"] == [] and extension("DEPENDS") == "NA"


def test_catalogue_entry_is_one_that_the_index_takes():
    text = (ROOT / "LiverFibrosisStaging.json").read_bytes()
    entry = json.loads(text)
    assert b"\r" not in text
    assert entry["category"] in CATEGORIES
    assert re.fullmatch(r"https://github\.com/[\w-]+/Slicer\w+", entry["scm_url"])
    allowed = (
        "$schema build_dependencies build_subdirectory category enabled scm_revision scm_type "
        "scm_url tier dicom_support_rule"
    )
    assert set(entry) <= set(allowed.split())
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").lstrip().startswith("Apache License")


def test_urls_of_pictures_name_files_that_are_there():
    base = extension("HOMEPAGE").replace("github.com", "raw.githubusercontent.com") + "/main/"
    for url in [extension("ICONURL"), *extension("SCREENSHOTURLS").split()]:
        assert url.startswith(base)
        assert (ROOT / url.removeprefix(base)).is_file(), url
    for icon in (
        ROOT / "LiverFibrosisStaging.png",
        MODULE / "Resources/Icons/LiverFibrosisStaging.png",
    ):
        data = icon.read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        assert int.from_bytes(data[16:20], "big") == int.from_bytes(data[20:24], "big") == 128


@pytest.mark.parametrize(
    "statement",
    [
        "import LiverFibrosisStagingLib",
        "import slicer_host; slicer_host.import_module()",
        "import slicer_host; slicer_host.import_module().LiverFibrosisStagingLogic()",
    ],
)
def test_importing_loads_nothing_heavy(statement):
    code = (
        f"import sys; sys.path[:0] = {[str(MODULE), str(ROOT / 'Testing/hosts')]!r}; {statement}; "
        "print([name for name in ('onnxruntime', 'SimpleITK', 'sklearn', 'torch', 'monai', 'onnx') "
        "if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_panel_names_parameters_and_widgets_that_exist():
    tree = ElementTree.parse(UI)
    bound = {
        element.findtext("string")
        for element in tree.iter("property")
        if element.get("name") == "SlicerParameterName"
    }
    (parameters,) = (
        node
        for node in ast.parse((SCENE / "logic.py").read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and node.name.endswith("ParameterNode")
    )
    fields = {node.target.id for node in parameters.body if isinstance(node, ast.AnnAssign)}
    assert bound == fields
    widgets = {element.get("name") for element in tree.iter("widget")}
    code = "".join(path.read_text(encoding="utf-8") for path in SCENE.glob("*.py"))
    assert set(re.findall(r"\bui\.(\w+)", code)) <= widgets
    assert {element.text for element in tree.iter("tabstop")} <= widgets
    # Who sends and who receives a signal in the .ui is there as well.
    for connection in tree.iter("connection"):
        assert {connection.findtext("sender"), connection.findtext("receiver")} <= widgets


def test_module_file_is_thin():
    assert len(SOURCE.splitlines()) < 150
    classes = {node.name for node in ast.parse(SOURCE).body if isinstance(node, ast.ClassDef)}
    assert classes == {f"LiverFibrosisStaging{kind}" for kind in ("", "Widget", "Logic", "Test")}


def test_every_control_has_a_tooltip_and_a_mnemonic_of_its_own():
    tree = ElementTree.parse(UI)
    properties = {
        widget.get("name"): {p.get("name"): p.findtext("*") for p in widget.findall("property")}
        for widget in tree.iter("widget")
    }
    reached = {values["buddy"] for values in properties.values() if "buddy" in values}
    for element in tree.iter("tabstop"):
        values = properties[element.text]
        assert "toolTip" in values, element.text
        assert "&" in values.get("text", "") or element.text in reached, element.text
    letters = [
        values["text"][values["text"].index("&") + 1].lower()
        for values in properties.values()
        if "&" in (values.get("text") or "")
    ]
    assert len(letters) == len(set(letters)), sorted(letters)


def test_resources_are_small():
    for folder in (MODULE / "Resources", ROOT / "Resources"):
        for path in folder.rglob("*"):
            assert path.stat().st_size < LARGEST, path


def test_version_is_the_same_everywhere():
    import LiverFibrosisStagingLib

    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r'^version = "(.+)"$', text, re.M)[1] == LiverFibrosisStagingLib.__version__


def test_requirements_for_slicer_have_no_exact_version_and_no_numpy():
    wanted = listed_requirements()
    assert [requirement.name for requirement in wanted] == ["onnxruntime"]
    for requirement in wanted:
        assert {specifier.operator for specifier in requirement.specifier} == {">="}
        assert importlib.metadata.version(requirement.name) in requirement.specifier


def test_requirements_agree_for_slicer_pip_and_run():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for_pip = ast.literal_eval(re.search(r"^dependencies = (\[.*?\])$", text, re.M | re.S)[1])
    spec = importlib.util.spec_from_file_location("run", ROOT / "run.py")
    run = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(run)
    assert for_pip == run.RUNTIME
    assert {str(wanted) for wanted in listed_requirements()} <= set(for_pip)


def test_onnxruntime_supports_numpy_2():
    (wanted,) = (line for line in listed_requirements() if line.name == "onnxruntime")
    for release, numpy in (("1.16.3", 1), ("1.18.1", 1), ("1.19.0", 2), ("1.32.0", 2)):
        assert (release in wanted.specifier) == (numpy == 2), release


@pytest.mark.parametrize("command", [["check"], ["format", "--check", "--exclude", "*.md"]])
def test_ruff_finds_nothing(command):
    ruff = shutil.which("ruff", path=str(Path(sys.executable).parent)) or shutil.which("ruff")
    done = subprocess.run([ruff, *command, str(ROOT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
