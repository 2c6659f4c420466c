"""Create .venv, install what a task needs, and run the task.

python3 run.py stage                stage the sample CT with the shipped model (options may follow)
python3 run.py stage CT --liver MASK -o FOLDER
python3 run.py test                 run all tests (arguments are passed to pytest)
python3 run.py train                simulate cohorts of phantoms and train a model on them, in run/
python3 run.py train --manifest COHORT.csv -o RUN     train on a cohort of patients
python3 run.py cohort COLLECTION --images FOLDER --table FILE -o COHORT.csv
python3 run.py manifest COHORT.csv  check a cohort's manifest
python3 run.py acquisition COHORT.csv --columns site scanner -o FOLDER
python3 run.py evaluate --model RUN/LFS.onnx --manifest OTHER.csv -o FOLDER
python3 run.py docs                 build the API reference in docs/api
python3 run.py bench                time and memory of staging the sample CT, or a CT, step by step,
                                    and beside PyTorch + MONAI (--quick, --against, --record)

From cohort to evaluate, these are the commands of Training/ (docs/train-on-patients.md).

This file uses the standard library only. Packages are installed once per task; after that the task
also runs without a network.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
SAMPLE = ROOT / "LiverFibrosisStaging" / "Resources" / "SampleData"

RUNTIME = ["numpy", "SimpleITK", "onnxruntime>=1.19", "scikit-learn", "vtk"]
LIBRARIES_OF_QT = [
    "libegl1",
    "libgl1",
    "libxkbcommon0",
    "libdbus-1-3",
    "libfontconfig1",
    "libglib2.0-0",
    "fonts-dejavu-core",
]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
# Validators of DICOM files.
DICOM_TOOLS = {"dciodvfy": "dicom3tools", "dsrdump": "dcmtk"}
TRAINING = ROOT / "Training"
TRAINING_TASKS = ("train", "cohort", "manifest", "acquisition", "evaluate")
EXTRA = {
    "stage": None,
    "test": ROOT / "Testing" / "requirements.txt",
    **dict.fromkeys(TRAINING_TASKS, TRAINING / "requirements.txt"),
    "docs": ROOT / "Testing" / "requirements.txt",
    "bench": ROOT / "Testing" / "benchmarks" / "requirements.txt",
}


def main(arguments: list[str]) -> int:
    """Prepare the environment, then run the task; returns the task's exit code."""
    if sys.version_info < (3, 10):  # noqa: UP036 - an older Python gets this message
        return _refuse(f"Python 3.10 or newer is needed; this is {sys.version.split()[0]}.")
    if not arguments or arguments[0] not in EXTRA:
        print(__doc__)
        return 0 if arguments and arguments[0] in ("-h", "--help") else 2
    task, rest = arguments[0], arguments[1:]
    try:
        _make_venv()
        _link_library()
        _install(task)
        if task == "test":
            _install_libraries_of_qt()
            _install_browser()
            _install_dicom_tools()
    except subprocess.CalledProcessError as error:
        return _refuse(f"Setting up failed (exit code {error.returncode}); see the lines above.")
    # Takes precedence over a copy that is installed in .venv or named by the user's PYTHONPATH.
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "LiverFibrosisStaging")}
    return subprocess.run([PYTHON, *_command(task, rest)], env=environment, check=False).returncode


def _command(task: str, rest: list[str]) -> list[str]:
    if task == "test":
        # Two processes, each of which runs whole test files, so that fixtures are made only once.
        parallel = ["-n", "2", "--dist", "loadfile"]
        return ["-m", "pytest", str(ROOT / "Testing"), f"--rootdir={ROOT}", *parallel, *rest]
    if task == "train":
        rest = rest or ["--phantoms", "252", "-o", "run"]
    if task in TRAINING_TASKS:
        return [str(TRAINING / f"{task}.py"), *rest]
    if task == "docs":
        return [str(ROOT / "docs" / "build_api.py"), *rest]
    if task == "bench":
        return [str(ROOT / "Testing" / "benchmarks" / "bench.py"), *rest]
    # If an option is given twice, argparse takes the last value: the user's replaces the default.
    return ["-m", "LiverFibrosisStagingLib", "stage", *_defaults(rest), *rest]


def _defaults(rest: list[str]) -> list[str]:
    """A result folder; without a CT, the sample CT; without CT and masks, also its masks."""
    try:
        options, others = _stage_options().parse_known_args(rest)
    except ValueError:  # the command itself reports wrong options
        return []
    chosen = ["-o", "result"]
    if any(not word.startswith("-") for word in others):
        return chosen
    if options.liver is None and options.spleen is None:
        chosen += ["--liver", str(SAMPLE / "phantom_F4.seg.nrrd")]  # the spleen as well
    return [str(SAMPLE / "phantom_F4_ct.nii.gz"), *chosen]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise ValueError(message)


def _stage_options() -> argparse.ArgumentParser:
    """The options of the stage command, to distinguish a CT from an option's value."""
    parser = _Parser(add_help=False)
    for names in (
        ("--liver",),
        ("--spleen",),
        ("--segments",),
        ("--height",),
        ("--weight",),
        ("--model",),
        ("--explain",),
        ("--device",),
        ("--shell",),
        ("-o", "--output"),
    ):
        parser.add_argument(*names)
    for names in (
        ("-q", "--quiet"),
        ("-h", "--help"),
        ("--report",),
        ("--dicom",),
        ("--strict",),
        ("--any-phase",),
    ):
        parser.add_argument(*names, action="store_true")
    return parser


def _make_venv() -> None:
    if PYTHON.exists() and _succeeds(PYTHON, "-m", "pip", "--version"):
        return
    print("Creating .venv ...", flush=True)
    has_pip = [sys.executable, "-m", "ensurepip", "--version"]
    if not _succeeds(*has_pip):
        # Debian and Ubuntu ship ensurepip in a separate package.
        _install_with_apt(f"python3.{sys.version_info.minor}-venv")
    if not _succeeds(*has_pip):
        raise SystemExit("Python's modules venv and ensurepip are needed to create .venv.")
    # In a child process, because this one does not find an ensurepip that was just installed.
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], check=True)


def _link_library() -> None:
    """Add the library to the import path of .venv, for scripts and the processes they start.

    The path is relative to site-packages, so that it stays valid when the checkout is moved.
    """
    for folder in [*VENV.glob("lib/python*/site-packages"), *VENV.glob("Lib/site-packages")]:
        entry = os.path.relpath(ROOT / "LiverFibrosisStaging", folder) + "\n"
        file = folder / "LiverFibrosisStaging.pth"
        if not file.exists() or file.read_text(encoding="utf-8") != entry:
            file.write_text(entry, encoding="utf-8")


def _install_libraries_of_qt() -> None:
    """Install the system libraries and the font that Qt needs; the panel's tests use Qt.

    If they cannot be installed, the tests of the panel are skipped with a message.
    """
    if not _succeeds(PYTHON, "-c", "import PySide6.QtUiTools"):
        print("Qt cannot be loaded; without it, the tests of the panel are skipped.", flush=True)
        _install_with_apt(*LIBRARIES_OF_QT)


def _install_browser() -> None:
    """Install Chromium; the tests of the report use it, and are skipped without it."""
    if os.name != "nt" and not any(map(shutil.which, BROWSERS)):
        print("There is no Chromium; without it, the report is not tested in a browser.")
        _install_with_apt("chromium")


def _install_dicom_tools() -> None:
    """Install the validators of DICOM files; without them, the tests that run them are skipped."""
    missing = [package for tool, package in DICOM_TOOLS.items() if not shutil.which(tool)]
    if missing:
        print("Without DICOM validators, the tests that run them are skipped.", flush=True)
        _install_with_apt(*missing)


def _install_with_apt(*packages: str) -> None:
    """Install packages as root, or with sudo if CI is set; otherwise print the command."""
    if not shutil.which("apt-get"):
        print(f"System packages are missing (names in Debian): {' '.join(packages)}.")
        return
    is_root = os.geteuid() == 0
    commands = [
        [*([] if is_root else ["sudo"]), "apt-get", *words]
        for words in (["update", "-qq"], ["install", "-y", "-qq", *packages])
    ]
    asked = os.environ.get("CI", "").lower() in ("true", "1") and shutil.which("sudo")
    if not is_root and not asked:
        print("System packages are missing. To install them, run", flush=True)
        print(f"    {' && '.join(map(shlex.join, commands))}", flush=True)
        return
    print(f"Installing the system packages {' '.join(packages)} ...", flush=True)
    for command in commands:
        subprocess.run(command, check=False)


def _install(task: str) -> None:
    """Install the packages of a task, unless the same list was installed before."""
    file = EXTRA[task]
    files = {path: path.read_text(encoding="utf-8") for path in EXTRA.values() if path and file}
    wanted = "\n".join([*RUNTIME, *files.values()])
    # Tasks with the same list share a stamp.
    stamp = VENV / f".installed-{file.parent.name.lower() if file else task}"
    digest = hashlib.sha256(wanted.encode()).hexdigest()
    if stamp.exists() and stamp.read_text(encoding="utf-8") == digest:
        return
    print("Installing packages (once) ...", flush=True)
    extra = ["-r", str(file)] if file else []
    subprocess.run([PYTHON, "-m", "pip", "install", "-q", *RUNTIME, *extra], check=True)
    stamp.write_text(digest, encoding="utf-8")


def _succeeds(*command: str | Path) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _refuse(sentence: str) -> int:
    print(sentence, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
