"""Every command of Training/ prints its help; packages import no command."""

import runpy
import sys

import pytest
from conftest import ROOT

for package in ("torch", "monai", "onnx", "matplotlib"):
    pytest.importorskip(package)

TRAINING = ROOT / "Training"
COMMANDS = sorted(path.stem for path in TRAINING.glob("*.py"))


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{command}.py", "--help"])
    with pytest.raises(SystemExit) as done:
        runpy.run_path(str(TRAINING / f"{command}.py"), run_name="__main__")
    assert done.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith("usage: ") and "--help" in printed
