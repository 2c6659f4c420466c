"""What a stage depends on, measured on CTs that are changed: how far the expected stage moves.

Each change takes one thing out of the CT (`imaging.changes`): the surroundings, the organs, the
texture of the liver, the spleen's size, the nodules of the surface. The changed CT is staged as any
other. A model whose expected stage depends on the surroundings fails its own check.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from .batch.case_row import why_failed
from .batch.cohort import Case
from .card import Checks
from .errors import Cancelled, CancelToken
from .explaining import Progress, Steps, run_network
from .files import write_folder, write_table
from .imaging.changes import (
    smaller_spleen,
    smooth_surface,
    surroundings_as_fat,
    uniform_core,
    without_organs,
)
from .imaging.grid import body_bounds
from .model import StagingModel
from .report.slices import WINDOW_HU, Plane
from .result import StagingResult
from .signs.published import published_signs
from .stages import RESEARCH_USE, expected_stage
from .staging import software, stage

SURROUNDINGS = "surroundings are fat"
ORGANS = "organs are fat, no masks"
TEXTURE = "liver core is uniform"
SPLEEN = "spleen has normal volume"
SURFACE = "liver surface is smooth"
CHANGES = (SURROUNDINGS, ORGANS, TEXTURE, SPLEEN, SURFACE)
LIMIT = 0.3  # stages: a model that the surroundings move by this much fails its own check
FILES = ("explanation_check.csv", "explanation_check.png", "explanation_check.json")
SCHEMA = 1
_SLICE_PIXELS = 220  # width of a slice in the picture


@dataclass(frozen=True, eq=False)
class CaseCheck:
    """The check of one CT.

    name: of the case. stage: predicted for the CT as it is. expected: its expected stage, 0 to 4;
    None if it was refused, for `reason`. after: by change, the expected stage of the changed CT.
    notes: why a change was not possible. pictures: by change, and "" for the CT as it is, a slice,
    float32 0..1 [row, column].
    """

    name: str
    stage: str = ""
    expected: float | None = None
    after: Mapping[str, float] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    pictures: Mapping[str, np.ndarray] = field(default_factory=dict)
    reason: str = ""

    @property
    def moved(self) -> dict[str, float]:
        """By change, how far the expected stage moves; positive towards F4."""
        return {name: value - self.expected for name, value in self.after.items()}

    def summary(self) -> dict[str, Any]:
        """As written to explanation_check.json."""
        found = {"case": self.name, "status": "failed" if self.reason else "done"}
        if self.reason:
            return {**found, "reason": self.reason}
        found |= {"stage": self.stage, "expected": self.expected}
        return {**found, "after": dict(self.after), "moved": self.moved, "notes": dict(self.notes)}


@dataclass(frozen=True, eq=False)
class ExplanationCheck:
    """The check of a model on one or several cases."""

    model: StagingModel
    cases: tuple[CaseCheck, ...]

    @property
    def measured(self) -> tuple[CaseCheck, ...]:
        """The cases that were not refused."""
        return tuple(case for case in self.cases if not case.reason)

    @property
    def moved(self) -> dict[str, dict[str, float]]:
        """By change, number of cases, and mean, mean absolute and largest movement."""
        by_change = {n: [c.moved[n] for c in self.measured if n in c.moved] for n in CHANGES}
        return {name: movement(values) for name, values in by_change.items() if values}

    @property
    def passed(self) -> bool | None:
        """Whether the surroundings move the expected stage by less than LIMIT on average; None
        without a case.
        """
        return passes(self.moved)

    def checks(self, source: str) -> Checks:
        """For the model's metadata, entry `checks`; source: one line on the cases."""
        return {"source": source, "moved": self.moved}

    def summary(self) -> dict[str, Any]:
        """Everything except the pictures, as in explanation_check.json."""
        card = self.model.card
        return {
            "schema": SCHEMA,
            "research_use": RESEARCH_USE,
            "model": {
                "name": card.name,
                "sha256": self.model.sha256,
                "trained_on": card.trained_on,
            },
            "limit": LIMIT,
            "passed": self.passed,
            "moved": self.moved,
            "cases": [case.summary() for case in self.cases],
            "software": software(),
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }

    def lines(self) -> list[str]:
        """The findings as text, for consoles."""
        if len(self.measured) != 1:
            return moved_lines(self.moved)
        (case,) = self.measured
        found = [f"{'as it is':26}  {case.expected:.2f}  predicted {case.stage}"]
        for name in CHANGES:
            text = case.notes.get(name, "")
            if name in case.after:
                text = f"{case.after[name]:.2f}  {case.moved[name]:+.2f}"
            found.append(f"{name:26}  {text}")
        return ["expected stage, and how far it moves:", *found]

    def save(self, folder: str | Path) -> Path:
        """Write explanation_check.csv, .png and .json, all or none; returns the folder.

        The folder is created if missing. The picture shows the case that the surroundings move
        most; without a measured case there is none. Raises StagingError if it cannot be written.
        """
        from .report.drawing import write_png
        from .report.explanation_figure import render

        def write(partial: Path) -> None:
            write_table(partial / FILES[0], COLUMNS, map(self._row, self.cases))
            if self.measured:
                case = _most_moved(self.measured)
                rows = [("as it is", case.expected, "")]
                rows += [(n, case.after.get(n), case.notes.get(n, "")) for n in CHANGES]
                pictures = [case.pictures.get(name) for name in ("", *CHANGES)]
                title = f"{self.model.card.name}: what the stage depends on"
                write_png(render(title, rows, pictures, verdict(self.moved)), partial / FILES[1])
            text = json.dumps(self.summary(), indent=2, ensure_ascii=False)
            (partial / FILES[2]).write_text(text + "\n", encoding="utf-8")

        return write_folder(folder, FILES, write)

    def _row(self, case: CaseCheck) -> dict[str, Any]:
        found = {"case": case.name, "reason": case.reason, "notice": RESEARCH_USE}
        found |= {"model": self.model.card.name, "status": "failed" if case.reason else "done"}
        if case.expected is not None:
            found |= {"stage": case.stage, "expected": round(case.expected, 4)}
        return found | {name: round(value, 4) for name, value in case.after.items()}


COLUMNS = ("case", "status", "reason", "stage", "expected", *CHANGES, "model", "notice")


def check_explanation(
    result: StagingResult, progress: Progress | None = None, cancel: CancelToken | None = None
) -> CaseCheck:
    """The check of a staged CT; `result.forward_pass.model` stages the changed ones.

    progress and cancel as for `stage`. Raises StagingError if a changed CT cannot be staged, and
    Cancelled.
    """
    model, grid = result.forward_pass.model, result.forward_pass.grid
    ct, liver, spleen = result.ct, result.liver, result.spleen
    plane = _plane(result)
    after: dict[str, float] = {}
    notes: dict[str, str] = {}
    pictures = {"": _grey(plane.sample(ct, outside=WINDOW_HU[0]))}
    for number, name in enumerate(CHANGES):

        def within(fraction: float, step: str, number: int = number, name: str = name) -> None:
            if progress is not None:
                progress((number + fraction) / len(CHANGES), f"{name}: {step}")

        steps = Steps(within, cancel)
        steps.begin(0.0, "Changing the CT")
        if name == ORGANS:
            changed = without_organs(grid, model.card.window_hu)
            after[name] = expected_stage(run_network(model, changed, steps).probabilities)
            pictures[name] = plane.sample(changed.volume)[0]
            continue
        masks = liver, spleen
        if name == SURROUNDINGS:
            other = surroundings_as_fat(ct, liver, spleen)
        elif name == TEXTURE:
            other = uniform_core(ct, liver)
        elif name == SURFACE:
            other, smooth = smooth_surface(ct, liver)
            masks = smooth, spleen
        else:
            target = normal_spleen_ml()
            shrunk = None if spleen is None else smaller_spleen(ct, liver, spleen, target)
            if shrunk is None:
                found = "there is no spleen mask" if spleen is None else f"at most {target:.0f} mL"
                notes[name] = f"not changed: {found}"
                continue
            other, small = shrunk
            masks = liver, small
        # A changed CT has no phase: the aorta may be fat.
        staged = stage(other, *masks, model, progress=within, cancel=cancel, any_phase=True)
        after[name] = expected_stage(staged.probabilities)
        pictures[name] = _grey(plane.sample(other, outside=WINDOW_HU[0]))
    expected = expected_stage(result.probabilities)
    return CaseCheck("CT", result.stage, expected, after, notes, pictures)


def check_cases(
    cases: Sequence[Case],
    model: StagingModel,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
    notify: Callable[[str], None] | None = None,
    strict: bool = False,
    any_phase: bool = False,
) -> ExplanationCheck:
    """Stage and check cases, as from `cases.read_cohort`.

    Only the case that the surroundings move most keeps its pictures. A case that is refused has a
    reason instead of results; its sentence for the screen, which may name files, is given to
    `notify`. strict, any_phase: as for `stage`. Raises StagingError if the only case is refused,
    and Cancelled.
    """
    found: list[CaseCheck] = []
    for number, case in enumerate(cases):

        def within(fraction: float, step: str, number: int = number, name: str = case.name) -> None:
            if progress is not None:
                progress((number + fraction) / len(cases), f"{name}: {step}")

        def first(fraction: float, step: str, within: Progress = within) -> None:
            within(fraction / (1 + len(CHANGES)), step)

        def later(fraction: float, step: str, within: Progress = within) -> None:
            within((1 + fraction * len(CHANGES)) / (1 + len(CHANGES)), step)

        try:
            result = stage(
                case.source,
                case.liver,
                case.spleen,
                model,
                progress=first,
                cancel=cancel,
                strict=strict,
                any_phase=any_phase,
            )
            checked = replace(check_explanation(result, later, cancel), name=case.name)
        except Cancelled:
            raise
        except Exception as error:  # the other cases are still checked
            if len(cases) == 1:
                raise
            shown, written = why_failed(error, case, {model.path: "the model"})
            if notify is not None:
                notify(f"{case.name}: {shown}")
            checked = CaseCheck(case.name, reason=written)
        found.append(checked)
        most = _most_moved([each for each in found if not each.reason])
        found = [each if each is most else replace(each, pictures={}) for each in found]
    return ExplanationCheck(model, tuple(found))


def normal_spleen_ml() -> float:
    """The published mean volume of the spleen in F0."""
    groups = published_signs().groups
    return next(g.mean for g in groups if (g.sign.key, g.group) == ("spleen_volume_ml", "F0"))


def movement(values: Sequence[float]) -> dict[str, float]:
    """Number, mean, mean absolute and largest value of movements of the expected stage."""
    size = np.abs(values)
    return {
        "cases": len(values),
        "mean": float(np.mean(values)),
        "mean_absolute": float(size.mean()),
        "largest": float(size.max()),
    }


def passes(moved: Mapping[str, Mapping[str, float]]) -> bool | None:
    """Whether a model with these movements passes its own check; None if it was not measured."""
    return moved[SURROUNDINGS]["mean_absolute"] < LIMIT if SURROUNDINGS in moved else None


def verdict(moved: Mapping[str, Mapping[str, float]]) -> str:
    """One sentence on whether a model with these movements passes its own check."""
    passed = passes(moved)
    if passed is None:
        return "Not measured."
    values = moved[SURROUNDINGS]
    cases = "one case" if values["cases"] == 1 else f"mean of {values['cases']} cases"
    return (
        f"The model {'passes' if passed else 'fails'} its own check: fat in place of the "
        f"surroundings moves the expected stage by {values['mean_absolute']:.2f} ({cases}); less "
        f"than {LIMIT:g} is needed."
    )


def moved_lines(moved: Mapping[str, Mapping[str, float]]) -> list[str]:
    """A table of movements as text."""
    lines = [
        f"{name:26}  {values['mean']:+.2f}  {values['mean_absolute']:.2f}  {values['largest']:.2f}"
        f"  ({values['cases']})"
        for name, values in moved.items()
    ]
    return ["the expected stage moves by: mean, mean size, largest (cases)", *lines]


def _most_moved(cases: Sequence[CaseCheck]) -> CaseCheck | None:
    """The case that the surroundings move most."""
    return max(cases, key=lambda case: abs(case.moved[SURROUNDINGS]), default=None)


def _plane(result: StagingResult) -> Plane:
    """The axial plane with the most liver and spleen, with the body in _SLICE_PIXELS columns."""
    grid = result.forward_pass.grid
    organs = grid.liver if grid.spleen is None else sitk.Or(grid.liver, grid.spleen)
    most = int(sitk.GetArrayViewFromImage(organs).sum(axis=(1, 2)).argmax())
    low, high = body_bounds(result.ct)
    mm = (high[0] - low[0]) / _SLICE_PIXELS
    z = organs.TransformIndexToPhysicalPoint([0, 0, most])[2]
    rows = max(1, round((high[1] - low[1]) / mm))
    return Plane(
        np.array([low[0] + mm / 2, low[1] + mm / 2, z]),
        np.array([_SLICE_PIXELS, rows, 1]),
        np.array([mm, mm, 1.0]),
    )


def _grey(hu: np.ndarray) -> np.ndarray:
    """The first slice in the soft tissue window."""
    low, high = WINDOW_HU
    return np.clip((hu[0] - low) / (high - low), 0.0, 1.0)
