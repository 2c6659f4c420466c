"""Scenes saved by versions whose maps covered the CT's whole grid."""

import numpy as np
import pytest
import SimpleITK as sitk
import slicer
from panel_steps import load_scene, save_scene
from small_scene import add_volume, in_scene, on_grid_of

from LiverFibrosisStagingLib import stage
from LiverFibrosisStagingLib.scene.scene_display import Display
from LiverFibrosisStagingLib.scene.scene_nodes import find_part, stored_summary
from LiverFibrosisStagingLib.scene.scene_results import show_result
from LiverFibrosisStagingLib.scene.suggestions import cts

pytestmark = pytest.mark.usefixtures("scene")


def test_maps_on_the_whole_grid_are_loaded_and_replaced(abdomen, model, tmp_path):
    result = stage(*abdomen, model)
    volume = add_volume(abdomen[0])
    show_result(result, volume, Display(smooth=True))
    size = volume.GetImageData().GetDimensions()
    whole = {
        "bands": sitk.GetArrayFromImage(result.label_map),
        "smooth": sitk.GetArrayFromImage(result.location_map),
    }
    for part, values in whole.items():
        node = find_part(volume, part)
        assert node.GetImageData().GetDimensions() != size
        slicer.util.updateVolumeFromArray(node, values)
        node.SetOrigin(volume.GetOrigin())

    load_scene(save_scene(tmp_path / "scene"))

    (volume,) = cts()
    bands, smooth = (find_part(volume, part) for part in whole)
    for node, values in zip((bands, smooth), whole.values()):
        np.testing.assert_array_equal(slicer.util.arrayFromVolume(node), values)
    strongest = stored_summary(volume)["strongest_ijk"]
    assert slicer.util.arrayFromVolume(bands)[tuple(strongest[::-1])] == 10
    before = in_scene()

    assert show_result(result, volume, Display(smooth=True)) is bands
    assert in_scene() == before
    for node, values in zip((bands, smooth), whole.values()):
        assert node.GetImageData().GetDimensions() != size
        np.testing.assert_array_equal(on_grid_of(volume, node), values)
