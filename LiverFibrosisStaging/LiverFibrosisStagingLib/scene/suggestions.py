"""Chooses the CT and the segmentation in the panel where the user has not chosen one.

A CT that is added to the scene is chosen if none was. A segmentation is chosen with its CT: one
that has a liver and belongs to this CT, never one that was drawn on another. The user's choice is
kept, also "Automatic".
"""

from typing import Any

from ..errors import StagingError
from .mrml import find_liver_parts, find_segments
from .scene_nodes import is_result


def cts() -> list[Any]:
    """The scene's possible CTs: scalar volumes with voxels that are not results of the module."""
    import slicer

    class_name = "vtkMRMLScalarVolumeNode"  # includes label maps, which are no CTs
    return [
        node
        for node in slicer.util.getNodesByClass(class_name)
        if node.GetClassName() == class_name and node.GetImageData() and not is_result(node)
    ]


def drawn_on(segmentation_node: Any) -> Any:
    """The CT that a segmentation was drawn on, or None where the scene does not contain it."""
    role = segmentation_node.GetReferenceImageGeometryReferenceRole()
    reference = segmentation_node.GetNodeReference(role)
    return reference if reference in cts() else None


def belongs(segmentation_node: Any, volume_node: Any) -> bool:
    """Whether a segmentation was drawn on a CT, or on an unknown CT and there is only this one."""
    reference = drawn_on(segmentation_node)
    return cts() == [volume_node] if reference is None else reference is volume_node


def suggested_segmentation(volume_node: Any) -> Any:
    """The first segmentation that belongs to a CT and has a liver, or None."""
    import slicer

    for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode"):
        if not is_result(node) and belongs(node, volume_node) and _has_liver(node):
            return node
    return None


def suggested_parts(volume_node: Any, segmentation_node: Any) -> Any:
    """The segmentation with parts of the liver: the one that is used for the organs, or else the
    first one that was drawn on this CT; None where there is none.
    """
    import slicer

    others = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
    drawn = [node for node in others if drawn_on(node) is volume_node]
    candidates = drawn if segmentation_node is None else [segmentation_node, *drawn]
    return next((node for node in candidates if find_liver_parts(node)), None)


class Suggestions:
    """Chooses the parameter node's inputVolume and segmentation, and notices the user's choice."""

    def __init__(self) -> None:
        self._volume_id = self._segmentation_id = None
        self._automatic = False  # the user has chosen "Automatic" for this CT

    def begin(self, parameters: Any) -> None:
        """Start with a parameter node; if it has a CT, its segmentation is a choice too."""
        self._remember(parameters)
        self._automatic = self._volume_id is not None and self._segmentation_id is None

    def offer(self, parameters: Any) -> None:
        """Choose inputs that are not chosen yet; called when nodes were added to the scene."""
        if parameters.inputVolume is None:
            found = cts()
            if found:
                parameters.inputVolume = found[0]
                self.follow(parameters)
        elif parameters.segmentation is None and not self._automatic:
            self._choose(parameters)

    def follow(self, parameters: Any) -> None:
        """Notice the user's choice; with another CT, choose its segmentation."""
        import slicer

        volume_id, segmentation_id = self._volume_id, self._segmentation_id
        self._remember(parameters)
        if self._volume_id != volume_id:
            self._automatic = False
            volume, segmentation = parameters.inputVolume, parameters.segmentation
            if volume and not (segmentation and belongs(segmentation, volume)):
                self._choose(parameters)
        elif self._segmentation_id != segmentation_id:
            before = segmentation_id and slicer.mrmlScene.GetNodeByID(segmentation_id)
            self._automatic = self._segmentation_id is None and before is not None

    def _choose(self, parameters: Any) -> None:
        parameters.segmentation = suggested_segmentation(parameters.inputVolume)
        self._remember(parameters)

    def _remember(self, parameters: Any) -> None:
        volume, segmentation = parameters.inputVolume, parameters.segmentation
        self._volume_id = volume and volume.GetID()
        self._segmentation_id = segmentation and segmentation.GetID()


def _has_liver(segmentation_node: Any) -> bool:
    try:
        return bool(find_segments(segmentation_node, "liver"))
    except StagingError:  # several
        return False
