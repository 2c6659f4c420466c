"""The one file that speaks MRML: nodes in, images out, and the result back into the scene.

It is imported where Slicer (or its `slicer-core` wheel) is; the rest of the library needs neither.
Slicer's axes are RAS, the library's LPS, both in mm; arrays are [slice, row, column] in both.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import SimpleITK as sitk

from .colors import BANDS
from .dicom_series import KEPT_TAGS
from .errors import StagingError
from .reading import NAME_KEY
from .result import StagingResult

CT_ROLE = "LiverFibrosisStaging.ct"  # node reference of a label volume: the CT it belongs to
TABLE_ATTRIBUTE = "LiverFibrosisStaging.bands"  # marks the scene's one colour table
LABEL_OPACITY = 1.0  # the bands have an opacity of their own

# SNOMED CT and, from older DICOM, SNOMED RT; DICOM PS3.16, CID 7154.
_CODES = {
    "liver": {("SCT", "10200004"), ("SRT", "T-62000")},
    "spleen": {("SCT", "78961009"), ("SRT", "T-C3000")},
}
_NAMES = {
    "liver": {"liver", "foie", "leber", "hígado", "fegato"},
    "spleen": {"spleen", "rate", "milz", "bazo", "milza"},
}
# Couinaud's hepatic segments I to VIII; DICOM PS3.16, CID 7170.
_COUINAUD_CODES = (
    "71133005",
    "277956007",
    "277957003",
    "277958008",
    "277959000",
    "277960005",
    "277961009",
    "277962002",
)
_COUINAUD_NAME = re.compile(
    r"(?:couinaud |liver |hepatic )+segment (viii|vii|vi|v|iv|iii|ii|i|[1-8])[ab]?"
)
_ROMAN = ("i", "ii", "iii", "iv", "v", "vi", "vii", "viii")

_LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0])


def volume_to_image(volume_node: Any) -> sitk.Image:
    """A CT volume node as an image in the patient's axes (LPS, mm), its parent transform included.

    Voxels are copied in their own type. Where the node was loaded from DICOM and Slicer's database
    still knows it, the image carries `dicom_series.KEPT_TAGS` for the checks. Raises StagingError
    for a node that is no scalar volume, holds no voxels, or lies under a transform that bends,
    shears or scales it.
    """
    if volume_node is None:
        raise StagingError("No CT volume is chosen: load a CT and choose it.")
    if volume_node.GetClassName() != "vtkMRMLScalarVolumeNode":
        raise StagingError(
            f"'{volume_node.GetName()}' is a {_kind(volume_node)}; a CT as a scalar volume is "
            "needed."
        )
    image = _image(volume_node)
    for tag, value in _dicom_tags(volume_node).items():
        image.SetMetaData(tag, value)
    image.SetMetaData(NAME_KEY, f"'{volume_node.GetName()}'")
    return image


def staging_inputs(
    volume_node: Any,
    segmentation_node: Any,
    liver_segment_id: str | None = None,
    spleen_segment_id: str | None = None,
) -> tuple[sitk.Image, sitk.Image, sitk.Image | None]:
    """What `stage` needs, from the scene: the CT, the liver mask and, where there is one, the
    spleen mask.

    segmentation_node: a segmentation whose liver and spleen are named by the ids or found by
    `find_segments`; or a label map volume (1 liver, 2 spleen, or the liver alone), which needs no
    ids. Adds nothing to the scene. Raises StagingError where there is no liver.
    """
    ct = volume_to_image(volume_node)
    if segmentation_node is None:
        raise StagingError(
            f"'{volume_node.GetName()}' has no liver segmentation: segment the liver first and "
            "choose the segmentation."
        )
    if segmentation_node.GetClassName() == "vtkMRMLLabelMapVolumeNode":
        return ct, _image(segmentation_node), None
    if segmentation_node.GetClassName() != "vtkMRMLSegmentationNode":
        raise StagingError(
            f"'{segmentation_node.GetName()}' is a {_kind(segmentation_node)}; a segmentation "
            "with the liver is needed."
        )
    livers = _chosen(segmentation_node, "liver", liver_segment_id)
    if not livers:
        raise StagingError(
            f"'{segmentation_node.GetName()}' has no liver: none of its "
            f"{segmentation_node.GetSegmentation().GetNumberOfSegments()} segments is one by its "
            "terminology or its name."
        )
    spleens = _chosen(segmentation_node, "spleen", spleen_segment_id)
    liver = _mask(segmentation_node, livers, volume_node, ct)
    spleen = _mask(segmentation_node, spleens, volume_node, ct) if spleens else None
    return ct, liver, spleen


def find_segments(segmentation_node: Any, organ: str) -> tuple[str, ...]:
    """Ids of the segments that make up an organ, "liver" or "spleen"; empty where there is none.

    The terminology's type code decides, then, for the liver, a full set of Couinaud's segments,
    then the name. A tumour of the liver has the liver as its region, not as its type, so it is not
    taken for one. Raises StagingError where several segments are the organ.
    """
    segmentation = segmentation_node.GetSegmentation()
    ids = [segmentation.GetNthSegmentID(n) for n in range(segmentation.GetNumberOfSegments())]
    types = {i: _type_code(segmentation.GetSegment(i)) for i in ids}
    names = {i: _plain(segmentation.GetSegment(i).GetName()) for i in ids}

    found = [i for i in ids if types[i] in _CODES[organ]]
    if not found and organ == "liver":
        parts = {i: _couinaud(types[i], names[i]) for i in ids}
        if set(range(8)) <= set(parts.values()):
            return tuple(i for i in ids if parts[i] is not None)
    found = found or [i for i in ids if names[i] in _NAMES[organ]]
    if len(found) > 1:
        several = ", ".join(f"'{segmentation.GetSegment(i).GetName()}'" for i in found)
        raise StagingError(
            f"'{segmentation_node.GetName()}' has several segments that are the {organ} "
            f"({several}): choose one."
        )
    return tuple(found)


def show_result(result: StagingResult, volume_node: Any) -> Any:
    """Put the location map over the CT in the slice views; returns its label map volume node.

    The node lies on the CT's grid and under its parent transform, beside it in the subject
    hierarchy, with the scene's one colour table and a legend. A second result for the same CT
    replaces the first in the same node. Raises StagingError where the result does not fit the
    volume; whatever fails, no new node stays behind.
    """
    import slicer

    labels = sitk.GetArrayViewFromImage(result.label_map)
    size = volume_node.GetImageData().GetDimensions() if volume_node.GetImageData() else (0, 0, 0)
    if result.label_map.GetSize() != size:
        raise StagingError(
            f"The result has {' x '.join(map(str, result.label_map.GetSize()))} voxels, "
            f"'{volume_node.GetName()}' has {' x '.join(map(str, size))}: it is the result of "
            "another volume."
        )
    with _all_or_nothing():
        table = _band_table()
        node = _label_node_of(volume_node)
        is_new = node is None
        if node is None:
            node = slicer.mrmlScene.AddNewNodeByClass(
                "vtkMRMLLabelMapVolumeNode", f"{volume_node.GetName()} location map"
            )
            node.SetNodeReferenceID(CT_ROLE, volume_node.GetID())
        with slicer.util.NodeModify(node):
            node.CopyOrientation(volume_node)  # same voxels, so the same IJK to RAS
            node.SetAndObserveTransformNodeID(volume_node.GetTransformNodeID())
            slicer.util.updateVolumeFromArray(node, labels)
        node.CreateDefaultDisplayNodes()
        node.GetDisplayNode().SetAndObserveColorNodeID(table.GetID())
        if is_new:
            _place_beside(node, volume_node)
        _show_in_slices(volume_node, node)
        _show_legend(node, result.explained)  # last: it is drawn in views that show its volume
    return node


def _image(volume_node: Any) -> sitk.Image:
    import slicer

    data = volume_node.GetImageData()
    if data is None or not data.GetNumberOfPoints() or data.GetPointData().GetScalars() is None:
        raise StagingError(f"'{volume_node.GetName()}' holds no voxels: load it again.")
    spacing, origin, axes = _world_geometry(volume_node)
    image = sitk.GetImageFromArray(slicer.util.arrayFromVolume(volume_node))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(origin.tolist())
    image.SetDirection(axes.ravel().tolist())
    return image


def _world_geometry(volume_node: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Spacing [3], origin [3] and axes as columns [3, 3] in LPS, mm, parent transform included."""
    from slicer.util import arrayFromVTKMatrix
    from vtkmodules.vtkCommonMath import vtkMatrix4x4

    name, matrix = volume_node.GetName(), vtkMatrix4x4()
    volume_node.GetIJKToRASDirectionMatrix(matrix)
    axes = arrayFromVTKMatrix(matrix)[:3, :3]
    origin = np.array(volume_node.GetOrigin())
    parent = volume_node.GetParentTransformNode()
    if parent is not None:
        if not parent.IsTransformToWorldLinear():
            raise StagingError(
                f"'{name}' lies under the non-linear transform '{parent.GetName()}': harden it or "
                "take the volume out of it; only shifts and rotations can be staged."
            )
        parent.GetMatrixTransformToWorld(matrix)
        to_world = arrayFromVTKMatrix(matrix)
        turn = to_world[:3, :3]
        if not np.allclose(turn.T @ turn, np.eye(3), atol=1e-3):
            raise StagingError(
                f"'{name}' lies under the transform '{parent.GetName()}', which scales or shears "
                "it; only shifts and rotations can be staged."
            )
        axes, origin = turn @ axes, turn @ origin + to_world[:3, 3]
    if not np.allclose(axes.T @ axes, np.eye(3), atol=1e-2):
        raise StagingError(
            f"The axes of '{name}' are not at right angles (a tilted gantry?); resample it to an "
            "upright grid first."
        )
    return (
        _without_noise(np.array(volume_node.GetSpacing())),
        _without_noise(_LPS_FROM_RAS @ origin),
        np.round(_LPS_FROM_RAS @ axes, 10) + 0.0,
    )


def _without_noise(values: np.ndarray) -> np.ndarray:
    """Undo the last digits that Slicer's matrix inversions change, 0.7031249999999999 to 0.703125.

    Files hold decimals or float32; a value next to one of these was that one. So a CT has the same
    geometry, to the last digit, as when it is read without Slicer.
    """
    for simple in (np.round(values, 9), values.astype(np.float32).astype(np.float64)):
        values = np.where(np.abs(values - simple) < 1e-11, simple, values)
    return values + 0.0  # no negative zeros


def _dicom_tags(volume_node: Any) -> dict[str, str]:
    import slicer

    instances = (volume_node.GetAttribute("DICOM.instanceUIDs") or "").split()
    database = getattr(slicer, "dicomDatabase", None)
    if not instances or database is None:
        return {}
    found = {tag: database.instanceValue(instances[0], tag.replace("|", ",")) for tag in KEPT_TAGS}
    return {tag: value for tag, value in found.items() if value}


def _chosen(segmentation_node: Any, organ: str, segment_id: str | None) -> tuple[str, ...]:
    if segment_id is None:
        return find_segments(segmentation_node, organ)
    if segmentation_node.GetSegmentation().GetSegment(segment_id) is None:
        raise StagingError(
            f"'{segmentation_node.GetName()}' has no segment with the id '{segment_id}'."
        )
    return (segment_id,)


def _type_code(segment: Any) -> tuple[str, str] | None:
    """Scheme and code of the type in a segment's terminology.

    The entry reads context~category~type~modifier~region context~region~modifier, each of them
    scheme^code^meaning.
    """
    fields = segment.GetTerminology().split("~")
    code = fields[2].split("^") if len(fields) > 2 else []
    return (code[0], code[1]) if len(code) > 1 else None


def _couinaud(type_code: tuple[str, str] | None, name: str) -> int | None:
    """Which of Couinaud's segments a segment is, 0 to 7; None for any other."""
    if type_code is not None and type_code[0] == "SCT" and type_code[1] in _COUINAUD_CODES:
        return _COUINAUD_CODES.index(type_code[1])
    match = _COUINAUD_NAME.fullmatch(name)
    if match is None:
        return None
    return _ROMAN.index(match[1]) if match[1] in _ROMAN else int(match[1]) - 1


def _plain(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").replace("-", " ").split())


def _mask(
    segmentation_node: Any, segment_ids: Sequence[str], volume_node: Any, ct: sitk.Image
) -> sitk.Image:
    """The union of segments as a uint8 mask on the CT's grid, both parent transforms accounted for.

    Like slicer.util.arrayFromSegmentBinaryLabelmap, but without its temporary nodes in the scene.
    """
    import slicer
    from vtkmodules.util.numpy_support import vtk_to_numpy
    from vtkmodules.vtkCommonCore import vtkStringArray

    ids, merged = vtkStringArray(), slicer.vtkOrientedImageData()
    for segment_id in segment_ids:
        ids.InsertNextValue(segment_id)
    with _as_voxels(segmentation_node):
        slicer.vtkSlicerSegmentationsModuleLogic.GenerateMergedLabelmapInReferenceGeometry(
            segmentation_node,
            volume_node,
            ids,
            slicer.vtkSegmentation.EXTENT_REFERENCE_GEOMETRY,
            merged,
        )
    scalars, size = merged.GetPointData().GetScalars(), ct.GetSize()
    inside = np.zeros(size[::-1], bool)
    if scalars is not None and merged.GetDimensions() == size:
        inside = vtk_to_numpy(scalars).reshape(size[::-1]) != 0
    if not inside.any():
        name = segmentation_node.GetSegmentation().GetSegment(segment_ids[0]).GetName()
        raise StagingError(
            f"The segment '{name}' of '{segmentation_node.GetName()}' is empty within "
            f"'{volume_node.GetName()}'."
        )
    mask = sitk.GetImageFromArray(inside.astype(np.uint8))
    mask.CopyInformation(ct)
    return mask


@contextmanager
def _as_voxels(segmentation_node: Any) -> Iterator[None]:
    """A segmentation of surfaces has voxels for a moment; it is left as it was."""
    import slicer

    segmentation = segmentation_node.GetSegmentation()
    voxels = slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()
    had_voxels = segmentation.ContainsRepresentation(voxels)
    if not had_voxels:
        segmentation.CreateRepresentation(voxels)
    try:
        yield
    finally:
        if not had_voxels:
            segmentation.RemoveRepresentation(voxels)


def _kind(node: Any) -> str:
    return node.GetNodeTagName() or node.GetClassName()


@contextmanager
def _all_or_nothing() -> Iterator[None]:
    """Whatever fails inside, the nodes that were added to the scene meanwhile go again."""
    import slicer

    before = {node.GetID() for node in slicer.util.getNodesByClass("vtkMRMLNode")}
    try:
        yield
    except BaseException:
        for node in slicer.util.getNodesByClass("vtkMRMLNode"):
            if node.GetID() not in before:
                slicer.mrmlScene.RemoveNode(node)
        raise


def _label_node_of(volume_node: Any) -> Any:
    import slicer

    for node in slicer.util.getNodesByClass("vtkMRMLLabelMapVolumeNode"):
        if node.GetNodeReferenceID(CT_ROLE) == volume_node.GetID():
            return node
    return None


def _band_table() -> Any:
    """The scene's colour table of the ten bands, made where there is none yet."""
    import slicer

    for table in slicer.util.getNodesByClass("vtkMRMLColorTableNode"):
        if table.GetAttribute(TABLE_ATTRIBUTE):
            return table
    table = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLColorTableNode", "Location map bands")
    table.SetAttribute(TABLE_ATTRIBUTE, "10 %")
    table.SetTypeToUser()
    table.SetNumberOfColors(len(BANDS))
    for label, band in enumerate(BANDS):
        table.SetColor(label, band.name, *band.rgb, band.opacity)
    return table


def _show_legend(label_node: Any, explained: str) -> None:
    import slicer

    legend = slicer.modules.colors.logic().AddDefaultColorLegendDisplayNode(label_node)
    legend.SetTitleText(f"Location map of {explained}\n(share of its maximum)")
    legend.SetUseColorNamesForLabels(True)
    legend.SetMaxNumberOfColors(len(BANDS))
    legend.SetNumberOfLabels(len(BANDS))


def _place_beside(label_node: Any, volume_node: Any) -> None:
    import slicer

    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    if hierarchy is None:
        return
    volume_item = hierarchy.GetItemByDataNode(volume_node)
    if volume_item == hierarchy.GetInvalidItemID():
        return
    folder, item = hierarchy.GetItemParent(volume_item), hierarchy.GetItemByDataNode(label_node)
    if item == hierarchy.GetInvalidItemID():
        hierarchy.CreateItem(folder, label_node)
    else:
        hierarchy.SetItemParent(item, folder)


def _show_in_slices(volume_node: Any, label_node: Any) -> None:
    """CT and label in all slice views; they are fitted only where the CT was not yet shown."""
    import slicer

    shown = {
        view.GetBackgroundVolumeID()
        for view in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
    }
    slicer.util.setSliceViewerLayers(
        background=volume_node,
        label=label_node,
        labelOpacity=LABEL_OPACITY,
        fit=volume_node.GetID() not in shown,
    )
