"""Codes of the DICOM objects as (value, scheme, meaning).

Codes are those of SNOMED CT (SCT), DICOM (DCM, PS3.16), LOINC (LN) and UCUM; what has no code there
has one of the private scheme 99LFS, whose meanings say what it is. Values have up to 16 characters,
meanings up to 64 (PS3.5, VR SH and LO).
"""

from ..imaging.organs import LIVER, Organ
from ..signs.measure import EROSION_MM
from ..stages import STAGES

Concept = tuple[str, str, str]

PRIVATE = "99LFS"
PRIVATE_NAME = "Codes of the software LiverFibrosisStaging"

ANATOMY: Concept = ("91723000", "SCT", "Anatomical Structure")
ABDOMEN: Concept = ("818981001", "SCT", "Abdomen")
BODY: Concept = ("38266002", "SCT", "Entire body")
FIBROSIS: Concept = ("62484002", "SCT", "Hepatic fibrosis")
YES: Concept = ("373066001", "SCT", "Yes")
NO: Concept = ("373067005", "SCT", "No")
CT: Concept = ("25045-6", "LN", "CT unspecified body region")
SOURCE_IMAGE: Concept = ("121322", "DCM", "Source image for image processing operation")
CALCULATED: Concept = ("112187", "DCM", "Unspecified method of calculation")
COMMENT: Concept = ("121106", "DCM", "Comment")
LEARNED: Concept = ("123110", "DCM", "Artificial Intelligence")

VOLUME: Concept = ("118565006", "SCT", "Volume")
ATTENUATION: Concept = ("112031", "DCM", "Attenuation Coefficient")
MEAN: Concept = ("373098007", "SCT", "Mean")
DEVIATION: Concept = ("386136009", "SCT", "Standard Deviation")

# Unit of a sign -> UCUM.
UNITS: dict[str, Concept] = {
    "": ("1", "UCUM", "no units"),
    "%": ("%", "UCUM", "Percent"),
    "mL": ("mL", "UCUM", "milliliter"),
    "mL/m2": ("mL/m2", "UCUM", "milliliter per square meter"),
    "mm": ("mm", "UCUM", "mm"),
    "tenths of a mm": ("10*-4.m", "UCUM", "tenth of a millimeter"),
    "HU": ("[hnsf'U]", "UCUM", "Hounsfield unit"),
}

ATTENTION: Concept = ("ATTENTION", PRIVATE, "Grad-CAM attention relative to its mean over the body")
SHARE: Concept = ("ATTENTION_SHARE", PRIVATE, "Share of the body's total Grad-CAM attention")
EXPLAINED: Concept = ("EXPLAINED", PRIVATE, "Stage or group explained by the location map")
PREDICTED: Concept = ("PREDICTED_STAGE", PRIVATE, "Predicted stage of liver fibrosis (METAVIR)")
SUPPORTED: Concept = ("SUPPORTED", PRIVATE, "Predicted stage supported by the checks")

_GROUP_NAMES = {
    "significant": "significant liver fibrosis (F2-F4)",
    "advanced": "advanced liver fibrosis (F3-F4)",
    "cirrhosis": "cirrhosis (F4)",
}
STAGE_NAMES = {**{stage: f"METAVIR stage {stage}" for stage in STAGES}, **_GROUP_NAMES}


def stage_code(name: str) -> Concept:
    """The code of a stage or group."""
    text = STAGE_NAMES[name]
    return (name.upper(), PRIVATE, text[0].upper() + text[1:])


def probability_code(name: str) -> Concept:
    """The code of the probability of a stage or group."""
    return (f"P_{name.upper()}", PRIVATE, f"Probability of {STAGE_NAMES[name]}")


def positive_code(name: str) -> Concept:
    """The code of the question whether a group's probability is at or above its operating point."""
    return (f"POS_{name.upper()}", PRIVATE, f"Operating point reached: {STAGE_NAMES[name]}")


def organ_code(organ: Organ) -> Concept:
    """The code of an organ."""
    return (organ.code, "SCT", organ.name)


# Regions of the location map that are no segments -> anatomy, and which part of it.
PARTS: dict[str, tuple[Concept, Concept]] = {
    "liver_surface": (
        organ_code(LIVER),
        ("SHELL", PRIVATE, "Outer shell of the liver, along its surface"),
    ),
    "liver_core": (organ_code(LIVER), ("CORE", PRIVATE, "Liver without its outer shell")),
    "rest": (BODY, ("REST", PRIVATE, "Body without liver and spleen")),
}

# Signs of one organ -> the organ's name, the quantity, how it was derived and from which voxels.
_DEEP: Concept = ("DEEP", PRIVATE, f"Voxels deeper than {EROSION_MM:g} mm inside the organ")
ORGAN_SIGNS: dict[str, tuple[str, Concept, Concept | None, Concept | None]] = {
    "liver_volume_ml": ("Liver", VOLUME, None, None),
    "spleen_volume_ml": ("Spleen", VOLUME, None, None),
    "liver_mean_hu": ("Liver", ATTENUATION, MEAN, _DEEP),
    "liver_sd_hu": ("Liver", ATTENUATION, DEVIATION, _DEEP),
    "spleen_mean_hu": ("Spleen", ATTENUATION, MEAN, _DEEP),
    "spleen_sd_hu": ("Spleen", ATTENUATION, DEVIATION, _DEEP),
}
OTHER_SIGNS: dict[str, Concept] = {
    "spleen_liver_ratio": ("SPLEEN_TO_LIVER", PRIVATE, "Spleen volume divided by liver volume"),
    "liver_ml_per_m2": ("LIVER_PER_BSA", PRIVATE, "Liver volume per body surface area"),
    "spleen_ml_per_m2": ("SPLEEN_PER_BSA", PRIVATE, "Spleen volume per body surface area"),
    "lsvr": ("LSVR", PRIVATE, "Volume of liver segments I-III divided by that of IV-VIII"),
    "caudate_right_ratio": (
        "CAUDATE_TO_RIGHT",
        PRIVATE,
        "Caudate volume divided by right lobe volume",
    ),
    "nodularity_mm10": (
        "NODULARITY",
        PRIVATE,
        "Liver surface nodularity: mean distance from a smooth edge",
    ),
    "nodularity_edge_mm": (
        "NODULARITY_EDGE",
        PRIVATE,
        "Length of liver edge used for the nodularity",
    ),
    "liver_minus_spleen_hu": ("LIVER_MINUS_SPL", PRIVATE, "Mean HU of liver minus that of spleen"),
}
