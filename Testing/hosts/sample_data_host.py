"""A stand-in for Slicer's Sample Data module."""

import types
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import slicer


class SampleDataLogic:
    """SampleData.SampleDataLogic: sources are kept; files of this machine are loaded as by Slicer.

    A custom downloader is called by the button of the Sample Data module only.
    """

    sources: ClassVar[dict[str, dict[str, Any]]] = {}

    @staticmethod
    def registerCustomSampleDataSource(
        category: str = "Custom",
        sampleName: str | None = None,
        uris: Any = None,
        fileNames: Any = None,
        nodeNames: Any = None,
        customDownloader: Callable | None = None,
        thumbnailFileName: str | None = None,
        loadFileType: Any = "VolumeFile",
        loadFiles: Any = None,
        loadFileProperties: Any = None,
        checksums: Any = None,
    ) -> None:
        kinds = [loadFileType] * len(uris) if isinstance(loadFileType, str) else loadFileType
        nodes, sums = nodeNames or [None] * len(uris), checksums or [None] * len(uris)
        if len({len(each) for each in (uris, fileNames, nodes, kinds, sums)}) != 1:
            raise ValueError("All fields of sample data source must have the same length")
        SampleDataLogic.sources[sampleName] = types.SimpleNamespace(
            files=list(zip(uris, fileNames, nodes, kinds, sums)),
            customDownloader=customDownloader,
            thumbnailFileName=thumbnailFileName,
        )

    def downloadSample(self, name: str) -> Any:
        return self.downloadSamples(name)[0]

    def downloadSamples(self, name: str) -> list[Any]:
        return self.downloadFromSource(self.sources[name])

    def clickButton(self, name: str) -> None:
        """What the button of the Sample Data module does."""
        source = self.sources[name]
        (source.customDownloader or self.downloadFromSource)(source)

    def downloadFromSource(self, source: Any) -> list[Any]:
        """Through copies in the cache folder, whose storage nodes do not stay."""
        cache, loaded = Path(slicer.app.temporaryPath), []
        for uri, file_name, node_name, kind, checksum in source.files:
            path = cache / file_name
            if not path.exists() or checksum is not None:
                urllib.request.urlretrieve(uri, path)
            if checksum is not None:
                algorithm, _, digest = checksum.partition(":")
                assert slicer.util.computeChecksum(algorithm, str(path)) == digest
            if node_name is None:
                continue
            if kind == "VolumeFile":
                node = slicer.modules.volumes.logic().AddArchetypeVolume(str(path), node_name)
                slicer.util.setSliceViewerLayers(background=node, fit=True)
            elif kind == "SegmentationFile":
                logic = slicer.modules.segmentations.logic()
                node = logic.LoadSegmentationFromFile(str(path), True, node_name)
            else:
                raise NotImplementedError(f"the host reads no {kind}")
            slicer.mrmlScene.RemoveNode(node.GetStorageNode())
            loaded.append(node)
        return loaded
