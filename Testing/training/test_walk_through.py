"""docs/train-on-patients.md: its commands succeed, in order, and write the files that it names.

They run on small copies of the collections' downloads. What the networks compute is tested
elsewhere: here, stand-ins outline the organs and replace the shipped model, whose field is large.
"""

import csv
import re
import runpy
import shlex
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import joblib
import numpy as np
import pytest
import SimpleITK as sitk
from conftest import ROOT

for package in ("torch", "onnx", "monai", "matplotlib", "highdicom", "openpyxl"):
    pytest.importorskip(package)

import train  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from synthetic_cohorts import synthetic  # noqa: E402
from walk_copies import PAGE, page_commands, write_downloads  # noqa: E402

import public.command  # noqa: E402
from cases import inputs, requirements  # noqa: E402
from cases.manifest import read_manifest  # noqa: E402
from evaluation import acquisition, evaluate, staged  # noqa: E402
from finetuning import methods  # noqa: E402
from finetuning import run as finetuning  # noqa: E402
from finetuning.cohort import Cohort  # noqa: E402
from lfs.schedule import Schedule  # noqa: E402
from LiverFibrosisStagingLib import __main__ as library  # noqa: E402
from LiverFibrosisStagingLib import staging  # noqa: E402
from LiverFibrosisStagingLib.imaging.input_checks import REFUSE, Check  # noqa: E402
from LiverFibrosisStagingLib.imaging.segmentation import Segmentation  # noqa: E402
from LiverFibrosisStagingLib.resources import default_model_path  # noqa: E402
from LiverFibrosisStagingLib.stages import softmax  # noqa: E402
from public import examination  # noqa: E402

TEXT = PAGE.read_text(encoding="utf-8")
FLAT = {"spacing": (16.0, 8.0, 8.0), "size": (14, 40, 50)}
MAINS = {
    "cohort": public.command.main,
    "manifest": requirements.main,
    "acquisition": acquisition.main,
    "train": train.main,
    "evaluate": evaluate.main,
    "stage": lambda words: library.main(["stage", *words]),
}
# Folders that the page's commands write to.
WRITTEN = re.compile(r"`((?:cohorts|safe|run|tuned|external|result)/[\w./-]+)`")


def outlined(ct, *_):
    """Organs of a phantom: the soft tissue of the right and of the left half."""
    hu = sitk.GetArrayFromImage(ct)
    labels = ((hu >= 40) & (hu < 200)).astype(np.uint8)
    labels[:, :, hu.shape[2] // 2 :] *= 2
    labels[[0, -1]] = 0
    made = sitk.GetImageFromArray(labels)
    made.CopyInformation(ct)
    return Segmentation(made == 1, made == 2, {"liver": 1500.0, "spleen": 200.0}, (), {})


def phase(ct, liver, *_):
    if sitk.GetArrayFromImage(ct)[sitk.GetArrayFromImage(liver) > 0].mean() > 50:
        return "portal-venous", ()
    return "unenhanced", (Check("phase", "Contrast phase", REFUSE, ""),)


def staged_by(real, ct, liver, spleen, model, **options):
    """`stage`, unless the model has the shipped one's field (contract 2)."""
    if model.card.contract == 1:
        return real(ct, liver, spleen, model, **options)
    logits = np.random.default_rng(len(Path(ct).parts)).normal(size=5)
    region = {"mean": 1.0, "share": 0.2, "volume_ml": 500.0}
    return SimpleNamespace(
        forward_pass=SimpleNamespace(logits=logits, forwards=()),
        probabilities=softmax(logits),
        measurements=dict.fromkeys(("liver", "liver_surface", "liver_core", "rest"), region),
        signs=SimpleNamespace(measurements=()),
    )


def read_cohort(cases, *_) -> Cohort:
    """Means and signs that were not measured; the patients and stages are those of the cases."""
    made, _ = synthetic(len(cases))
    return Cohort(
        means=made.means,
        case=made.case,
        signs=made.signs,
        lowest=np.array([case.stages.lowest for case in cases]),
        highest=np.array([case.stages.highest for case in cases]),
        patient=np.array([case.patient for case in cases]),
    )


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    """Folder in which all commands of the page have run, and their exit statuses."""
    folder = tmp_path_factory.mktemp("walk")
    write_downloads(folder / "downloads", **FLAT)
    shipped = Path("LiverFibrosisStaging/Resources/Models/LFS.onnx")
    (folder / shipped).parent.mkdir(parents=True)
    (folder / shipped).symlink_to(default_model_path())
    with pytest.MonkeyPatch.context() as patch, joblib.parallel_config("sequential"):
        patch.chdir(folder)
        for module in (examination, inputs, staging):
            patch.setattr(module, "segment_checked", outlined)
            patch.setattr(module, "input_checks", phase)
        patch.setattr(staged, "stage", partial(staged_by, staged.stage))
        patch.setattr(train, "FULL", train.Build((8, 24, 32), (16.0, 14.0, 14.0), (2, 3, 4, 5), 4))
        quick = Schedule(steps=2, batch=2, crop_steps=1, crop=16, check_every=1)
        patch.setattr(train, "FULL_SCHEDULE", quick)
        patch.setattr(train, "Tuning", partial(train.Tuning, steps=5, inner_folds=2))
        patch.setattr(finetuning, "read_cohort", read_cohort)
        patch.setattr(methods, "PENALTIES", (0.1,))
        patch.setattr(methods, "INNER", 2)
        # Drawing figures would take half of the time.
        patch.setattr(Figure, "savefig", lambda _, path, **__: Path(path).write_bytes(b"figure"))
        statuses = {}
        for task, *words in page_commands():
            more = []
            if task == "train":
                more = ["--folds", "2", "--workers", "0", "--seeds", "1", "--curve-draws", "1"]
            statuses[shlex.join([task, *words])] = MAINS[task]([*words, *more])
        yield folder, statuses


def test_every_command_succeeds(walk):
    _, statuses = walk
    assert len(statuses) >= 12 and set(MAINS) == {line.split()[0] for line in statuses}
    assert {line for line, status in statuses.items() if status} == set()


def test_every_file_that_is_named_is_written(walk):
    folder, _ = walk
    named = set(WRITTEN.findall(TEXT))
    assert len(named) > 20
    assert {name for name in named if not (folder / name).exists()} == set()


def test_the_combined_cohort_has_the_patients_and_files_of_both(walk):
    folder, _ = walk
    first, second, both = (
        {case.patient: case for case in read_manifest(folder / "cohorts" / name / "manifest.csv")}
        for name in ("tcga-lihc", "hcc-tace-seg", "public")
    )
    assert len(first) == 8 and len(second) == 9 and set(both) == {*first, *second} - {"HCC_002"}
    for patient, case in both.items():
        own = {**first, **second}[patient]
        assert case.content() == own.content()
        assert (str(case.stages), case.label, case.site) == (str(own.stages), own.label, own.site)
        assert {name: text for name, text in case.others.items() if text} == own.others


def test_the_model_card_says_what_the_labels_are(walk):
    folder, _ = walk
    card = (folder / "run" / "MODEL_CARD.md").read_text()
    assert "TCGA-LIHC and HCC-TACE-Seg" in card and "Research use only" in card
    assert "ishak_fibrosis_score" in card and "Evidence_of_cirh" in card
    tested = (folder / "tuned" / "MODEL_CARD.md").read_text()
    assert "### Test cohort" in tested and "Comparison on the same cases" in tested


def test_the_page_names_what_exists():
    tasks = runpy.run_path(str(ROOT / "run.py"))["EXTRA"]
    assert {task for task, *_ in page_commands()} <= set(tasks)
    assert all(f"`{name}`" in TEXT for name in public.command.COMMANDS if name != "combine")
    knows = re.search(r"a few public patients: (.*?)\.", TEXT)[1]
    readme = (ROOT / "Training" / "README.md").read_text(encoding="utf-8")
    codes = re.findall(r"[A-Z]+[_-][\w-]+", knows)
    assert len(codes) == 7 and all(code in readme for code in codes)


def combine(folder, *names, **options):
    more = [word for name, value in options.items() for word in (f"--{name}", *value)]
    output = folder / "combined.csv"
    output.unlink(missing_ok=True)
    files = [str(folder / name) for name in names]
    return public.command.main(["combine", *files, "-o", str(output), *more]), output


def test_combining_keeps_values_and_refuses_doubles(tmp_path, capsys):
    for name in "abc":
        (tmp_path / name).mkdir()
        (tmp_path / name / "ct.nii.gz").write_bytes(b"x")
    header = "patient,ct,stage,complete_liver,thickness,bmi\n"
    (tmp_path / "a/m.csv").write_text(header + "A,ct.nii.gz,1-2,no,2.5,27\n")
    (tmp_path / "b/m.csv").write_text("patient;ct;stage;fold\nB;ct.nii.gz;6;2\n")
    (tmp_path / "c/m.csv").write_text("patient,ct,stage\nA,ct.nii.gz,0\n")
    (tmp_path / "c/n.csv").write_text("patient,ct,stage\nC,../a/ct.nii.gz,0\n")
    status, output = combine(tmp_path, "a/m.csv", "b/m.csv", grades=["ishak"])
    assert status == 0
    with output.open(encoding="utf-8") as stream:
        one, two = csv.DictReader(stream)
    assert one == {
        "patient": "A",
        "ct": "a/ct.nii.gz",
        "stage": "F1",
        "complete_liver": "no",
        "thickness": "2.5",
        "fold": "",
        "bmi": "27",
    }
    assert (two["patient"], two["stage"], two["fold"], two["bmi"]) == ("B", "F4", "2", "")
    for names, options, said in (
        (("a/m.csv", "c/m.csv"), {}, "the patient A is also in"),
        (("a/m.csv", "c/n.csv"), {}, "the CT ct.nii.gz is also in"),
        (("a/m.csv",), {"without": ["B"]}, "--without B: in no manifest"),
        (("a/m.csv",), {"without": ["A"]}, "no patient is left"),
    ):
        status, output = combine(tmp_path, *names, **options, grades=["ishak"])
        assert status == 1 and said in capsys.readouterr().err and not output.exists()
    (tmp_path / "combined.csv").write_text("mine")
    assert public.command.main(["combine", str(tmp_path / "a/m.csv"), "-o", str(output)]) == 1
    assert "exists; a new name" in capsys.readouterr().err and output.read_text() == "mine"
