"""The result of staging one CT, and its files."""

import json
import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from .analysis import surface_to_core
from .dicom_output.writing import FILES as DICOM_FILES
from .dicom_output.writing import write_dicom
from .ensemble import spread
from .errors import CancelToken, check_cancel
from .explaining import Explanation, ForwardPass, Progress, Steps, explain_score
from .files import write_folder
from .imaging.grid import bounding_box, paste
from .imaging.input_checks import Check
from .imaging.nrrd_file import NrrdWriter
from .imaging.organs import LIVER_LABEL, SPLEEN_LABEL, segment_metadata
from .imaging.reading import source_files
from .location_map import MapOnCt
from .report.summary import answer, told_apart
from .signs.measure import MeasuredSigns
from .signs.placing import Placement, place_signs
from .stages import RESEARCH_USE, STAGES, AtPoint, at_points
from .support import Agreement, agreement

SCHEMA = 4
READABLE = (3, SCHEMA)  # of a summary; 4 added `operating_points`
BANDS_TEXT = "10 % steps of this case's own maximum"
# In the order of writing; the JSON is last, so that its presence marks a complete result.
FILES = (
    "location_map.nrrd",
    "location_map_label.nrrd",
    "organs.seg.nrrd",
    "overview.png",
    "staging.json",
)
DICOM_FOLDER = "dicom"  # only on request


@dataclass(frozen=True, eq=False)
class StagingResult(Explanation):
    """The result for one CT. It contains no name of the patient.

    probabilities: float64[5], F0 to F4. stage: their median (`stages.median_stage`). scores:
    probability of significant (F2-F4) and advanced (F3-F4) fibrosis and cirrhosis (F4). signs:
    measured on CT and masks. checks: of the input. phase: contrast phase, "" if unknown. reasons:
    why the stage is not supported; none if it is. explained: the stage or group whose score the
    location map explains. map_on_ct: the location map in the CT's voxels. measurements: mean, share
    and volume_ml by region (`analysis.measure`). surface_mm: thickness of the liver's surface in
    them. outside_share: share of the map's weight farther than 10 mm from the liver and outside the
    spleen; None if the map is empty. pattern: of the location map. percentiles: by region, of the
    predicted stage's map (`quality.percentiles`), otherwise empty. ct, liver, spleen: on the CT's
    grid. staging_warnings, map_warnings: about the input, and about this map. provenance: model,
    input, software and seconds, as in staging.json; `batch` adds a fingerprint. forward_pass: the
    network's outputs, for `explain`.
    """

    probabilities: np.ndarray
    stage: str
    scores: dict[str, float]
    signs: MeasuredSigns
    checks: tuple[Check, ...]
    phase: str
    reasons: tuple[str, ...]
    staging_warnings: tuple[str, ...]
    ct: sitk.Image
    liver: sitk.Image
    spleen: sitk.Image | None
    provenance: dict[str, Any]
    forward_pass: ForwardPass = field(repr=False)

    @cached_property
    def location_map(self) -> sitk.Image:
        """The location map on the CT's grid, float32: attention relative to its mean over the body.

        Made when it is first asked for, and kept: 1 GB for a CT of 512 x 512 x 1000 voxels.
        `map_on_ct` gives the part that is not 0, a few slices at a time.
        """
        return self.map_on_ct.whole_image(self.map_on_ct.relative_in_box())

    @cached_property
    def label_map(self) -> sitk.Image:
        """Ten bands of the location map on the CT's grid, uint8 (`MapOnCt.bands`); made and kept in
        the same way.
        """
        return self.map_on_ct.whole_image(self.map_on_ct.bands_in_box())

    @property
    def body_mean(self) -> float:
        """The raw Grad-CAM's mean over the body; times `location_map` it is the raw Grad-CAM."""
        return self.map_on_ct.location.body_mean

    @property
    def supported(self) -> bool:
        """Whether nothing speaks against the stage (`support.reasons`)."""
        return not self.reasons

    @property
    def placements(self) -> tuple[Placement, ...]:
        """The signs among the published groups, one for each sign and source."""
        return place_signs(self.signs)

    @property
    def at_points(self) -> dict[str, AtPoint | None]:
        """By group, the model's operating point and whether the score is at or above it; None
        without a point.
        """
        return at_points(self.scores, self.forward_pass.model.card.operating_points)

    @property
    def source_files(self) -> tuple[Path, ...]:
        """The DICOM files of the CT's slices; none if the CT was not read from DICOM files."""
        return source_files(self.ct)

    @property
    def agreement(self) -> Agreement:
        """Whether the signs agree with the predicted stage (`support.agreement`)."""
        return agreement(self.placements, self.stage)

    @property
    def warnings(self) -> tuple[str, ...]:
        """All warnings."""
        return self.staging_warnings + self.map_warnings

    @property
    def member_probabilities(self) -> np.ndarray | None:
        """Probabilities float64 [members, 5] of an ensemble's members; None for one network."""
        return self.forward_pass.member_probabilities

    @property
    def spread(self) -> dict[str, Any] | None:
        """Agreement of an ensemble's members (`ensemble.spread`); None for one network."""
        members = self.member_probabilities
        return None if members is None else spread(members, self.stage)

    @property
    def organs(self) -> sitk.Image:
        """Label image on the CT's grid, uint8: 1 liver, 2 spleen (where it is no liver)."""
        labels = sitk.Image(self.liver.GetSize(), sitk.sitkUInt8)
        labels.CopyInformation(self.liver)
        found, box = self.organs_in_box()
        paste(found, labels, box)
        return labels

    def organs_in_box(self) -> tuple[np.ndarray, tuple[slice, slice, slice]]:
        """The labels of `organs` in the box of the CT that contains both, and the box; arrays are
        [slice, row, column].
        """
        masks = {LIVER_LABEL: self.liver, SPLEEN_LABEL: self.spleen}
        arrays = {n: sitk.GetArrayViewFromImage(mask) for n, mask in masks.items() if mask}
        boxes = [box for box in map(bounding_box, arrays.values()) if box is not None]
        ends = [(min(p.start for p in along), max(p.stop for p in along)) for along in zip(*boxes)]
        box = tuple(slice(*end) for end in ends)
        labels = np.zeros([part.stop - part.start for part in box], np.uint8)
        for label in sorted(arrays, reverse=True):  # the liver last
            labels[arrays[label][box] != 0] = label
        return labels, box

    def explain(
        self,
        explain: str,
        progress: Progress | None = None,
        cancel: CancelToken | None = None,
    ) -> "StagingResult":
        """This result with the location map of another stage or group, without re-running the
        network.

        Parameters and exceptions as for `staging.stage`.
        """
        steps = Steps(progress, cancel)
        explanation = explain_score(self.forward_pass, self.ct, explain, steps, self.surface_mm)
        seconds = {**self.provenance["seconds"], **steps.end()}
        provenance = {**self.provenance, "seconds": seconds}
        return replace(self, provenance=provenance, **vars(explanation))

    def overview(self) -> np.ndarray:
        """Overview picture of the result, uint8 RGB [1000, 1600, 3]."""
        return self._overview(None)

    def _overview(self, cancel: CancelToken | None) -> np.ndarray:
        from .report.overview import render_overview

        return render_overview(
            ct=self.ct,
            location_map=self.map_on_ct,
            liver=self.liver,
            spleen=self.spleen,
            probabilities=self.probabilities,
            stage=self.stage,
            explained=self.explained,
            scores=self.scores,
            at_points=self.at_points,
            reasons=self.reasons,
            pattern=self.pattern.name,
            agreement=self.agreement.sentence,
            measurements=self.measurements,
            warnings=self.warnings,
            model_name=self.provenance["model"]["name"],
            model_training=self.provenance["model"]["trained_on"],
            ensemble=self.spread,
            cancel=cancel,
        )

    def summary(self) -> dict[str, Any]:
        """Everything except the images, as in staging.json (Resources/staging.schema.json)."""
        return {
            "schema": SCHEMA,
            "research_use": RESEARCH_USE,
            "stage": self.stage,
            "probabilities": dict(zip(STAGES, map(float, self.probabilities))),
            "scores": self.scores,
            "operating_points": {
                name: found and found._asdict() for name, found in self.at_points.items()
            },
            "supported": self.supported,
            "reasons": list(self.reasons),
            **({} if self.spread is None else {"ensemble": self.spread}),
            "location_map": {
                "explained": self.explained,
                "body_mean": self.body_mean,
                "maximum": self.map_on_ct.maximum,
                "bands": BANDS_TEXT,
                "surface_mm": self.surface_mm,
                "surface_to_core": self._surface_to_core(),
                "outside_share": self.outside_share,
                "pattern": asdict(self.pattern),
                "percentiles": self.percentiles,
            },
            "measurements": self.measurements,
            "signs": {found.key: found.value for found in self.signs.measurements},
            "signs_notes": self._signs_notes(),
            "signs_placed": self._signs_placed(),
            "agreement": asdict(self.agreement),
            "phase": self.phase,
            "checks": [asdict(check) for check in self.checks],
            "warnings": list(self.warnings),
            **self.provenance,
        }

    def _surface_to_core(self) -> float | None:
        ratio = surface_to_core(self.measurements)
        return ratio if ratio is not None and math.isfinite(ratio) else None

    def _signs_notes(self) -> dict[str, str]:
        notes = {each.key: each.reason for each in self.signs.measurements if each.reason}
        steatosis = self.signs.steatosis
        return notes if steatosis.assessed else {**notes, "steatosis": steatosis.sentence}

    def _signs_placed(self) -> list[str]:
        steatosis = self.signs.steatosis
        hint = [steatosis.sentence] if steatosis.assessed else []
        sentences = [each.sentence for each in self.placements]
        return list(dict.fromkeys(sentences)) + hint  # one may hold for several sources

    def save(
        self,
        folder: str | Path,
        report: bool = False,
        dicom: Sequence[str | Path] | None = None,
        cancel: CancelToken | None = None,
    ) -> Path:
        """Write the result's files into `folder`, created if missing; returns the folder.

        staging.json, location_map.nrrd, location_map_label.nrrd, organs.seg.nrrd (the liver and
        spleen used), overview.png and, if asked for, the report (`save_report`): all of them or,
        after a failure or a cancel, none, with an earlier result kept (`files.write_folder`).
        dicom: the files of the CT's DICOM slices, such as `source_files`, to write the result as
        DICOM too, into the subfolder dicom (`dicom_output.writing`). An earlier report, or DICOM,
        that is not written again is removed. cancel: asked several times a second. Raises
        StagingError if the folder cannot be written, and as `write_dicom` does; and Cancelled.
        """
        from .report.documents import REPORT_FILES
        from .report.drawing import write_png

        def write(partial: Path) -> None:
            def write_pictures() -> None:  # both: VTK's fonts are for one thread at a time
                overview = self._overview(cancel)
                check_cancel(cancel)
                write_png(overview, partial / FILES[3])
                check_cancel(cancel)
                if report:
                    self._write_report(partial, cancel)

            def write_objects() -> None:
                if dicom is not None:
                    target = partial / DICOM_FOLDER
                    target.mkdir()
                    self.write_dicom(target, dicom, cancel)

            _side_by_side(
                lambda: _write_maps(self.map_on_ct, partial, cancel),
                write_pictures,
                lambda: self._write_organs(partial / FILES[2], cancel),
                write_objects,
            )
            text = json.dumps(self.summary(), indent=2, ensure_ascii=False)
            (partial / FILES[4]).write_text(text + "\n", encoding="utf-8")
            check_cancel(cancel)

        in_dicom = tuple(f"{DICOM_FOLDER}/{name}" for name in DICOM_FILES)
        return write_folder(folder, (*in_dicom, *REPORT_FILES, *FILES), write)

    def _write_organs(self, path: Path, cancel: CancelToken | None) -> None:
        labels, (slices, rows, columns) = self.organs_in_box()
        metadata = segment_metadata(self.ct.GetSize(), labels)
        with NrrdWriter(path, self.ct, np.uint8, metadata) as file:
            for number, plane in enumerate(labels, start=slices.start):
                check_cancel(cancel)
                file.write(number, plane, rows.start, columns.start)

    def write_dicom(
        self, folder: Path, files: Sequence[str | Path], cancel: CancelToken | None = None
    ) -> None:
        """Write the result as DICOM into an existing folder (`writing.write_dicom`)."""
        location = self.map_on_ct.box_image(self.map_on_ct.relative_in_box())
        write_dicom(folder, files, self.organs, location, self.summary(), cancel)

    def save_report(self, folder: str | Path, cancel: CancelToken | None = None) -> Path:
        """Write the report into `folder`, created if missing; returns the path of report.html.

        report.html opens in any browser without a network, and prints; report.pdf is added where
        matplotlib is installed. Raises StagingError if the folder cannot be written, and Cancelled.
        """
        from .report.documents import REPORT_FILES

        def write(partial: Path) -> None:
            self._write_report(partial, cancel)

        return write_folder(folder, REPORT_FILES, write) / REPORT_FILES[-1]

    def _write_report(self, folder: Path, cancel: CancelToken | None) -> None:
        from .report.content import report_content
        from .report.documents import write_report

        card = self.forward_pass.model.card
        content = report_content(self.summary(), self.signs, card.reference, card.training)
        write_report(
            folder,
            content,
            ct=self.ct,
            location_map=self.map_on_ct,
            liver=self.liver,
            spleen=self.spleen,
            cancel=cancel,
        )


def one_line(result: StagingResult) -> str:
    """The result in one sentence, for consoles and logs."""
    chosen = result.probabilities[STAGES.index(result.stage)]
    parts = [f"{result.stage} (probability {chosen:.2f}"]
    for name, found in result.at_points.items():
        if found is None:
            parts.append(f"{name} {result.scores[name]:.2f}")
        else:
            score, point = told_apart(result.scores[name], found.point)
            parts.append(f"{name} {score}, {answer(found.positive)} at {point}")
    line = f"{'; '.join(parts)})"
    return line if result.supported else f"Not supported: {line}. {' '.join(result.reasons)}"


def _side_by_side(*parts: Callable[[], None]) -> None:
    """Call functions in two threads; after an error no other one begins, and the error of the first
    is raised.
    """
    ended = threading.Event()

    def call(part: Callable[[], None]) -> None:
        if not ended.is_set():
            try:
                part()
            except BaseException:
                ended.set()
                raise

    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(call, part) for part in parts]
        try:
            for each in calls:
                each.result()
        finally:
            ended.set()


def _write_maps(map_on_ct: MapOnCt, folder: Path, cancel: CancelToken | None) -> None:
    """Write location map and bands."""
    ct, (column, row, _) = map_on_ct.ct, map_on_ct.first
    with (
        NrrdWriter(folder / FILES[0], ct, np.float32) as relative_file,
        NrrdWriter(folder / FILES[1], ct, np.uint8) as bands_file,
    ):
        for at, relative in map_on_ct.slabs():
            for number, planes in enumerate(zip(relative, map_on_ct.bands(relative)), start=at):
                check_cancel(cancel)
                for file, plane in zip((relative_file, bands_file), planes):
                    file.write(number, plane, row, column)
