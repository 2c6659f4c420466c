"""Command line: python -m LiverFibrosisStagingLib COMMAND, where COMMAND is stage, segment, batch,
evaluate, check-explanation or model-info.

Exit codes: 0 done; 1 refused, with the reason in one sentence on standard error; 2 wrong usage;
3 finished, but some cases failed (reasons in the table); 4 the model fails its own check
(check-explanation); 130 cancelled (Ctrl+C).
"""

import argparse
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING

from . import __version__
from .errors import Cancelled, StagingError
from .progress_line import ProgressLine, batch_progress
from .report.summary import SURFACE_MM
from .stages import EXPLAIN_CHOICES, RESEARCH_USE, STAGES

if TYPE_CHECKING:
    from .result import StagingResult

AUTO = "auto"
DONE, REFUSED, SOME_FAILED, FAILS_CHECK, CANCELLED = 0, 1, 3, 4, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parser().parse_args(arguments)
    cancel = threading.Event()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, lambda *_: cancel.set())
    try:
        return options.run(options, cancel)
    except Cancelled:
        print("Cancelled.", file=sys.stderr)
        return CANCELLED
    except StagingError as refusal:
        print(refusal, file=sys.stderr)
    except BrokenPipeError:  # the program reading the output, such as head, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except MemoryError:
        print("Not enough memory for this CT.", file=sys.stderr)
    except Exception as error:  # one sentence for users; the traceback with --debug
        if options.debug:
            raise
        print(
            f"Unexpected {type(error).__name__}: {' '.join(str(error).split())} "
            "(--debug shows where).",
            file=sys.stderr,
        )
    return REFUSED


def _stage(options: argparse.Namespace, cancel: threading.Event) -> int:
    from .files import check_writable
    from .result import one_line

    check_writable(options.output)
    if options.dicom:
        _check_dicom(options.ct)
    with ProgressLine(options.quiet) as progress:
        result = _staged(options, progress, cancel)
        files = result.source_files if options.dicom else None
        folder = result.save(options.output, options.report, files)
    print(one_line(result))
    for name, probability in zip(STAGES, result.probabilities):
        print(f"  {name}  {probability:6.1%}  {'#' * round(40 * probability)}")
    if result.spread is not None:
        low, high = result.spread["range"][result.stage]
        print(
            f"{result.spread['agreeing']} of {result.spread['members']} networks predict "
            f"{result.stage}; its probability ranges from {low:.2f} to {high:.2f}"
        )
    print(f"Signs: {result.agreement.sentence}")
    print(f"Pattern of the location map: {result.pattern.name or 'none'}")
    for warning in result.warnings:
        if warning not in result.reasons:  # which are in the first line
            print(f"Warning: {warning}")
    model = result.provenance["model"]
    print(_notice(model["name"], model["trained_on"]))
    written = "Report, overview" if options.report else "Overview"
    print(f"{written}, location map and numbers: {folder}")
    return DONE


def _notice(model: str, trained_on: str) -> str:
    return f"{RESEARCH_USE} Model {model}, trained on: {trained_on}"


def _staged(
    options: argparse.Namespace, progress: "ProgressLine", cancel: threading.Event
) -> "StagingResult":
    from .imaging.body import given_body
    from .staging import stage

    masks = (None if options.liver == AUTO else options.liver, options.spleen)
    return stage(
        options.ct,
        *masks,
        options.model,
        options.explain,
        progress,
        cancel,
        strict=options.strict,
        any_phase=options.any_phase,
        segments=options.segments,
        body=given_body(options.height, options.weight),
        surface_mm=options.shell,
    )


def _check_dicom(ct: str) -> None:
    """Check, before work starts, that the result can be written as DICOM. Raises StagingError."""
    from .dicom_output.source import read_source
    from .dicom_output.writing import check_packages
    from .imaging.dicom_series import find_series
    from .imaging.reading import is_for_dicom

    check_packages()
    path = Path(ct).absolute()
    if path.exists():  # otherwise refused when it is read
        if not is_for_dicom(path):
            raise StagingError(f"{ct}: not DICOM; --dicom needs a DICOM folder or file.")
        series = find_series(path)[0][0]
        read_source([series.slices[0].path])


def _segment(options: argparse.Namespace, cancel: threading.Event) -> int:
    from .imaging.organs import check_image_name, write_labels
    from .imaging.segmentation import segment

    check_image_name(options.output)
    with ProgressLine(options.quiet) as progress:
        found = segment(options.ct, options.model, progress, cancel)
        write_labels(found.labels, options.output)
    for organ, volume in found.volumes_ml.items():
        print(f"{organ}: {volume:.0f} mL")
    for warning in found.warnings:
        print(f"Warning: {warning}")
    print(f"{RESEARCH_USE} Labels (1 liver, 2 spleen): {options.output}")
    return DONE


def _batch(options: argparse.Namespace, cancel: threading.Event) -> int:
    from .batch.cases import read_cohort
    from .batch.run import stage_folder
    from .batch.summary_page import SUMMARY
    from .batch.table_files import TABLE

    if options.dry_run:
        source, output = Path(options.input), Path(options.output)
        for line in read_cohort(source, output, options.pseudonyms, look=False).lines():
            print(line)
        return DONE
    with batch_progress(options.quiet) as progress:

        def notify(message: str) -> None:
            progress.clear()
            print(message, file=sys.stderr)
            if options.debug and not isinstance(sys.exc_info()[1], (StagingError, NoneType)):
                traceback.print_exc()

        rows = stage_folder(
            options.input,
            options.output,
            options.model,
            options.explain,
            progress,
            cancel,
            options.pseudonyms,
            notify,
            options.shell,
            options.reports,
            options.strict,
            options.any_phase,
            options.parquet,
            options.workers,
            options.scheduler,
            progress.finished,
        )
    failed = [row for row in rows if row["status"] != "done"]
    print(f"{len(rows) - len(failed)} of {len(rows)} cases staged; see {options.output}/{TABLE}")
    print(f"Summary: {options.output}/{SUMMARY}")
    print(_notice(rows[0]["model"], rows[0]["trained_on"]))
    return SOME_FAILED if failed else DONE


def _evaluate(options: argparse.Namespace, cancel: threading.Event) -> int:
    from .evaluation.evaluate import ALL, PAGE, evaluate
    from .evaluation.tables import stages_table, table_2

    found = evaluate(
        options.results,
        options.truth,
        options.output,
        options.compare,
        options.label,
        options.model,
    )
    measured = {options.label: found["network"][ALL]}
    for line in [*table_2(measured), *stages_table(measured)[1:]]:
        print("  ".join(line))
    for reason, count in found["left_out"].items():
        print(f"Left out: {count} {reason}")
    for warning in found["warnings"]:
        print(f"Warning: {warning}")
    print(f"{RESEARCH_USE} Model trained on: {found['trained_on']}")
    print(f"Page, tables, figures and numbers: {options.output}/{PAGE}")
    return DONE


def _check_explanation(options: argparse.Namespace, cancel: threading.Event) -> int:
    from .batch.cases import read_cohort
    from .batch.cohort import Case
    from .batch.lists import LISTS
    from .explanation_check import check_cases, verdict
    from .files import check_writable
    from .model import StagingModel
    from .resources import default_model_path

    if options.faithfulness:
        return _measure_faithfulness(options, cancel)
    source, output = Path(options.ct), Path(options.output)
    check_writable(output)
    if options.liver == AUTO and (source.is_dir() or source.suffix.lower() in LISTS):
        cases = read_cohort(source, output, options.pseudonyms).cases
    else:
        liver = None if options.liver == AUTO else options.liver
        cases = [Case("CT", source, liver, options.spleen)]
    model = StagingModel.load(options.model or default_model_path())
    with ProgressLine(options.quiet) as progress:

        def notify(message: str) -> None:
            progress.clear()
            print(message, file=sys.stderr)

        for case in cases:
            if case.pseudonym:
                notify(f"{case.name} is {case.ct}.")
        strict, any_phase = options.strict, options.any_phase
        found = check_cases(cases, model, progress, cancel, notify, strict, any_phase)
        folder = found.save(output)
    for line in found.lines():
        print(line)
    print(verdict(found.moved))
    print(f"{RESEARCH_USE} Model: {model.card.trained_on}")
    print(f"Figure and numbers: {folder}")
    if found.passed is False:
        return FAILS_CHECK
    return DONE if len(found.measured) == len(cases) else SOME_FAILED


def _measure_faithfulness(options: argparse.Namespace, cancel: threading.Event) -> int:
    from .faithfulness import measure_faithfulness
    from .files import check_writable

    check_writable(options.output)
    with ProgressLine(options.quiet) as progress:
        result = _staged(options, progress, cancel)
        found = measure_faithfulness(result, progress=progress, cancel=cancel)
        folder = found.save(options.output)
    print(f"Explained: {found.explained}")
    for sentence in found.sentences():
        print(sentence)
    print(RESEARCH_USE)
    print(f"Figure and numbers: {folder}")
    return DONE


def _model_info(options: argparse.Namespace, cancel: threading.Event) -> int:
    from .explanation_check import moved_lines, verdict
    from .model import StagingModel
    from .resources import default_model_path

    model = StagingModel.load(options.onnx or default_model_path())
    card = {"file": str(model.path), "sha256": model.sha256, **asdict(model.card)}
    if options.json:
        print(json.dumps(card, indent=2))
        return DONE
    for name, value in card.items():
        if name == "checks" and value is not None:
            print(f"checks.source: {value['source']}")
            for line in [*moved_lines(value["moved"]), verdict(value["moved"])]:
                print(f"checks: {line}")
        elif isinstance(value, dict):
            for key, entry in value.items():
                print(f"{name}.{key}: {entry}")
        else:
            print(f"{name}: {' '.join(map(str, value)) if isinstance(value, tuple) else value}")
    return DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m LiverFibrosisStagingLib",
        description="Stage liver fibrosis on portal-venous CT, with location maps. " + RESEARCH_USE,
        epilog="Exit codes: 0 done, 1 refused (the reason is on standard error), 2 wrong usage, "
        "3 some cases failed, 4 the model fails its own check, 130 cancelled.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    shared = argparse.ArgumentParser(add_help=False)
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
    stage.set_defaults(run=_stage)

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
    check.set_defaults(run=_check_explanation)

    segment = commands.add_parser("segment", help="segment liver and spleen on a CT")
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
    segment.set_defaults(run=_segment)

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
    batch.set_defaults(run=_batch)

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
    measured.set_defaults(run=_evaluate)

    info = commands.add_parser("model-info", help="show the metadata of a model file")
    info.add_argument("onnx", metavar="ONNX", nargs="?", help="default: the shipped model")
    info.add_argument("--json", action="store_true", help="as JSON")
    info.set_defaults(run=_model_info)
    return parser


if __name__ == "__main__":
    sys.exit(main())
