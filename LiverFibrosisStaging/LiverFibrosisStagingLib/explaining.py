"""Forward pass on the working grid, and the location map of one score.

The network's outputs are kept, so that further stages and groups are explained without re-running
the network.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

from .analysis import (
    Pattern,
    Thresholds,
    measure,
    outside_share,
    pattern,
    thresholds,
)
from .errors import CancelToken, check_cancel
from .imaging.grid import WorkingGrid, patch_array
from .location_map import LocationMap, MapOnCt, merge_patches, on_ct
from .model import MEMBERS, Forward, StagingModel
from .quality import percentiles, unusual
from .report.summary import SURFACE_MM
from .stages import STAGES, explained_stages, median_stage, softmax

Progress = Callable[[float, str], None]


class Steps:
    """Progress, cancellation and the duration of each step."""

    def __init__(self, progress: Progress | None, cancel: CancelToken | None) -> None:
        self._progress = progress
        self.cancel = cancel
        self._seconds: dict[str, float] = {}
        self._name = ""
        self._since = 0.0

    def check(self) -> None:
        """Raises Cancelled if the user has cancelled; called between the parts of a long step."""
        check_cancel(self.cancel)

    def begin(self, fraction: float, name: str) -> None:
        """Start a step, at a fraction 0..1 of the whole. Raises Cancelled."""
        self.check()
        self._close()
        self._name = name
        if self._progress is not None:
            self._progress(fraction, name)

    def end(self) -> dict[str, float]:
        """Finish; returns the seconds by step."""
        self._close()
        if self._progress is not None:
            self._progress(1.0, "Done")
        return {name: round(seconds, 3) for name, seconds in self._seconds.items()}

    def _close(self) -> None:
        now = time.perf_counter()
        if self._name:
            self._seconds[self._name] = self._seconds.get(self._name, 0.0) + now - self._since
        self._since = now


@dataclass(frozen=True, eq=False)
class ForwardPass:
    """The network's outputs for one case, kept for explaining other stages.

    forwards: one per patch of the grid, in the order of `grid.starts`.
    """

    model: StagingModel
    grid: WorkingGrid
    forwards: tuple[Forward, ...]

    @property
    def logits(self) -> np.ndarray:
        """The case's logits float64 [5]: the mean over its patches."""
        return np.mean([forward.logits[0] for forward in self.forwards], axis=0, dtype=np.float64)

    @property
    def probabilities(self) -> np.ndarray:
        """The case's calibrated probabilities, float64 [5]."""
        return softmax(self.logits, self.model.card.temperature)

    @property
    def predicted(self) -> int:
        """Index of the predicted stage (`stages.median_stage`)."""
        return int(median_stage(self.probabilities))

    @property
    def member_probabilities(self) -> np.ndarray | None:
        """Probabilities float64 [members, 5] of an ensemble's members; None for one network."""
        if MEMBERS not in self.forwards[0].tensors:
            return None
        logits = [forward.tensors[MEMBERS][0] for forward in self.forwards]
        return softmax(np.mean(logits, axis=0, dtype=np.float64), self.model.card.temperature)


@dataclass(frozen=True, eq=False)
class Explanation:
    """The part of a `StagingResult` that depends on the explained score; see there."""

    explained: str
    map_on_ct: MapOnCt
    measurements: dict[str, dict[str, float]]
    surface_mm: float
    outside_share: float | None
    pattern: Pattern
    percentiles: dict[str, float]
    map_warnings: tuple[str, ...]


def run_network(model: StagingModel, grid: WorkingGrid, steps: Steps) -> ForwardPass:
    """Run the network on every patch. Raises StagingError if it fails, and Cancelled."""
    forwards = []
    for number, start in enumerate(grid.starts):
        steps.begin(0.4 + 0.25 * number / len(grid.starts), "Running the network")
        patch = patch_array(grid, start, model.card.patch_size[0])
        forwards.append(model.run(patch, steps.cancel))
    return ForwardPass(model, grid, tuple(forwards))


def explain_score(
    forward_pass: ForwardPass,
    ct: sitk.Image,
    explain: str,
    steps: Steps,
    surface_mm: float = SURFACE_MM,
) -> Explanation:
    """The location map of one score, merged from the patches and resampled to the CT's grid.

    explain, surface_mm: as for `staging.stage`. Raises StagingError for an unknown name, and
    Cancelled.
    """
    predicted = forward_pass.predicted
    members = explained_stages(explain, predicted)
    explained = STAGES[predicted] if explain == "predicted" else explain
    location = _merged_map(forward_pass, members, steps, 0.65)
    measurements = measure(location, forward_pass.grid, surface_mm)
    steps.begin(0.8, "Resampling the map to the CT's grid")
    map_on_ct = on_ct(location, forward_pass.grid, ct)
    steps.check()
    reference = forward_pass.model.card.reference
    # The reference contains maps of the predicted stage, with a surface of SURFACE_MM.
    usual_surface = surface_mm == SURFACE_MM
    found: dict[str, float] = {}
    map_warnings: list[str] = []
    if location.body_mean == 0:
        if members != (predicted,):  # otherwise a reason of the result (`support.reasons`)
            map_warnings = [
                f"The location map is empty: no region contributed positively to {explained}."
            ]
    elif members == (predicted,):
        comparable = {
            region: values
            for region, values in measurements.items()
            if usual_surface or region not in ("liver_surface", "liver_core")
        }
        found = percentiles(comparable, reference, explained)
        map_warnings = unusual(comparable, reference, explained)
    return Explanation(
        explained=explained,
        map_on_ct=map_on_ct,
        measurements=measurements,
        surface_mm=surface_mm,
        outside_share=outside_share(location, forward_pass.grid),
        pattern=pattern(measurements, thresholds(reference) if usual_surface else Thresholds()),
        percentiles=found,
        map_warnings=tuple(map_warnings),
    )


def predicted_outside(
    forward_pass: ForwardPass, explanation: Explanation, steps: Steps
) -> float | None:
    """`outside_share` of the predicted stage's map, which may not be the one that was explained."""
    if explanation.explained == STAGES[forward_pass.predicted]:
        return explanation.outside_share
    location = _merged_map(forward_pass, (forward_pass.predicted,), steps, 0.85)
    return outside_share(location, forward_pass.grid)


def _merged_map(
    forward_pass: ForwardPass, members: tuple[int, ...], steps: Steps, since: float
) -> LocationMap:
    """The map of a score; its steps begin at the fraction `since`."""
    maps = []
    for number, forward in enumerate(forward_pass.forwards):
        steps.begin(since + 0.1 * number / len(forward_pass.forwards), "Explaining")
        maps.append(forward_pass.model.location_map(forward, members)[0])
    steps.begin(since + 0.1, "Merging the location map")
    return merge_patches(maps, forward_pass.grid, forward_pass.model.card.patch_size)
