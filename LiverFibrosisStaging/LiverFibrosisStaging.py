"""The module as Slicer sees it: what it is, its panel, its logic for nodes, its self test.

Everything else is in LiverFibrosisStagingLib, which is imported when it is used, so that Slicer
starts without SimpleITK and without onnxruntime, which may not be there yet.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import slicer
import vtk
from slicer import vtkMRMLScalarVolumeNode, vtkMRMLSegmentationNode
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.parameterNodeWrapper import parameterNodeWrapper
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin


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
            "shows where the network looked: choose a CT and a segmentation with the liver, then "
            "click Stage. Research use only: not a medical device, not for diagnosis. "
            'See the <a href="{homepage}">documentation</a>.'
        ).format(homepage="https://github.com/liver-fibrosis-staging/SlicerLiverFibrosisStaging")
        self.parent.acknowledgementText = _(
            "Method: Yin Y, Yakar D, Dierckx RAJO, Mouridsen KB, Kwee TC, de Haas RJ. Liver "
            "fibrosis staging by deep learning: a visual-based explanation of diagnostic decisions "
            'of the model. European Radiology 2021. <a href="{doi}">{doi}</a>. This is an '
            "independent implementation with a network of its own; the authors of the paper had no "
            "part in it."
        ).format(doi="https://doi.org/10.1007/s00330-021-08046-x")


@parameterNodeWrapper
class LiverFibrosisStagingParameterNode:
    """What the panel remembers, in the scene. The names stand in the .ui as SlicerParameterName."""

    inputVolume: vtkMRMLScalarVolumeNode
    segmentation: vtkMRMLSegmentationNode


class LiverFibrosisStagingWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The panel: it collects the inputs, calls the logic and shows the result."""

    def __init__(self, parent: Any = None) -> None:
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = None
        self._parameterNode = None
        self._parameterNodeGuiTag = None

    def setup(self) -> None:
        """Build the panel; called once, when the module is first opened."""
        ScriptedLoadableModuleWidget.setup(self)
        uiWidget = slicer.util.loadUI(self.resourcePath("UI/LiverFibrosisStaging.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = slicer.util.childWidgetVariables(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)
        self.logic = LiverFibrosisStagingLogic()

        scene = slicer.mrmlScene
        self.addObserver(scene, scene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(scene, scene.EndCloseEvent, self.onSceneEndClose)
        self.ui.stageButton.connect("clicked(bool)", self.onStageButton)
        self.initializeParameterNode()

    def cleanup(self) -> None:
        """Called when the module's widget is destroyed."""
        self.removeObservers()

    def enter(self) -> None:
        """Called each time the user opens the module."""
        self.initializeParameterNode()

    def exit(self) -> None:
        """Called each time the user opens another module."""
        self.setParameterNode(None)

    def onSceneStartClose(self, caller: Any, event: Any) -> None:
        """Let go of the parameter node, which closes with the scene."""
        self.setParameterNode(None)
        self.ui.resultLabel.text = ""

    def onSceneEndClose(self, caller: Any, event: Any) -> None:
        """A panel that is open needs a parameter node again."""
        if self.parent.isEntered:
            self.initializeParameterNode()

    def initializeParameterNode(self) -> None:
        """Connect the panel to the scene's parameter node; first time, offer the scene's nodes."""
        self.setParameterNode(self.logic.getParameterNode())
        if self._parameterNode.inputVolume is None:
            self._parameterNode.inputVolume = self._firstNode("vtkMRMLScalarVolumeNode")
        if self._parameterNode.segmentation is None:
            self._parameterNode.segmentation = self._firstNode("vtkMRMLSegmentationNode")

    def setParameterNode(self, parameterNode: LiverFibrosisStagingParameterNode | None) -> None:
        """Keep the panel and the parameter node in step, in both directions."""
        if self._parameterNode is not None:
            self._parameterNode.disconnectGui(self._parameterNodeGuiTag)
            self.removeObserver(
                self._parameterNode, vtk.vtkCommand.ModifiedEvent, self._checkCanStage
            )
        self._parameterNode = parameterNode
        if self._parameterNode is not None:
            self._parameterNodeGuiTag = self._parameterNode.connectGui(self.ui)
            self.addObserver(self._parameterNode, vtk.vtkCommand.ModifiedEvent, self._checkCanStage)
            self._checkCanStage()

    def onStageButton(self) -> None:
        """Stage the chosen CT and show the location map over it."""
        parameters = self._parameterNode
        with slicer.util.tryWithErrorDisplay(_("What staging needs could not be installed.")):
            ensureRequirements(self.resourcePath("requirements.txt"))
        with slicer.util.tryWithErrorDisplay(_("The CT could not be staged."), waitCursor=True):
            result = self.logic.stageVolume(parameters.inputVolume, parameters.segmentation)
            self.logic.showResult(result, parameters.inputVolume)
            self.ui.resultLabel.text = self.logic.describe(result)

    def _checkCanStage(self, caller: Any = None, event: Any = None) -> None:
        missing = []
        if self._parameterNode.inputVolume is None:
            missing.append(_("a CT volume"))
        if self._parameterNode.segmentation is None:
            missing.append(_("a segmentation with the liver"))
        self.ui.stageButton.enabled = not missing
        self.ui.stageButton.toolTip = (
            _("Choose first: {missing}").format(missing=", ".join(missing))
            if missing
            else _("Stage the CT and show where the network looked")
        )

    @staticmethod
    def _firstNode(className: str) -> Any:
        # A label map is a scalar volume too, but never a CT.
        nodes = slicer.util.getNodesByClass(className)
        return next((node for node in nodes if node.GetClassName() == className), None)


class LiverFibrosisStagingLogic(ScriptedLoadableModuleLogic):
    """Staging for MRML nodes; needs no panel, opens no dialog.

    In Slicer's Python console:

    >>> from LiverFibrosisStaging import LiverFibrosisStagingLogic
    >>> logic = LiverFibrosisStagingLogic()
    >>> volume, segmentation = getNode("CT"), getNode("Segmentation")
    >>> result = logic.stageVolume(volume, segmentation)
    >>> result.stage, result.probabilities
    >>> logic.showResult(result, volume)
    >>> result.save("/tmp/result")
    """

    def getParameterNode(self) -> LiverFibrosisStagingParameterNode:
        """The scene's parameter node, made where there is none yet."""
        return LiverFibrosisStagingParameterNode(super().getParameterNode())

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
        unless their ids are given. The rest as in LiverFibrosisStagingLib.stage. Parent transforms
        are respected. The scene is not changed. Raises StagingError for every refusal and Cancelled
        when cancelled.
        """
        from LiverFibrosisStagingLib import stage
        from LiverFibrosisStagingLib.mrml import staging_inputs

        ct, liver, spleen = staging_inputs(
            volumeNode, liverSegmentation, liverSegmentId, spleenSegmentId
        )
        return stage(ct, liver, spleen, model, explain, progress, cancel)

    def showResult(self, result: Any, volumeNode: vtkMRMLScalarVolumeNode) -> Any:
        """Show the location map over its CT; returns the label map volume node."""
        from LiverFibrosisStagingLib.mrml import show_result

        return show_result(result, volumeNode)

    def stageFolder(
        self,
        input: str | Path,
        output: str | Path,
        model: Any = None,
        explain: str = "predicted",
        progress: Callable[[float, str], None] | None = None,
        cancel: Any = None,
    ) -> list[dict[str, Any]]:
        """Stage a folder of CTs or a CSV list, without the scene; returns the rows of results.csv.

        See LiverFibrosisStagingLib.stage_folder for how masks are found beside the CTs.
        """
        from LiverFibrosisStagingLib import stage_folder

        return stage_folder(input, output, model, explain, progress, cancel)

    def describe(self, result: Any) -> str:
        """The result for the reader: stage, probabilities, warnings, and what is behind them."""
        from LiverFibrosisStagingLib.result import one_line
        from LiverFibrosisStagingLib.stages import RESEARCH_USE

        lines = [one_line(result), *result.warnings]
        lines.append(_("Model: {data}").format(data=result.provenance["model"]["trained_on"]))
        return "\n\n".join([*lines, RESEARCH_USE])


def ensureRequirements(path: str) -> None:
    """Ask for and install what requirements.txt names, unless it is there.

    Raises RuntimeError when the user declines.
    """
    try:
        from slicer.packaging import load_requirements, pip_ensure  # Slicer 5.12 and later
    except ImportError:
        _ensureRequirementsBefore512(path)
        return
    pip_ensure(load_requirements(path), requester=_("Liver Fibrosis Staging"))


def _ensureRequirementsBefore512(path: str) -> None:
    from importlib.metadata import PackageNotFoundError, version

    from packaging.requirements import Requirement

    def installed(requirement: Requirement) -> bool:
        try:
            return version(requirement.name) in requirement.specifier
        except PackageNotFoundError:
            return False

    lines = [line.partition("#")[0].strip() for line in Path(path).read_text().splitlines()]
    missing = [line for line in lines if line and not installed(Requirement(line))]
    if not missing:
        return
    names = " ".join(missing)
    question = _("Staging needs {names} from the Python Package Index. Install it now?")
    if not slicer.util.confirmOkCancelDisplay(question.format(names=names)):
        raise RuntimeError(_("Staging needs {names}, which is not installed.").format(names=names))
    logging.info("Installing %s", names)
    slicer.util.pip_install(names)


class LiverFibrosisStagingTest(ScriptedLoadableModuleTest):
    """Self test on a small made-up abdomen."""

    def setUp(self) -> None:
        """Start with an empty scene."""
        slicer.mrmlScene.Clear()

    def test_stageAndShow(self) -> None:
        """Staging gives probabilities, and a label volume on the CT's geometry."""
        import numpy as np

        try:
            import onnxruntime  # noqa: F401
        except ImportError:
            self.skipTest("onnxruntime is not installed: click Stage once")
        volume, segmentation = self._abdomen()
        logic = LiverFibrosisStagingLogic()
        result = logic.stageVolume(volume, segmentation)
        self.assertIn(result.stage, ("F0", "F1", "F2", "F3", "F4"))
        self.assertAlmostEqual(float(result.probabilities.sum()), 1.0, places=6)

        label = logic.showResult(result, volume)
        values = slicer.util.arrayFromVolume(label)
        self.assertEqual(values.shape, slicer.util.arrayFromVolume(volume).shape)
        self.assertTrue(np.isin(values, range(11)).all())
        self.assertEqual(label.GetSpacing(), volume.GetSpacing())
        self.assertIs(logic.showResult(result, volume), label)
        self.assertIn(result.stage, logic.describe(result))

    def test_refusal(self) -> None:
        """Without a segmentation there is a sentence, and nothing new in the scene."""
        from LiverFibrosisStagingLib import StagingError

        volume, _segmentation = self._abdomen()
        count = slicer.mrmlScene.GetNumberOfNodes()
        with self.assertRaisesRegex(StagingError, "segment the liver"):
            LiverFibrosisStagingLogic().stageVolume(volume)
        self.assertEqual(slicer.mrmlScene.GetNumberOfNodes(), count)

    @staticmethod
    def _abdomen() -> tuple[Any, Any]:
        """A CT of a body with liver and spleen, 4 x 4 x 4 mm, and its segmentation."""
        import numpy as np

        z, y, x = np.ogrid[-100:100:4.0, -120:120:4.0, -180:180:4.0]  # LPS
        organs = {
            "Liver": ((x + 65) / 70) ** 2 + (y / 65) ** 2 + (z / 70) ** 2 < 1,
            "Spleen": ((x - 90) / 28) ** 2 + ((y - 40) / 28) ** 2 + (z / 40) ** 2 < 1,
        }
        hu = np.where((x / 165) ** 2 + (y / 110) ** 2 < 1, 40, -1000) + 0 * z
        ct = np.random.default_rng(0).normal(0, 10, hu.shape) + hu
        for organ in organs.values():
            ct[organ] += 70
        ijkToRas = np.diag([-4.0, -4.0, 4.0, 1.0])
        ijkToRas[:3, 3] = 180, 120, -100
        volume = slicer.util.addVolumeFromArray(ct.astype(np.int16), ijkToRas, "Test CT")
        segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Test organs")
        segmentation.CreateDefaultDisplayNodes()
        segmentation.SetReferenceImageGeometryParameterFromVolumeNode(volume)
        for name, inside in organs.items():
            segmentId = segmentation.GetSegmentation().AddEmptySegment(name, name)
            slicer.util.updateSegmentBinaryLabelmapFromArray(
                inside.astype(np.uint8), segmentation, segmentId, volume
            )
        return volume, segmentation
