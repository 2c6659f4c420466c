"""Fixtures of the scene's tests: an empty scene, a small CT with its organs, slice views."""

import pytest
import slicer_host
from small_scene import make_abdomen

from LiverFibrosisStagingLib import stage


@pytest.fixture
def scene():
    """The scene, empty."""
    scene = slicer_host.start()
    scene.Clear(0)
    return scene


@pytest.fixture(scope="module")
def abdomen():
    """Images of a CT, its liver and its spleen."""
    return make_abdomen()


@pytest.fixture(scope="module")
def result(abdomen, model):
    return stage(*abdomen, model)


@pytest.fixture(scope="module")
def views():
    return [slicer_host.SliceView(name) for name in ("Axial", "Sagittal", "Coronal")]
