"""The sample CT that ships with the module, a simulated abdomen, as nodes in the scene."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import StagingError

SAMPLE_NAME = "LiverFibrosisPhantom"
FILES = {
    "ct": "phantom_F4_ct.nii.gz",
    "liver": "phantom_F4_liver.nii.gz",
    "spleen": "phantom_F4_spleen.nii.gz",
}
# Slicer's terminology entry, name and colour of an organ in its General Anatomy list.
_ORGANS = {
    "liver": ("10200004", "Liver", (221, 130, 101)),
    "spleen": ("78961009", "Spleen", (157, 108, 162)),
}
_TERMINOLOGY = (
    "Segmentation category and type - 3D Slicer General Anatomy list"
    "~SCT^123037004^Anatomical Structure~SCT^{code}^{name}~^^~Anatomic codes - DICOM master list"
    "~^^~^^"
)


def register(resources: Path, load: Callable[[Any], list[Any]]) -> None:
    """Offer the sample in Slicer's Sample Data module, which calls `load` when it is clicked."""
    import SampleData
    from slicer.i18n import tr as _

    SampleData.SampleDataLogic.registerCustomSampleDataSource(
        category=_("Liver Fibrosis Staging"),
        sampleName=SAMPLE_NAME,
        uris=[(resources / "SampleData" / name).as_uri() for name in FILES.values()],
        fileNames=list(FILES.values()),
        nodeNames=[f"{SAMPLE_NAME} {part}" for part in FILES],
        customDownloader=load,
        thumbnailFileName=str(resources / "Icons" / "LiverFibrosisStagingSample.png"),
    )


def load_sample(resources: str | Path) -> tuple[Any, Any]:
    """Load the sample from the module's own files; returns its volume and segmentation node.

    Nothing is downloaded and nothing copied. The segments, liver and spleen, carry terminology. The
    CT is shown in the slice views. Raises StagingError where the files are not there.
    """
    import SimpleITK as sitk
    import slicer

    folder = Path(resources) / "SampleData"
    missing = [name for name in FILES.values() if not (folder / name).is_file()]
    if missing:
        raise StagingError(
            f"The sample's {', '.join(missing)} is not in {folder}: reinstall the extension."
        )
    volume = slicer.modules.volumes.logic().AddArchetypeVolume(
        str(folder / FILES["ct"]), SAMPLE_NAME
    )
    volume.GetDisplayNode().SetAutoWindowLevel(False)
    volume.GetDisplayNode().SetWindowLevel(350, 50)  # abdomen
    segmentation = slicer.mrmlScene.AddNewNodeByClass(
        "vtkMRMLSegmentationNode", f"{SAMPLE_NAME} organs"
    )
    segmentation.CreateDefaultDisplayNodes()
    segmentation.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    for organ, (code, name, color) in _ORGANS.items():
        mask = sitk.ReadImage(str(folder / FILES[organ]), sitk.sitkUInt8)
        segment_id = segmentation.GetSegmentation().AddEmptySegment(
            organ, name, [part / 255 for part in color]
        )
        slicer.util.updateSegmentBinaryLabelmapFromArray(
            sitk.GetArrayFromImage(mask), segmentation, segment_id, volume
        )
        segmentation.GetSegmentation().GetSegment(segment_id).SetTerminology(
            _TERMINOLOGY.format(code=code, name=name)
        )
    # Filled in 2D, the organs would hide the location map.
    segmentation.GetDisplayNode().SetVisibility2DFill(False)
    slicer.util.setSliceViewerLayers(background=volume, fit=True)
    return volume, segmentation
