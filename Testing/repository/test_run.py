"""run.py: the commands it runs for the user's options, and what it installs."""

import importlib.util
import os
import site
import subprocess
import sys

import pytest
from conftest import ROOT

from LiverFibrosisStagingLib.arguments import parser

SAMPLE = ROOT / "LiverFibrosisStaging" / "Resources" / "SampleData"


@pytest.fixture()
def run():
    spec = importlib.util.spec_from_file_location("run", ROOT / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture()
def commands(run, monkeypatch):
    """Records commands instead of running them; commands that check for something fail."""
    seen = []

    def ran(command, **options):
        seen.append([str(word) for word in command])
        return subprocess.CompletedProcess(command, 1 if options.get("capture_output") else 0)

    monkeypatch.setattr(run.subprocess, "run", ran)
    return seen


@pytest.fixture()
def staged(run, commands, monkeypatch):
    """The options of the command that `run.py stage ...` runs, as the library parses them."""
    monkeypatch.setattr(run, "_make_venv", lambda: None)
    monkeypatch.setattr(run, "_link_library", lambda: None)
    monkeypatch.setattr(run, "_install", lambda task: None)

    def stage(*words):
        assert run.main(["stage", *words]) == 0
        (command,) = commands
        assert command[1:4] == ["-m", "LiverFibrosisStagingLib", "stage"]
        return parser().parse_args(command[3:])

    return stage


SAMPLE_CT, SAMPLE_ORGANS = (str(SAMPLE / f"phantom_F4{end}") for end in ("_ct.nii.gz", ".seg.nrrd"))


@pytest.mark.parametrize(
    "words", ["-o X", "-oX", "--output X", "--output=X", "--out X", "--out=X", "-qoX", "-q -o X"]
)
@pytest.mark.parametrize("ct", ["", "CT"])
def test_the_users_folder_is_used(words, ct, staged):
    options = staged(*words.split(), *ct.split())
    assert options.output == "X" and options.ct == (ct or SAMPLE_CT)


def test_the_readmes_command_stages_the_sample(staged):
    options = staged()
    assert [options.ct, options.liver, options.spleen] == [SAMPLE_CT, SAMPLE_ORGANS, None]
    assert options.output == "result" and options.explain == "predicted"


@pytest.mark.parametrize("words", ["--explain F4", "--expl F4", "--explain=F4", "-q --explain F4"])
def test_options_without_a_ct_stage_the_sample(words, staged):
    options = staged(*words.split())
    assert options.explain == "F4"
    assert [options.ct, options.liver, options.spleen] == [SAMPLE_CT, SAMPLE_ORGANS, None]


@pytest.mark.parametrize("words", ["CT", "--explain F4 CT", "CT --explain F4", "-q CT", "-- CT"])
def test_the_samples_masks_are_not_used_for_another_ct(words, staged):
    options = staged(*words.split())
    assert (options.ct, options.liver, options.spleen) == ("CT", "auto", None)
    assert options.output == "result"


@pytest.mark.parametrize("words", ["--liver auto", "--spleen=M", "--liver M --spleen N"])
def test_the_samples_masks_are_not_mixed_with_others(words, staged):
    options = staged(*words.split())
    assert options.ct == SAMPLE_CT
    assert options.liver != SAMPLE_ORGANS


@pytest.mark.parametrize("words", ["--explain", "--whistle", "-o", "--liver", "--explain F9"])
def test_wrong_options_are_reported_by_the_command(words, staged, capsys):
    with pytest.raises(SystemExit) as usage:
        staged(*words.split())
    assert usage.value.code == 2 and words.split()[0] in capsys.readouterr().err


def test_every_option_of_the_stage_command_is_known(run):
    (commands,) = (action for action in parser()._actions if action.choices)
    takes_value = {
        name: action.nargs is None
        for action in commands.choices["stage"]._actions
        for name in action.option_strings
    }
    assert takes_value == {
        name: action.nargs is None
        for action in run._stage_options()._actions
        for name in action.option_strings
    }


def test_arguments_of_the_other_tasks_are_passed_on(run):
    assert run._command("test", ["-k", "geometry"])[-2:] == ["-k", "geometry"]
    assert run._command("train", ["--manifest", "m.csv", "-oR"])[1:] == [
        *("--manifest", "m.csv", "-oR")
    ]
    assert run._command("train", [])[1:] == ["--phantoms", "252", "-o", "run"]
    for task in ("cohort", "manifest", "acquisition", "evaluate"):
        assert run._command(task, ["X", "-o"]) == [str(ROOT / "Training" / f"{task}.py"), "X", "-o"]
    assert run._command("docs", ["X"]) == [str(ROOT / "docs" / "build_api.py"), "X"]
    bench = str(ROOT / "Testing" / "benchmarks" / "bench.py")
    assert run._command("bench", ["X"]) == [bench, "X"]


def test_packages_of_training_are_installed_once(run, commands, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "VENV", tmp_path)
    for task in ("cohort", "train", "evaluate"):
        run._install(task)
    (command,) = commands
    assert command[-2:] == ["-r", str(ROOT / "Training" / "requirements.txt")]


def test_every_task_is_documented_and_its_requirements_exist(run):
    training = {"train", "cohort", "manifest", "acquisition", "evaluate"}
    assert set(run.EXTRA) == {"stage", "test", "docs", "bench", *training}
    for task, requirements in run.EXTRA.items():
        assert f"python3 run.py {task} " in run.__doc__
        assert requirements is None or requirements.is_file()


@pytest.mark.parametrize("place", ["lib/python3.12/site-packages", "Lib/site-packages"])
def test_the_environment_finds_the_library_also_when_the_checkout_is_moved(
    place, run, tmp_path, monkeypatch
):
    before, after = tmp_path / "before", tmp_path / "\u00e4fter"
    (before / ".venv" / place).mkdir(parents=True)
    (before / "LiverFibrosisStaging").mkdir()
    monkeypatch.setattr(run, "ROOT", before)
    monkeypatch.setattr(run, "VENV", before / ".venv")
    run._link_library()
    before.rename(after)
    monkeypatch.setattr(sys, "path", [])
    site.addsitedir(str(after / ".venv" / place))
    assert sys.path[-1] == str(after / "LiverFibrosisStaging")


@pytest.fixture()
def system(run, monkeypatch):
    """Pretends that the system has these tools and the user this id."""

    def pretend(user, *tools, ci=None):
        monkeypatch.setattr(run.os, "geteuid", lambda: user, raising=False)
        monkeypatch.setattr(run.shutil, "which", lambda name: name if name in tools else None)
        monkeypatch.delenv("CI", raising=False)
        if ci is not None:
            monkeypatch.setenv("CI", ci)

    return pretend


PACKAGES = ["liba", "libb"]
INSTALL = ["apt-get", "install", "-y", "-qq", *PACKAGES]


def test_root_installs(run, commands, system, capsys):
    system(0, "apt-get")
    run._install_with_apt(*PACKAGES)
    assert commands == [["apt-get", "update", "-qq"], INSTALL]
    assert "liba libb" in capsys.readouterr().out


@pytest.mark.parametrize("ci", [None, "", "false", "0"])
def test_other_users_get_the_command_and_nothing_is_run(ci, run, commands, system, capsys):
    system(1000, "apt-get", "sudo", ci=ci)
    run._install_with_apt(*PACKAGES)
    assert commands == []
    printed = capsys.readouterr().out
    assert "sudo apt-get update -qq && sudo apt-get install -y -qq liba libb\n" in printed


def test_ci_installs_with_sudo(run, commands, system):
    system(1000, "apt-get", "sudo", ci="true")
    run._install_with_apt(*PACKAGES)
    assert commands[-1] == ["sudo", *INSTALL]


def test_without_sudo_or_apt_the_missing_packages_are_named(run, commands, system, capsys):
    system(1000, "apt-get", ci="true")
    run._install_with_apt(*PACKAGES)
    system(1000)
    run._install_with_apt(*PACKAGES)
    assert commands == [] and capsys.readouterr().out.count("liba libb") == 2


def test_a_python_without_venv(run, commands, system, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "PYTHON", tmp_path / "none")
    system(1000, "apt-get", "sudo")
    with pytest.raises(SystemExit, match="venv and ensurepip are needed"):
        run._make_venv()
    assert {command[0] for command in commands} == {sys.executable}
    assert f"python3.{sys.version_info.minor}-venv" in capsys.readouterr().out
    system(0, "apt-get")
    with pytest.raises(SystemExit):
        run._make_venv()
    assert ["apt-get", "update", "-qq"] in commands


@pytest.mark.skipif(os.name == "nt", reason="nothing is installed on Windows")
def test_chromium_is_installed_where_there_is_no_browser(run, commands, system, capsys):
    system(0, "apt-get", "google-chrome")
    run._install_browser()
    assert commands == []
    system(0, "apt-get")
    run._install_browser()
    assert commands[-1][-1] == "chromium"
    assert "not tested in a browser" in capsys.readouterr().out


def test_without_qt_the_other_tests_run(run, commands, system, capsys):
    system(1000, "apt-get", "sudo")
    run._install_libraries_of_qt()
    assert not any("apt-get" in command for command in commands)
    printed = capsys.readouterr().out
    assert "tests of the panel are skipped" in printed and "libegl1" in printed


def test_dicom_validators_are_installed_where_they_are_missing(run, commands, system, capsys):
    system(0, "apt-get")
    run._install_dicom_tools()
    assert commands[-1] == ["apt-get", "install", "-y", "-qq", "dicom3tools", "dcmtk"]
    assert "are skipped" in capsys.readouterr().out
    del commands[:]
    system(0, "apt-get", *run.DICOM_TOOLS)
    run._install_dicom_tools()
    assert commands == []


def test_it_needs_the_standard_library_only_and_runs_in_any_folder():
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(ROOT / "run.py"), "--help"],
        env={**os.environ, "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT.anchor,
    )
    assert done.returncode == 0 and "run.py stage" in done.stdout
