"""Checks of one CT and its masks that are part of the result, each with numbers and one sentence.

Sentences and values contain no text from the input, because they are written to files.
"""

from dataclasses import dataclass, field

import SimpleITK as sitk

from .dicom_files import DESCRIPTION
from .dicom_series import named_phase

PASS, WARN, REFUSE = "pass", "warn", "refuse"
PHASE = "phase"  # key of the check of the contrast phase


@dataclass(frozen=True)
class Check:
    """One check of the input.

    key: for tables and JSON; name: for people; outcome: PASS, WARN or REFUSE (a result contains a
    refusal only if it was overruled); sentence: what was found and, unless it passed, what is
    needed; values: the numbers behind it, by names with units such as "aorta_hu".
    """

    key: str
    name: str
    outcome: str
    sentence: str
    values: dict[str, float | str] = field(default_factory=dict)


def contrast_phase(ct: sitk.Image) -> str:
    """The contrast phase that the series description names (`dicom_series.named_phase`)."""
    return named_phase(ct.GetMetaData(DESCRIPTION)) if ct.HasMetaDataKey(DESCRIPTION) else ""


def input_checks(
    ct: sitk.Image, liver: sitk.Image, spleen: sitk.Image | None, phase: str
) -> tuple[Check, ...]:
    """The checks of a CT and its masks, in the order in which they are shown.

    ct: HU, as checked by `checks.check_ct`; liver, spleen: masks on its grid; phase: from
    `contrast_phase`.
    """
    return ()
