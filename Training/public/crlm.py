"""Colorectal-Liver-Metastases: steatosis and NASH score of the liver beside the metastases.

The table, Colorectal-Liver-Metastases-Clinical-data-April-2023.xlsx, has no stage of fibrosis.
Its columns fibrosis_percent and fibrosis_greater_40_percent are about the tumour's response to
chemotherapy and must never become a stage; they are not read.
"""

import re
from pathlib import Path

from LiverFibrosisStagingLib.stages import ANY_STAGE

from .labels import Label, one_per_patient
from .tables import read_sheet

MEANING = (
    "No stage: the clinical table of Colorectal-Liver-Metastases has steatosis and the NASH score "
    "of the liver, which do not tell the stage; its fibrosis_percent is that of the tumour."
)
# Which of the two has the patient's name in the images is not the same in all copies.
NAMES = ("Patient-ID", "De-identify Scout Name")
PATIENT = re.compile(r"CRLM-CT-\d{4}")
# Column -> possible values. The score is the NAFLD activity score of Kleiner et al., Hepatology
# 2005;41:1313-1321: 0 to 8, without fibrosis.
FINDINGS = {
    "NASH_score": tuple(str(score) for score in range(9)),
    "steatosis_yesno": ("0", "1"),
}
MISSING = {"", "-999"}


def read_labels(path: Path) -> list[Label]:
    """A label of unknown stage for every patient. Raises StagingError with all problems."""
    path = Path(path)
    labels, problems = [], []
    for line, row in read_sheet(path, (*NAMES, *FINDINGS)):
        patients = {row[name] for name in NAMES if PATIENT.fullmatch(row[name])}
        found, findings = [], {}
        if len(patients) != 1:
            entries = " and ".join(f"{name} is {row[name]!r}" for name in NAMES)
            found.append(f"{entries}; one name such as CRLM-CT-1001 is needed.")
        for column, values in FINDINGS.items():
            if row[column] in values:
                findings[column] = row[column]
            elif row[column] not in MISSING:
                wanted = f"{values[0]} to {values[-1]}, or -999,"
                found.append(f"{column} is {row[column]!r}; {wanted} is needed.")
        if not found:
            labels.append((line, Label(patients.pop(), ANY_STAGE, MEANING, "", findings)))
        problems += [(line, problem) for problem in found]
    return one_per_patient(path, labels, problems)
