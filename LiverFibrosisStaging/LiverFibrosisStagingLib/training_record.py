"""Metadata on a model's training, common to staging and segmentation models."""

from typing import Any, TypedDict

from .gradcam_onnx.metadata import InvalidValue, entries, fields, items, line, number, whole
from .stages import STAGES


class Interval(TypedDict):
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


class Training(TypedDict, total=False):
    """What a model was trained and evaluated on. auc: by group.

    cases_per_range: number of cases of which a range of stages is known, such as "F1-F2".
    """

    data: str
    cases_per_stage: list[int]
    cases_per_range: dict[str, int]
    date: str
    code_version: str
    folds: int
    auc: dict[str, Interval]
    evaluated_on: str


def _interval(value: Any) -> Interval:
    share = number(0, 1)
    found = fields({"value": share, "low": share, "high": share}, optional=())(value)
    if found["low"] > found["high"]:
        raise InvalidValue(value, "an interval with low <= high")
    return found


TRAINING = fields(
    {
        "data": line,
        "cases_per_stage": items(whole(0, 10**9), len(STAGES)),
        "cases_per_range": entries(whole(0, 10**9)),
        "date": line,
        "code_version": line,
        "folds": whole(1, 10**6),
        "auc": entries(_interval),
        "evaluated_on": line,
    }
)
