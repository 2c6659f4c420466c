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

from .arguments import AUTO, parser
from .errors import Cancelled, StagingError
from .progress_line import ProgressLine, batch_progress
from .stages import RESEARCH_USE, STAGES

if TYPE_CHECKING:
    from .model import StagingModel
    from .result import StagingResult

DONE, REFUSED, SOME_FAILED, FAILS_CHECK, CANCELLED = 0, 1, 3, 4, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = parser().parse_args(arguments)
    cancel = threading.Event()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, lambda *_: cancel.set())
    try:
        return COMMANDS[options.command](options, cancel)
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
        folder = result.save(options.output, options.report, files, cancel)
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
        _model(options),
        options.explain,
        progress,
        cancel,
        strict=options.strict,
        any_phase=options.any_phase,
        segments=options.segments,
        body=given_body(options.height, options.weight),
        surface_mm=options.shell,
    )


def _model(options: argparse.Namespace) -> "StagingModel":
    from .model import StagingModel
    from .resources import default_model_path

    return StagingModel.load(options.model or default_model_path(), device=options.device)


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
    from .imaging.segmentation import SegmentationModel, segment, shipped_network

    check_image_name(options.output)
    with ProgressLine(options.quiet) as progress:
        device = options.device
        given = options.model is not None
        model = SegmentationModel(options.model, 0, device) if given else shipped_network(0, device)
        found = segment(options.ct, model, progress, cancel)
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
            _model(options),
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

    if options.faithfulness:
        return _measure_faithfulness(options, cancel)
    source, output = Path(options.ct), Path(options.output)
    check_writable(output)
    if options.liver == AUTO and (source.is_dir() or source.suffix.lower() in LISTS):
        cases = read_cohort(source, output, options.pseudonyms).cases
    else:
        liver = None if options.liver == AUTO else options.liver
        cases = [Case("CT", source, liver, options.spleen)]
    model = _model(options)
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


COMMANDS = {
    "stage": _stage,
    "check-explanation": _check_explanation,
    "segment": _segment,
    "batch": _batch,
    "evaluate": _evaluate,
    "model-info": _model_info,
}

if __name__ == "__main__":
    sys.exit(main())
