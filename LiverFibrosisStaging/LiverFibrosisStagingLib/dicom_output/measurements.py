"""The numbers of a result as a structured report: template TID 1500, Comprehensive SR."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..signs.measure import UNITS
from ..stages import GROUPS, STAGES
from . import codes
from .images import PRODUCT, REPORT_SERIES, series
from .source import Source

if TYPE_CHECKING:
    from highdicom.pm import ParametricMap
    from highdicom.seg import Segmentation
    from highdicom.sr import ComprehensiveSR, Measurement, MeasurementsAndQualitativeEvaluations
    from highdicom.sr import VolumetricROIMeasurementsAndQualitativeEvaluations as OfSegment


def report(
    source: Source, segments: "Segmentation", mapped: "ParametricMap", summary: Mapping[str, Any]
) -> "ComprehensiveSR":
    """The report of a result: stage, signs and location map by region, as measurement groups.

    Numbers of an organ refer to its segment. Comments hold the notice on research use, the
    reasons why the stage is not supported or a sign not measured, the sentences on the location
    map's pattern and on the signs, and the warnings. segments, mapped: the other objects.
    summary: as in staging.json.
    """
    from highdicom import sr
    from highdicom.coding_schemes import CodingSchemeIdentificationItem
    from pydicom.sr.coding import Code
    from pydicom.uid import generate_uid

    model = summary["model"]
    shared = series(REPORT_SERIES, "Liver fibrosis staging", model["sha256"])
    # One identifier for each model.
    observer = sr.ObserverContext(
        observer_type=Code("121007", "DCM", "Device"),
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=generate_uid(entropy_srcs=[PRODUCT, model["sha256"]]),
            name=PRODUCT,
            manufacturer_name=PRODUCT,
            model_name=PRODUCT,
            serial_number=model["sha256"],
        ),
    )
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=observer),
        procedure_reported=Code(*codes.CT),
        imaging_measurements=[
            _stage(summary),
            *_organs(source, segments, summary),
            *_parts(summary),
            *_other_signs(summary),
        ],
    )
    for text in _comments(summary):
        content[0].ContentSequence.append(
            sr.TextContentItem(Code(*codes.COMMENT), text, sr.RelationshipTypeValues.CONTAINS)
        )
    return sr.ComprehensiveSR(
        evidence=[*source.slices, segments, mapped],
        content=content,
        is_complete=True,
        coding_schemes=[CodingSchemeIdentificationItem(codes.PRIVATE, name=codes.PRIVATE_NAME)],
        **shared,
    )


def _stage(summary: Mapping[str, Any]) -> "MeasurementsAndQualitativeEvaluations":
    """Probabilities, the predicted stage and whether it is supported; yes or no by group."""
    from highdicom import sr
    from pydicom.sr.coding import Code

    model = summary["model"]
    found = {**summary["probabilities"], **summary["scores"]}
    at_points = {
        name: found for name, found in summary["operating_points"].items() if found is not None
    }
    answers = (
        (codes.PREDICTED, codes.stage_code(summary["stage"])),
        (codes.SUPPORTED, codes.YES if summary["supported"] else codes.NO),
        (codes.EXPLAINED, codes.stage_code(summary["location_map"]["explained"])),
        *(
            (codes.positive_code(name), codes.YES if found["positive"] else codes.NO)
            for name, found in at_points.items()
        ),
    )
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking("Stage of liver fibrosis"),
        finding_type=Code(*codes.FIBROSIS),
        algorithm_id=sr.AlgorithmIdentification(
            model["name"],
            __version__,
            parameters=[
                f"Model SHA-256: {model['sha256']}",
                f"Trained on: {model['trained_on']}",
                f"Intended use: {model['intended_use']}",
                *(
                    f"Operating point of {codes.STAGE_NAMES[name]}: {found['point']:.6g}"
                    for name, found in at_points.items()
                ),
            ],
        ),
        measurements=[
            _number(codes.probability_code(name), found[name], "") for name in (*STAGES, *GROUPS)
        ],
        qualitative_evaluations=[
            sr.QualitativeEvaluation(Code(*question), Code(*answer)) for question, answer in answers
        ],
    )


def _organs(
    source: Source, segments: "Segmentation", summary: Mapping[str, Any]
) -> "Iterator[OfSegment]":
    """Signs and location map of each segment."""
    from highdicom import sr
    from pydicom.sr.coding import Code

    for segment in segments.SegmentSequence:
        organ = segment.SegmentLabel
        signs = [
            _number(quantity, value, UNITS[key], derivation, method)
            for key, (of, quantity, derivation, method) in codes.ORGAN_SIGNS.items()
            if of == organ and (value := summary["signs"][key]) is not None
        ]
        (kind,) = segment.SegmentedPropertyTypeCodeSequence
        yield sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
            tracking_identifier=sr.TrackingIdentifier(segment.TrackingUID, organ),
            # Not from_segmentation, which fails if there is only one segment.
            referenced_segment=sr.ReferencedSegment(
                segments.SOPClassUID,
                segments.SOPInstanceUID,
                segment.SegmentNumber,
                source_series=sr.SourceSeriesForSegmentation(source.slices[0].SeriesInstanceUID),
            ),
            finding_category=Code(*codes.ANATOMY),
            finding_type=kind,
            measurements=[*signs, *_attention(summary, organ.lower())],
        )


def _parts(summary: Mapping[str, Any]) -> "Iterator[MeasurementsAndQualitativeEvaluations]":
    """Location map in the regions that are no segments."""
    from highdicom import sr
    from pydicom.sr.coding import Code

    for region, (site, part) in codes.PARTS.items():
        volume = summary["measurements"][region]["volume_ml"]
        yield sr.MeasurementsAndQualitativeEvaluations(
            tracking_identifier=_tracking(part[2]),
            finding_category=Code(*codes.ANATOMY),
            finding_type=Code(*site),
            finding_sites=[sr.FindingSite(Code(*site), topographical_modifier=Code(*part))],
            measurements=[_number(codes.VOLUME, volume, "mL"), *_attention(summary, region)],
        )


def _other_signs(summary: Mapping[str, Any]) -> "Iterator[MeasurementsAndQualitativeEvaluations]":
    """The signs that belong to no single organ; none if none of them was measured."""
    from highdicom import sr
    from pydicom.sr.coding import Code

    found = [
        _number(name, value, UNITS[key])
        for key, name in codes.OTHER_SIGNS.items()
        if (value := summary["signs"][key]) is not None
    ]
    if found:
        yield sr.MeasurementsAndQualitativeEvaluations(
            tracking_identifier=_tracking("Signs of liver fibrosis"),
            finding_type=Code(*codes.FIBROSIS),
            measurements=found,
        )


def _attention(summary: Mapping[str, Any], region: str) -> "Sequence[Measurement]":
    found = summary["measurements"].get(region)
    if found is None:
        return ()
    return (
        _number(codes.ATTENTION, found["mean"], "", codes.MEAN),
        _number(codes.SHARE, 100 * found["share"], "%"),
    )


def _number(
    name: codes.Concept,
    value: float,
    unit: str,
    derivation: codes.Concept | None = None,
    method: codes.Concept | None = None,
) -> "Measurement":
    from highdicom.sr import Measurement
    from pydicom.sr.coding import Code

    return Measurement(
        Code(*name),
        value,
        Code(*codes.UNITS[unit]),
        derivation=derivation and Code(*derivation),
        method=method and Code(*method),
    )


def _tracking(identifier: str) -> Any:
    from highdicom import UID
    from highdicom.sr import TrackingIdentifier

    return TrackingIdentifier(UID(), identifier)


def _comments(summary: Mapping[str, Any]) -> Iterator[str]:
    yield summary["research_use"]
    yield from (f"Not supported: {reason}" for reason in summary["reasons"])
    for about in (summary["location_map"]["pattern"], summary["agreement"]):
        if about["sentence"]:
            yield about["sentence"]
    yield from summary["signs_placed"]
    yield from dict.fromkeys(summary["signs_notes"].values())  # a reason may hold for several
    yield from (f"Warning: {warning}" for warning in summary["warnings"])
