"""What the voxels of a CT say: its contrast phase, and whether the liver is in it.

One rule on the phase holds for all cohorts: a CT that its description gives another phase is not
examined; of the others, the HU of liver, spleen and vessels refuse those that are clearly of
another phase, whatever description and table say.
"""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import SimpleITK as sitk

from common.resume import digest
from LiverFibrosisStagingLib import __version__
from LiverFibrosisStagingLib.errors import StagingError
from LiverFibrosisStagingLib.files import unwritable
from LiverFibrosisStagingLib.imaging.dicom_files import DESCRIPTION
from LiverFibrosisStagingLib.imaging.dicom_series import (
    ARTERIAL,
    LATE,
    PORTAL_VENOUS,
    UNENHANCED,
)
from LiverFibrosisStagingLib.imaging.input_checks import PHASE, REFUSE, input_checks
from LiverFibrosisStagingLib.imaging.masks import organ_masks
from LiverFibrosisStagingLib.imaging.segmentation import segment_checked, shipped_network
from LiverFibrosisStagingLib.resources import default_model_path

# As the manifest has them.
PHASE_NAMES = {
    PORTAL_VENOUS: "portal venous",
    ARTERIAL: "arterial",
    LATE: "delayed",
    UNENHANCED: "unenhanced",
    "": "",
}
CHECKED = "checked"  # the folder of records
UNREADABLE = "the CT or its masks cannot be read"
NO_LIVER = "no liver in it, or only a small part"
OTHER_SHOWN = "another phase by its HU"


class Examined(NamedTuple):
    """phase: as the manifest has it, by the HU or, where these leave it open, the description.

    unusable: the reason why the CT cannot be used, or "". said: a sentence for the screen.
    """

    phase: str = ""
    unusable: str = ""
    said: str = ""


def organs_of(ct: sitk.Image) -> sitk.Image:
    """Label image of a CT, 1 liver and 2 spleen, by the shipped network. Raises StagingError."""
    return segment_checked(ct, "The CT", shipped_network(1)).labels


def examined(
    ct: sitk.Image, liver: sitk.Image | None, spleen: sitk.Image | None, folder: Path
) -> Examined:
    """The phase of a CT, in HU as checked by `check_ct`, or why it cannot be used.

    liver, spleen: label images as for `organ_masks`; without a liver, the shipped network outlines
    both. The result is kept in `folder`/CHECKED by the voxels, so that the same CT is not examined
    again by a repeated command. Raises StagingError if it cannot be kept.
    """
    record = folder / CHECKED / f"{_key(ct, liver, spleen)}.json"
    try:
        return Examined(**json.loads(record.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # none, or one of a command that was stopped
        found = _examined(ct, liver, spleen)
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(found._asdict()), encoding="utf-8")
    except OSError as error:
        raise unwritable(record.parent, error) from None
    return found


def _examined(ct: sitk.Image, liver: sitk.Image | None, spleen: sitk.Image | None) -> Examined:
    try:
        if liver is None:
            liver = organs_of(ct)
        phase, checks = input_checks(ct, *organ_masks(ct, liver, spleen)[:2])
    except StagingError as refusal:
        return Examined(unusable=NO_LIVER, said=str(refusal))
    refused = {check.key for check in checks if check.outcome == REFUSE}
    if PHASE in refused:
        return Examined(unusable=OTHER_SHOWN)
    return Examined(unusable=NO_LIVER) if refused else Examined(PHASE_NAMES[phase])


def _key(*images: sitk.Image | None) -> str:
    """Digest of voxels and geometry, and of what else the examination depends on."""
    found = hashlib.sha256(f"{__version__} {digest(default_model_path('VNet.onnx'))}".encode())
    for image in images:
        if image is None:
            found.update(b"none")
            continue
        named = image.GetMetaData(DESCRIPTION) if image.HasMetaDataKey(DESCRIPTION) else ""
        geometry = image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection()
        found.update(repr((named, image.GetPixelIDTypeAsString(), geometry)).encode())
        found.update(sitk.GetArrayViewFromImage(image))
    return found.hexdigest()[:32]
