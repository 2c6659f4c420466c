"""Where the public collections are found; nothing is downloaded by this project."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import crlm, hcc_tace_seg, tcga_lihc
from .labels import Label


@dataclass(frozen=True)
class Collection:
    """A collection of The Cancer Imaging Archive.

    identifier: at Imaging Data Commons. doi: of its page, which links the clinical table. table:
    names of the files that `read` understands. staged: whether its table tells stages. site: by
    patient, of the hospital.
    """

    name: str
    identifier: str
    doi: str
    table: str
    staged: bool
    read: Callable[[Path], list[Label]]
    site: Callable[[str], str]


COLLECTIONS = {
    "tcga-lihc": Collection(
        "TCGA-LIHC",
        "tcga_lihc",
        "10.7937/K9/TCIA.2016.IMMQW8UQ",
        "nationwidechildrens.org_clinical_patient_lihc.txt (clinical biotab of the Genomic Data "
        "Commons), or the clinical table of cBioPortal or Firehose",
        True,
        tcga_lihc.read_labels,
        # A barcode begins with the tissue source site: TCGA-DD.
        lambda patient: "-".join(patient.split("-")[:2]),
    ),
    "hcc-tace-seg": Collection(
        "HCC-TACE-Seg",
        "hcc_tace_seg",
        "10.7937/TCIA.5FNA-0924",
        "HCC-TACE-Seg_clinical_data-V2.xlsx",
        True,
        hcc_tace_seg.read_labels,
        lambda _: "HCC-TACE-Seg",
    ),
    "crlm": Collection(
        "Colorectal-Liver-Metastases",
        "colorectal_liver_metastases",
        "10.7937/QXK2-QG03",
        "Colorectal-Liver-Metastases-Clinical-data-April-2023.xlsx",
        False,
        crlm.read_labels,
        lambda _: "Colorectal-Liver-Metastases",
    ),
}


def how_to_download(collection: Collection) -> str:
    """The commands that download a collection's images, and where its clinical table is."""
    return (
        f"{collection.name} is not part of this project, and nothing is downloaded by it.\n"
        "Images, from Imaging Data Commons (hundreds of gigabytes are possible):\n"
        "  pip install idc-index\n"
        f"  idc download {collection.identifier} --download-dir FOLDER\n"
        "or from The Cancer Imaging Archive with the NBIA Data Retriever.\n"
        f"Clinical table: {collection.table}.\n"
        f"Page with terms of use and table: https://doi.org/{collection.doi}"
    )
