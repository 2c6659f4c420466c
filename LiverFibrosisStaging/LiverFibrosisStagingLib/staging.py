"""Staging of one CT, from the input to the result."""

import hashlib
import math
import platform
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from . import __version__
from .analysis import regions
from .ensemble import spread
from .errors import CancelToken, StagingError, check_cancel
from .explaining import Progress, Steps, explain_score, predicted_outside, run_network
from .imaging.body import Body, body_of
from .imaging.checks import check_copies, check_ct, check_organs
from .imaging.dicom_files import path_of_series
from .imaging.grid import WorkingGrid, working_grid
from .imaging.input_checks import concerns, input_checks, refuse, scan_checks
from .imaging.masks import organ_masks, read_organ, volume_ml
from .imaging.reading import NAME_KEY, notes, read_ct
from .imaging.segmentation import (
    SEGMENTING,
    SegmentationModel,
    segment_checked,
    segmentation_warnings,
    shipped_network,
)
from .imaging.segments import LiverSegments, read_segments
from .model import StagingModel
from .privacy import Names
from .report.summary import SURFACE_MM
from .resources import default_model_path
from .result import StagingResult
from .signs.measure import measure_signs
from .stages import STAGES, explained_stages, group_scores
from .support import reasons


def stage(
    ct: sitk.Image | str | Path | Sequence[Path],
    liver: sitk.Image | str | Path | None = None,
    spleen: sitk.Image | str | Path | None = None,
    model: StagingModel | str | Path | None = None,
    explain: str = "predicted",
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
    segmentation: dict[str, Any] | None = None,
    strict: bool = False,
    any_phase: bool = False,
    surface_mm: float = SURFACE_MM,
    segments: LiverSegments | str | Path | None = None,
    body: Body | None = None,
) -> StagingResult:
    """Stage one CT and compute the location map that explains the stage.

    ct: portal-venous CT in HU, an image, a path (DICOM folder, NIfTI, NRRD, MHA) or the DICOM files
    of one series. liver, spleen: masks, images or paths, on the CT's grid or another grid over the
    same space; a label image with 1 liver and 2 spleen serves as both; without a liver, both are
    segmented automatically (a spleen that is given is kept). model: a model or its file, the
    shipped one by default. explain: "predicted", "F0" to "F4", "significant", "advanced",
    "cirrhosis" or "expected" (stage).
    progress: called with a fraction 0..1 and the step's name. cancel: asked several times a second,
    also while a file is read (`read_ct`) and while the network runs. segmentation: provenance
    (name, sha256, edited) of masks from an earlier automatic segmentation, for the result; masks
    that were not edited get the warnings of a segmentation. strict: refuse a CT with a warning in
    its checks (`imaging.input_checks`). any_phase: stage a CT that is clearly not in the
    portal-venous phase; its stage is not supported.
    surface_mm: thickness of the liver's surface, a region of the measurements, above 0.
    segments: Couinaud segments or lobes of the liver, for the signs that need them, or the path of
    their segmentation (`imaging.segments.read_segments`). body: height and weight, by default those
    of the CT's DICOM header.

    Raises WrongPhase for such a CT otherwise, StagingError for other refused input, which may
    name the file or node, and Cancelled. The result contains neither name.
    """
    steps = Steps(progress, cancel)
    explained_stages(explain, 0)  # an unknown name is refused before any work
    check_surface(surface_mm)

    with _one_thread() as beside:
        # The networks are opened, and masks read, while the CT is read, which takes one core.
        loading = beside.submit(_loaded, model)
        opening = None if liver is not None else beside.submit(_segmenting_network, loading)
        masks = [beside.submit(_organ, mask, cancel) for mask in (liver, spleen)]
        try:
            steps.begin(0.0, "Reading")
            given = [_given(image) for image in (ct, liver, spleen)]
            name = "The CT" if given[0] is None else str(path_of_series(given[0]))
            ct = ct if isinstance(ct, sitk.Image) else read_ct(ct, cancel)
            liver, spleen = (mask.result() for mask in masks)
            steps.check()
            if isinstance(segments, str | Path):
                segments = read_segments(segments, cancel)
        finally:
            model = loading.result()  # if it is refused, this is said first
        card = model.card
        hashing = beside.submit(_voxels_sha256, ct, cancel)

        steps.begin(0.25, "Checking")
        segmented = ["liver"] if liver is None and spleen is not None else ["liver", "spleen"]
        check_ct(ct, name)
        of_scan = beside.submit(scan_checks, ct, cancel)
        steps.check()
        if card.fill is None:
            check_copies(ct, name, card.patch_size[0], card.spacing_mm[0])
        warnings = [*notes(ct)]
        if opening is not None:

            def within(part: float, _: str) -> None:
                steps.begin(0.25 + 0.1 * part, SEGMENTING)

            network = opening.result()
            steps.check()
            found = segment_checked(ct, name, network, within, cancel)
            liver, spleen = found.liver, found.spleen if spleen is None else spleen
            warnings += segmentation_warnings({o: found.volumes_ml[o] for o in segmented})
            segmentation = found.provenance
            del found  # its label image is as large as the scan's masks
        elif segmentation is not None and not segmentation["edited"]:
            volumes = {"liver": volume_ml(liver), "spleen": 0.0}
            if spleen is not None:
                volumes["spleen"] = volume_ml(spleen)
            warnings += segmentation_warnings(volumes)
        steps.check()
        liver, spleen, about_masks = organ_masks(ct, liver, spleen)
        steps.check()
        check_organs(ct, liver, spleen, name)
        body = body_of(ct) if body is None else body
        # Both consist of many small operations on one core; the network and its preparation do not.
        checking = beside.submit(lambda: input_checks(ct, liver, spleen, cancel, of_scan.result()))
        # Begun before the phase is known, which only the hint of steatosis depends on.
        measuring = beside.submit(measure_signs, ct, liver, spleen, "", segments, body, cancel)

        steps.begin(0.35, "Resampling to the network's grid")
        grid = working_grid(ct, liver, spleen, **card.preprocessing, cancel=cancel)
        forward_pass = run_network(model, grid, steps)
        regions(grid, surface_mm)  # while the checks end; kept for the map's measurements
        phase, checks = checking.result()
        refuse(checks, name, strict, any_phase)
        warnings += [*about_masks, *concerns(checks), *grid.warnings]

        probabilities = forward_pass.probabilities
        probabilities.flags.writeable = False
        predicted = STAGES[forward_pass.predicted]
        members = forward_pass.member_probabilities
        explanation = explain_score(forward_pass, ct, explain, steps, surface_mm)
        why_not = reasons(
            predicted,
            checks,
            predicted_outside(forward_pass, explanation, steps),
            None if members is None else spread(members, predicted),
            has_spleen=spleen is not None,
            spleen_is_input="spleen" in card.channels,
        )
        steps.begin(0.95, "Measuring signs")  # what is left of it
        signs, voxels_sha256 = measuring.result().in_phase(phase), hashing.result()
        steps.check()
    provenance = _provenance(model, ct, grid, voxels_sha256)
    provenance["segmentation"] = segmentation and {**segmentation, "organs": segmented}
    provenance["seconds"] = steps.end()
    return StagingResult(
        probabilities=probabilities,
        stage=predicted,
        scores=group_scores(probabilities),
        signs=signs,
        checks=checks,
        phase=phase,
        reasons=why_not,
        staging_warnings=tuple(map(Names(*given).removed, warnings)),
        ct=ct,
        liver=liver,
        spleen=spleen,
        provenance=provenance,
        forward_pass=forward_pass,
        **vars(explanation),
    )


def _loaded(model: StagingModel | str | Path | None) -> StagingModel:
    if isinstance(model, StagingModel):
        return model
    return StagingModel.load(default_model_path() if model is None else model)


def _organ(mask: sitk.Image | str | Path | None, cancel: CancelToken | None) -> sitk.Image | None:
    return mask if mask is None or isinstance(mask, sitk.Image) else read_organ(mask, cancel)


def _segmenting_network(loading: Future[StagingModel]) -> SegmentationModel:
    """The segmentation network, on the staging model's device."""
    model = loading.result()
    return shipped_network(model.threads, model.device)


def check_surface(surface_mm: float) -> None:
    """Raises StagingError unless the thickness of the liver's surface is a length above 0."""
    if not 0 < surface_mm < math.inf:
        raise StagingError(f"The shell has {surface_mm:g} mm; a thickness above 0 mm is needed.")


def _given(
    image: sitk.Image | str | Path | Sequence[Path] | None,
) -> str | Path | Sequence[Path] | None:
    """Path, files or name of an input; None if it has none of them."""
    if not isinstance(image, sitk.Image):
        return image
    return image.GetMetaData(NAME_KEY) if image.HasMetaDataKey(NAME_KEY) else None


def software() -> dict[str, str]:
    """Versions of the software that a result depends on; requires onnxruntime."""
    import onnxruntime

    return {
        "LiverFibrosisStaging": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "SimpleITK": sitk.__version__,
        "onnxruntime": onnxruntime.__version__,
    }


@contextmanager
def _one_thread() -> Iterator[ThreadPoolExecutor]:
    """A thread for what takes one core beside the other steps. It has ended after the context; if
    that fails, what the thread has not begun is left out.

    No SimpleITK filter may read the CT or a mask beside it: as long as one does, SimpleITK copies
    the voxels for each new view, and frees those of earlier views, which other steps still read.
    """
    executor = ThreadPoolExecutor(1)
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)


def _voxels_sha256(ct: sitk.Image, cancel: CancelToken | None) -> str:
    """Hash of a CT's voxels and geometry. Raises Cancelled."""
    voxels = hashlib.sha256()
    for plane in sitk.GetArrayViewFromImage(ct):
        check_cancel(cancel)
        voxels.update(plane)
    geometry = (ct.GetSize(), ct.GetSpacing(), ct.GetOrigin(), ct.GetDirection())
    voxels.update(repr(geometry).encode())
    return voxels.hexdigest()


def _provenance(
    model: StagingModel, ct: sitk.Image, grid: WorkingGrid, voxels_sha256: str
) -> dict[str, Any]:
    card = model.card
    return {
        "model": {
            "name": card.name,
            "sha256": model.sha256,
            "trained_on": card.trained_on,
            "intended_use": card.intended_use,
            "target_layer": card.target_layer,
            "window_hu": list(card.window_hu),
            "spacing_mm": list(card.spacing_mm),
            "patches": len(grid.starts),
            "device": model.device,
        },
        "input": {
            "sha256": voxels_sha256,
            "size": list(ct.GetSize()),
            "spacing_mm": list(ct.GetSpacing()),
        },
        "software": software(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
