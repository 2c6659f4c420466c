"""The sample CT that ships with the module, a simulated abdomen, as nodes in the scene."""

import hashlib
from pathlib import Path
from typing import Any

from ..errors import StagingError

SAMPLE_NAME = "LiverFibrosisPhantom"
# File name, name of Slicer's reader for it, and name of its node.
FILES = (
    ("phantom_F4_ct.nii.gz", "VolumeFile", SAMPLE_NAME),
    ("phantom_F4.seg.nrrd", "SegmentationFile", f"{SAMPLE_NAME} organs"),
)


def register(resources: Path) -> None:
    """Offer the sample in Slicer's Sample Data module and to SampleData.downloadSamples."""
    import SampleData
    from slicer.i18n import tr as _

    paths = [resources / "SampleData" / name for name, _reader, _node in FILES]
    SampleData.SampleDataLogic.registerCustomSampleDataSource(
        category=_("Liver Fibrosis Staging"),
        sampleName=SAMPLE_NAME,
        uris=[path.as_uri() for path in paths],
        fileNames=[path.name for path in paths],
        nodeNames=[node for _name, _reader, node in FILES],
        loadFileType=[reader for _name, reader, _node in FILES],
        # Slicer caches a copy; the checksum detects that of an older version.
        checksums=[f"SHA256:{hashlib.sha256(path.read_bytes()).hexdigest()}" for path in paths],
        thumbnailFileName=str(resources / "Icons" / "LiverFibrosisStagingSample.png"),
    )


def load_sample(resources: str | Path) -> tuple[Any, Any]:
    """Load the sample from the module's own files; returns its volume and segmentation node.

    Nothing is downloaded or copied. The segments liver and spleen have terminology. The CT is shown
    in the slice views. Raises StagingError if the files are missing.
    """
    import slicer

    folder = Path(resources) / "SampleData"
    missing = [name for name, _reader, _node in FILES if not (folder / name).is_file()]
    if missing:
        raise StagingError(
            f"{folder}: the sample's {', '.join(missing)} is missing; install the extension again."
        )
    (ct, _reader, ct_name), (organs, _reader, organs_name) = FILES
    volume = slicer.modules.volumes.logic().AddArchetypeVolume(str(folder / ct), ct_name)
    volume.GetDisplayNode().SetAutoWindowLevel(False)
    volume.GetDisplayNode().SetWindowLevel(350, 50)  # abdomen
    segmentation = slicer.modules.segmentations.logic().LoadSegmentationFromFile(
        str(folder / organs), True, organs_name
    )
    segmentation.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    # Filled segments would hide the location map.
    segmentation.GetDisplayNode().SetVisibility2DFill(False)
    slicer.util.setSliceViewerLayers(background=volume, fit=True)
    return volume, segmentation
