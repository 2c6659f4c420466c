"""HCC-TACE-Seg: cirrhosis yes or no, from HCC-TACE-Seg_clinical_data-V2.xlsx.

The Child-Pugh class and hepatitis are findings beside the label: the table gives a class to
patients without cirrhosis too.
"""

import re
from pathlib import Path

from LiverFibrosisStagingLib.stages import ANY_STAGE, StageRange

from .labels import Label, one_per_patient
from .tables import read_sheet

MEANING = (
    "Cirrhosis yes (F4) or no (F0 to F3) by the clinical table of HCC-TACE-Seg (Evidence_of_cirh), "
    "which does not say whether by histology; F4 is cirrhosis in METAVIR (Bedossa and Poynard, "
    "Hepatology 1996;24:289-293)."
)
COLUMNS = ("TCIA_ID", "Evidence_of_cirh", "CPS", "hepatitis")
RANGES = {"1": StageRange.of("F4"), "0": StageRange.of("F0-F3")}
# Name of a finding -> its column and possible values.
FINDINGS = {
    "Child-Pugh": ("CPS", ("A", "B", "C")),
    "hepatitis": ("hepatitis", ("No virus", "HBV only", "HCV only", "HCV and HBV")),
}
MISSING = {"", "NA"}


def read_labels(path: Path) -> list[Label]:
    """The label of every patient. Raises StagingError with all problems."""
    path = Path(path)
    labels, problems = [], []
    for line, row in read_sheet(path, COLUMNS):
        patient, cirrhosis, found = row["TCIA_ID"], row["Evidence_of_cirh"], []
        if not re.fullmatch(r"HCC_\d{3}", patient):
            found.append(f"TCIA_ID is {patient!r}; HCC_ and three digits are needed.")
        if cirrhosis not in {*RANGES, *MISSING}:
            found.append(f"Evidence_of_cirh is {cirrhosis!r}; 1 or 0 is needed.")
        findings = {}
        for name, (column, values) in FINDINGS.items():
            if row[column] in values:
                findings[name] = row[column]
            elif row[column] not in MISSING:
                found.append(f"{column} is {row[column]!r}; one of {', '.join(values)} is needed.")
        if not found:
            stages = RANGES.get(cirrhosis, ANY_STAGE)
            labels.append((line, Label(patient, stages, MEANING, cirrhosis, findings)))
        problems += [(line, problem) for problem in found]
    return one_per_patient(path, labels, problems)
