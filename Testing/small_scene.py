"""Nodes for tests of the scene: a small CT with its organs, as volumes and segmentations."""

import math
from collections import Counter

import numpy as np
import SimpleITK as sitk
import slicer
from vtkmodules.vtkCommonMath import vtkMatrix4x4

SPACING = (3.515625, 3.7, 4.1)  # mm; a float32 in NIfTI that is no decimal, and two decimals
ORIGIN = (-171.3046875, -115.7, -96.9)


def make_abdomen(direction=None, shift=(0.0, 0.0, 0.0)):
    """CT, liver and spleen: a body with two ellipsoids, differently grey from front to back."""
    z, y, x = np.ogrid[:48, :62, :98]
    x, y, z = (o + s * i for o, s, i in zip(ORIGIN, SPACING, (x, y, z)))
    body = (x / 160) ** 2 + (y / 105) ** 2 + 0 * z < 1
    liver = ((x + 65) / 70) ** 2 + (y / 65) ** 2 + (z / 70) ** 2 < 1
    spleen = ((x - 90) / 28) ** 2 + ((y - 40) / 28) ** 2 + (z / 40) ** 2 < 1
    hu = np.where(body, 40 + y / 4, -1000) + 70 * (liver | spleen)
    hu += np.random.default_rng(0).normal(0, 8, hu.shape)
    images = [
        sitk.GetImageFromArray(a) for a in (hu.astype(np.int16), *map(np.uint8, (liver, spleen)))
    ]
    for image in images:
        image.SetSpacing(SPACING)
        image.SetOrigin(np.add(ORIGIN, shift).tolist())
        if direction is not None:
            image.SetOrigin((direction @ ORIGIN + shift).tolist())
            image.SetDirection(direction.ravel().tolist())
    return images


def rotation(degrees):
    """About the patient's axis and then a little about the left-right one; the same in RAS, LPS."""
    a, b = np.radians(degrees), np.radians(degrees / 3)
    about_z = [[math.cos(a), -math.sin(a), 0], [math.sin(a), math.cos(a), 0], [0, 0, 1]]
    about_x = [[1, 0, 0], [0, math.cos(b), -math.sin(b)], [0, math.sin(b), math.cos(b)]]
    return np.array(about_x) @ np.array(about_z)


def add_volume(image, name="CT", class_name="vtkMRMLScalarVolumeNode"):
    lps = np.eye(4)
    lps[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    lps[:3, 3] = image.GetOrigin()
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps
    return slicer.util.addVolumeFromArray(sitk.GetArrayFromImage(image), ras, name, class_name)


def add_segmentation(volume, **segments):
    """A segmentation of masks; a segment's name is its keyword."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Organs")
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    for name, mask in segments.items():
        segment = node.GetSegmentation().AddEmptySegment(name, name)
        slicer.util.updateSegmentBinaryLabelmapFromArray(
            sitk.GetArrayFromImage(mask), node, segment, volume
        )
    return node


def add_transform(matrix, name="Transform"):
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", name)
    vtk_matrix = vtkMatrix4x4()
    vtk_matrix.DeepCopy(np.asarray(matrix, float).ravel())
    node.SetMatrixTransformToParent(vtk_matrix)
    return node


def rigid(degrees, shift):
    matrix = np.eye(4)
    matrix[:3, :3] = rotation(degrees)
    matrix[:3, 3] = shift
    return matrix


def in_scene():
    nodes = slicer.util.getNodesByClass("vtkMRMLNode")
    return Counter(node.GetClassName() for node in nodes)


def on_grid_of(volume, node):
    """The voxels of a volume node that covers a part of another, 0 elsewhere in the other."""
    matrix, values = vtkMatrix4x4(), slicer.util.arrayFromVolume(node)
    volume.GetRASToIJKMatrix(matrix)
    first = np.rint(matrix.MultiplyPoint((*node.GetOrigin(), 1.0))[2::-1]).astype(int)
    whole = np.zeros(volume.GetImageData().GetDimensions()[::-1], values.dtype)
    whole[tuple(slice(f, f + n) for f, n in zip(first, values.shape))] = values
    return whole


def same_result(one, other):
    np.testing.assert_array_equal(one.probabilities, other.probabilities)
    assert one.measurements == other.measurements
    for name in ("location_map", "label_map"):
        np.testing.assert_array_equal(
            sitk.GetArrayViewFromImage(getattr(one, name)),
            sitk.GetArrayViewFromImage(getattr(other, name)),
        )
