"""The panel's behaviour: what a click does, and what the panel does when the scene changes.

It collects the inputs, has the logic's jobs done in the background, and puts their results into the
scene; what widgets say is `panel`'s.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import qt
import slicer
import vtk
from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin

from ..errors import Cancelled
from . import panel, requirements
from .pumped_worker import PumpedWorker
from .suggestions import Suggestions

MODEL_KEY = "LiverFibrosisStaging/ModelPath"  # settings
THREADS_KEY = "LiverFibrosisStaging/Threads"


class PanelController(VTKObservationMixin):
    """Connects the widgets `ui` of the panel `parent` with the module's logic and the scene.

    requirements_file: what `requirements` installs before the first staging.
    """

    def __init__(self, ui: Any, logic: Any, parent: Any, requirements_file: str) -> None:
        VTKObservationMixin.__init__(self)
        self.ui, self.logic, self.parent = ui, logic, parent
        self._requirements_file = requirements_file
        self._worker, self._suggestions = PumpedWorker(), Suggestions()
        self._parameters = self._connection = None  # parameter node, tag of its widgets
        self._job_volume_id = None  # of the CT that the worker is busy with
        self._result = (None, None)  # id of a CT, and its result with all that explaining needs
        self._shown_summary = None
        self._shown_display = (None, None)  # id of a CT, and how its map is shown
        self._offering = False

        ui.explainedComboBox.addItems(panel.explained_names())
        ui.modelPathLineEdit.currentPath = slicer.util.settingsValue(MODEL_KEY, "", str)
        ui.threadsSpinBox.value = slicer.util.settingsValue(THREADS_KEY, 0, int)
        self._connect()
        self.enter()

    def enter(self) -> None:
        """Connect the panel to the scene's parameter node, and offer what is in the scene."""
        self._set_parameters(self.logic.getParameterNode())
        self._suggestions.offer(self._parameters)

    def cleanup(self) -> None:
        """Let go of everything; no thread may outlive the panel."""
        self._worker.stop()
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
        ui.saveButton.connect("clicked(bool)", self.on_save)
        ui.copyTableButton.connect("clicked(bool)", self.on_copy_table)
        ui.showTableButton.connect("clicked(bool)", self.on_show_table)
        ui.showPlotButton.connect("clicked(bool)", self.on_show_plot)
        ui.show3DButton.connect("clicked(bool)", self.on_show_3d)
        ui.modelCardButton.connect("toggled(bool)", self.on_model_card)
        ui.modelPathLineEdit.connect("currentPathChanged(QString)", self.on_model_path)
        ui.threadsSpinBox.connect("valueChanged(int)", self.on_threads)

    def on_scene_start_close(self, caller: Any, event: Any) -> None:
        """Stop the worker; let go of the parameter node, which closes with the scene."""
        self._worker.stop()
        self._keep(None, None)
        self._set_parameters(None)

    def on_scene_end_close(self, caller: Any, event: Any) -> None:
        """A panel that is open needs a parameter node again."""
        if self.parent.isEntered:
            self.enter()

    def on_scene_start_import(self, caller: Any, event: Any) -> None:
        """Let go of the parameter node: while a scene is read, the selectors hold nothing for a
        moment, which must not be written into it.
        """
        self._set_parameters(None)

    def on_scene_end_import(self, caller: Any, event: Any) -> None:
        """Show what the scene holds."""
        self.on_node_removed(caller, event)
        self.on_scene_end_close(caller, event)

    def on_node_added(self, caller: Any, event: Any) -> None:
        """See, as soon as what is being loaded is complete, whether it is to be chosen."""
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

    def on_node_removed(self, caller: Any, event: Any) -> None:
        """A CT that is gone needs no staging any more, nor its result."""
        scene = slicer.mrmlScene
        if self._job_volume_id is not None and scene.GetNodeByID(self._job_volume_id) is None:
            self._worker.cancel()
        if scene.GetNodeByID(self._result[0] or "") is None:
            self._keep(None, None)
        self._shown_summary = None
        self._update()

    def _set_parameters(self, parameters: Any) -> None:
        """Keep the panel and the parameter node in step, in both directions."""
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
        """Stage the chosen CT in the background; while that goes on, the button cancels it.

        What is missing is installed first, after asking.
        """
        if self._worker.busy:
            self._worker.cancel()
            return
        try:
            install = requirements.installation(self._requirements_file)
            if install is None:
                self._stage()
            else:
                self._run(install, lambda _nothing: self._stage(), None)
        except Cancelled:
            slicer.util.showStatusMessage(_("Nothing was installed, and nothing staged."), 5000)
        except Exception as error:  # whatever it is, the user reads it
            self._show_error(error)

    def _stage(self) -> None:
        parameters, path = self._parameters, self.ui.modelPathLineEdit.currentPath
        inputs = (parameters.inputVolume, parameters.segmentation)
        threads = self.ui.threadsSpinBox.value
        self._run_for_ct(self.logic.stagingJob(*inputs, path or None, threads, parameters.smooth))

    def on_explain(self, index: int) -> None:
        """Show the location map of another stage or group, without running the network again."""
        explained, smooth = panel.EXPLAINED[index], self._parameters.smooth
        self._run_for_ct(self.logic.explainingJob(self._result[1], explained, smooth))

    def on_smooth(self, smooth: bool) -> None:
        """The smooth map is made when it is first asked for."""
        if smooth and self._has_result() and not self.logic.hasSmoothMap(self._volume()):
            self._run_for_ct(self.logic.explainingJob(self._result[1], None, True))

    def on_jump(self) -> None:
        """Move the slice views to where the location map is highest."""
        self.logic.jumpToStrongest(self._volume())

    def on_save(self) -> None:
        """Save the result's files into a folder named after the CT."""
        window, title = slicer.util.mainWindow(), _("Folder in which the result gets its own")
        chosen = qt.QFileDialog.getExistingDirectory(window, title)
        if not chosen:
            return
        folder = panel.result_folder(chosen, self._volume())
        question = panel.question_before_saving(folder)
        if question is None or slicer.util.confirmOkCancelDisplay(question, _("Save result")):
            job = self.logic.savingJob(self._result[1], str(folder))
            self._run(job, self._saved, None, cancellable=False)

    def on_copy_table(self) -> None:
        """Put the table on the clipboard."""
        qt.QApplication.clipboard().setText(panel.table_text(self._shown_summary))
        slicer.util.showStatusMessage(_("The table is on the clipboard."), 3000)

    def on_show_table(self) -> None:
        """Show the result's numbers in a table view."""
        self.logic.showTable(self._volume())

    def on_show_plot(self) -> None:
        """Show the stages' probabilities in a plot view."""
        self.logic.showPlot(self._volume())

    def on_show_3d(self, shown: bool) -> None:
        """Show liver and spleen as surfaces in the 3D views, or hide them."""
        self.logic.setOrgans3D(self._volume(), shown, self._parameters.segmentation)
        self._update()

    def on_model_card(self, shown: bool) -> None:
        """Show the model's description, or why it cannot be used."""
        self.ui.modelCardLabel.visible = shown
        if shown:
            path = self.ui.modelPathLineEdit.currentPath
            self.ui.modelCardLabel.text = panel.card_html(path)

    def on_model_path(self, path: str) -> None:
        """Remember the model for the next session."""
        qt.QSettings().setValue(MODEL_KEY, path)
        self.on_model_card(self.ui.modelCardButton.checked)

    def on_threads(self, threads: int) -> None:
        """Remember the number of threads for the next session."""
        qt.QSettings().setValue(THREADS_KEY, threads)

    def _run_for_ct(self, job: Callable) -> None:
        """Run a job whose result is for the chosen CT, whichever is chosen when it ends."""
        volume_id = self._volume().GetID()
        self._run(job, partial(self._show, volume_id), volume_id)

    def _run(
        self, job: Callable, done: Callable, volume_id: str | None, cancellable: bool = True
    ) -> None:
        """Run a job, then call `done` with its value; volume_id: the CT that it is for, if any."""
        self._job_volume_id = volume_id
        ended = partial(self._ended, done)
        self._worker.start(job, ended, self._progressed, cancellable)
        self.ui.progressBar.maximum = self.ui.progressBar.value = 0
        self.ui.stepLabel.text = ""
        self._update()

    def _progressed(self, progress: Any) -> None:
        # Without a known fraction the bar only shows that something goes on.
        self.ui.progressBar.maximum = 1000 if progress.fraction else 0
        self.ui.progressBar.value = int(1000 * progress.fraction)
        self.ui.stepLabel.text = panel.progress_text(progress)

    def _ended(self, done: Callable[[Any], None], outcome: Any) -> None:
        error = None if outcome.cancelled else outcome.error
        self._job_volume_id = None
        try:
            if outcome.error is None:
                done(outcome.value)
        except Exception as failure:  # the scene changed in a way that the result does not fit
            error = failure
        self._shown_summary = None  # the list of what is explained may show another choice
        self._offer()  # what came while the worker was busy
        self._update()
        if outcome.cancelled:
            slicer.util.showStatusMessage(_("Cancelled."), 3000)
        if error is not None:
            self._show_error(error)

    def _show(self, volume_id: str, value: tuple[Any, Any]) -> None:
        result, showable = value
        volume = slicer.mrmlScene.GetNodeByID(volume_id)
        self.logic.showResult(showable, volume, self._shown_display[1])
        self._keep(volume_id, result)

    def _keep(self, volume_id: str | None, result: Any) -> None:
        """Keep one result, not those before it: they are large."""
        before, self._result = [*self._result], (volume_id, result)
        self._worker.let_go(before)

    def _saved(self, folder: Path) -> None:
        slicer.util.showStatusMessage(_("Saved in {folder}").format(folder=folder), 5000)

    def _show_error(self, error: BaseException) -> None:
        sentence, details = panel.error_text(error)
        slicer.util.errorDisplay(sentence, detailedText=details)

    def _volume(self) -> Any:
        return self._parameters.inputVolume if self._parameters is not None else None

    def _has_result(self) -> bool:
        """Whether the chosen CT's result is at hand, not only what the scene keeps of it."""
        volume = self._volume()
        return volume is not None and volume.GetID() == self._result[0]

    def _update(self, caller: Any = None, event: Any = None) -> None:
        """Make the panel, and the views, show what the parameters and the scene say."""
        if self._parameters is None:
            return
        self._suggestions.follow(self._parameters)
        volume, segmentation = self._volume(), self._parameters.segmentation
        summary, worker = self.logic.storedSummary(volume), self._worker
        panel.fill_inputs(self.ui, volume, segmentation, worker.busy, worker.cancellable)
        if summary is not None and summary != self._shown_summary:
            panel.fill_summary(self.ui, summary)
        has_smooth = self.logic.hasSmoothMap(volume)
        panel.fill_state(
            self.ui, volume, summary is not None, self._has_result(), has_smooth, worker.busy
        )
        self._shown_summary = summary
        if summary is not None:
            self.ui.show3DButton.checked = self.logic.organs3DShown(volume, segmentation)
        display = (volume and volume.GetID(), panel.display_of(self._parameters))
        if display != self._shown_display:
            self._shown_display = display
            self.logic.setDisplay(volume, display[1])
