"""What all tests share: the library on the path, the shipped model, real and phantom CTs."""

import os
import sys
from pathlib import Path

import pytest

# Where processes share the tests, they share the cores too (before numpy and PyTorch are loaded).
_PROCESSES = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
if _PROCESSES > 1:
    _threads = str(max(1, (os.cpu_count() or 1) // _PROCESSES))
    for _variable in ("OMP_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
        os.environ.setdefault(_variable, _threads)

ROOT = Path(__file__).resolve().parents[1]
for folder in (ROOT, ROOT / "LiverFibrosisStaging", ROOT / "Training", ROOT / "Testing"):
    sys.path.insert(0, str(folder))

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
    from LiverFibrosisStagingLib.model import default_model_path

    return default_model_path()


@pytest.fixture(scope="session")
def model(model_path):
    from LiverFibrosisStagingLib import StagingModel

    return StagingModel.load(model_path)


@pytest.fixture(scope="session")
def single_path() -> Path:
    """One of the shipped ensemble's five networks, where the ensemble does not matter."""
    from LiverFibrosisStagingLib.model import default_model_path

    return default_model_path("LFS_single.onnx")


@pytest.fixture(scope="session")
def single(single_path):
    from LiverFibrosisStagingLib import StagingModel

    return StagingModel.load(single_path)


@pytest.fixture(scope="session")
def sample() -> dict[str, Path]:
    """The phantom that ships with the repository: paths of its CT, liver and spleen."""
    folder = ROOT / "LiverFibrosisStaging" / "Resources" / "SampleData"
    return {part: folder / f"phantom_F4_{part}.nii.gz" for part in ("ct", "liver", "spleen")}
