"""The module's logic and parameter node: staging of MRML nodes, for scripts and for the panel.

The module file imports this one when Slicer starts, so everything else is imported when used.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from slicer import vtkMRMLScalarVolumeNode, vtkMRMLSegmentationNode
from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper
from slicer.ScriptedLoadableModule import ScriptedLoadableModuleLogic


@parameterNodeWrapper
class StagingParameterNode:
    """The panel's settings that are stored in the scene. The .ui refers to these names in its
    SlicerParameterName properties.

    opacity and threshold are in percent.
    """

    inputVolume: vtkMRMLScalarVolumeNode
    segmentation: vtkMRMLSegmentationNode
    segments: vtkMRMLSegmentationNode
    opacity: Annotated[float, WithinRange(0, 100)] = 100.0
    threshold: Annotated[float, WithinRange(0, 90)] = 0.0
    smooth: bool = False
    outline: bool = False
    legend: bool = True


class StagingLogic(ScriptedLoadableModuleLogic):
    """Staging of MRML nodes, without the panel and without dialogs; the module's logic inherits
    from it.
    """

    def __init__(self) -> None:
        ScriptedLoadableModuleLogic.__init__(self)
        self._wrapped = (None, None)  # parameter node and its wrapper

    def getParameterNode(self) -> StagingParameterNode:
        """The scene's parameter node."""
        node = ScriptedLoadableModuleLogic.getParameterNode(self)
        if self._wrapped[0] is not node:
            self._wrapped = (node, StagingParameterNode(node))
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
        any_phase: bool = False,
        segmentsNode: vtkMRMLSegmentationNode | None = None,
        body: Any = None,
    ) -> Any:
        """Stage a CT volume node; returns a LiverFibrosisStagingLib.StagingResult.

        liverSegmentation: segmentation node with the liver and, optionally, the spleen, or a label
        map volume node (1 liver, 2 spleen); segments are identified by terminology and name unless
        their ids are given. Without it, liver and spleen are segmented automatically. segmentsNode:
        segmentation with Couinaud segments or lobes of the liver. The other arguments are those of
        LiverFibrosisStagingLib.stage. Parent transforms are respected. The scene is not changed.
        Raises StagingError for input that cannot be staged, and Cancelled.
        """
        from .. import stage
        from .mrml import scene_inputs

        organs = (liverSegmentation, liverSegmentId, spleenSegmentId)
        inputs = scene_inputs(volumeNode, *organs, segmentsNode, body)
        return stage(
            **inputs.arguments(),
            model=model,
            explain=explain,
            progress=progress,
            cancel=cancel,
            any_phase=any_phase,
        )

    def stageFolder(
        self,
        input: str | Path,
        output: str | Path,
        wait: bool = True,
        finished: Callable[[Any], None] | None = None,
        progress: Callable[[float, str], None] | None = None,
        notify: Callable[[str], None] | None = None,
        **options: Any,
    ) -> Any:
        """Stage a folder of CTs or a CSV list in the background, without loading them into the
        scene; returns a table node with the rows of results.csv.

        Slicer stays responsive: the status bar shows the progress and a button that cancels, which
        keeps the finished cases. wait: return when the batch has ended, after cancelling with the
        finished cases, or None if there are none; if False, return its `batch.Batch` at once.
        finished: called with it at the end. progress: called with a fraction 0..1 and the step's
        name. notify and options: those of LiverFibrosisStagingLib.stage_folder, such as model and
        explain; see there for how masks are found. Callbacks are called on the main thread.

        Raises StagingError if the folder has no case, the output cannot be written, or another
        batch is running. With wait=False only the last is raised; else see the batch's `error`.
        """
        from .batch import FolderBatch

        callbacks = {"progress": progress, "finished": finished, "notify": notify}
        batch = FolderBatch(input, output, options, **callbacks)
        batch.start()
        return batch.wait() if wait else batch

    def stageNodes(
        self,
        volumeNodes: Sequence[vtkMRMLScalarVolumeNode] | None = None,
        segmentationNodes: Sequence[vtkMRMLSegmentationNode | None] | None = None,
        showResults: bool = False,
        wait: bool = True,
        finished: Callable[[Any], None] | None = None,
        progress: Callable[[float, str], None] | None = None,
        model: Any = None,
        explain: str = "predicted",
        any_phase: bool = False,
    ) -> Any:
        """Stage CTs of the scene in the background; returns a table node with a row for each.

        volumeNodes: by default all CTs of the scene. segmentationNodes: for each CT the
        segmentation with its liver, or None to segment it automatically; by default those that were
        drawn on the CTs. showResults: add each result to the scene, as `showResult` does. A CT that
        cannot be staged is a row with the reason. wait, finished, progress: as for `stageFolder`;
        model, explain, any_phase: as for `stageVolume`. Closing the scene cancels the batch.

        Raises StagingError if there is no CT, the model cannot be loaded, or another batch is
        running.
        """
        from .batch import NodesBatch

        settings = {"model": model, "explain": explain, "any_phase": any_phase}
        callbacks = {"progress": progress, "finished": finished}
        batch = NodesBatch(volumeNodes, segmentationNodes, showResults, **settings, **callbacks)
        batch.start()
        return batch.wait() if wait else batch

    def stagingJob(
        self,
        volumeNode: vtkMRMLScalarVolumeNode,
        segmentationNode: vtkMRMLSegmentationNode | None,
        modelPath: str | None = None,
        threads: int = 0,
        smooth: bool = False,
        anyPhase: bool = False,
        segmentsNode: vtkMRMLSegmentationNode | None = None,
        body: Any = None,
        device: str = "cpu",
    ) -> Callable:
        """A job (`worker.Job`) that stages a CT: returns its result, and the same prepared for
        `showResult`. Without a segmentation it uses the one from an earlier staging of this CT.
        anyPhase: stage a CT in another contrast phase too. segmentsNode: segmentation with parts of
        the liver, by default one of this CT that has them. body: height and weight, as for
        LiverFibrosisStagingLib.stage. device: what computes the networks, as for
        LiverFibrosisStagingLib.StagingModel.
        """
        from .jobs import staging_job
        from .mrml import scene_inputs
        from .scene_nodes import find_part
        from .suggestions import suggested_parts

        organs = segmentationNode or find_part(volumeNode, "organs")
        parts = segmentsNode or suggested_parts(volumeNode, organs)
        inputs = scene_inputs(volumeNode, organs, parts_node=parts, body=body)
        return staging_job(inputs, modelPath, threads, device, smooth, anyPhase)

    def showResult(self, result: Any, volumeNode: Any, display: Any = None) -> Any:
        """Add a result to the scene, over its CT; returns the label map volume node.

        display: a scene_display.Display.
        """
        from .scene_results import show_result

        return show_result(result, volumeNode, display)

    def setDisplay(self, volumeNode: Any, display: Any) -> None:
        """Change how the CT's location map, if there is one, is displayed."""
        from .scene_display import set_display

        set_display(volumeNode, display)

    def storedSummary(self, volumeNode: Any) -> dict[str, Any] | None:
        """The summary of the CT's result that the scene stores, as in staging.json."""
        from .scene_nodes import stored_summary

        return stored_summary(volumeNode)

    def showTable(self, volumeNode: Any, part: str = "results") -> None:
        """Show the CT's results, or its "signs", in a table view."""
        from .scene_display import show_table

        show_table(volumeNode, part)

    def showPlot(self, volumeNode: Any, part: str = "plot") -> None:
        """Show the probabilities of the stages, or the signs among the published groups
        ("percentiles_plot"), in a plot view.
        """
        from .scene_display import show_plot

        show_plot(volumeNode, part)

    def setOrgans3D(self, volumeNode: Any, visible: bool, segmentationNode: Any = None) -> None:
        """Show or hide the surfaces of the CT's liver and spleen in the 3D views.

        segmentationNode: the one used for staging; by default the one that staging has made.
        """
        from .scene_display import show_3d

        show_3d(volumeNode, visible, segmentationNode)

    def jumpToStrongest(self, volumeNode: Any) -> None:
        """Move the slice views to the maximum of the CT's location map."""
        from .scene_display import jump_to_strongest

        jump_to_strongest(volumeNode)
