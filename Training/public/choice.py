"""The CT of each patient: one portal-venous scan of the first study of the liver, with masks."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from LiverFibrosisStagingLib import read_ct
from LiverFibrosisStagingLib.errors import StagingError
from LiverFibrosisStagingLib.imaging.checks import check_ct, check_organs
from LiverFibrosisStagingLib.imaging.dicom_files import path_of_series
from LiverFibrosisStagingLib.imaging.dicom_series import MIN_SLICES, PORTAL_VENOUS
from LiverFibrosisStagingLib.imaging.masks import organ_masks
from LiverFibrosisStagingLib.imaging.organs import LIVER_LABEL, SPLEEN_LABEL

from .examination import NO_LIVER, OTHER_SHOWN, PHASE_NAMES, UNREADABLE, examined
from .images import SCANS, SEGMENTATIONS, Scan, Study
from .seg import LIVER, SPLEEN, TUMOUR, Segmentation
from .writing import PATIENTS, Exclusion

KEEP, MASK = "keep", "mask"  # what becomes of a tumour in the liver's mask
_PORTAL = PHASE_NAMES[PORTAL_VENOUS]
NO_CT = f"no CT of at least {MIN_SLICES} slices"
NO_DATE = "several studies, and not all have a date"
NO_PORTAL = "no portal-venous CT in the first study"
NO_USABLE = "no usable CT in the first study"
OTHER_PATIENT = "of a patient who is excluded"
LATER = "in a later study, or in none that is known"
NOT_BEST = "another CT of the study was taken"
OTHER_NAMED = "another phase by its description"
NO_REFERENCE = "refers to no CT that was found"
OTHER_FRAME = "another frame of reference than its CT"
NOT_TAKEN = "drawn on a CT that was not taken"
NO_ORGAN = "without a segment of the liver"
UNUSABLE_MASK = "cannot be read, or does not fit its CT"
SECOND = "another segmentation of the CT has its organs"


@dataclass(eq=False)
class Chosen:
    """A patient's CT.

    labels: 1 liver, 2 spleen; None if no segmentation has the liver. used: the segmentations in it.
    unclear: whether they refer to other acquisitions of the series as well.
    """

    scan: Scan
    image: sitk.Image
    phase: str
    labels: sitk.Image | None = None
    tumour_ml: float | None = None
    used: list[Segmentation] = field(default_factory=list)
    unclear: bool = False


@dataclass(eq=False)
class Choice:
    """Chooses the CTs of patients; `exclusions` are what was not chosen, with the reasons.

    tumour: KEEP or MASK. folder: of the records of examined CTs. notify: receives sentences for the
    screen, which may name files.
    """

    tumour: str
    folder: Path
    notify: Callable[[str], None]
    exclusions: list[Exclusion] = field(default_factory=list)

    def leave_out(self, patient: str, studies: Sequence[Study], masks: int, why: str) -> None:
        """Exclude a patient with all CTs and segmentations."""
        self._exclude(patient, PATIENTS, why)
        self._exclude(patient, SCANS, OTHER_PATIENT, sum(len(each.scans) for each in studies))
        self._exclude(patient, SEGMENTATIONS, OTHER_PATIENT, masks)

    def of_patient(
        self, patient: str, studies: Sequence[Study], masks: Sequence[Segmentation]
    ) -> Chosen | None:
        """The CT of a patient; None if there is none.

        Of the first study that shows a liver, because the labels are from before treatment. A CT is
        portal-venous by its description, unless its HU are clearly of another phase, or else by its
        HU. If none is, the best one that is not clearly of another phase is taken. CTs with a
        segmentation come first.
        """
        ordered = _in_order(studies)
        if isinstance(ordered, str):
            self.leave_out(patient, studies, len(masks), ordered)
            return None
        scans = [scan for study in studies for scan in study.scans]
        matched, why_not = _matched(scans, masks)
        reasons: dict[Scan, str] = {}
        chosen = None
        for study in ordered:
            chosen = self._of_study(study, matched, reasons, why_not)
            if chosen is not None or any(reasons[scan] != NO_LIVER for scan in study):
                break
        if chosen is None:
            other = {reasons[scan] for scan in study} <= {OTHER_NAMED, OTHER_SHOWN}
            self._exclude(patient, PATIENTS, NO_PORTAL if other else NO_USABLE)
        else:
            chosen.unclear = any(
                seg in chosen.used
                for scan, own in matched.items()
                for seg in own
                if scan is not chosen.scan
            )
        for scan in scans:
            if chosen is None or scan is not chosen.scan:
                self._exclude(
                    patient, SCANS, reasons.get(scan, NOT_BEST if scan in study else LATER)
                )
        for seg in masks:
            if chosen is None or seg not in chosen.used:
                self._exclude(patient, SEGMENTATIONS, why_not.get(seg, NOT_TAKEN))
        return chosen

    def _of_study(
        self,
        scans: Sequence[Scan],
        matched: Mapping[Scan, Sequence[Segmentation]],
        reasons: dict[Scan, str],
        why_not: dict[Segmentation, str],
    ) -> Chosen | None:
        """The CT of a study; adds to the reasons why others, and segmentations, are not taken."""
        chosen = None
        for scan in sorted(scans, key=lambda s: (s.header.phase != _PORTAL, not matched.get(s))):
            if scan.header.phase not in ("", _PORTAL):
                reasons[scan] = OTHER_NAMED
                continue
            if chosen is not None and chosen.phase == _PORTAL:
                continue
            tried = self._tried(scan, matched.get(scan, ()), why_not)
            if isinstance(tried, str):
                reasons[scan] = tried
            elif chosen is None or tried.phase == _PORTAL:
                chosen = tried
        return chosen

    def _tried(
        self, scan: Scan, masks: Sequence[Segmentation], why_not: dict[Segmentation, str]
    ) -> Chosen | str:
        """A CT with its phase and masks, or why it cannot be taken."""
        name = path_of_series(scan.files).name
        try:
            image = read_ct(scan.files[0] if len(scan.files) == 1 else scan.files)
            check_ct(image, name)
        except StagingError as refusal:
            self.notify(str(refusal))
            return UNREADABLE
        chosen = Chosen(scan, image, scan.header.phase)
        self._add_masks(chosen, name, masks, why_not)
        found = examined(image, chosen.labels, None, self.folder)
        if found.said:
            self.notify(f"{name}: {found.said}")
        if found.unusable:
            return found.unusable
        # The description of a series does not tell its acquisitions apart.
        if not (chosen.phase and scan.alone):
            chosen.phase = found.phase
        return chosen

    def _add_masks(
        self,
        chosen: Chosen,
        name: str,
        masks: Sequence[Segmentation],
        why_not: dict[Segmentation, str],
    ) -> None:
        """Set the labels of a CT, each by the newest segmentation that has it.

        Tumours are also taken from segmentations without a liver, which may have one each.
        """
        found: dict[str, np.ndarray] = {}
        for seg in sorted(masks, key=lambda each: each.made, reverse=True):
            try:
                own = seg.masks(chosen.image)
            except StagingError as refusal:
                self.notify(str(refusal))
                why_not[seg] = UNUSABLE_MASK
                continue
            more = () if LIVER in own else (TUMOUR,)
            new = {key: mask for key, mask in own.items() if key not in found or key in more}
            if new:
                chosen.used.append(seg)
            else:
                why_not[seg] = SECOND if own else NO_ORGAN
            for key, mask in new.items():
                found[key] = found[key] | mask if key in found else mask
        try:
            if LIVER in found:
                chosen.labels = self._labels(found, chosen.image)
                liver, spleen, _ = organ_masks(chosen.image, chosen.labels, None)
                check_organs(chosen.image, liver, spleen, name)
        except StagingError as refusal:
            self.notify(str(refusal))
            chosen.labels = None
        if chosen.labels is None:
            why = UNUSABLE_MASK if LIVER in found else NO_ORGAN
            why_not.update(dict.fromkeys(chosen.used, why))
            chosen.used = []
        elif TUMOUR in found:
            voxel = math.prod(chosen.image.GetSpacing()) / 1000
            chosen.tumour_ml = float(np.count_nonzero(found[TUMOUR]) * voxel)

    def _labels(self, found: dict[str, np.ndarray], ct: sitk.Image) -> sitk.Image:
        # A liver may be drawn with its tumours or without.
        liver, tumour = found[LIVER], found.get(TUMOUR, np.False_)
        liver = liver | tumour if self.tumour == KEEP else liver & ~tumour
        labels = np.zeros(liver.shape, np.uint8)
        labels[found.get(SPLEEN, np.zeros_like(liver))] = SPLEEN_LABEL
        labels[liver] = LIVER_LABEL
        image = sitk.GetImageFromArray(labels)
        image.CopyInformation(ct)
        return image

    def _exclude(self, patient: str, unit: str, why: str, count: int = 1) -> None:
        if count:
            self.exclusions.append(Exclusion(patient, unit, why, count))


def _in_order(studies: Sequence[Study]) -> list[list[Scan]] | str:
    """The CTs of each study, the first study first, or why there are none.

    Files of another format count as those of the only DICOM study; if there are several, they are
    left out, because nothing tells their study.
    """
    dicom = [study for study in studies if study.dicom and study.scans]
    loose = [scan for study in studies if not study.dicom for scan in study.scans]
    if len(dicom) <= 1:
        together = [*loose, *(scan for study in dicom for scan in study.scans)]
        return [together] if together else NO_CT
    if not all(study.date for study in dicom):
        return NO_DATE
    return [study.scans for study in sorted(dicom, key=lambda study: study.date)]


def _matched(
    scans: Sequence[Scan], masks: Sequence[Segmentation]
) -> tuple[dict[Scan, list[Segmentation]], dict[Segmentation, str]]:
    """The segmentations of each CT, and why others are none's.

    A segmentation belongs to the CTs with most of the slices that it refers to; if it refers to no
    slices, to those of its series.
    """
    matched: dict[Scan, list[Segmentation]] = {}
    why_not = {}
    for seg in masks:
        shared = {scan: len(seg.instances & scan.instances) for scan in scans}
        most = max(shared.values(), default=0)
        own = [scan for scan, count in shared.items() if count == most > 0]
        if not seg.instances:
            own = [scan for scan in scans if scan.series and scan.series in seg.series]
        fitting = [
            s for s in own if not seg.frame or not s.header.frame or seg.frame == s.header.frame
        ]
        for scan in fitting:
            matched.setdefault(scan, []).append(seg)
        if not fitting:
            why_not[seg] = OTHER_FRAME if own else NO_REFERENCE
    return matched, why_not
