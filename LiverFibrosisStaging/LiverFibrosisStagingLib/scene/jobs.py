"""The jobs that the panel runs in the background: functions of progress and a cancel token.

They are made on the main thread and called in the worker's; they use neither scene nor panel.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..dicom_output.writing import FILES as DICOM_FILES
from ..dicom_output.writing import write_dicom
from ..errors import CancelToken
from ..explaining import Progress
from ..files import write_folder
from ..model import StagingModel
from ..resources import default_model_path
from ..result import StagingResult
from ..staging import stage
from .scene_results import SceneResult, scene_result
from .worker import Job

if TYPE_CHECKING:
    from .mrml import SceneInputs

# Fractions of a job; before and after come reading the inputs and preparing the display.
STAGING_FROM, STAGING_TO = 0.05, 0.95
EXPLAINING_FROM = 0.65  # fraction at which `stage` and `explain` report the explanation's start


def staging_job(
    inputs: "SceneInputs",
    model_path: str | Path | None,
    threads: int,
    smooth: bool,
    any_phase: bool,
) -> Job:
    """Stage inputs; the job returns the result and the same prepared for the scene."""

    def job(progress: Progress, cancel: CancelToken) -> tuple[StagingResult, SceneResult]:
        progress(0.0, "Loading the model")
        model = StagingModel.load(model_path or default_model_path(), threads)
        progress(0.02, "Reading")
        arguments = inputs.arguments()
        within = _part(progress, STAGING_FROM, STAGING_TO)
        result = stage(
            **arguments, model=model, progress=within, cancel=cancel, any_phase=any_phase
        )
        return _showable(result, smooth, progress)

    return job


def explaining_job(result: StagingResult, explain: str | None, smooth: bool) -> Job:
    """Explain another stage or group, or with None only prepare the display again; the job returns
    what the job of `staging_job` does.
    """

    def job(progress: Progress, cancel: CancelToken) -> tuple[StagingResult, SceneResult]:
        def within(fraction: float, step: str) -> None:
            done = (fraction - EXPLAINING_FROM) / (1 - EXPLAINING_FROM)
            progress(max(0.0, done) * STAGING_TO, step)

        explained = result if explain is None else result.explain(explain, within, cancel)
        return _showable(explained, smooth, progress)

    return job


def saving_job(result: StagingResult, folder: str | Path) -> Job:
    """Save a result's files with its report; the job returns the folder."""

    def job(progress: Progress, cancel: CancelToken) -> Path:
        progress(0.0, "Saving")
        return result.save(folder, report=True)

    return job


def report_job(result: StagingResult, folder: str | Path) -> Job:
    """Write a result's report; the job returns the path of the page."""

    def job(progress: Progress, cancel: CancelToken) -> Path:
        progress(0.0, "Writing the report")
        return result.save_report(folder)

    return job


def dicom_job(result: StagingResult, source_files: Sequence[str], folder: str | Path) -> Job:
    """Write a result as DICOM; the job returns the folder.

    source_files: the files that the CT was read from.
    """

    def job(progress: Progress, cancel: CancelToken) -> Path:
        def write(partial: Path) -> None:
            images = (result.organs, result.location_map)
            write_dicom(partial, source_files, *images, result.summary())

        progress(0.0, "Writing DICOM")
        return write_folder(folder, DICOM_FILES, write)

    return job


def _showable(
    result: StagingResult, smooth: bool, progress: Progress
) -> tuple[StagingResult, SceneResult]:
    progress(STAGING_TO, "Preparing the display")
    return result, scene_result(result, smooth)


def _part(progress: Progress, start: float, end: float) -> Progress:
    return lambda fraction, step: progress(start + fraction * (end - start), step)
