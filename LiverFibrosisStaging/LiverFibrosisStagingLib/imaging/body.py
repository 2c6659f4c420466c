"""Height and weight of a patient, as numbers only."""

import math
from dataclasses import dataclass

import SimpleITK as sitk

from ..errors import StagingError

HEIGHT_CM, WEIGHT_KG = (100.0, 230.0), (25.0, 300.0)  # plausible values of adolescents and adults
# Keys of an image's metadata.
HEIGHT_KEY, WEIGHT_KEY = "LiverFibrosisStaging.height_cm", "LiverFibrosisStaging.weight_kg"


@dataclass(frozen=True)
class Body:
    """Height in cm and weight in kg. Raises StagingError for values outside the plausible range."""

    height_cm: float
    weight_kg: float

    def __post_init__(self) -> None:
        for what, value, unit, (low, high) in (
            ("height", self.height_cm, "cm", HEIGHT_CM),
            ("weight", self.weight_kg, "kg", WEIGHT_KG),
        ):
            if not low <= value <= high:
                raise StagingError(
                    f"The {what} is {value:g} {unit}; {low:g} to {high:g} {unit} are plausible."
                )

    @property
    def surface_m2(self) -> float:
        """Body surface area: sqrt(height in cm x weight in kg / 3600), in m2.

        Mosteller 1987, N Engl J Med 317:1098.
        """
        return math.sqrt(self.height_cm * self.weight_kg / 3600)


def given_body(height_cm: float | None, weight_kg: float | None) -> Body | None:
    """Height and weight that a user gave, None if neither.

    Raises StagingError for one without the other, and as `Body` does.
    """
    if height_cm is None and weight_kg is None:
        return None
    if height_cm is None or weight_kg is None:
        given, missing = ("weight", "height") if height_cm is None else ("height", "weight")
        raise StagingError(f"Only the {given} is given; the {missing} is needed too.")
    return Body(height_cm, weight_kg)


def body_of(ct: sitk.Image) -> Body | None:
    """Height and weight that were read with a CT; None if it has none."""
    if not (ct.HasMetaDataKey(HEIGHT_KEY) and ct.HasMetaDataKey(WEIGHT_KEY)):
        return None
    return Body(float(ct.GetMetaData(HEIGHT_KEY)), float(ct.GetMetaData(WEIGHT_KEY)))


def body_metadata(size_m: str, weight_kg: str) -> dict[str, str]:
    """Metadata for `body_of` from DICOM's PatientSize and PatientWeight.

    Numbers only; empty if one of them is missing or not plausible, such as a size in cm.
    """
    try:
        body = Body(round(100 * float(size_m), 1), round(float(weight_kg), 1))
    except (ValueError, StagingError):
        return {}
    return {HEIGHT_KEY: f"{body.height_cm:g}", WEIGHT_KEY: f"{body.weight_kg:g}"}
