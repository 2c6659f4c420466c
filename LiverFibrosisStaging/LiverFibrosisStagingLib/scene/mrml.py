"""From the scene to the library: a CT volume node and a segmentation become images.

`scene_inputs` is for the main thread and copies no voxels; it only refers to them.
`SceneInputs.images` copies and resamples them, in any thread. Slicer's axes are RAS, the library's
LPS, both in mm; arrays are [slice, row, column] in both.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import SimpleITK as sitk

from ..errors import StagingError
from ..imaging.body import Body, body_metadata
from ..imaging.dicom_files import KEPT_TAGS, PATIENT_SIZE, PATIENT_WEIGHT
from ..imaging.masks import voxels_sha256
from ..imaging.organs import ORGANS, couinaud_segment, liver_part
from ..imaging.reading import NAME_KEY
from ..imaging.segments import LiverSegments

# Of a segmentation node: JSON of the network that made it, and the hash of the network's masks.
# The value stays as in scenes that were saved before.
SEGMENTED_ATTRIBUTE = "LiverFibrosisStaging.outlined"

_LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class _Volume:
    """A volume node's voxels, shared with the scene, and their geometry (LPS, mm)."""

    voxels: np.ndarray
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]
    metadata: dict[str, str] = field(default_factory=dict)

    def image(self) -> sitk.Image:
        """A copy as an image."""
        image = sitk.GetImageFromArray(self.voxels)
        image.SetSpacing(self.spacing)
        image.SetOrigin(self.origin)
        image.SetDirection(self.direction)
        for key, value in self.metadata.items():
            image.SetMetaData(key, value)
        return image


@dataclass(frozen=True)
class _Segment:
    """A segment's voxels, shared with the scene: those equal to `label`.

    from_ct: affine [4, 4] from the CT's voxel indices (i, j, k) to this array's.
    """

    voxels: np.ndarray
    label: int
    from_ct: np.ndarray

    def paint(self, mask: np.ndarray) -> None:
        """Set uint8 `mask`, on the CT's grid, to 1 within the segment (nearest neighbour)."""
        inside = (self.voxels == self.label).astype(np.uint8)
        if np.allclose(self.from_ct[:3, :3], np.eye(3), atol=1e-6):
            shift = np.rint(self.from_ct[:3, 3]).astype(int)[::-1]
            of_mask, of_inside = (
                tuple(
                    slice(max(0, sign * s), max(0, min(n, m + sign * s)))
                    for s, n, m in zip(shift, one.shape, other.shape)
                )
                for one, other, sign in ((mask, inside, -1), (inside, mask, 1))
            )
            mask[of_mask] |= inside[of_inside]
            return
        transform = sitk.AffineTransform(3)
        transform.SetMatrix(self.from_ct[:3, :3].ravel().tolist())
        transform.SetTranslation(self.from_ct[:3, 3].tolist())
        grid = sitk.Image(mask.shape[::-1], sitk.sitkUInt8)
        image = sitk.GetImageFromArray(inside)
        placed = sitk.Resample(image, grid, transform, sitk.sitkNearestNeighbor, 0)
        mask |= sitk.GetArrayViewFromImage(placed)


@dataclass(frozen=True)
class _Organ:
    """The segments of an organ, and the message if they are empty within the CT."""

    segments: tuple[_Segment, ...]
    empty: str

    def image(self, ct: sitk.Image) -> sitk.Image:
        mask = np.zeros(ct.GetSize()[::-1], np.uint8)
        for segment in self.segments:
            segment.paint(mask)
        if not mask.any():
            raise StagingError(self.empty)
        image = sitk.GetImageFromArray(mask)
        image.CopyInformation(ct)
        return image


@dataclass(frozen=True)
class _Parts:
    """Parts of the liver, larger ones first: the Couinaud segments that each consists of, and its
    voxels; and the message if all are empty within the CT.
    """

    parts: tuple[tuple[frozenset[int], tuple[_Segment, ...]], ...]
    empty: str

    def segments(self, ct: sitk.Image) -> LiverSegments:
        labels = np.zeros(ct.GetSize()[::-1], np.uint8)
        for number, (_, segments) in enumerate(self.parts, start=1):
            mask = np.zeros_like(labels)
            for segment in segments:
                segment.paint(mask)
            labels[mask > 0] = number
        if not labels.any():
            raise StagingError(self.empty)
        image = sitk.GetImageFromArray(labels)
        image.CopyInformation(ct)
        return LiverSegments(image, tuple(part for part, _ in self.parts))


@dataclass(frozen=True)
class SceneInputs:
    """The inputs of `stage` in the scene; made by `scene_inputs`.

    _segmented: if a network segmented the organs: its name and sha256, and that of its masks.
    """

    _ct: _Volume
    _liver: _Organ | _Volume | None
    _spleen: _Organ | None
    _segmented: dict[str, str] | None = None
    _parts: _Parts | None = None
    _body: Body | None = None

    def arguments(self) -> dict[str, Any]:
        """Arguments for `stage`; in any thread. Raises what `images` does."""
        ct, liver, spleen = self.images()
        segmentation = None
        if self._segmented is not None:
            edited = voxels_sha256(liver, spleen) != self._segmented["masks_sha256"]
            segmentation = {key: self._segmented[key] for key in ("name", "sha256")}
            segmentation["edited"] = edited
        return {
            "ct": ct,
            "liver": liver,
            "spleen": spleen,
            "segmentation": segmentation,
            "segments": self._parts and self._parts.segments(ct),
            "body": self._body,
        }

    def images(self) -> tuple[sitk.Image, sitk.Image | None, sitk.Image | None]:
        """CT and, where given, liver mask and spleen mask; in any thread.

        Raises StagingError for a segment that is empty within the CT.
        """
        ct = self._ct.image()
        if self._liver is None:
            return ct, None, None
        if isinstance(self._liver, _Volume):
            return ct, self._liver.image(), None
        return ct, self._liver.image(ct), self._spleen and self._spleen.image(ct)


def scene_inputs(
    volume_node: Any,
    segmentation_node: Any,
    liver_segment_id: str | None = None,
    spleen_segment_id: str | None = None,
    parts_node: Any = None,
    body: Body | None = None,
) -> SceneInputs:
    """Refer to a CT, its liver and, optionally, its spleen in the scene; nothing is copied yet.

    Voxels keep their type; parent transforms are included. If the volume was loaded from DICOM and
    is still in Slicer's database, its image has the tags `dicom_files.KEPT_TAGS` for the checks.
    segmentation_node: a segmentation whose liver and spleen are given by the ids or found by
    `find_segments`; or a label map volume (1 liver, 2 spleen, or the liver alone), without ids; or
    None, then `stage` segments both. parts_node: a segmentation of the liver's parts
    (`find_liver_parts`), for the signs that need them; body: height and weight, by default those of
    DICOM. The scene is not changed. Raises StagingError for a node that is no scalar volume, has no
    voxels, or is under a transform that is non-linear, shears or scales it, and for a segmentation
    without a liver, or without parts.
    """
    ct = _ct_volume(volume_node)
    parts = None if parts_node is None else _liver_parts(parts_node, volume_node)
    if segmentation_node is None:
        return SceneInputs(ct, None, None, None, parts, body)
    if segmentation_node.GetClassName() == "vtkMRMLLabelMapVolumeNode":
        return SceneInputs(ct, _volume(segmentation_node), None, None, parts, body)
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
    liver = _organ(segmentation_node, livers, volume_node)
    spleen = _organ(segmentation_node, spleens, volume_node) if spleens else None
    return SceneInputs(ct, liver, spleen, segmented_by(segmentation_node), parts, body)


def segmented_by(segmentation_node: Any) -> dict[str, str] | None:
    """The value of SEGMENTED_ATTRIBUTE (name, sha256, masks_sha256), or None."""
    found = json_attribute(segmentation_node, SEGMENTED_ATTRIBUTE)
    names = {"name", "sha256", "masks_sha256"}
    known = isinstance(found, dict) and {*found} == names
    return found if known and all(isinstance(text, str) for text in found.values()) else None


def json_attribute(node: Any, name: str) -> Any:
    """The value of a JSON attribute; None where it is missing or not valid JSON."""
    try:
        return json.loads(node.GetAttribute(name) or "null")
    except ValueError:
        return None


def find_segments(segmentation_node: Any, organ: str) -> tuple[str, ...]:
    """Ids of the segments of an organ, "liver" or "spleen"; empty where there are none.

    They are identified by the terminology's type code; else, for the liver, by a full set of
    Couinaud's segments; else by name. A liver tumour has the liver as its region, not as its type,
    so it is not mistaken for the liver. Raises StagingError if several segments match.
    """
    known = next(each for each in ORGANS if each.name.lower() == organ)
    segmentation = segmentation_node.GetSegmentation()
    ids = [segmentation.GetNthSegmentID(n) for n in range(segmentation.GetNumberOfSegments())]
    types = {i: _type_code(segmentation.GetSegment(i)) for i in ids}
    names = {i: _plain(segmentation.GetSegment(i).GetName()) for i in ids}

    found = [i for i in ids if types[i] in known.codes]
    if not found and organ == "liver":
        parts = {i: couinaud_segment(types[i], names[i]) for i in ids}
        if set(range(8)) <= set(parts.values()):
            return tuple(i for i in ids if parts[i] is not None)
    found = found or [i for i in ids if names[i] in known.names]
    if len(found) > 1:
        several = ", ".join(f"'{segmentation.GetSegment(i).GetName()}'" for i in found)
        raise StagingError(
            f"'{segmentation_node.GetName()}' has several segments that are the {organ} "
            f"({several}); rename the others, or give the id of one."
        )
    return tuple(found)


def find_liver_parts(segmentation_node: Any) -> dict[str, frozenset[int]]:
    """Ids of the segments that are parts of the liver, and the Couinaud segments, 1 to 8, that each
    consists of, by terminology or name (`organs.liver_part`); larger parts first.
    """
    segmentation = segmentation_node.GetSegmentation()
    ids = [segmentation.GetNthSegmentID(n) for n in range(segmentation.GetNumberOfSegments())]
    found = {}
    for segment_id in ids:
        segment = segmentation.GetSegment(segment_id)
        part = liver_part(_type_code(segment), segment.GetName())
        if part is not None:
            found[segment_id] = part
    return dict(sorted(found.items(), key=lambda each: -len(each[1])))


def _liver_parts(segmentation_node: Any, volume_node: Any) -> _Parts:
    found = find_liver_parts(segmentation_node)
    name = segmentation_node.GetName()
    if not found:
        raise StagingError(
            f"'{name}' has no parts of the liver: none of its "
            f"{segmentation_node.GetSegmentation().GetNumberOfSegments()} segments is one of "
            "Couinaud's segments or a lobe by its terminology or its name."
        )
    return _Parts(
        tuple(
            (part, _organ(segmentation_node, (segment_id,), volume_node).segments)
            for segment_id, part in found.items()
        ),
        f"The parts of the liver of '{name}' are empty within '{volume_node.GetName()}'.",
    )


def _ct_volume(volume_node: Any) -> _Volume:
    if volume_node is None:
        raise StagingError("No CT volume is chosen; load a CT and choose it.")
    if volume_node.GetClassName() != "vtkMRMLScalarVolumeNode":
        raise StagingError(
            f"'{volume_node.GetName()}' is a {_kind(volume_node)}; a CT as a scalar volume is "
            "needed."
        )
    name = {NAME_KEY: f"'{volume_node.GetName()}'"}
    return _volume(volume_node, {**_dicom_tags(volume_node), **name})


def _volume(volume_node: Any, metadata: dict[str, str] | None = None) -> _Volume:
    import slicer

    data = volume_node.GetImageData()
    if data is None or not data.GetNumberOfPoints() or data.GetPointData().GetScalars() is None:
        raise StagingError(f"'{volume_node.GetName()}' has no voxels; load it again.")
    spacing, origin, axes = _world_geometry(volume_node)
    return _Volume(
        slicer.util.arrayFromVolume(volume_node),
        tuple(spacing.tolist()),
        tuple(origin.tolist()),
        tuple(axes.ravel().tolist()),
        metadata or {},
    )


def _world_geometry(volume_node: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Spacing [3], origin [3] and axes as columns [3, 3] in LPS, mm, parent transform included."""
    from slicer.util import arrayFromVTKMatrix
    from vtkmodules.vtkCommonMath import vtkMatrix4x4

    name, matrix = volume_node.GetName(), vtkMatrix4x4()
    volume_node.GetIJKToRASDirectionMatrix(matrix)
    axes = arrayFromVTKMatrix(matrix)[:3, :3]
    origin = np.array(volume_node.GetOrigin())
    to_world = _to_world(volume_node)
    turn = to_world[:3, :3]
    if not np.allclose(turn.T @ turn, np.eye(3), atol=1e-3):
        raise StagingError(
            f"'{name}' lies under the transform '{volume_node.GetParentTransformNode().GetName()}',"
            " which scales or shears it; only translations and rotations are supported."
        )
    axes, origin = turn @ axes, turn @ origin + to_world[:3, 3]
    if not np.allclose(axes.T @ axes, np.eye(3), atol=1e-2):
        raise StagingError(
            f"The axes of '{name}' are not at right angles (a tilted gantry?); resample it to an "
            "orthogonal grid."
        )
    return (
        _without_noise(np.array(volume_node.GetSpacing())),
        _without_noise(_LPS_FROM_RAS @ origin),
        np.round(_LPS_FROM_RAS @ axes, 10) + 0.0,
    )


def _without_noise(values: np.ndarray) -> np.ndarray:
    """Undo the rounding errors of Slicer's matrix inversions, 0.7031249999999999 to 0.703125.

    Files contain decimals or float32; a value next to one of these is replaced by it. So a CT has
    exactly the same geometry as when it is read without Slicer.
    """
    for simple in (np.round(values, 9), values.astype(np.float32).astype(np.float64)):
        values = np.where(np.abs(values - simple) < 1e-11, simple, values)
    return values + 0.0  # no negative zeros


def dicom_files(volume_node: Any) -> list[str]:
    """The files that a volume was loaded from, in any order; empty unless it was loaded from
    Slicer's DICOM database, which still knows all of them.
    """
    database, instances = _dicom(volume_node)
    files = [database.fileForInstance(instance) for instance in instances]
    return files if all(files) else []


def is_from_dicom(volume_node: Any) -> bool:
    """Whether Slicer's DICOM database knows where a volume was loaded from: its first slice."""
    database, instances = _dicom(volume_node)
    return bool(instances and database.fileForInstance(instances[0]))


def _dicom(volume_node: Any) -> tuple[Any, list[str]]:
    """Slicer's DICOM database and the UIDs of a volume's slices; none if it is not from DICOM."""
    import slicer

    database = getattr(slicer, "dicomDatabase", None)
    instances = (volume_node.GetAttribute("DICOM.instanceUIDs") or "").split()
    return database, [] if database is None else instances


def _dicom_tags(volume_node: Any) -> dict[str, str]:
    database, instances = _dicom(volume_node)
    if not instances:
        return {}

    def value(tag: str) -> str:
        return database.instanceValue(instances[0], tag.replace("|", ","))

    found = {tag: value(tag) for tag in KEPT_TAGS}
    body = body_metadata(value(PATIENT_SIZE), value(PATIENT_WEIGHT))
    return {tag: text for tag, text in found.items() if text} | body


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

    The entry is context~category~type~modifier~region context~region~modifier, each of them
    scheme^code^meaning.
    """
    fields = segment.GetTerminology().split("~")
    code = fields[2].split("^") if len(fields) > 2 else []
    return (code[0], code[1]) if len(code) > 1 else None


def _plain(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").replace("-", " ").split())


def _organ(segmentation_node: Any, segment_ids: Sequence[str], volume_node: Any) -> _Organ:
    from slicer.util import arrayFromVTKMatrix
    from vtkmodules.util.numpy_support import vtk_to_numpy
    from vtkmodules.vtkCommonMath import vtkMatrix4x4

    segmentation, matrix = segmentation_node.GetSegmentation(), vtkMatrix4x4()
    volume_node.GetIJKToRASMatrix(matrix)
    from_ct = _to_world(volume_node) @ arrayFromVTKMatrix(matrix)
    from_ct = np.linalg.inv(_to_world(segmentation_node)) @ from_ct
    segments = []
    with _as_voxels(segmentation_node):
        for segment_id in segment_ids:
            labelmap = segmentation_node.GetBinaryLabelmapInternalRepresentation(segment_id)
            if labelmap is None or labelmap.GetPointData().GetScalars() is None:
                continue
            labelmap.GetImageToWorldMatrix(matrix)
            first = np.eye(4)  # voxel indices begin at the extent's, the array's at 0
            first[:3, 3] = labelmap.GetExtent()[::2]
            segments.append(
                _Segment(
                    vtk_to_numpy(labelmap.GetPointData().GetScalars()).reshape(
                        labelmap.GetDimensions()[::-1]
                    ),
                    segmentation.GetSegment(segment_id).GetLabelValue(),
                    np.linalg.inv(arrayFromVTKMatrix(matrix) @ first) @ from_ct,
                )
            )
    name = segmentation.GetSegment(segment_ids[0]).GetName()
    empty = (
        f"The segment '{name}' of '{segmentation_node.GetName()}' is empty within "
        f"'{volume_node.GetName()}'."
    )
    return _Organ(tuple(segments), empty)


def _to_world(node: Any) -> np.ndarray:
    """The matrix [4, 4] of all parent transforms of a node, RAS, mm."""
    from slicer.util import arrayFromVTKMatrix
    from vtkmodules.vtkCommonMath import vtkMatrix4x4

    parent, matrix = node.GetParentTransformNode(), vtkMatrix4x4()
    if parent is not None:
        if not parent.IsTransformToWorldLinear():
            raise StagingError(
                f"'{node.GetName()}' lies under the non-linear transform '{parent.GetName()}'; "
                "harden or remove it, as only translations and rotations are supported."
            )
        parent.GetMatrixTransformToWorld(matrix)
    return arrayFromVTKMatrix(matrix)


@contextmanager
def _as_voxels(segmentation_node: Any) -> Iterator[None]:
    """Within this context, a segmentation of surfaces has voxels too."""
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
