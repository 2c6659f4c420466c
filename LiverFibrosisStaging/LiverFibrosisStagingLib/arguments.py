"""The options of the command line's commands (`__main__`)."""

import argparse

from . import __version__
from .gradcam_onnx.session import CPU, DEVICE_CHOICES
from .report.summary import SURFACE_MM
from .stages import EXPLAIN_CHOICES, RESEARCH_USE

AUTO = "auto"


def parser() -> argparse.ArgumentParser:
    """The parser of all commands; `command` is the name of the one that is given."""
    parser = argparse.ArgumentParser(
        prog="python -m LiverFibrosisStagingLib",
        description="Stage liver fibrosis on portal-venous CT, with location maps. " + RESEARCH_USE,
        epilog="Exit codes: 0 done, 1 refused (the reason is on standard error), 2 wrong usage, "
        "3 some cases failed, 4 the model fails its own check, 130 cancelled.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    network = argparse.ArgumentParser(add_help=False)
    network.add_argument(
        "--device",
        choices=DEVICE_CHOICES,
        default=CPU,
        help="where the networks run, if the installed onnxruntime supports it (default: "
        "%(default)s); auto: a GPU if there is one",
    )
    shared = argparse.ArgumentParser(add_help=False, parents=[network])
    shared.add_argument("--model", metavar="ONNX", help="model file (default: the shipped model)")
    shared.add_argument(
        "--explain",
        choices=EXPLAIN_CHOICES,
        default="predicted",
        help="stage or group that the location map explains (default: the predicted stage)",
    )
    shared.add_argument(
        "--strict", action="store_true", help="refuse a CT with a warning in its checks"
    )
    shared.add_argument(
        "--any-phase",
        action="store_true",
        help="stage a CT that is clearly not in the portal-venous phase as well",
    )
    shared.add_argument(
        "--shell",
        metavar="MM",
        type=float,
        default=SURFACE_MM,
        help="thickness of the liver's surface, whose weight is measured (default: %(default)g)",
    )
    shared.add_argument("-o", "--output", metavar="FOLDER", required=True, help="result folder")
    shared.add_argument("-q", "--quiet", action="store_true", help="no progress line")

    one = argparse.ArgumentParser(add_help=False)
    about_ct = "DICOM folder, NIfTI, NRRD or MHA file, in HU"
    one.add_argument("ct", metavar="CT", help=about_ct)
    one.add_argument(
        "--liver",
        metavar="MASK",
        default=AUTO,
        help="liver mask; FILE:LABEL selects one label, FILE:LABEL+LABEL several; a label image "
        "with 1 liver and 2 spleen serves as both; auto (the default): automatic segmentation",
    )
    one.add_argument("--spleen", metavar="MASK", help="spleen mask (FILE or FILE:LABEL)")
    one.add_argument(
        "--segments",
        metavar="PATH",
        help="segmentation of the liver's Couinaud segments or lobes, for the volume ratios: "
        "folder of TotalSegmentator's task liver_segments, .seg.nrrd, or labels 1 to 8",
    )
    one.add_argument(
        "--height",
        metavar="CM",
        type=float,
        help="the patient's height, with --weight for volumes per body surface area (default: "
        "from DICOM)",
    )
    one.add_argument("--weight", metavar="KG", type=float, help="the patient's weight")
    about_pseudonyms = "give every case a pseudonym"
    about_report = (
        "also write report.html, which opens in a browser without a network, and report.pdf if "
        "matplotlib is installed"
    )
    stage = commands.add_parser("stage", parents=[one, shared], help="stage one CT")
    stage.add_argument("--report", action="store_true", help=about_report)
    stage.add_argument(
        "--dicom",
        action="store_true",
        help="also write DICOM (segmentation, parametric map, structured report) to "
        "FOLDER/dicom; the CT must be DICOM; needs pydicom and highdicom",
    )

    check = commands.add_parser(
        "check-explanation",
        parents=[one, shared],
        help="measure what the stage depends on",
        description="Stage a CT, or the cases of a folder or CSV file as for batch, again with fat "
        "in place of the surroundings, without the organs, with a uniform liver, a spleen of "
        "normal volume and a smooth liver surface, and measure how far the expected stage moves. "
        "A model that the surroundings move too far fails its own check.",
    )
    check.add_argument("--pseudonyms", action="store_true", help=about_pseudonyms)
    check.add_argument(
        "--faithfulness",
        action="store_true",
        help="instead, for one CT: deletion and insertion curves of the location map, and its "
        "dependence on the model's weights",
    )

    segment = commands.add_parser(
        "segment", parents=[network], help="segment liver and spleen on a CT"
    )
    segment.add_argument("ct", metavar="CT", help=about_ct)
    segment.add_argument(
        "-o",
        "--output",
        metavar="MASK",
        required=True,
        help="label image to write, 1 liver and 2 spleen: .seg.nrrd for Slicer, .nii.gz, .mha",
    )
    segment.add_argument("--model", metavar="ONNX", help="model file (default: the shipped model)")
    segment.add_argument("-q", "--quiet", action="store_true", help="no progress line")

    batch = commands.add_parser(
        "batch",
        parents=[shared],
        help="stage a cohort",
        description="INPUT is a list (CSV or Parquet) with the columns ct and, optionally, liver, "
        "spleen, case, segments, height_cm and weight_kg; a folder of image files and DICOM files; "
        "a DICOMDIR; a folder as of the Medical Segmentation Decathlon, nnU-Net or BIDS; or a "
        "quoted pattern for the CTs. Of a DICOM study, the portal-venous series is staged; what is "
        "left out stands in left_out.csv. In a folder, the masks of NAME.nii.gz are NAME_liver and "
        "NAME_spleen, or NAME_seg (1 liver, 2 spleen); in a folder with one CT, liver, spleen or "
        "seg*. Cases without a mask are segmented automatically. Cases already staged from the "
        "same files with the same options "
        "are skipped. No output contains file names; cases whose names may be those of persons get "
        "a pseudonym.",
    )
    batch.add_argument("input", metavar="INPUT", help="folder, list, DICOMDIR or pattern")
    batch.add_argument(
        "--dry-run",
        action="store_true",
        help="only print the cases and what is left out, without reading voxels",
    )
    batch.add_argument("--pseudonyms", action="store_true", help=about_pseudonyms)
    batch.add_argument("--reports", action="store_true", help=f"for each case, {about_report}")
    batch.add_argument(
        "--parquet",
        action="store_true",
        help="also write the table as results.parquet; needs pyarrow",
    )
    batch.add_argument(
        "--workers",
        metavar="N",
        type=int,
        default=1,
        help="stage N cases at a time in processes that share the cores and need memory for N CTs "
        "(default: one, in this process)",
    )
    batch.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="stage the cases on the workers of a Dask cluster, tcp://host:8786, which must see "
        "the same paths; needs the package distributed",
    )

    measured = commands.add_parser(
        "evaluate",
        help="compare a cohort's table with a reference standard",
        description="Measures of the stages, and of each measured sign, in a batch's table against "
        "a reference standard such as histology: AUC, sensitivity, specificity, accuracy, kappa, "
        "calibration, decision curves, with tables and figures. Needs matplotlib.",
    )
    measured.add_argument("results", metavar="RESULTS", help="results.csv or .parquet of batch")
    measured.add_argument(
        "--truth",
        metavar="TABLE",
        required=True,
        help="CSV or Parquet file with the columns case, stage (F0 to F4 or 0 to 4) and, if "
        "patients have several CTs, patient",
    )
    measured.add_argument("-o", "--output", metavar="FOLDER", required=True, help="result folder")
    measured.add_argument(
        "--compare", metavar="OTHER", help="compare AUCs with another batch's table of these cases"
    )
    measured.add_argument(
        "--label", metavar="NAME", default="network", help="name of the results in tables, figures"
    )
    measured.add_argument(
        "--model",
        metavar="ONNX",
        help="the model of the results, for its operating points (default: a shipped model with "
        "the hash in the table)",
    )

    info = commands.add_parser("model-info", help="show the metadata of a model file")
    info.add_argument("onnx", metavar="ONNX", nargs="?", help="default: the shipped model")
    info.add_argument("--json", action="store_true", help="as JSON")
    return parser
