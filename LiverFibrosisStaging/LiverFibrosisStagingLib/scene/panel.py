"""The panel: what its controls do, and how it follows the scene.

It passes the inputs to the logic, runs jobs in the background and puts their results into the
scene. What the controls show is in `panel_content`.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import qt
import slicer
import vtk
from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin

from ..errors import Cancelled, StagingError, WrongPhase
from ..gradcam_onnx.session import CPU
from ..imaging.body import given_body
from ..report.summary import table_text
from ..result import DICOM_FOLDER
from . import batch, jobs, panel_content, requirements
from .mrml import dicom_files
from .pumped_worker import PumpedWorker
from .run_log import RunLog
from .scene_display import shows_3d
from .scene_nodes import find_part
from .suggestions import Suggestions

MODEL_KEY = "LiverFibrosisStaging/ModelPath"  # settings
THREADS_KEY = "LiverFibrosisStaging/Threads"
DEVICE_KEY = "LiverFibrosisStaging/Device"
BREATH_MS = 10  # between showing a result in the scene and in the panel


class Panel(VTKObservationMixin):
    """Connects the widgets `ui` in the module's widget `parent` with the logic and the scene.

    requirements_file: the packages that `requirements` installs before the first staging.
    """

    def __init__(self, ui: Any, logic: Any, parent: Any, requirements_file: str) -> None:
        VTKObservationMixin.__init__(self)
        self.ui, self.logic, self.parent = ui, logic, parent
        self._requirements_file = requirements_file
        self._worker, self._suggestions = PumpedWorker(), Suggestions()
        self._loader = PumpedWorker()  # of onnxruntime, which knows the devices
        self._devices: list[str] = []  # none before it has been loaded
        self._parameters = self._connection = None  # parameter node, tag of its widgets
        self._log = RunLog(ui.logTextEdit)
        self._job_volume_id = None  # id of the CT that the running job is for
        self._refused_id = None  # id of a CT that was refused for its contrast phase
        self._shown_id = None  # id of the CT for which the panel was updated last
        self._result = (None, None)  # id of a CT, and its result with the forward pass
        self._shown_summary = None
        self._shown_display = (None, None)  # id of a CT, and how its map is displayed
        self._offering = False

        ui.explainedComboBox.addItems(panel_content.explained_names())
        ui.modelPathLineEdit.currentPath = slicer.util.settingsValue(MODEL_KEY, "", str)
        ui.threadsSpinBox.value = slicer.util.settingsValue(THREADS_KEY, 0, int)
        self._device = slicer.util.settingsValue(DEVICE_KEY, CPU, str)
        self._connect()
        self.enter()

    def enter(self) -> None:
        """Connect the panel to the scene's parameter node, and choose inputs if none are chosen."""
        self._set_parameters(self.logic.getParameterNode())
        self._suggestions.offer(self._parameters)
        qt.QTimer.singleShot(0, self._find_devices)  # once the panel is drawn

    def cleanup(self) -> None:
        """Disconnect everything, and wait for the background threads to end."""
        self._loader.stop()
        self._worker.stop()
        batch.stop()
        self._set_parameters(None)
        self.removeObservers()

    def _connect(self) -> None:
        scene = slicer.mrmlScene
        self.addObserver(scene, scene.StartCloseEvent, self.on_scene_start_close)
        self.addObserver(scene, scene.EndCloseEvent, self.on_scene_end_close)
        self.addObserver(scene, scene.StartImportEvent, self.on_scene_start_import)
        self.addObserver(scene, scene.EndImportEvent, self.on_scene_end_import)
        self.addObserver(scene, scene.NodeAddedEvent, self.on_node_added)
        self.addObserver(scene, scene.NodeRemovedEvent, self.on_node_removed)
        ui = self.ui
        ui.stageButton.connect("clicked(bool)", self.on_stage)
        ui.explainedComboBox.connect("activated(int)", self.on_explain)
        ui.smoothCheckBox.connect("clicked(bool)", self.on_smooth)
        ui.jumpButton.connect("clicked(bool)", self.on_jump)
        ui.reportButton.connect("clicked(bool)", self.on_report)
        ui.dicomButton.connect("clicked(bool)", self.on_dicom)
        ui.saveButton.connect("clicked(bool)", self.on_save)
        ui.copyTableButton.connect("clicked(bool)", self.on_copy_table)
        ui.showTableButton.connect("clicked(bool)", self.on_show_table)
        ui.showPlotButton.connect("clicked(bool)", self.on_show_plot)
        ui.showSignsTableButton.connect("clicked(bool)", self.on_show_signs_table)
        ui.showSignsPlotButton.connect("clicked(bool)", self.on_show_signs_plot)
        ui.show3DButton.connect("clicked(bool)", self.on_show_3d)
        ui.modelCardButton.connect("toggled(bool)", self.on_model_card)
        ui.modelPathLineEdit.connect("currentPathChanged(QString)", self.on_model_path)
        ui.threadsSpinBox.connect("valueChanged(int)", self.on_threads)
        ui.deviceComboBox.connect("activated(int)", self.on_device)

    def on_scene_start_close(self, caller: Any, event: Any) -> None:
        """Stop the worker; disconnect the parameter node, which closes with the scene."""
        self._worker.stop()
        self._keep(None, None)
        self._refused_id = None
        self._set_parameters(None)

    def on_scene_end_close(self, caller: Any, event: Any) -> None:
        """Connect an open panel to the new parameter node."""
        if self.parent.isEntered:
            self.enter()

    def on_scene_start_import(self, caller: Any, event: Any) -> None:
        """Disconnect the parameter node: while a scene is read, the node selectors are empty for a
        moment, which must not be written into it.
        """
        self._set_parameters(None)

    def on_scene_end_import(self, caller: Any, event: Any) -> None:
        """Connect the parameter node again and show the scene's results."""
        self.on_node_removed(caller, event)
        self.on_scene_end_close(caller, event)

    def on_node_added(self, caller: Any, event: Any) -> None:
        """Choose inputs, if none are chosen, and show a new result, once all nodes are added."""
        if not self._offering:
            self._offering = True
            qt.QTimer.singleShot(0, self._offer)

    def _offer(self) -> None:
        self._offering = False
        if self._parameters is None or self._worker.busy:
            return
        self._suggestions.offer(self._parameters)
        for volume in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode"):
            # Some readers add the node first and its voxels later.
            watched = (volume, volume.ImageDataModifiedEvent, self.on_node_added)
            if volume.GetImageData() is None and not self.hasObserver(*watched):
                self.addObserver(*watched)
        self._update()  # the new node may be a result of the console or a batch

    def on_node_removed(self, caller: Any, event: Any) -> None:
        """Cancel the staging of a CT that was removed, and drop its result."""
        scene = slicer.mrmlScene
        if self._job_volume_id is not None and scene.GetNodeByID(self._job_volume_id) is None:
            self._worker.cancel()
        if scene.GetNodeByID(self._result[0] or "") is None:
            self._keep(None, None)
        if scene.GetNodeByID(self._refused_id or "") is None:
            self._refused_id = None
        self._shown_summary = None
        self._update()

    def _set_parameters(self, parameters: Any) -> None:
        """Connect the panel and the parameter node, in both directions; None: disconnect."""
        if parameters is self._parameters:
            self._update()
            return
        if self._parameters is not None:
            self._parameters.disconnectGui(self._connection)
            self.removeObserver(self._parameters, vtk.vtkCommand.ModifiedEvent, self._update)
        self._parameters = parameters
        if self._parameters is not None:
            self._suggestions.begin(self._parameters)
            # Not connectGui, which up to Slicer 5.10 gives no tag to disconnect with.
            widgets = vars(self.ui).values()
            named = {name: w for w in widgets if (name := w.property("SlicerParameterName"))}
            self._connection = self._parameters.connectParametersToGui(named)
            self.addObserver(self._parameters, vtk.vtkCommand.ModifiedEvent, self._update)
        self._update()

    def on_stage(self) -> None:
        """Stage the chosen CT in the background, or cancel the running job.

        Missing packages are installed first, after a question. Refused while a batch is running.
        """
        if self._worker.busy:
            self._worker.cancel()
            return
        try:
            batch.check_none_runs()
            install = requirements.installation(self._requirements_file)
            if install is None:
                self._stage()
            else:
                self._run("Installing", install, lambda _nothing: self._installed(), None)
        except Cancelled:
            slicer.util.showStatusMessage(_("Installation declined; the CT was not staged."), 5000)
        except Exception as error:  # shown to the user, whatever it is
            self._show_error("Staging", error)

    def _installed(self) -> None:
        self._find_devices()
        self._stage()

    def _stage(self) -> None:
        ui, parameters = self.ui, self._parameters
        job = self.logic.stagingJob(
            parameters.inputVolume,
            parameters.segmentation,
            ui.modelPathLineEdit.currentPath or None,
            ui.threadsSpinBox.value,
            parameters.smooth,
            ui.anyPhaseCheckBox.checked,
            parameters.segments,
            given_body(ui.heightSpinBox.value or None, ui.weightSpinBox.value or None),
            self._device,
        )
        self._run_for_ct("Staging", job)

    def on_explain(self, index: int) -> None:
        """Show the location map of another stage or group, without re-running the network."""
        explained, smooth = panel_content.EXPLAINED[index], self._parameters.smooth
        job = jobs.explaining_job(self._result[1], explained, smooth)
        self._run_for_ct("Explaining", job)

    def on_smooth(self, smooth: bool) -> None:
        """Compute the smooth map when it is first needed."""
        if smooth and self._has_result() and find_part(self._volume(), "smooth") is None:
            job = jobs.explaining_job(self._result[1], None, True)
            self._run_for_ct("Preparing the smooth map", job)

    def on_jump(self) -> None:
        """Move the slice views to the maximum of the location map."""
        self.logic.jumpToStrongest(self._volume())

    def on_report(self) -> None:
        """Write the report to a new temporary folder and open it in the browser."""
        job = jobs.report_job(self._result[1], slicer.app.temporaryPath)
        self._run("Writing the report", job, self._open, None, writes=True)

    def _open(self, page: Path) -> None:
        if not qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(str(page))):
            raise StagingError(f"No browser could be opened; open {page} in one.")

    def on_save(self) -> None:
        """Save the result's files into a subfolder named after the CT."""
        folder = self._chosen_folder()
        if folder is not None:
            job = jobs.saving_job(self._result[1], folder)
            self._run("Saving", job, self._saved, None, writes=True)

    def on_dicom(self) -> None:
        """Write the result as DICOM into the subfolder dicom of a folder named after the CT."""
        folder = self._chosen_folder(DICOM_FOLDER)
        if folder is not None:
            job = jobs.dicom_job(self._result[1], dicom_files(self._volume()), folder)
            self._run("Writing DICOM", job, self._saved, None, writes=True)

    def _chosen_folder(self, part: str = "") -> Path | None:
        """Where to write a result, or a part of it: a subfolder, named after the CT, of the folder
        that the user chooses; None after Cancel, also if an older result is to be kept.
        """
        window, title = slicer.util.mainWindow(), _("Folder for the result's subfolder")
        chosen = qt.QFileDialog.getExistingDirectory(window, title)
        if not chosen:
            return None
        folder = panel_content.result_folder(chosen, self._volume()) / part
        question = panel_content.question_before_saving(folder)
        replace = question is None or slicer.util.confirmOkCancelDisplay(question, _("Save result"))
        return folder if replace else None

    def on_copy_table(self) -> None:
        """Copy the table to the clipboard."""
        qt.QApplication.clipboard().setText(table_text(self._shown_summary))
        slicer.util.showStatusMessage(_("The table was copied to the clipboard."), 3000)

    def on_show_table(self) -> None:
        """Show the result's numbers in a table view."""
        self.logic.showTable(self._volume())

    def on_show_plot(self) -> None:
        """Show the stages' probabilities in a plot view."""
        self.logic.showPlot(self._volume())

    def on_show_signs_table(self) -> None:
        """Show the signs in a table view."""
        self.logic.showTable(self._volume(), "signs")

    def on_show_signs_plot(self) -> None:
        """Show the signs among the published groups in a plot view."""
        self.logic.showPlot(self._volume(), "percentiles_plot")

    def on_show_3d(self, shown: bool) -> None:
        """Show or hide the surfaces of liver and spleen in the 3D views."""
        self.logic.setOrgans3D(self._volume(), shown, self._parameters.segmentation)
        self._update()

    def on_model_card(self, shown: bool) -> None:
        """Show or hide the model's description, or the reason why it cannot be used."""
        self.ui.modelCardLabel.visible = shown
        if shown:
            path = self.ui.modelPathLineEdit.currentPath
            self.ui.modelCardLabel.text = panel_content.card_html(path)

    def on_model_path(self, path: str) -> None:
        """Remember the model for the next session."""
        qt.QSettings().setValue(MODEL_KEY, path)
        self.on_model_card(self.ui.modelCardButton.checked)

    def on_threads(self, threads: int) -> None:
        """Remember the number of threads for the next session."""
        qt.QSettings().setValue(THREADS_KEY, threads)

    def on_device(self, index: int) -> None:
        """Remember the device for the next session."""
        self._device = self._devices[index]
        qt.QSettings().setValue(DEVICE_KEY, self._device)

    def _find_devices(self) -> None:
        """Load onnxruntime in the background, if it is installed, and offer its devices."""
        if self._parameters is not None and not self._devices and not self._loader.busy:
            self._loader.start(jobs.devices_job(), self._offer_devices)

    def _offer_devices(self, outcome: Any) -> None:
        if outcome.error is None:
            self._devices = outcome.value
            if self._device not in self._devices:  # another onnxruntime was installed
                self._device = CPU
            panel_content.fill_devices(self.ui, self._devices, self._device)

    def _run_for_ct(self, name: str, job: Callable) -> None:
        """Run a job for the CT that is chosen now, even if another one is chosen when it ends."""
        volume_id = self._volume().GetID()
        self._run(name, job, partial(self._show, volume_id), volume_id)

    def _run(
        self,
        name: str,
        job: Callable,
        done: Callable,
        volume_id: str | None,
        writes: bool = False,
    ) -> None:
        """Run a job, then call `done` with its value.

        name: for the log. volume_id: of the CT that the job is for, if any. writes: whether it
        writes files.
        """
        self._job_volume_id = volume_id
        ended = partial(self._ended, name, done)
        self._worker.start(job, ended, self._progressed, writes)
        self.ui.progressBar.maximum = self.ui.progressBar.value = 0
        self.ui.stepLabel.text = ""
        self._update()

    def _progressed(self, progress: Any) -> None:
        # While the fraction is 0, the bar only shows that a job is running.
        self.ui.progressBar.maximum = 1000 if progress.fraction else 0
        self.ui.progressBar.value = int(1000 * progress.fraction)
        self.ui.stepLabel.text = panel_content.progress_text(progress)

    def _ended(self, name: str, done: Callable[[Any], None], outcome: Any) -> None:
        error = None if outcome.cancelled else outcome.error
        if isinstance(error, WrongPhase):
            self._refused_id = self._job_volume_id
        self._job_volume_id = None
        try:
            if outcome.error is None:
                self._log.add(f"{name}: done", outcome.seconds)
                self._offering = True  # below, so not for each node of the result
                done(outcome.value)
        except Exception as failure:  # the scene has changed and the result no longer fits it
            error = failure
        self._shown_summary = None  # so the list of explained stages shows the result's again
        # Offer inputs that were loaded during the job, and update the panel; not at once after a
        # result was shown: together they would stop Slicer for a tenth of a second. A timer of
        # 0 ms would not do: Qt calls it before it handles the user's clicks.
        if error is None and not outcome.cancelled:
            qt.QTimer.singleShot(BREATH_MS, self._offer)
        else:
            self._offer()
        if outcome.cancelled:
            self._log.add(f"{name}: cancelled", outcome.seconds)
            slicer.util.showStatusMessage(_("Cancelled."), 3000)
        if error is not None:
            self._show_error(name, error, outcome.seconds)

    def _show(self, volume_id: str, value: tuple[Any, Any]) -> None:
        result, showable = value
        volume = slicer.mrmlScene.GetNodeByID(volume_id)
        since = time.perf_counter()
        self._keep(volume_id, result)  # first: new nodes update the panel
        try:
            self.logic.showResult(showable, volume, self._shown_display[1])
        except Exception:
            self._keep(None, None)
            raise
        self._log.add("Showing the result", time.perf_counter() - since)

    def _keep(self, volume_id: str | None, result: Any) -> None:
        """Keep the last result only: results are large."""
        before, self._result = [*self._result], (volume_id, result)
        self._worker.let_go(before)

    def _saved(self, folder: Path) -> None:
        slicer.util.showStatusMessage(_("Saved in {folder}").format(folder=folder), 5000)

    def _show_error(
        self, name: str, error: BaseException, seconds: Mapping[str, float] | None = None
    ) -> None:
        seconds = seconds or {}
        step = next(reversed(seconds), "Before the job")
        # Only the kind of an error is logged: its sentence may name a file or a node.
        logged = self._log.add(f"{name}: {type(error).__name__} ({step})", seconds)
        sentence, details = panel_content.error_text(error)
        slicer.util.errorDisplay(sentence, detailedText=f"{details}\n{logged}")

    def _volume(self) -> Any:
        return self._parameters.inputVolume if self._parameters is not None else None

    def _has_result(self) -> bool:
        """Whether the chosen CT's result is in memory, not only its summary in the scene."""
        volume = self._volume()
        return volume is not None and volume.GetID() == self._result[0]

    def _update(self, caller: Any = None, event: Any = None) -> None:
        """Update the panel and the views from the parameters and the scene."""
        if self._parameters is None:
            return
        self._suggestions.follow(self._parameters)
        volume, segmentation = self._volume(), self._parameters.segmentation
        if (volume and volume.GetID()) != self._shown_id:  # another patient, maybe
            self._shown_id = volume and volume.GetID()
            self.ui.heightSpinBox.value = self.ui.weightSpinBox.value = 0
        summary, worker = self.logic.storedSummary(volume), self._worker
        panel_content.fill_inputs(self.ui, volume, segmentation, worker.busy)
        refused = volume is not None and volume.GetID() == self._refused_id
        panel_content.offer_any_phase(self.ui, refused)
        if summary is not None and summary != self._shown_summary:
            panel_content.fill_summary(self.ui, summary)
        panel_content.fill_state(
            self.ui, volume, summary is not None, self._has_result(), worker.busy
        )
        self._shown_summary = summary
        if summary is not None:
            self.ui.show3DButton.checked = shows_3d(volume, segmentation)
        display = (volume and volume.GetID(), panel_content.display_of(self._parameters))
        if display != self._shown_display:
            self._shown_display = display
            self.logic.setDisplay(volume, display[1])
