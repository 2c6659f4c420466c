"""Set everything up in .venv and run one task: stage, test, or train.

python3 run.py stage                the sample CT, with the shipped model (options may follow)
python3 run.py stage CT --liver MASK -o FOLDER
python3 run.py test                 all tests (arguments go to pytest)
python3 run.py train                cohorts of phantoms, and a model from them, in run/
python3 run.py train --manifest COHORT.csv -o RUN     the same from a cohort of patients

Only the standard library is used here. What is installed once is not asked for again, so that
everything also runs without a network after the first time.
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
EXTRA = {
    "stage": None,
    "test": ROOT / "Testing" / "requirements.txt",
    "train": ROOT / "Training" / "requirements.txt",
}


def main(arguments: list[str]) -> int:
    """Prepare the environment, then run the task; its exit code is ours."""
    if sys.version_info < (3, 10):  # noqa: UP036 - this is what tells the user
        return _refuse(f"Python 3.10 or newer is needed; this is {sys.version.split()[0]}.")
    if not arguments or arguments[0] not in EXTRA:
        print(__doc__)
        return 0 if arguments and arguments[0] in ("-h", "--help") else 2
    task, rest = arguments[0], arguments[1:]
    try:
        _make_venv()
        _install(task)
        if task == "test":
            _install_libraries_of_qt()
    except subprocess.CalledProcessError as error:
        return _refuse(f"Setting up failed (exit code {error.returncode}); see the lines above.")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "LiverFibrosisStaging")}
    return subprocess.run([PYTHON, *_command(task, rest)], env=environment, check=False).returncode


def _command(task: str, rest: list[str]) -> list[str]:
    if task == "test":
        # Two processes, each with whole files of tests, whose fixtures are then made once.
        parallel = ["-n", "2", "--dist", "loadfile"]
        return ["-m", "pytest", str(ROOT / "Testing"), f"--rootdir={ROOT}", *parallel, *rest]
    if task == "train":
        rest = rest or ["--phantoms", "252", "-o", "run"]
        return [str(ROOT / "Training" / "train.py"), *rest]
    # Of an option that is given twice the last counts: what the user says overrules what we say.
    return ["-m", "LiverFibrosisStagingLib", "stage", *_defaults(rest), *rest]


def _defaults(rest: list[str]) -> list[str]:
    """The sample, where the user names no CT; its masks, where no mask either; a result folder."""
    try:
        options, others = _stage_options().parse_known_args(rest)
    except ValueError:  # the command itself says what is wrong
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
    """The options of the stage command, to tell a CT from an option's value."""
    parser = _Parser(add_help=False)
    for names in (("--liver",), ("--spleen",), ("--model",), ("--explain",), ("-o", "--output")):
        parser.add_argument(*names)
    for names in (("-q", "--quiet"), ("-h", "--help")):
        parser.add_argument(*names, action="store_true")
    return parser


def _make_venv() -> None:
    if PYTHON.exists() and _succeeds(PYTHON, "-m", "pip", "--version"):
        return
    print("Making .venv ...", flush=True)
    has_pip = [sys.executable, "-m", "ensurepip", "--version"]
    if not _succeeds(*has_pip):
        # Debian and Ubuntu keep half of the venv module in a package of its own.
        _install_with_apt(f"python3.{sys.version_info.minor}-venv")
    if not _succeeds(*has_pip):
        raise SystemExit("Python's modules venv and ensurepip are needed to make .venv.")
    # A child process: one that has just got ensurepip from Debian does not see it itself.
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], check=True)


def _install_libraries_of_qt() -> None:
    """The panel's tests draw with Qt, which takes a few libraries and a font from the system.

    Where they are missing those tests are skipped, saying so.
    """
    if not _succeeds(PYTHON, "-c", "import PySide6.QtUiTools"):
        print("Qt cannot be loaded; without it the tests of the panel are skipped.", flush=True)
        _install_with_apt(*LIBRARIES_OF_QT)


def _install_with_apt(*packages: str) -> None:
    """On Debian and Ubuntu, as root or where CI asks for it; else the user is told the command."""
    if not shutil.which("apt-get"):
        print(f"Needed from the system, by their names in Debian: {' '.join(packages)}.")
        return
    is_root = os.geteuid() == 0
    commands = [
        [*([] if is_root else ["sudo"]), "apt-get", *words]
        for words in (["update", "-qq"], ["install", "-y", "-qq", *packages])
    ]
    asked = os.environ.get("CI", "").lower() in ("true", "1") and shutil.which("sudo")
    if not is_root and not asked:
        print("System packages are missing; to install them, run", flush=True)
        print(f"    {' && '.join(map(shlex.join, commands))}", flush=True)
        return
    print(f"Installing the system packages {' '.join(packages)} ...", flush=True)
    for command in commands:
        subprocess.run(command, check=False)


def _install(task: str) -> None:
    """Install what the task needs, unless exactly that was installed before."""
    file = EXTRA[task]
    asked = [path.read_text(encoding="utf-8") for path in EXTRA.values() if path and file]
    wanted = "\n".join([*RUNTIME, *asked])
    stamp = VENV / f".installed-{task}"
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
