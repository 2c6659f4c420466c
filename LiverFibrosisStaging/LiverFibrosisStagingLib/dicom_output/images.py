"""Segmentation (SEG) and location map (Parametric Map) on the source's slices.

Both refer to the source slice by slice and take patient, study and frame of reference from it.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import __version__
from ..imaging.organs import ORGANS, Organ
from . import codes
from .source import Source

if TYPE_CHECKING:
    from highdicom.pm import ParametricMap
    from highdicom.seg import Segmentation
    from pydicom import Dataset

PRODUCT = "LiverFibrosisStaging"
SEGMENTATION_SERIES, MAP_SERIES, REPORT_SERIES = 9001, 9002, 9003  # series numbers
_NOTICE = "(research use only)"
_BODY_PART = "ABDOMEN"  # unpaired, so that no laterality is needed (PS3.3, general series)


def series(number: int, description: str, model_sha256: str) -> dict[str, Any]:
    """The arguments that all objects share: series, instance and equipment.

    The serial number of the equipment is the hash of the staging model.
    """
    from highdicom import UID

    return {
        "series_instance_uid": UID(),
        "series_number": number,
        "series_description": f"{description} {_NOTICE}",
        "sop_instance_uid": UID(),
        "instance_number": 1,
        "manufacturer": PRODUCT,
        "manufacturer_model_name": PRODUCT,
        "software_versions": __version__,
        "device_serial_number": model_sha256,
    }


def segmentation(source: Source, organs: np.ndarray, summary: Mapping[str, Any]) -> "Segmentation":
    """Liver and spleen as a binary segmentation, one segment each.

    organs: labels of `imaging.organs`, [slice, row, column] of the source; an organ without voxels
    gets no segment. summary: as in staging.json.
    """
    from highdicom.seg import Segmentation

    found = [organ for organ in ORGANS if (organs == organ.label).any()]
    made = Segmentation(
        source_images=source.slices,
        pixel_array=np.stack([organs == organ.label for organ in found], axis=-1).astype(np.uint8),
        segmentation_type="BINARY",
        segment_descriptions=[
            _segment(number, organ, summary["segmentation"])
            for number, organ in enumerate(found, start=1)
        ],
        content_label="LIVER_SPLEEN",
        content_description="Liver and spleen used for staging",
        **series(SEGMENTATION_SERIES, "Liver and spleen", summary["model"]["sha256"]),
    )
    made.BodyPartExamined = _BODY_PART
    return made


def parametric_map(
    source: Source, covered: slice, location_map: np.ndarray, summary: Mapping[str, Any]
) -> "ParametricMap":
    """The location map as a parametric map of 32-bit floats.

    covered: the slices of the source that location_map, float32 [slice, row, column], has; those
    below and above the map, where it is 0, are left out. summary: as in staging.json.
    """
    from highdicom.pm import ParametricMap, RealWorldValueMapping
    from pydicom.sr.coding import Code

    explained = summary["location_map"]["explained"]
    # The pixels cannot be compressed: 1 MB for a slice of 512 x 512.
    filled = np.flatnonzero(location_map.any(axis=(1, 2)))
    part = slice(filled[0], filled[-1] + 1) if filled.size else slice(None)
    voxels, slices = location_map[part], source.slices[covered][part]
    highest = float(voxels.max())
    mapping = RealWorldValueMapping(
        lut_label="ATTENTION",
        lut_explanation=f"Grad-CAM for {explained}, relative to its mean over the body",
        unit=Code(*codes.UNITS[""]),
        value_range=(float(voxels.min()), highest),
        slope=1.0,
        intercept=0.0,
        quantity_definition=Code(*codes.ATTENTION),
    )
    made = ParametricMap(
        source_images=slices,
        pixel_array=voxels,
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[mapping],
        window_center=highest / 2,
        window_width=highest or 1.0,
        content_label="LOCATION_MAP",
        content_description=f"Location map (Grad-CAM) for {explained}",
        **series(MAP_SERIES, f"Location map for {explained}", summary["model"]["sha256"]),
    )
    made.BodyPartExamined = _BODY_PART
    # Slicer's reader of parametric maps, dcmqi, needs the frame's anatomy, and takes the frames for
    # sorted along the normal; highdicom sorts them the other way round.
    made.SharedFunctionalGroupsSequence[0].FrameAnatomySequence = [_abdomen()]
    frames = sorted(
        made.PerFrameFunctionalGroupsSequence,
        key=lambda frame: (
            np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
            @ source.steps[:, 0]
        ),
    )
    for number, (frame, one) in enumerate(zip(frames, slices), start=1):
        frame.FrameContentSequence[0].DimensionIndexValues = [number]
        frame.DerivationImageSequence = [_derivation(one)]  # empty in highdicom 0.27
    made.PerFrameFunctionalGroupsSequence = frames
    made.FloatPixelData = voxels.tobytes()
    return made


def _abdomen() -> "Dataset":
    from pydicom import Dataset

    anatomy = Dataset()
    anatomy.FrameLaterality = "U"
    anatomy.AnatomicRegionSequence = [_coded(codes.ABDOMEN)]
    return anatomy


def _derivation(one: "Dataset") -> "Dataset":
    """That a frame was computed from a slice, pixel by pixel on the same grid."""
    from pydicom import Dataset

    image = Dataset()
    image.ReferencedSOPClassUID = one.SOPClassUID
    image.ReferencedSOPInstanceUID = one.SOPInstanceUID
    image.SpatialLocationsPreserved = "YES"
    image.PurposeOfReferenceCodeSequence = [_coded(codes.SOURCE_IMAGE)]
    derivation = Dataset()
    derivation.DerivationCodeSequence = [_coded(codes.CALCULATED)]
    derivation.SourceImageSequence = [image]
    return derivation


def _coded(concept: codes.Concept) -> "Dataset":
    from highdicom.sr import CodedConcept

    return CodedConcept(*concept)


def _segment(number: int, organ: Organ, network: Mapping[str, Any] | None) -> Any:
    """network: which segmented which organs, and whether they were edited; None for given masks."""
    from highdicom import UID, AlgorithmIdentificationSequence
    from highdicom.color import CIELabColor
    from highdicom.seg import SegmentDescription
    from pydicom.sr.coding import Code

    how, algorithm = "MANUAL", None
    if network is not None and organ.name.lower() not in network["organs"]:
        network = None
    if network is not None:
        how = "SEMIAUTOMATIC" if network["edited"] else "AUTOMATIC"
        algorithm = AlgorithmIdentificationSequence(
            name=network["name"],
            family=Code(*codes.LEARNED),
            version=__version__,
            source=PRODUCT,
            parameters={"model_sha256": network["sha256"]},
        )
    segment = SegmentDescription(
        segment_number=number,
        segment_label=organ.name,
        segmented_property_category=Code(*codes.ANATOMY),
        segmented_property_type=Code(*codes.organ_code(organ)),
        algorithm_type=how,
        algorithm_identification=algorithm,
        tracking_uid=UID(),
        tracking_id=organ.name,
        display_color=CIELabColor.from_rgb(*organ.rgb),
    )
    if network is None:
        segment.SegmentDescription = "Mask given by the user; how it was made is not recorded"
    return segment
