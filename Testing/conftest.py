"""Shared fixtures: the shipped model, real and phantom CTs, an empty scene, the panel."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

# Where processes share the tests, they share the cores too (before numpy and PyTorch are loaded).
_PROCESSES = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
if _PROCESSES > 1:
    _threads = str(max(1, (os.cpu_count() or 1) // _PROCESSES))
    for _variable in ("OMP_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
        os.environ.setdefault(_variable, _threads)

ROOT = Path(__file__).resolve().parents[1]

# Real CTs for developers; never part of the repository (see Testing/README.md).
REAL_CASES = ("hcc002_cirrA_pv", "hcc007_cirrA_bl_pv", "hcc011_cirrA_pv", "hcc048_cirrA_pv")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real CTs (../shared/data) are not on this machine")
    return folder


@pytest.fixture(scope="session")
def model_path() -> Path:
    from LiverFibrosisStagingLib.resources import default_model_path

    return default_model_path()


@pytest.fixture(scope="session")
def model(model_path):
    from LiverFibrosisStagingLib import StagingModel

    return StagingModel.load(model_path)


@pytest.fixture(scope="session")
def phantoms_path() -> Path:
    """The ensemble trained on phantoms, for tests that need a model that stages the sample."""
    from LiverFibrosisStagingLib.resources import default_model_path

    return default_model_path("LFS_phantoms.onnx")


@pytest.fixture(scope="session")
def single_path() -> Path:
    """One of the networks trained on phantoms, for tests independent of ensemble and masks."""
    from LiverFibrosisStagingLib.resources import default_model_path

    return default_model_path("LFS_single.onnx")


@pytest.fixture(scope="session")
def single(single_path):
    from LiverFibrosisStagingLib import StagingModel

    return StagingModel.load(single_path)


@pytest.fixture(scope="session")
def sample(tmp_path_factory) -> dict[str, Path]:
    """The phantom that ships with the repository: paths of its CT and of one mask each."""
    import SimpleITK as sitk

    folder, made = ROOT / "LiverFibrosisStaging/Resources/SampleData", {}
    organs = sitk.ReadImage(folder / "phantom_F4.seg.nrrd")
    for label, organ in enumerate(("liver", "spleen"), start=1):
        made[organ] = tmp_path_factory.mktemp("sample") / f"phantom_F4_{organ}.nii.gz"
        sitk.WriteImage(sitk.Cast(organs == label, sitk.sitkUInt8), made[organ])
    return {"ct": folder / "phantom_F4_ct.nii.gz", **made}


@pytest.fixture(scope="session")
def small_cohort(sample, single, tmp_path_factory):
    """Folder of a cohort with a broken case; table and results of a batch in one process."""
    from small_cohorts import coarse_sample, cohort, summaries, table

    from LiverFibrosisStagingLib import stage_folder

    folder, images = tmp_path_factory.mktemp("small"), coarse_sample(sample)
    root = cohort(folder / "in", images)
    cohort(root, images, case="p2")
    (root / "p2" / "liver.nii.gz").write_text("Dear radiologist")
    stage_folder(root, folder / "whole", model=single)
    return root, (table(folder / "whole"), summaries(folder / "whole"))


# ---------------------------------------------------------------------------- the report


@pytest.fixture(scope="session")
def staged_sample(sample, single, tmp_path_factory):
    """The sample, staged from files with a patient's name; its stage is supported."""
    from LiverFibrosisStagingLib import stage

    folder = tmp_path_factory.mktemp("Mustermann_Erika")
    given = {}
    for organ, path in sample.items():
        given[organ] = folder / f"Mustermann_{organ}.nii.gz"
        shutil.copy(path, given[organ])
    return replace(stage(**given, model=single), reasons=())


@pytest.fixture(scope="session")
def report_file(staged_sample, tmp_path_factory):
    """The path of its report.html; report.pdf is beside it."""
    return staged_sample.save_report(tmp_path_factory.mktemp("report"))


# ---------------------------------------------------------------------------- the panel


@pytest.fixture(scope="session", autouse=True)
def names():
    """While slicer_names.json is made anew: what the tests have used."""
    yield
    import slicer_names

    slicer_names.write_used()


@pytest.fixture
def host():
    """An empty scene; errors and dialogs that the test does not expect make it fail."""
    import qt_host
    import slicer_host

    slicer_host.start().Clear(0)
    records = (slicer_host.dialogs, qt_host.exceptions)
    for record in (*records, slicer_host.dialog_answers, slicer_host.status_messages):
        record.clear()
    yield slicer_host
    assert records == ([], [])


@pytest.fixture
def panel(host):
    """The open panel in an empty scene."""
    panel = host.open_panel()
    yield panel
    host.close_panel(panel)


@pytest.fixture
def ready(panel):
    """The open panel with the sample loaded and chosen."""
    import slicer_host
    from panel_steps import choose

    choose(panel, *slicer_host.import_module().loadSample())
    return panel


@pytest.fixture
def staged(ready):
    """The open panel with the sample staged."""
    from panel_steps import stage

    stage(ready)
    return ready


@pytest.fixture
def single_network(monkeypatch, single_path):
    """Panel and library stage with one network by default, for tests independent of the numbers."""
    from LiverFibrosisStagingLib import staging
    from LiverFibrosisStagingLib.scene import jobs

    for module in (staging, jobs):
        monkeypatch.setattr(module, "default_model_path", lambda: single_path)


# ---------------------------------------------------------------------------- the scene


@pytest.fixture
def scene():
    """Slicer's scene, empty."""
    import slicer_host

    scene = slicer_host.start()
    scene.Clear(0)
    return scene


@pytest.fixture(scope="module")
def abdomen():
    """Images of a small CT, its liver and its spleen."""
    from small_scene import make_abdomen

    return make_abdomen()


@pytest.fixture(scope="module")
def views():
    """Three slice views whose pixels can be read."""
    import slicer_host

    made = [slicer_host.SliceView(name) for name in ("Axial", "Sagittal", "Coronal")]
    yield made
    for view in made:  # otherwise they and the layout's views change each other in later scenes
        view.logic.SetSliceNode(None)
        view.logic.SetMRMLScene(None)
