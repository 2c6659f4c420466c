"""Files are written completely or not at all, also over older ones and with one in use."""

import csv
import math
from pathlib import Path

import pytest

from LiverFibrosisStagingLib import StagingError
from LiverFibrosisStagingLib.files import cell, check_writable, write_folder, write_table

NAMES = ("map", "picture", "summary")


def writer(text):
    def write(folder):
        for name in NAMES:
            (folder / name).write_text(text)

    return write


def contents(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def whole(text):
    return dict.fromkeys(NAMES, text)


def in_use(monkeypatch, *blocked, after=0):
    """Files that cannot be moved or removed, as on Windows, after a number of moves."""
    real = {name: getattr(Path, name) for name in ("replace", "rename", "unlink")}
    moves = []

    def refusing(name):
        def refuse(self, *arguments, **options):
            paths = [self, *(a for a in arguments if isinstance(a, Path))]
            if any(path in blocked for path in paths):
                moves.append(self)
                if len(moves) > after:
                    raise PermissionError(13, "Permission denied")
            return real[name](self, *arguments, **options)

        return refuse

    for name in real:
        monkeypatch.setattr(Path, name, refusing(name))


def test_older_files_are_replaced(tmp_path):
    for text in ("old", "new"):
        assert write_folder(tmp_path, NAMES, writer(text)) == tmp_path
        assert contents(tmp_path) == whole(text)


NESTED = ("extra/a", "extra/b", "summary")


def nested(folder):
    (folder / "extra").mkdir()
    for name in NESTED:
        (folder / name).write_text("new")


def test_files_in_a_subfolder_come_and_go_with_the_others(tmp_path):
    for _ in range(2):
        write_folder(tmp_path, NESTED, nested)
        assert all((tmp_path / name).read_text() == "new" for name in NESTED)
    (tmp_path / "extra" / "mine").write_text("kept")
    write_folder(tmp_path, (*NESTED[:2], *NAMES), writer("old"))
    assert [path.name for path in (tmp_path / "extra").iterdir()] == ["mine"]
    (tmp_path / "extra" / "mine").unlink()
    write_folder(tmp_path, NESTED, nested)
    write_folder(tmp_path, (*NESTED[:2], *NAMES), writer("old"))
    assert contents(tmp_path) == whole("old")


def test_a_failure_leaves_no_subfolder_and_keeps_older_files(tmp_path, monkeypatch):
    write_folder(tmp_path, NAMES, writer("old"))
    with monkeypatch.context() as patch:
        in_use(patch, tmp_path / "summary")
        with pytest.raises(StagingError, match="unchanged"):
            write_folder(tmp_path, NESTED, nested)
    assert contents(tmp_path) == whole("old")
    write_folder(tmp_path, NESTED, nested)
    in_use(monkeypatch, tmp_path / "extra" / "b")
    with pytest.raises(StagingError, match="unchanged"):
        write_folder(tmp_path, (*NESTED[:2], *NAMES), writer("older"))
    assert all((tmp_path / name).read_text() == "new" for name in NESTED)


@pytest.mark.parametrize("name", NAMES)
def test_file_in_use_leaves_the_older_ones(name, tmp_path, monkeypatch):
    write_folder(tmp_path, NAMES, writer("old"))
    in_use(monkeypatch, tmp_path / name)
    with pytest.raises(StagingError, match="earlier result in it is unchanged") as refusal:
        write_folder(tmp_path, NAMES, writer("new"))
    assert name in str(refusal.value) and "Permission denied" in str(refusal.value)
    assert contents(tmp_path) == whole("old")


def test_file_that_cannot_be_restored_leaves_no_summary(tmp_path, monkeypatch):
    """The picture can be moved away but not replaced."""
    write_folder(tmp_path, NAMES, writer("old"))
    in_use(monkeypatch, tmp_path / "picture", after=1)
    with pytest.raises(StagingError, match="incomplete result, without summary"):
        write_folder(tmp_path, NAMES, writer("new"))
    assert "summary" not in contents(tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_failed_write_removes_new_folders(name, tmp_path, monkeypatch):
    folder = tmp_path / "a" / "b"
    in_use(monkeypatch, folder / name)
    with pytest.raises(StagingError, match="nothing was written"):
        write_folder(folder, NAMES, writer("new"))
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("a bug")])
def test_failure_while_writing_leaves_nothing(error, tmp_path):
    def write(folder):
        (folder / "map").write_text("new")
        raise error

    with pytest.raises((StagingError, RuntimeError), match=r"No space left|a bug"):
        write_folder(tmp_path / "a" / "b", NAMES, write)
    assert not (tmp_path / "a").exists()
    write_folder(tmp_path, NAMES, writer("old"))
    with pytest.raises((StagingError, RuntimeError)):
        write_folder(tmp_path, NAMES, write)
    assert contents(tmp_path) == whole("old")


def test_a_folder_with_a_files_name_is_kept(tmp_path):
    (tmp_path / "picture").mkdir()
    (tmp_path / "picture" / "mine").write_text("keep")
    with pytest.raises(StagingError, match="a folder has this name"):
        write_folder(tmp_path, NAMES, writer("new"))
    assert (tmp_path / "picture" / "mine").read_text() == "keep"
    assert not (tmp_path / "summary").exists()


def test_leftovers_of_a_killed_run_are_removed_by_the_next(tmp_path):
    (tmp_path / ".partial-abc").mkdir()
    (tmp_path / ".partial-abc" / "map").write_text("half")
    write_folder(tmp_path, NAMES, writer("new"))
    assert contents(tmp_path) == whole("new")


def test_summary_is_removed_first_and_written_last(tmp_path, monkeypatch):
    write_folder(tmp_path, NAMES, writer("old"))
    real, states = Path.replace, []

    def replace(self, target):
        states.append({name: (tmp_path / name).exists() for name in NAMES})
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    write_folder(tmp_path, NAMES, writer("new"))
    assert all(states[0].values())
    assert not any(state["summary"] for state in states[1:])


def test_checking_leaves_no_folders(tmp_path):
    check_writable(tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").write_text("no folder")
    for place in ("file", "file/below"):
        with pytest.raises(StagingError, match="Cannot write to the folder"):
            check_writable(tmp_path / place)


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t=", "\r@", " =", "\uff1d"])
def test_no_cell_is_a_formula(start):
    text = f"{start}HYPERLINK(1)"
    assert cell(text) == f"'{text}"


@pytest.mark.parametrize("value", [-1.5, -3, "-1.5", "+2e-3", "", "F4", "a=b", "p-1", math.pi])
def test_numbers_and_words_stay(value):
    assert cell(value) == value


def test_table_that_cannot_be_written_stays(tmp_path, monkeypatch):
    table = tmp_path / "new" / "table.csv"
    write_table(table, ("a", "b"), [{"a": "=1"}, {"a": -1, "b": "x"}])
    with table.open(newline="") as file:
        assert list(csv.reader(file)) == [["a", "b"], ["'=1", ""], ["-1", "x"]]
    in_use(monkeypatch, table)
    with pytest.raises(StagingError, match="is it open in another program"):
        write_table(table, ("a",), [])
    assert [path.name for path in table.parent.iterdir()] == ["table.csv"]
    assert "'=1" in table.read_text()
