"""The module as Slicer sees it: what it is, its panel, its logic for nodes, its self test.

Everything else is in LiverFibrosisStagingLib, which is imported when it is used, so that Slicer
starts without SimpleITK and without onnxruntime, which may not be there yet.
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import qt
import slicer
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

RESOURCES = Path(__file__).parent / "Resources"


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
            "shows on a map which regions the stage depends on: choose a CT, then click Stage. "
            "Liver and spleen are outlined, unless you choose a segmentation. Research use only: "
            "not for diagnosis. "
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
    from LiverFibrosisStagingLib.scene.sample_data import register

    register(RESOURCES)


def loadSample() -> list[Any]:
    """Load the sample CT and its segmentation from the module's own files, without a download."""
    from LiverFibrosisStagingLib.scene.sample_data import load_sample

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


class LiverFibrosisStagingWidget(ScriptedLoadableModuleWidget):
    """The panel's frame; what the panel does is LiverFibrosisStagingLib.scene.panel_controller's.

    logic: may be given, for tests; else the module's own is made in `setup`.
    """

    def __init__(self, parent: Any = None, logic: Any = None) -> None:
        self.logic = logic
        self._controller = None  # until the panel is built, which may fail
        ScriptedLoadableModuleWidget.__init__(self, parent)

    def setup(self) -> None:
        """Build the panel; called once, when the module is first opened."""
        ScriptedLoadableModuleWidget.setup(self)
        try:
            from LiverFibrosisStagingLib.scene.panel_controller import PanelController
        except ImportError as error:
            logging.exception("The panel cannot be built.")
            self._sayWhatIsMissing(error)
            return
        uiWidget = slicer.util.loadUI(self.resourcePath("UI/LiverFibrosisStaging.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = slicer.util.childWidgetVariables(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)
        if self.logic is None:
            self.logic = LiverFibrosisStagingLogic()
        requirements = self.resourcePath("requirements.txt")
        self._controller = PanelController(self.ui, self.logic, self.parent, requirements)

    def cleanup(self) -> None:
        """Called when the module's widget is destroyed: no thread may outlive it."""
        if self._controller is not None:
            self._controller.cleanup()

    def enter(self) -> None:
        """Called each time the user opens the module."""
        if self._controller is not None:
            self._controller.enter()

    def exit(self) -> None:
        """Called each time the user opens another module: what runs goes on, and the panel stays
        connected, as up to Slicer 5.10 every disconnecting leaves an observer behind.
        """

    def _sayWhatIsMissing(self, error: ImportError) -> None:
        package = (error.name or "").partition(".")[0]
        if package in ("", "LiverFibrosisStagingLib"):
            remedy = _("Install the extension again.")
        else:
            remedy = _(
                "Install {package} with slicer.util.pip_install('{package}') in the Python console "
                "(Ctrl+3), then start Slicer again."
            ).format(package=package)
        text = _("Liver Fibrosis Staging cannot be used: {error}. {remedy}")
        label = qt.QLabel(text.format(error=error, remedy=remedy))
        label.wordWrap = True
        self.layout.addWidget(label)


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
        from LiverFibrosisStagingLib.scene.mrml import scene_inputs

        inputs = scene_inputs(volumeNode, liverSegmentation, liverSegmentId, spleenSegmentId)
        return stage(
            **inputs.arguments(), model=model, explain=explain, progress=progress, cancel=cancel
        )

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
        from LiverFibrosisStagingLib.scene.jobs import staging_job
        from LiverFibrosisStagingLib.scene.mrml import scene_inputs
        from LiverFibrosisStagingLib.scene.scene_results import find_part

        inputs = scene_inputs(volumeNode, segmentationNode or find_part(volumeNode, "organs"))
        return staging_job(inputs, modelPath, threads, smooth)

    def explainingJob(self, result: Any, explain: str | None, smooth: bool) -> Callable:
        """A job that explains another stage (None: the same); gives what `stagingJob` gives."""
        from LiverFibrosisStagingLib.scene.jobs import explaining_job

        return explaining_job(result, explain, smooth)

    def savingJob(self, result: Any, folder: str) -> Callable:
        """A job that saves a result's files into a folder; gives the folder."""
        from LiverFibrosisStagingLib.scene.jobs import saving_job

        return saving_job(result, folder)

    def showResult(self, result: Any, volumeNode: Any, display: Any = None) -> Any:
        """Put a result into the scene, over its CT; returns the label map volume node."""
        from LiverFibrosisStagingLib.scene.scene_results import show_result

        return show_result(result, volumeNode, display)

    def setDisplay(self, volumeNode: Any, display: Any) -> None:
        """Show the CT's location map, where there is one, in another way."""
        from LiverFibrosisStagingLib.scene.scene_results import set_display

        set_display(volumeNode, display)

    def storedSummary(self, volumeNode: Any) -> dict[str, Any] | None:
        """What the scene keeps of the CT's result, as in staging.json."""
        from LiverFibrosisStagingLib.scene.scene_results import stored_summary

        return stored_summary(volumeNode)

    def hasSmoothMap(self, volumeNode: Any) -> bool:
        """Whether the scene holds the CT's location map as a scalar volume."""
        from LiverFibrosisStagingLib.scene.scene_results import find_part

        return find_part(volumeNode, "smooth") is not None

    def showTable(self, volumeNode: Any) -> None:
        """Show the CT's results in a table view."""
        from LiverFibrosisStagingLib.scene.scene_display import show_table

        show_table(volumeNode)

    def showPlot(self, volumeNode: Any) -> None:
        """Show the probabilities of the CT's stages in a plot view."""
        from LiverFibrosisStagingLib.scene.scene_display import show_plot

        show_plot(volumeNode)

    def setOrgans3D(self, volumeNode: Any, visible: bool, segmentationNode: Any = None) -> None:
        """Show the CT's liver and spleen as surfaces in the 3D views, or hide them.

        segmentationNode: that of the user; without it, the one that staging has made.
        """
        from LiverFibrosisStagingLib.scene.scene_display import show_3d

        show_3d(volumeNode, visible, segmentationNode)

    def organs3DShown(self, volumeNode: Any, segmentationNode: Any = None) -> bool:
        """Whether the surfaces of `setOrgans3D` are shown."""
        from LiverFibrosisStagingLib.scene.scene_display import shows_3d

        return shows_3d(volumeNode, segmentationNode)

    def jumpToStrongest(self, volumeNode: Any) -> None:
        """Move the slice views to where the CT's location map is highest."""
        from LiverFibrosisStagingLib.scene.scene_results import jump_to_strongest

        jump_to_strongest(volumeNode)


class LiverFibrosisStagingTest(ScriptedLoadableModuleTest):
    """Self test on the sample CT."""

    def setUp(self) -> None:
        """Start with an empty scene."""
        slicer.mrmlScene.Clear()

    def test_stageAndShow(self) -> None:
        """A job in the background stages the sample; its map lies on the CT; a second updates."""
        import numpy as np

        from LiverFibrosisStagingLib.scene.worker import Worker

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
