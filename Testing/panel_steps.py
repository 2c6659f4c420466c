"""Steps and checks of the panel's tests; the fixtures are in conftest.py."""

from collections import Counter

import numpy as np
import slicer
import slicer_host
from slicer_host import wait_until

from LiverFibrosisStagingLib.report.colors import BANDS


def choose(panel, volume, segmentation):
    panel.ui.inputVolumeSelector.setCurrentNode(volume)
    panel.ui.segmentationSelector.setCurrentNode(segmentation)


def is_busy(panel):
    return panel.ui.progressWidget.visible


def stage(panel):
    panel.ui.stageButton.click()
    assert is_busy(panel)
    wait_until(lambda: not is_busy(panel), 120)


def until_under_way(panel):
    """Start staging and wait for the network to run."""
    panel.ui.stageButton.click()
    wait_until(lambda: panel.ui.progressBar.value >= 400)
    assert is_busy(panel)


def save_scene(folder):
    """Save the scene into a new folder; returns its file."""
    folder.mkdir()
    assert slicer.mrmlScene.SaveSceneToSlicerDataBundleDirectory(str(folder), None)
    (saved,) = folder.rglob("*.mrml")
    return saved


def load_scene(saved):
    """Replace the scene by the one in a file."""
    slicer.mrmlScene.Clear(0)
    slicer.mrmlScene.SetURL(str(saved))
    assert slicer.mrmlScene.Connect()


def of_class(name):
    return [n for n in slicer.util.getNodesByClass(name) if n.GetClassName() == name]


def in_scene():
    return Counter(node.GetClassName() for node in slicer.util.getNodesByClass("vtkMRMLNode"))


def label_node():
    (node,) = of_class("vtkMRMLLabelMapVolumeNode")
    return node


def point_in(node, value):
    """RAS position of a voxel of this value."""
    first = np.argwhere(slicer.util.arrayFromVolume(node) == value)[0]
    return slicer_host.voxel_point(node, first)


def views():
    return slicer.app.layoutManager()._views


def expected_color(grey, label, opacity=1.0):
    opacity *= BANDS[label].opacity
    return np.asarray(grey) * (1 - opacity) + 255 * opacity * np.array(BANDS[label].rgb)


def check_overlay(opacity=1.0):
    """Every slice view shows the map's colours at the right position, and none outside the body."""
    node = label_node()
    outside, strong = point_in(node, 0), point_in(node, 7)
    for view in views().values():
        grey = view.color(strong, label=False)[:3]
        found = view.color(strong)[:3]
        np.testing.assert_allclose(found, expected_color(grey, 7, opacity), atol=3)
        assert np.abs(found - grey).max() > 20 * opacity
        np.testing.assert_array_equal(view.color(outside), view.color(outside, label=False))
