"""What a staging model rests on in real CTs, whose stage need not be known.

    python Training/check_cts.py cases.csv --model RUN/LFS.onnx -o FOLDER

cases.csv: a list of cases with masks, as for `batch`. FOLDER receives checked.csv: expected stage
and its range among the ensemble's networks, predicted stage, share of the location map of the
expected stage within liver and spleen, with 10 mm around the liver, the organs' share of the body,
and the expected stage after each of the changes of `check-explanation`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from tqdm import tqdm

from common.tables import MISSING, markdown, write_csv
from LiverFibrosisStagingLib import StagingModel, stage
from LiverFibrosisStagingLib.batch.cohort import Case
from LiverFibrosisStagingLib.batch.lists import read_list
from LiverFibrosisStagingLib.errors import StagingError
from LiverFibrosisStagingLib.explanation_check import CHANGES, check_explanation
from LiverFibrosisStagingLib.imaging.masks import organ_masks, read_organ
from LiverFibrosisStagingLib.imaging.reading import read_ct
from LiverFibrosisStagingLib.stages import EXPECTED, RESEARCH_USE, STAGES, expected_stage


def check(case: Case, model: StagingModel) -> dict[str, Any]:
    """The row of one case. Raises StagingError if it cannot be staged or has no liver mask."""
    if case.liver is None:
        raise StagingError(f"{case.name}: there is no liver mask; one is needed.")
    ct = read_ct(case.ct)
    spleen = None if case.spleen is None else read_organ(case.spleen)
    liver, spleen, _ = organ_masks(ct, read_organ(case.liver), spleen)
    result = stage(ct, liver, spleen, model, EXPECTED, any_phase=True)
    members = result.member_probabilities
    row: dict[str, Any] = {"case": case.name, "predicted": result.stage}
    row |= dict(zip(STAGES, result.probabilities.tolist()))
    row["expected"] = expected_stage(result.probabilities)
    if members is not None:
        of_members = [expected_stage(one) for one in members]
        row |= {"lowest": min(of_members), "highest": max(of_members)}
    row |= shares(result)
    after = check_explanation(result).after
    return row | {name: after.get(name, MISSING) for name in CHANGES}


def shares(result: Any) -> dict[str, float]:
    """Shares of the map's weight, and of the body, in the organs; on the working grid."""
    grid = result.forward_pass.grid
    weight = sitk.GetArrayFromImage(sitk.Resample(result.location_map, grid.volume))
    body = sitk.GetArrayViewFromImage(grid.body) > 0
    liver = sitk.GetArrayViewFromImage(grid.liver) > 0
    spleen = np.zeros_like(liver)
    if grid.spleen is not None:
        spleen = sitk.GetArrayViewFromImage(grid.spleen) > 0
    total = float(weight[body].sum()) or np.nan
    outside = np.nan if result.outside_share is None else result.outside_share
    return {
        "share": float(weight[(liver | spleen) & body].sum()) / total,
        "share_with_10_mm": 1 - outside,
        "spleen_share": float(weight[spleen & body].sum()) / total,
        "organs_of_body": float(((liver | spleen) & body).sum() / max(body.sum(), 1)),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=f"{__doc__.splitlines()[0]} {RESEARCH_USE}")
    parser.add_argument("cases", type=Path, help="a list of cases, as for batch")
    parser.add_argument("--model", type=Path, required=True, help="an exported model")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    options = parser.parse_args(arguments)
    rows, refused = [], 0
    try:
        model = StagingModel.load(options.model)
        for case in tqdm(read_list(options.cases), unit="CT"):
            try:
                rows.append(check(case, model))
            except StagingError as refusal:
                print(refusal, file=sys.stderr)
                refused += 1
    except (StagingError, OSError) as refusal:
        print(refusal, file=sys.stderr)
        return 1
    if not rows:
        return 1
    options.output.mkdir(parents=True, exist_ok=True)
    lines = [[*rows[0]], *([*row.values()] for row in rows)]
    shown = [[f"{v:.3f}" if isinstance(v, float) else str(v) for v in line] for line in lines]
    write_csv(options.output / "checked.csv", shown)
    print(f"{markdown(shown)}\n\n{RESEARCH_USE}")
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
