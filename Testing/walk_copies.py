"""Small copies of what the walk-through starts with: four downloads with their clinical tables.

The CTs are phantoms, so that the stages can be learned; folders, headers and tables have the
layout of the originals. All patients and numbers are invented.
"""

import re
import shlex
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from public_copies import LIVER, SPLEEN, TUMOUR, ct, mr, seg, slices_of, workbook

from cases import phantom

# Patient: stage of the phantom, entry of the clinical table.
TCGA = {
    "TCGA-DD-A001": (0, "0 - No Fibrosis"),
    "TCGA-DD-A002": (0, "0 - No Fibrosis"),
    "TCGA-DD-A003": (1, "1,2 - Portal Fibrosis"),
    "TCGA-DD-A004": (2, "1,2 - Portal Fibrosis"),
    "TCGA-BC-A005": (3, "3,4 - Fibrous Speta"),
    "TCGA-BC-A006": (3, "3,4 - Fibrous Speta"),
    "TCGA-BC-A007": (4, "5 - Nodular Formation and Incomplete Cirrhosis"),
    "TCGA-BC-A008": (4, "6 - Established Cirrhosis"),
    "TCGA-BC-A009": (4, "[Not Available]"),
}
# HCC_002 is one of the patients of the shipped network.
HCC = {f"HCC_10{i}": (4, 1) if i % 2 else (1, 0) for i in range(8)} | {"HCC_002": (4, 1)}
CRLM = {f"CRLM-CT-100{i}": (0, i) for i in range(2)}
HOSPITAL = {f"70010{i}": stage for i, stage in enumerate((0, 0, 1, 1, 1, 2, 3, 3, 4, 4))}
OTHERS = 2  # patients of a public collection who have a CT of another phase as well
BIOTAB = ("bcr_patient_uuid", "bcr_patient_barcode", "ishak_fibrosis_score")
PAGE = Path(__file__).resolve().parents[1] / "docs" / "train-on-patients.md"


def page_commands() -> list[list[str]]:
    """The words after `python3 run.py` of all lines in the walk-through's code blocks."""
    text = PAGE.read_text(encoding="utf-8")
    lines = "".join(re.findall(r"^```\n(.*?)^```", text, re.M | re.S)).splitlines()
    assert all(line.startswith("python3 run.py ") for line in lines)
    return [shlex.split(line)[2:] for line in lines]


def write_downloads(folder: Path, **resolution) -> None:
    """Write `folder`/tcga_lihc, HCC-TACE-Seg, crlm and hospital, and the four clinical tables.

    resolution: spacing and size of the phantoms, as for `phantom`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _tcga(folder, resolution)
    _hcc(folder, resolution)
    _crlm(folder, resolution)
    _hospital(folder, resolution)


def _tcga(folder: Path, resolution) -> None:
    """As idc-index writes it: a folder for each patient, study and series, with their UIDs."""
    for number, (patient, (stage, _)) in enumerate(TCGA.items()):
        study = str(100 + number)
        scan = phantom.phantom(stage, 100 + number, **resolution).ct
        at = folder / "tcga_lihc" / patient / f"1.2.826.{study}"
        scans = {"2": ("VENOUS 5.0", scan)}
        if number < OTHERS:
            scans["1"] = "ARTERIAL", _unenhanced(scan)
        for series, (named, hu) in scans.items():
            place = at / f"CT_1.2.826.{study}.{series}"
            ct(place, patient, study, series, hu=hu, description=named)
        if number == 0:
            mr(at / "MR_1.2.826.100.77", patient, study)
    lines = [BIOTAB, BIOTAB, ("CDE_ID:", "CDE_ID:2003301", "CDE_ID:3182621")]
    lines += [(f"uuid-{n}", *(p, text)) for n, (p, (_, text)) in enumerate(TCGA.items())]
    table = folder / "nationwidechildrens.org_clinical_patient_lihc.txt"
    table.write_text("".join("\t".join(line) + "\n" for line in lines))


def _hcc(folder: Path, resolution) -> None:
    """As the NBIA Data Retriever writes it; two acquisitions in a series, and a segmentation."""
    rows = [("TCIA_ID", "Evidence_of_cirh", "CPS", "hepatitis")]
    for number, (patient, (stage, cirrhosis)) in enumerate(HCC.items()):
        study, made = str(200 + number), phantom.phantom(stage, 200 + number, **resolution)
        visit = folder / "manifest-1643035385102" / "HCC-TACE-Seg" / patient / "01-01-2000-NA-CT-1"
        series = visit / "4.000000-Recon 2 LIVER 3 PHASE-1"
        described = {"description": "Recon 2: LIVER 3 PHASE (AP)"}
        ct(series, patient, study, "4", "1", hu=made.ct, prefix="1-", **described)
        if number < OTHERS:
            ct(series, patient, study, "4", "2", hu=_unenhanced(made.ct), prefix="2-", **described)
        seg(visit / "300-Segmentation-1" / "1-1.dcm", slices_of(series, "1-"), _masks(made))
        rows.append((patient, cirrhosis, "A", "HCV only"))
    workbook(folder / "HCC-TACE-Seg_clinical_data-V2.xlsx", *rows)


def _crlm(folder: Path, resolution) -> None:
    rows = [("Patient-ID", "De-identify Scout Name", "NASH_score", "steatosis_yesno")]
    for number, (patient, (stage, score)) in enumerate(CRLM.items()):
        study, made = str(300 + number), phantom.phantom(stage, 300 + number, **resolution)
        at = folder / "colorectal_liver_metastases" / patient / f"1.2.826.{study}"
        series = ct(at / f"CT_1.2.826.{study}.1", patient, study, hu=made.ct)
        drawn = {LIVER: _masks(made)[LIVER]}
        seg(at / "SEG_1.2.826.9" / "s.dcm", slices_of(series), drawn)
        rows.append((patient, patient, score, -999))
    workbook(folder / "Colorectal-Liver-Metastases-Clinical-data-April-2023.xlsx", *rows)


def _hospital(folder: Path, resolution) -> None:
    lines = ["Patient ID;Accession number;Histology;Score;Biopsy date;Specimen;Etiology;Site"]
    for number, (patient, stage) in enumerate(HOSPITAL.items()):
        study, made = str(400 + number), phantom.phantom(stage, 400 + number, **resolution)
        tags = {"date": "20210301", "0008|0050": f"A{number}"}
        ct(folder / "hospital" / f"p{number}", patient, study, hu=made.ct, **tags)
        lines.append(f"{patient};A{number};F{stage};METAVIR;15.3.2021;biopsy;HBV;North")
    (folder / "histology.csv").write_text("\n".join(lines) + "\n")


def _unenhanced(scan: sitk.Image) -> sitk.Image:
    """The CT as if before contrast: organs and vessels at 45 HU."""
    hu = sitk.GetArrayFromImage(scan)
    hu[(hu > 45) & (hu < 250)] = 45
    made = sitk.GetImageFromArray(hu)
    made.CopyInformation(scan)
    return made


def _masks(made: phantom.Phantom) -> dict[str, np.ndarray]:
    """Liver without its tumour, tumour, spleen: bool [slice, row, column]."""
    liver = sitk.GetArrayFromImage(made.liver) > 0
    spleen = (sitk.GetArrayFromImage(made.spleen) > 0) & ~liver
    tumour = np.zeros_like(liver)
    middle = np.argwhere(liver).mean(axis=0).astype(int)
    tumour[tuple(slice(n - 1, n + 2) for n in middle)] = True
    tumour &= liver
    return {LIVER: liver & ~tumour, TUMOUR: tumour, SPLEEN: spleen}
