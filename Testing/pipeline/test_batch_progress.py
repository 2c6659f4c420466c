"""Progress of a batch on the command line: a bar with tqdm, a line without, nothing if quiet."""

import io
import sys

import pytest

from LiverFibrosisStagingLib.__main__ import main
from LiverFibrosisStagingLib.progress_line import batch_progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def terminal_of(monkeypatch):
    """A terminal in place of standard error; pytest puts its own there before each test."""
    found = Terminal()
    monkeypatch.setattr(sys, "stderr", found)
    monkeypatch.setenv("COLUMNS", "120")
    return found


@pytest.fixture
def broken(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        (tmp_path / "in" / f"{name}.nii").write_text("Dear radiologist")
    return ["batch", str(tmp_path / "in"), "-o", str(tmp_path / "out")]


def test_bar_has_cases_rate_and_time_left(monkeypatch):
    pytest.importorskip("tqdm")
    terminal = terminal_of(monkeypatch)
    with batch_progress(False) as progress:
        progress(0.2, "a: Reading")
        for number in range(1, 4):
            progress.finished({}, number, 4)
        progress.clear()
        progress(0.8, "d: Checking")
        last = terminal.getvalue().rpartition("\r")[2]
        assert "3/4" in last and "d: Checking" in last
        assert "case/s" in last or "s/case" in last
    assert terminal.getvalue().rstrip(" ").endswith("\r")  # erased


def test_line_without_tqdm(monkeypatch):
    terminal = terminal_of(monkeypatch)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with batch_progress(False) as progress:
        progress(0.25, "a: Reading")
        progress.finished({}, 1, 4)
    assert "25% a: Reading" in terminal.getvalue()


@pytest.mark.parametrize("quiet", [True, False])
def test_messages_and_bar_share_the_terminal(quiet, broken, monkeypatch):
    terminal = terminal_of(monkeypatch)
    assert main([*broken, *(["-q"] if quiet else [])]) == 3
    shown = terminal.getvalue()
    assert "a: a.nii: not a NIfTI-1 file" in shown
    assert ("case" in shown.partition("b: b.nii")[0]) != quiet


def test_nothing_but_messages_where_nobody_looks(broken, capsys):
    assert main(broken) == 3
    lines = capsys.readouterr().err.splitlines()
    assert [line[:8] for line in lines] == ["a: a.nii", "b: b.nii"]
