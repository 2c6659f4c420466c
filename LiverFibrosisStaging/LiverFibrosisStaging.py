"""The Slicer module: the classes that Slicer looks for in this file.

The code is in LiverFibrosisStagingLib, most of it in its folder `scene`. What needs SimpleITK or
onnxruntime is imported when it is used, so that Slicer starts fast, also where they are missing.
"""

import time
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import ScriptedLoadableModule, ScriptedLoadableModuleTest

from LiverFibrosisStagingLib.scene.logic import StagingLogic
from LiverFibrosisStagingLib.scene.widget import StagingWidget

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
            "Predicts the stage of liver fibrosis (F0 to F4) on a portal-venous CT with a neural "
            "network and shows on a location map which regions contributed to the prediction: "
            "choose a CT, then click Stage. Liver and spleen are segmented automatically, unless "
            "you choose a segmentation. Research use only: not for diagnosis. "
            'See the <a href="{homepage}">documentation</a>.'
        ).format(homepage="https://github.com/liver-fibrosis-staging/SlicerLiverFibrosisStaging")
        self.parent.acknowledgementText = _(
            "Method: Yin Y, Yakar D, Dierckx RAJO, Mouridsen KB, Kwee TC, de Haas RJ. Liver "
            "fibrosis staging by deep learning: a visual-based explanation of diagnostic decisions "
            'of the model. European Radiology 2021. <a href="{doi}">{doi}</a>. This is an '
            "independent implementation with a network of its own; the authors of the paper are "
            "not involved."
        ).format(doi="https://doi.org/10.1007/s00330-021-08046-x")
        slicer.app.connect("startupCompleted()", registerSampleData)


def registerSampleData() -> None:
    """Offer the sample CT, which is installed with the module, in the Sample Data module."""
    from LiverFibrosisStagingLib.scene.sample_data import register

    register(RESOURCES)


def loadSample() -> tuple[Any, Any]:
    """Load the sample CT and its segmentation from the module's own files, without a download."""
    from LiverFibrosisStagingLib.scene.sample_data import load_sample

    with slicer.util.tryWithErrorDisplay(_("The sample could not be loaded."), waitCursor=True):
        return load_sample(RESOURCES)


class LiverFibrosisStagingWidget(StagingWidget):
    """The module's panel. logic: another logic, for tests."""

    def __init__(self, parent: Any = None, logic: Any = None) -> None:
        StagingWidget.__init__(self, parent, logic or LiverFibrosisStagingLogic())


class LiverFibrosisStagingLogic(StagingLogic):
    """Staging of MRML nodes. In Slicer's Python console:

    >>> from LiverFibrosisStaging import LiverFibrosisStagingLogic, loadSample
    >>> logic = LiverFibrosisStagingLogic()
    >>> volume, segmentation = loadSample()
    >>> result = logic.stageVolume(volume, segmentation)
    >>> result.stage, result.probabilities
    >>> logic.showResult(result, volume)
    >>> result.save("/tmp/result")
    """


class LiverFibrosisStagingTest(ScriptedLoadableModuleTest):
    """Self test on the sample CT."""

    def setUp(self) -> None:
        """Start with an empty scene."""
        slicer.mrmlScene.Clear()

    def test_stageAndShow(self) -> None:
        """Stage the sample in the background and show the map over the CT; staging again updates
        the same nodes.
        """
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
        self.assertTrue((np.array(values.shape) <= slicer.util.arrayFromVolume(volume).shape).all())
        self.assertEqual(values.max(), 10)
        self.assertTrue(np.isin(values, range(11)).all())
        self.assertEqual(label.GetSpacing(), volume.GetSpacing())
        count = slicer.mrmlScene.GetNumberOfNodes()
        self.assertIs(logic.showResult(logic.stageVolume(volume, segmentation), volume), label)
        self.assertEqual(slicer.mrmlScene.GetNumberOfNodes(), count)
        self.assertEqual(logic.storedSummary(volume)["stage"], result.stage)

    def test_refusal(self) -> None:
        """Without a CT, StagingError is raised and the scene is not changed."""
        from LiverFibrosisStagingLib import StagingError

        count = slicer.mrmlScene.GetNumberOfNodes()
        with self.assertRaisesRegex(StagingError, "load a CT"):
            LiverFibrosisStagingLogic().stageVolume(None)
        self.assertEqual(slicer.mrmlScene.GetNumberOfNodes(), count)
