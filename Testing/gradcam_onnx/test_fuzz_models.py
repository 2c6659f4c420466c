"""Damaged model files are loaded and run, or refused with a message (see Testing/fuzz.py)."""

import pytest

pytest.importorskip("onnx", reason="makes the model files")
from fuzz_models import model_targets
from fuzzing import hunt

MUTANTS = 150


@pytest.mark.parametrize(
    "name",
    [
        f"{model}{way}"
        for model in ("staging", "explainable", "segmentation")
        for way in (".onnx", " as ONNX")
    ],
)
def test_damaged_models_run_or_are_refused(name, tmp_path):
    tally = hunt(model_targets(tmp_path)[name], seed=1, count=MUTANTS)
    assert tally.findings == []
    assert tally.read + tally.refused == MUTANTS and tally.read and tally.refused
