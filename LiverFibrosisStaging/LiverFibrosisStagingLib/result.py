"""What staging gives back, and how it is written to disk."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from .ensemble import spread
from .errors import StagingError
from .files import write_folder
from .imaging.grid import WorkingGrid
from .imaging.itk_files import itk_path
from .imaging.masks import LIVER_LABEL, SPLEEN_LABEL
from .model import MEMBERS, Forward, StagingModel
from .stages import GROUPS, RESEARCH_USE, STAGES, softmax

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
class Seen:
    """What the network has seen and answered, kept so that another stage can be explained.

    forwards: one for each patch of the grid, in the order of `grid.starts`.
    """

    model: StagingModel
    grid: WorkingGrid
    forwards: tuple[Forward, ...]

    @property
    def logits(self) -> np.ndarray:
        """The case's logits float64 [5]: the mean over its patches, which share most of a liver."""
        return np.mean([forward.logits[0] for forward in self.forwards], axis=0, dtype=np.float64)

    @property
    def member_probabilities(self) -> np.ndarray | None:
        """Probabilities float64 [members, 5] by each member of an ensemble; None of one network."""
        if MEMBERS not in self.forwards[0].tensors:
            return None
        logits = [forward.tensors[MEMBERS][0] for forward in self.forwards]
        return softmax(np.mean(logits, axis=0, dtype=np.float64), self.model.card.temperature)


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
    staging.json; `batch` adds a fingerprint. seen: what `explain` needs.
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
    seen: Seen = field(repr=False)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences for the reader."""
        return self.staging_warnings + self.map_warnings

    @property
    def member_probabilities(self) -> np.ndarray | None:
        """Probabilities float64 [members, 5] by each member of an ensemble; None of one network.

        How far they are apart is how uncertain the stage is.
        """
        return self.seen.member_probabilities

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

    def explain(self, explain: str) -> "StagingResult":
        """This result with the location map of another stage or group, without running
        the network again.

        Takes the names that `stage` takes, and raises StagingError for others.
        """
        from .staging import explain_again

        return explain_again(self, explain)

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
        from .imaging.segmentation import write_labels
        from .report.overview import write_overview

        def write(partial: Path) -> None:
            _write_image(self.location_map, partial / FILES[0])
            _write_image(self.label_map, partial / FILES[1])
            write_labels(self.organs, partial / FILES[2])
            write_overview(self, partial / FILES[3])
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
