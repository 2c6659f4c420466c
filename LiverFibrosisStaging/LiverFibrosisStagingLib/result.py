"""What staging gives back, and how it is written to disk."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from .ensemble import spread
from .errors import CancelToken, StagingError
from .explaining import ForwardPass, Progress, Steps, explain_score
from .files import write_folder
from .imaging.itk_files import itk_path
from .imaging.organs import LIVER_LABEL, SPLEEN_LABEL, write_labels
from .stages import GROUPS, RESEARCH_USE, STAGES

SCHEMA = 2
BANDS_TEXT = "10 % steps of this case's own maximum"
# In the order in which they appear in the folder; the JSON comes last, so where it is, all is.
FILES = (
    "location_map.nrrd",
    "location_map_label.nrrd",
    "organs.seg.nrrd",
    "overview.png",
    "staging.json",
)


@dataclass(frozen=True, eq=False)
class StagingResult:
    """One case, staged. Nothing in it names the patient.

    probabilities: float64[5], F0 to F4. stage: the most probable of them. scores: probability of
    significant (F2-F4) and advanced (F3-F4) fibrosis and cirrhosis (F4). explained: the stage or
    group whose score the location map explains. location_map: float32 image on the CT's grid,
    attention relative to its mean over the body. body_mean: that mean, so that location_map times
    body_mean is the raw Grad-CAM. label_map: uint8 image on the CT's grid, ten bands, 0 outside the
    body or where there is no attention. measurements: mean, share and volume_ml by region. ct,
    liver, spleen: on the CT's grid. staging_warnings, map_warnings: sentences for the reader, about
    the input and about this map. provenance: model, input, software and seconds, as in
    staging.json; `batch` adds a fingerprint. forward_pass: what `explain` needs.
    """

    probabilities: np.ndarray
    stage: str
    scores: dict[str, float]
    explained: str
    location_map: sitk.Image
    label_map: sitk.Image
    body_mean: float
    measurements: dict[str, dict[str, float]]
    staging_warnings: tuple[str, ...]
    map_warnings: tuple[str, ...]
    ct: sitk.Image
    liver: sitk.Image
    spleen: sitk.Image | None
    provenance: dict[str, Any]
    forward_pass: ForwardPass = field(repr=False)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences for the reader."""
        return self.staging_warnings + self.map_warnings

    @property
    def member_probabilities(self) -> np.ndarray | None:
        """Probabilities float64 [members, 5] by each member of an ensemble; None of one network.

        How far they are apart is how uncertain the stage is.
        """
        return self.forward_pass.member_probabilities

    @property
    def spread(self) -> dict[str, Any] | None:
        """How far an ensemble's members agree (`ensemble.spread`); None of one network."""
        members = self.member_probabilities
        return None if members is None else spread(members, self.stage)

    @property
    def organs(self) -> sitk.Image:
        """Label image on the CT's grid, uint8: 1 liver, 2 spleen (where it is no liver)."""
        liver = sitk.Cast(self.liver != 0, sitk.sitkUInt8) * LIVER_LABEL
        if self.spleen is None:
            return liver
        spleen = sitk.And(self.spleen != 0, liver == 0)
        return liver + sitk.Cast(spleen, sitk.sitkUInt8) * SPLEEN_LABEL

    def explain(
        self,
        explain: str,
        progress: Progress | None = None,
        cancel: CancelToken | None = None,
    ) -> "StagingResult":
        """This result with the location map of another stage or group; the network does not run.

        Takes and raises what `staging.stage` does.
        """
        steps = Steps(progress, cancel)
        explanation = explain_score(self.forward_pass, self.ct, explain, steps)
        seconds = {**self.provenance["seconds"], **steps.end()}
        provenance = {**self.provenance, "seconds": seconds}
        return replace(self, provenance=provenance, **vars(explanation))

    def overview(self) -> np.ndarray:
        """One picture of the result, uint8 RGB [1000, 1600, 3]."""
        from .report.overview import render_overview

        return render_overview(
            ct=self.ct,
            label_map=self.label_map,
            liver=self.liver,
            spleen=self.spleen,
            probabilities=self.probabilities,
            stage=self.stage,
            explained=self.explained,
            scores=self.scores,
            measurements=self.measurements,
            warnings=self.warnings,
            model_name=self.provenance["model"]["name"],
            model_training=self.provenance["model"]["trained_on"],
            ensemble=self.spread,
        )

    def summary(self) -> dict[str, Any]:
        """Everything but the voxels, as written to staging.json (Resources/staging.schema.json)."""
        return {
            "schema": SCHEMA,
            "research_use": RESEARCH_USE,
            "stage": self.stage,
            "probabilities": dict(zip(STAGES, map(float, self.probabilities))),
            "scores": self.scores,
            **({} if self.spread is None else {"ensemble": self.spread}),
            "location_map": {
                "explained": self.explained,
                "body_mean": self.body_mean,
                "maximum": float(sitk.GetArrayViewFromImage(self.location_map).max()),
                "bands": BANDS_TEXT,
            },
            "measurements": self.measurements,
            "warnings": list(self.warnings),
            **self.provenance,
        }

    def save(self, folder: str | Path) -> Path:
        """Write the result's files into `folder`, made where it is missing; returns the folder.

        staging.json, location_map.nrrd, location_map_label.nrrd, organs.seg.nrrd (the liver and
        spleen that were used) and overview.png: all of them or, after a failure, none, and an
        earlier result stays (`files.write_folder`). Raises StagingError where the folder cannot be
        written.
        """
        from .report.drawing import write_png

        def write(partial: Path) -> None:
            _write_image(self.location_map, partial / FILES[0])
            _write_image(self.label_map, partial / FILES[1])
            write_labels(self.organs, partial / FILES[2])
            write_png(self.overview(), partial / FILES[3])
            text = json.dumps(self.summary(), indent=2, ensure_ascii=False)
            (partial / FILES[4]).write_text(text + "\n", encoding="utf-8")

        return write_folder(folder, FILES, write)


def one_line(result: StagingResult) -> str:
    """The result in one sentence, for consoles and logs."""
    scores = ", ".join(f"{name} {result.scores[name]:.2f}" for name in GROUPS)
    chosen = result.probabilities[STAGES.index(result.stage)]
    return f"{result.stage} (probability {chosen:.2f}; {scores})"


def _write_image(image: sitk.Image, path: Path) -> None:
    try:
        sitk.WriteImage(image, itk_path(path), useCompression=True, compressionLevel=1)
    except RuntimeError:
        raise StagingError(f"Cannot write {path.name}: is the disk full?") from None
