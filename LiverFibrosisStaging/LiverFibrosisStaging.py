"""The module as Slicer sees it: what it is, its panel, its logic for nodes, its self test.

Everything else is in LiverFibrosisStagingLib, which is imported when it is used, so that Slicer
starts without SimpleITK and without onnxruntime, which may not be there yet.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import qt
import slicer
import vtk
from slicer import vtkMRMLScalarVolumeNode, vtkMRMLSegmentationNode
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

RESOURCES = Path(__file__).parent / "Resources"
MODEL_KEY = "LiverFibrosisStaging/ModelPath"  # settings
THREADS_KEY = "LiverFibrosisStaging/Threads"


class LiverFibrosisStaging(ScriptedLoadableModule):
    """What Slicer shows about the module."""

    def __init__(self, parent: Any) -> None:
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("Liver Fibrosis Staging")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Quantification")]
        self.parent.dependencies = []
        self.parent.contributors = ["The LiverFibrosisStaging developers"]
        self.parent.helpText = _(
            "Stages liver fibrosis (F0 to F4) on a portal-venous CT with a neural network and "
            "shows where the network looked: choose a CT, then click Stage. Liver and spleen are "
            "found, unless you choose a segmentation. Research use only: not for diagnosis. "
            'See the <a href="{homepage}">documentation</a>.'
        ).format(homepage="https://github.com/liver-fibrosis-staging/SlicerLiverFibrosisStaging")
        self.parent.acknowledgementText = _(
            "Method: Yin Y, Yakar D, Dierckx RAJO, Mouridsen KB, Kwee TC, de Haas RJ. Liver "
            "fibrosis staging by deep learning: a visual-based explanation of diagnostic decisions "
            'of the model. European Radiology 2021. <a href="{doi}">{doi}</a>. This is an '
            "independent implementation with a network of its own; the authors of the paper had no "
            "part in it."
        ).format(doi="https://doi.org/10.1007/s00330-021-08046-x")
        slicer.app.connect("startupCompleted()", registerSampleData)


def registerSampleData() -> None:
    """Offer the sample CT, which is installed with the module, in the Sample Data module."""
    from LiverFibrosisStagingLib.sample_data import register

    register(RESOURCES)


def loadSample() -> list[Any]:
    """Load the sample CT and its segmentation from the module's own files, without a download."""
    from LiverFibrosisStagingLib.sample_data import load_sample

    with slicer.util.tryWithErrorDisplay(_("The sample could not be loaded."), waitCursor=True):
        return list(load_sample(RESOURCES))


@parameterNodeWrapper
class LiverFibrosisStagingParameterNode:
    """What the panel remembers, in the scene. The names stand in the .ui as SlicerParameterName.

    opacity and threshold are in percent.
    """

    inputVolume: vtkMRMLScalarVolumeNode
    segmentation: vtkMRMLSegmentationNode
    opacity: Annotated[float, WithinRange(0, 100)] = 100.0
    threshold: Annotated[float, WithinRange(0, 90)] = 0.0
    smooth: bool = False
    outline: bool = False
    legend: bool = True


class LiverFibrosisStagingWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The panel: it collects the inputs, has the logic's jobs done and shows what is in the scene.

    logic: may be given, for tests; else the module's own is made in `setup`.
    """

    def __init__(self, parent: Any = None, logic: Any = None) -> None:
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = logic
        self._parameterNode = None
        self._parameterNodeGuiTag = None
        self._jobVolumeId, self._canCancel = None, True  # of what the worker is busy with
        self._result = (None, None)  # id of a CT, and its result with all that explaining needs
        self._shownSummary = self._shownDisplay = None

    def setup(self) -> None:
        """Build the panel; called once, when the module is first opened."""
        ScriptedLoadableModuleWidget.setup(self)
        from LiverFibrosisStagingLib import panel
        from LiverFibrosisStagingLib.pumped_worker import PumpedWorker
        from LiverFibrosisStagingLib.requirements import ensure

        uiWidget = slicer.util.loadUI(self.resourcePath("UI/LiverFibrosisStaging.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = slicer.util.childWidgetVariables(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)
        self._panel, self._ensureRequirements = panel, ensure
        self._worker = PumpedWorker()
        if self.logic is None:
            self.logic = LiverFibrosisStagingLogic()

        self.ui.explainedComboBox.addItems(panel.explained_names())
        self.ui.modelPathLineEdit.currentPath = slicer.util.settingsValue(MODEL_KEY, "", str)
        self.ui.threadsSpinBox.value = slicer.util.settingsValue(THREADS_KEY, 0, int)
        self._connect()
        self.initializeParameterNode()

    def _connect(self) -> None:
        scene = slicer.mrmlScene
        self.addObserver(scene, scene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(scene, scene.EndCloseEvent, self.onSceneEndClose)
        self.addObserver(scene, scene.EndImportEvent, self.onSceneChanged)
        self.addObserver(scene, scene.NodeRemovedEvent, self.onSceneChanged)
        ui = self.ui
        ui.stageButton.connect("clicked(bool)", self.onStageButton)
        ui.explainedComboBox.connect("activated(int)", self.onExplainedChosen)
        ui.smoothCheckBox.connect("clicked(bool)", self.onSmoothClicked)
        ui.jumpButton.connect("clicked(bool)", self.onJumpButton)
        ui.saveButton.connect("clicked(bool)", self.onSaveButton)
        ui.copyTableButton.connect("clicked(bool)", self.onCopyTableButton)
        ui.modelCardButton.connect("toggled(bool)", self.onModelCardToggled)
        ui.modelPathLineEdit.connect("currentPathChanged(QString)", self.onModelPathChanged)
        ui.threadsSpinBox.connect("valueChanged(int)", self.onThreadsChanged)

    def cleanup(self) -> None:
        """Called when the module's widget is destroyed: no thread may outlive it."""
        self._worker.stop()
        self.setParameterNode(None)
        self.removeObservers()

    def enter(self) -> None:
        """Called each time the user opens the module."""
        self.initializeParameterNode()

    def exit(self) -> None:
        """Called each time the user opens another module: what runs goes on, and the panel stays
        connected, as up to Slicer 5.10 every disconnecting leaves an observer behind.
        """

    def onSceneStartClose(self, caller: Any, event: Any) -> None:
        """Stop the worker; let go of the parameter node, which closes with the scene."""
        self._worker.stop()
        self._keep(None, None)
        self.setParameterNode(None)

    def onSceneEndClose(self, caller: Any, event: Any) -> None:
        """A panel that is open needs a parameter node again."""
        if self.parent.isEntered:
            self.initializeParameterNode()

    def onSceneChanged(self, caller: Any, event: Any) -> None:
        """Show what a loaded scene holds; a CT that is gone needs no staging any more."""
        scene = slicer.mrmlScene
        if self._worker.busy and scene.GetNodeByID(self._jobVolumeId) is None:
            self._worker.cancel()
        if scene.GetNodeByID(self._result[0] or "") is None:
            self._keep(None, None)
        if not (scene.IsClosing() or scene.IsImporting()):
            self._update()

    def initializeParameterNode(self) -> None:
        """Connect the panel to the scene's parameter node; first time, offer the scene's nodes."""
        self.setParameterNode(self.logic.getParameterNode())
        if self._parameterNode.inputVolume is None:
            self._parameterNode.inputVolume = self._panel.first_node("vtkMRMLScalarVolumeNode")
        if self._parameterNode.segmentation is None:
            self._parameterNode.segmentation = self._panel.first_node("vtkMRMLSegmentationNode")

    def setParameterNode(self, parameterNode: LiverFibrosisStagingParameterNode | None) -> None:
        """Keep the panel and the parameter node in step, in both directions."""
        if parameterNode is self._parameterNode:
            self._update()
            return
        if self._parameterNode is not None:
            self._parameterNode.disconnectGui(self._parameterNodeGuiTag)
            self.removeObserver(self._parameterNode, vtk.vtkCommand.ModifiedEvent, self._update)
        self._parameterNode = parameterNode
        if self._parameterNode is not None:
            self._parameterNodeGuiTag = self._parameterNode.connectGui(self.ui)
            self.addObserver(self._parameterNode, vtk.vtkCommand.ModifiedEvent, self._update)
        self._update()

    def onStageButton(self) -> None:
        """Stage the chosen CT in the background; while that goes on, the button cancels it."""
        if self._worker.busy:
            self._worker.cancel()
            return
        parameters, path = self._parameterNode, self.ui.modelPathLineEdit.currentPath
        inputs = (parameters.inputVolume, parameters.segmentation)
        try:
            self._ensureRequirements(self.resourcePath("requirements.txt"))
            threads = self.ui.threadsSpinBox.value
            job = self.logic.stagingJob(*inputs, path or None, threads, parameters.smooth)
        except Exception as error:  # whatever it is, the user reads it
            self._showError(error)
            return
        self._run(job, self._onShowable)

    def onExplainedChosen(self, index: int) -> None:
        """Show the location map of another stage or group; the network rests."""
        explained, smooth = self._panel.EXPLAINED[index], self._parameterNode.smooth
        self._run(self.logic.explainingJob(self._result[1], explained, smooth), self._onShowable)

    def onSmoothClicked(self, smooth: bool) -> None:
        """The smooth map is made when it is first asked for."""
        if smooth and self._hasResult() and not self.logic.hasSmoothMap(self._volume()):
            self._run(self.logic.explainingJob(self._result[1], None, True), self._onShowable)

    def onJumpButton(self) -> None:
        """Move the slice views to where the network looked most."""
        self.logic.jumpToStrongest(self._volume())

    def onSaveButton(self) -> None:
        """Save the result's files into a folder."""
        window, title = slicer.util.mainWindow(), _("Folder for the result")
        folder = qt.QFileDialog.getExistingDirectory(window, title)
        if folder:
            self._run(self.logic.savingJob(self._result[1], folder), self._onSaved, False)

    def onCopyTableButton(self) -> None:
        """Put the table on the clipboard."""
        qt.QApplication.clipboard().setText(self._panel.table_text(self._shownSummary))
        slicer.util.showStatusMessage(_("The table is on the clipboard."), 3000)

    def onModelCardToggled(self, shown: bool) -> None:
        """Show what the model says about itself, or why it cannot be used."""
        self.ui.modelCardLabel.visible = shown
        if shown:
            path = self.ui.modelPathLineEdit.currentPath
            self.ui.modelCardLabel.text = self._panel.card_html(path)

    def onModelPathChanged(self, path: str) -> None:
        """Remember the model for the next session."""
        qt.QSettings().setValue(MODEL_KEY, path)
        self.onModelCardToggled(self.ui.modelCardButton.checked)

    def onThreadsChanged(self, threads: int) -> None:
        """Remember the number of threads for the next session."""
        qt.QSettings().setValue(THREADS_KEY, threads)

    def _run(self, job: Callable, done: Callable[[Any], None], canCancel: bool = True) -> None:
        self._jobVolumeId, self._canCancel = self._volume().GetID(), canCancel
        self._worker.start(job, lambda outcome: self._onEnded(outcome, done), self._onProgress)
        self.ui.progressBar.value = 0
        self.ui.stepLabel.text = ""
        self._update()

    def _onProgress(self, progress: Any) -> None:
        self.ui.progressBar.value = int(1000 * progress.fraction)
        self.ui.stepLabel.text = self._panel.progress_text(progress)

    def _onEnded(self, outcome: Any, done: Callable[[Any], None]) -> None:
        error = None if outcome.cancelled else outcome.error
        try:
            if outcome.error is None:
                done(outcome.value)
        except Exception as failure:  # the scene changed in a way that the result does not fit
            error = failure
        self._jobVolumeId = None
        self._shownSummary = None  # the list of what is explained may show another choice
        self._update()
        if outcome.cancelled:
            slicer.util.showStatusMessage(_("Cancelled."), 3000)
        if error is not None:
            self._showError(error)

    def _onShowable(self, value: tuple[Any, Any]) -> None:
        result, showable = value
        volume = slicer.mrmlScene.GetNodeByID(self._jobVolumeId)
        self.logic.showResult(showable, volume, self._shownDisplay)
        self._keep(self._jobVolumeId, result)

    def _keep(self, volumeId: str | None, result: Any) -> None:
        """Keep one result, not those before it: they are large."""
        before, self._result = [*self._result], (volumeId, result)
        self._worker.let_go(before)

    def _onSaved(self, folder: Path) -> None:
        slicer.util.showStatusMessage(_("Saved in {folder}").format(folder=folder), 5000)

    def _showError(self, error: BaseException) -> None:
        sentence, details = self._panel.error_text(error)
        slicer.util.errorDisplay(sentence, detailedText=details)

    def _volume(self) -> Any:
        return self._parameterNode.inputVolume if self._parameterNode is not None else None

    def _hasResult(self) -> bool:
        """Whether the chosen CT's result is at hand, not only what the scene keeps of it."""
        volume = self._volume()
        return volume is not None and volume.GetID() == self._result[0]

    def _update(self, caller: Any = None, event: Any = None) -> None:
        """Make the panel, and the views, show what the parameters and the scene say."""
        if self._parameterNode is None:
            return
        volume, summary = self._volume(), self.logic.storedSummary(self._volume())
        worker, segmentation = self._worker, self._parameterNode.segmentation
        self._panel.fill_inputs(self.ui, volume, segmentation, worker.busy, self._canCancel)
        if summary is not None and summary != self._shownSummary:
            self._panel.fill_summary(self.ui, summary)
        hasSmooth = self.logic.hasSmoothMap(volume)
        self._panel.fill_state(
            self.ui, volume, summary is not None, self._hasResult(), hasSmooth, worker.busy
        )
        self._shownSummary = summary
        display = self._panel.display_of(self._parameterNode)
        if display != self._shownDisplay:
            self._shownDisplay = display
            self.logic.setDisplay(volume, display)


class LiverFibrosisStagingLogic(ScriptedLoadableModuleLogic):
    """Staging for MRML nodes; needs no panel, opens no dialog.

    In Slicer's Python console:

    >>> from LiverFibrosisStaging import LiverFibrosisStagingLogic, loadSample
    >>> logic = LiverFibrosisStagingLogic()
    >>> volume, segmentation = loadSample()
    >>> result = logic.stageVolume(volume, segmentation)
    >>> result.stage, result.probabilities
    >>> logic.showResult(result, volume)
    >>> result.save("/tmp/result")

    A job is what a Worker does in its thread: made on the main thread, called with a progress
    function and a cancel token.
    """

    def __init__(self) -> None:
        ScriptedLoadableModuleLogic.__init__(self)
        self._wrapped = (None, None)  # parameter node and its wrapper

    def getParameterNode(self) -> LiverFibrosisStagingParameterNode:
        """The scene's parameter node."""
        node = super().getParameterNode()
        if self._wrapped[0] is not node:
            self._wrapped = (node, LiverFibrosisStagingParameterNode(node))
        return self._wrapped[1]

    def stageVolume(
        self,
        volumeNode: vtkMRMLScalarVolumeNode,
        liverSegmentation: Any = None,
        liverSegmentId: str | None = None,
        spleenSegmentId: str | None = None,
        model: Any = None,
        explain: str = "predicted",
        progress: Callable[[float, str], None] | None = None,
        cancel: Any = None,
    ) -> Any:
        """Stage a CT volume node; returns a LiverFibrosisStagingLib.StagingResult.

        liverSegmentation: segmentation node with the liver and, where there is one, the spleen, or
        a label map volume node (1 liver, 2 spleen); segments are found by terminology and name
        unless their ids are given. Without it liver and spleen are found. The rest as in
        LiverFibrosisStagingLib.stage. Parent transforms are respected. The scene is not changed.
        Raises StagingError for every refusal and Cancelled when cancelled.
        """
        from LiverFibrosisStagingLib import stage
        from LiverFibrosisStagingLib.mrml import staging_inputs

        ct, liver, spleen = staging_inputs(
            volumeNode, liverSegmentation, liverSegmentId, spleenSegmentId
        )
        return stage(ct, liver, spleen, model, explain, progress, cancel)

    def stageFolder(self, input: str | Path, output: str | Path, **options: Any) -> list[dict]:
        """Stage a folder of CTs or a CSV list, without the scene; returns the rows of results.csv.

        options: model, explain, progress and cancel; see LiverFibrosisStagingLib.stage_folder, also
        for how masks are found beside the CTs.
        """
        from LiverFibrosisStagingLib import stage_folder

        return stage_folder(input, output, **options)

    def stagingJob(
        self,
        volumeNode: vtkMRMLScalarVolumeNode,
        segmentationNode: vtkMRMLSegmentationNode | None,
        modelPath: str | None = None,
        threads: int = 0,
        smooth: bool = False,
    ) -> Callable:
        """A job that stages a CT: gives its result, and the same ready for `showResult`."""
        from LiverFibrosisStagingLib.jobs import staging_job
        from LiverFibrosisStagingLib.mrml import scene_inputs
        from LiverFibrosisStagingLib.scene_results import find_part

        inputs = scene_inputs(volumeNode, segmentationNode or find_part(volumeNode, "organs"))
        return staging_job(inputs, modelPath, threads, smooth)

    def explainingJob(self, result: Any, explain: str | None, smooth: bool) -> Callable:
        """A job that explains another stage (None: the same); gives what `stagingJob` gives."""
        from LiverFibrosisStagingLib.jobs import explaining_job

        return explaining_job(result, explain, smooth)

    def savingJob(self, result: Any, folder: str) -> Callable:
        """A job that saves a result's files into a folder; gives the folder."""
        from LiverFibrosisStagingLib.jobs import saving_job

        return saving_job(result, folder)

    def showResult(self, result: Any, volumeNode: Any, display: Any = None) -> Any:
        """Put a result into the scene, over its CT; returns the label map volume node."""
        from LiverFibrosisStagingLib.scene_results import show_result

        return show_result(result, volumeNode, display)

    def setDisplay(self, volumeNode: Any, display: Any) -> None:
        """Show the CT's location map, where there is one, in another way."""
        from LiverFibrosisStagingLib.scene_results import set_display

        set_display(volumeNode, display)

    def storedSummary(self, volumeNode: Any) -> dict[str, Any] | None:
        """What the scene keeps of the CT's result, as in staging.json."""
        from LiverFibrosisStagingLib.scene_results import stored_summary

        return stored_summary(volumeNode)

    def hasSmoothMap(self, volumeNode: Any) -> bool:
        """Whether the scene holds the CT's location map as a scalar volume."""
        from LiverFibrosisStagingLib.scene_results import find_part

        return find_part(volumeNode, "smooth") is not None

    def jumpToStrongest(self, volumeNode: Any) -> None:
        """Move the slice views to where the CT's location map is highest."""
        from LiverFibrosisStagingLib.scene_results import jump_to_strongest

        jump_to_strongest(volumeNode)


class LiverFibrosisStagingTest(ScriptedLoadableModuleTest):
    """Self test on the sample CT."""

    def setUp(self) -> None:
        """Start with an empty scene."""
        slicer.mrmlScene.Clear()

    def test_stageAndShow(self) -> None:
        """A job in the background stages the sample; its map lies on the CT; a second updates."""
        import numpy as np

        from LiverFibrosisStagingLib.worker import Worker

        try:
            import onnxruntime  # noqa: F401
        except ImportError:
            self.skipTest("onnxruntime is not installed: click Stage once")
        volume, segmentation = loadSample()
        logic, worker, outcomes = LiverFibrosisStagingLogic(), Worker(), []
        worker.start(logic.stagingJob(volume, segmentation), outcomes.append)
        while worker.busy:
            worker.pump()
            time.sleep(0.005)
        self.assertIsNone(outcomes[0].error)
        result, showable = outcomes[0].value
        self.assertAlmostEqual(float(result.probabilities.sum()), 1.0, places=6)

        label = logic.showResult(showable, volume)
        values = slicer.util.arrayFromVolume(label)
        self.assertEqual(values.shape, slicer.util.arrayFromVolume(volume).shape)
        self.assertTrue(np.isin(values, range(11)).all())
        self.assertEqual(label.GetSpacing(), volume.GetSpacing())
        count = slicer.mrmlScene.GetNumberOfNodes()
        self.assertIs(logic.showResult(logic.stageVolume(volume, segmentation), volume), label)
        self.assertEqual(slicer.mrmlScene.GetNumberOfNodes(), count)
        self.assertEqual(logic.storedSummary(volume)["stage"], result.stage)

    def test_refusal(self) -> None:
        """Without a CT there is a sentence, and nothing new in the scene."""
        from LiverFibrosisStagingLib import StagingError

        count = slicer.mrmlScene.GetNumberOfNodes()
        with self.assertRaisesRegex(StagingError, "load a CT"):
            LiverFibrosisStagingLogic().stageVolume(None)
        self.assertEqual(slicer.mrmlScene.GetNumberOfNodes(), count)
