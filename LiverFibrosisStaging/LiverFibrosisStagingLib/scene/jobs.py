"""The jobs that panel and batches run in the background: functions of progress and a cancel token.

They are made on the main thread and called in the worker's; they use neither scene nor panel.
"""

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..batch.table import columns_of
from ..dicom_output.writing import FILES as DICOM_FILES
from ..errors import CancelToken
from ..explaining import Progress
from ..files import write_folder
from ..gradcam_onnx.session import installed_devices
from ..model import StagingModel
from ..resources import default_model_path
from ..result import StagingResult
from ..stages import explained_stages
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
    device: str,
    smooth: bool,
    any_phase: bool,
) -> Job:
    """Stage inputs; the job returns the result and the same prepared for the scene.

    threads, device: as for `StagingModel`.
    """

    def job(progress: Progress, cancel: CancelToken) -> tuple[StagingResult, SceneResult]:
        progress(0.0, "Loading the model")
        model = StagingModel.load(model_path or default_model_path(), threads, device)
        progress(0.02, "Reading")
        arguments = inputs.arguments()
        within = _part(progress, STAGING_FROM, STAGING_TO)
        result = stage(
            **arguments, model=model, progress=within, cancel=cancel, any_phase=any_phase
        )
        return _showable(result, smooth, progress)

    return job


def devices_job() -> Job:
    """Import onnxruntime, which the first Stage then finds loaded; the job returns the names of the
    devices that it can use, and raises StagingError where it is missing.
    """

    def job(progress: Progress, cancel: CancelToken) -> list[str]:
        return installed_devices()

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
        return result.save(folder, report=True, cancel=cancel)

    return job


def report_job(result: StagingResult, parent: str | Path) -> Job:
    """Write a result's report to a new folder in `parent`; the job returns the path of the page."""

    def job(progress: Progress, cancel: CancelToken) -> Path:
        progress(0.0, "Writing the report")
        folder = Path(tempfile.mkdtemp(prefix="LiverFibrosisStaging-", dir=parent))
        try:
            return result.save_report(folder, cancel)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    return job


def dicom_job(result: StagingResult, source_files: Sequence[str], folder: str | Path) -> Job:
    """Write a result as DICOM; the job returns the folder.

    source_files: the files that the CT was read from.
    """

    def job(progress: Progress, cancel: CancelToken) -> Path:
        progress(0.0, "Writing DICOM")

        def write(partial: Path) -> None:
            result.write_dicom(partial, source_files, cancel)

        return write_folder(folder, DICOM_FILES, write)

    return job


def folder_job(
    source: str | Path,
    output: str | Path,
    finished: Callable[[dict[str, Any], int, int], None],
    notify: Callable[[str], None] | None,
    options: Mapping[str, Any],
) -> Job:
    """Stage a cohort; the job returns its rows. All arguments are those of `stage_folder`, whose
    callbacks are called in the worker's thread.
    """

    def job(progress: Progress, cancel: CancelToken) -> list[dict[str, Any]]:
        from ..batch.run import stage_folder  # not needed, and so not loaded, with the panel

        return stage_folder(
            source,
            output,
            progress=progress,
            cancel=cancel,
            finished=finished,
            notify=notify,
            **options,
        )

    return job


def model_job(model: StagingModel | str | Path | None, explain: str) -> Job:
    """Check the settings of a batch before its first case; the job returns the model."""

    def job(progress: Progress, cancel: CancelToken) -> StagingModel:
        progress(0.0, "Loading the model")
        explained_stages(explain, 0)
        given = isinstance(model, StagingModel)
        return model if given else StagingModel.load(model or default_model_path())

    return job


def case_job(
    inputs: "SceneInputs", model: StagingModel, explain: str, any_phase: bool, show: bool
) -> Job:
    """Stage one case of a batch; the job returns its columns of the table and, with `show`, the
    result prepared for the scene, but not the result, which is large.
    """

    def job(progress: Progress, cancel: CancelToken) -> tuple[dict[str, Any], SceneResult | None]:
        result = stage(
            **inputs.arguments(),
            model=model,
            explain=explain,
            progress=progress,
            cancel=cancel,
            any_phase=any_phase,
        )
        return columns_of(result.summary()), scene_result(result) if show else None

    return job


def _showable(
    result: StagingResult, smooth: bool, progress: Progress
) -> tuple[StagingResult, SceneResult]:
    progress(STAGING_TO, "Preparing the display")
    return result, scene_result(result, smooth)


def _part(progress: Progress, start: float, end: float) -> Progress:
    return lambda fraction, step: progress(start + fraction * (end - start), step)
