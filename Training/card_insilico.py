"""Describe a model trained on painted fibrosis: its results in its metadata, and its model card.

    python Training/card_insilico.py --model LFS.onnx --results FOLDER

FOLDER has metrics.json and cases.csv of check_insilico.py and, for unmodified CTs, real_cts.csv
with the columns case, expected, those of the changes and share_with_10_mm of check_cts.py's table.
The AUCs with their intervals are added to the model file, unless it has AUCs from elsewhere, and
the movements of the expected stage as its checks; MODEL_CARD.md is written into FOLDER.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from evaluation import painted_card
from lfs.export import describe
from LiverFibrosisStagingLib.errors import StagingError
from LiverFibrosisStagingLib.model import read_card
from LiverFibrosisStagingLib.stages import RESEARCH_USE
from painted.check import model_checks


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=f"{__doc__.splitlines()[0]} {RESEARCH_USE}")
    parser.add_argument("--model", type=Path, required=True, help="an exported model")
    parser.add_argument("--results", type=Path, required=True, metavar="FOLDER")
    options = parser.parse_args(arguments)
    try:
        measured = painted_card.evaluated(options.results)
        metrics = painted_card.read_metrics(options.results)
        training = measured | read_card(options.model).training
        describe(options.model, {"training": training, "checks": model_checks(metrics)})
        print(painted_card.write(options.model, options.results))
    except (StagingError, OSError) as refusal:
        print(refusal, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
