"""What the voxels of a study's CT say: whether it can be read, and its contrast phase."""

from collections.abc import Callable
from dataclasses import replace

import SimpleITK as sitk

from LiverFibrosisStagingLib.errors import StagingError
from LiverFibrosisStagingLib.imaging.checks import check_ct
from LiverFibrosisStagingLib.imaging.input_checks import PHASE, REFUSE, input_checks
from LiverFibrosisStagingLib.imaging.masks import organ_masks, read_organ
from LiverFibrosisStagingLib.imaging.reading import read_ct

from .choice import NO_LIVER, PHASE_NAMES, organs_of
from .studies import UNREADABLE, Study


def images_of(study: Study) -> dict[str, sitk.Image]:
    """The CT in HU, and liver and spleen on its grid if they have masks. Raises StagingError."""
    case = study.case
    images = {"ct": read_ct(case.source)}
    if case.liver is not None:
        spleen = None if case.spleen is None else read_organ(case.spleen)
        liver, spleen, _ = organ_masks(images["ct"], read_organ(case.liver), spleen)
        images |= {"liver": liver} | ({} if spleen is None else {"spleen": spleen})
    return images


def examined(study: Study, known: bool, notify: Callable[[str], None]) -> Study:
    """The study with its contrast phase, or with the reason why it is unusable.

    known: whether the phase is known, so that the CT need only be readable; otherwise it is that of
    the HU, in liver and spleen as the shipped network finds them. notify: receives sentences for
    the screen, which may name files.
    """
    try:
        images = images_of(study)
        check_ct(images["ct"], study.place)
    except StagingError as refusal:
        notify(str(refusal))
        return replace(study, unusable=UNREADABLE)
    if known:
        return study
    try:
        ct, liver, spleen = (images.get(part) for part in ("ct", "liver", "spleen"))
        if liver is None:
            liver, spleen, _ = organ_masks(ct, organs_of(ct), None)
        phase, checks = input_checks(ct, liver, spleen)
    except StagingError as refusal:
        notify(f"{study.place}: {refusal}")
        return replace(study, unusable=NO_LIVER)
    if any(check.outcome == REFUSE and check.key != PHASE for check in checks):
        return replace(study, unusable=NO_LIVER)
    return replace(study, phase=PHASE_NAMES[phase])
