"""Evaluate the V-Net's segmentation of liver and spleen.

    python Training/evaluate_vnet.py cases.csv --model RUN/VNet.onnx -o FOLDER
    python Training/evaluate_vnet.py cases.csv --model-of hcc002=RUN2/VNet.onnx ... -o FOLDER

The CTs are segmented with the library's `segment`, as by users. The second command evaluates each
case with a model that was not trained on it (train_vnet.py --leave-out); cases without a model are
not evaluated. FOLDER receives segmentation.csv, segmentation.md (Dice, 95th percentile of the
surface distances in mm, volumes) and a figure with the contours of every case.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk
import torch
from matplotlib.figure import Figure
from monai.metrics import compute_dice, compute_hausdorff_distance
from tqdm import tqdm

from common.resume import check_not_trained_on, digest, training_cts
from common.tables import write_csv, write_markdown
from LiverFibrosisStagingLib import StagingError, read_ct
from LiverFibrosisStagingLib.imaging.masks import organ_masks
from LiverFibrosisStagingLib.imaging.segmentation import Segmentation, segment
from LiverFibrosisStagingLib.stages import RESEARCH_USE
from vnet.data import Labelled, check_names, read_cases

COLORS = {"liver": "#ff5a36", "spleen": "#35c9ff"}


class Measured(NamedTuple):
    """Agreement with the reference mask of an organ; volumes in mL, lengths in mm."""

    case: str
    organ: str
    dice: float
    hd95_mm: float
    volume_ml: float
    true_ml: float

    @property
    def volume_error(self) -> float:
        """Relative error, signed."""
        return self.volume_ml / self.true_ml - 1


def measure(case: str, organ: str, found: sitk.Image | None, truth: sitk.Image) -> Measured:
    """Agreement of two masks on the same grid; an organ that was not segmented has Dice 0."""
    if found is None:
        found = truth * 0
    spacing = truth.GetSpacing()[::-1]
    ours, reference = (sitk.GetArrayFromImage(m).astype(bool) for m in (found, truth))
    extent = [np.flatnonzero((ours | reference).any(axis=a)) for a in ((1, 2), (0, 2), (0, 1))]
    box = tuple(slice(e[0], e[-1] + 1) for e in extent)
    pair = [torch.from_numpy(np.ascontiguousarray(m[box]))[None, None] for m in (ours, reference)]
    dice = float(compute_dice(*(p.float() for p in pair)))
    distance = compute_hausdorff_distance(*pair, percentile=95, spacing=spacing)
    voxel = np.prod(spacing) / 1000
    return Measured(case, organ, dice, float(distance), ours.sum() * voxel, reference.sum() * voxel)


def truth_of(case: Labelled, ct: sitk.Image) -> dict[str, sitk.Image]:
    """The reference masks of a case, by organ, on the CT's grid."""
    liver, spleen = (None if mask is None else mask.image() for mask in case[2:])
    if liver is None:
        return {"spleen": organ_masks(ct, spleen, None)[0]}
    masks = organ_masks(ct, liver, spleen)[:2]
    return {organ: mask for organ, mask in zip(COLORS, masks) if mask is not None}


def contours(ct: sitk.Image, found: Segmentation, truth: dict[str, sitk.Image]) -> Figure:
    """Six axial and two coronal sections: segmentation as lines, reference masks as dots."""
    hu = sitk.GetArrayViewFromImage(ct)
    organs = {"liver": found.liver, "spleen": found.spleen}
    arrays = {o: None if m is None else sitk.GetArrayFromImage(m) for o, m in organs.items()}
    reference = {organ: sitk.GetArrayFromImage(mask) for organ, mask in truth.items()}
    z, y = (np.flatnonzero(arrays["liver"].any(axis=a)) for a in ((1, 2), (0, 2)))
    steps = ct.GetSpacing()[::-1]
    middle = {name: int(np.median(np.nonzero(a)[1])) for name, a in arrays.items() if a is not None}
    views = [(0, int(k)) for k in np.linspace(z[0], z[-1], 8)[1:-1]]
    views += [(1, middle["liver"]), (1, middle.get("spleen", int(y[len(y) // 2])))]
    upwards = ct.GetDirection()[8] > 0  # coronal sections are drawn with the head at the top
    drawn = Figure(figsize=(16, 8), layout="constrained")
    for axes, (axis, index) in zip(drawn.subplots(2, 4).flat, views):

        def plane(array: np.ndarray, axis: int = axis, index: int = index) -> np.ndarray:
            taken = array.take(index, axis=axis)
            return taken[::-1] if axis and upwards else taken

        aspect = 1.0 if axis == 0 else steps[0] / steps[2]
        axes.imshow(plane(hu), cmap="gray", vmin=-125, vmax=225, aspect=aspect)
        for organ, color in COLORS.items():
            for source, style in ((arrays, "-"), (reference, ":")):
                if source.get(organ) is not None and plane(source[organ]).any():
                    axes.contour(plane(source[organ]), [0.5], colors=color, linestyles=style)
        axes.set_axis_off()
    drawn.supxlabel(f"Lines: segmentation. Dots: reference. {RESEARCH_USE}", fontsize=9)
    return drawn


def table(found: Sequence[Measured]) -> list[list[str]]:
    """A row for each organ of each case, then the means."""
    lines = [["Case", "Organ", "Dice", "95 % of surface within", "Volume", "Reference", "Error"]]
    for m in found:
        volumes = [f"{m.volume_ml:.0f} mL", f"{m.true_ml:.0f} mL", f"{100 * m.volume_error:+.1f} %"]
        lines.append([m.case, m.organ, f"{m.dice:.3f}", f"{m.hd95_mm:.1f} mm", *volumes])
    for organ in COLORS:
        part = [m for m in found if m.organ == organ]
        if part:
            dice = np.mean([m.dice for m in part])
            distance = np.mean([m.hd95_mm for m in part])
            error = 100 * np.mean([abs(m.volume_error) for m in part])
            lines.append(
                ["mean", organ, f"{dice:.3f}", f"{distance:.1f} mm", "", "", f"{error:.1f} %"]
            )
    return lines


def evaluate(cases: Sequence[Labelled], models: dict[str, Path], folder: Path) -> list[Measured]:
    """Evaluate every case that has a model, and write tables and figures."""
    folder.mkdir(parents=True, exist_ok=True)
    found: list[Measured] = []
    measured = [case for case in cases if case.name in models]
    for case in tqdm(measured, "Segmenting", unit="CT"):
        ct = read_ct(case.ct)
        segmentation, truth = segment(ct, models[case.name]), truth_of(case, ct)
        for organ, mask in truth.items():
            found.append(measure(case.name, organ, getattr(segmentation, organ), mask))
        drawn = contours(ct, segmentation, truth)
        drawn.savefig(folder / f"contours_{case.name}.png", dpi=90)
    rows = [[*Measured._fields, "volume_error"], *([*m, m.volume_error] for m in found)]
    write_csv(folder / "segmentation.csv", rows)
    known = [c.name for c in measured if digest(c.ct) in training_cts(models[c.name])]
    notice = (
        f"The network was trained on {', '.join(known)}. {RESEARCH_USE}" if known else RESEARCH_USE
    )
    write_markdown(folder / "segmentation.md", table(found), notice)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="CSV or Decathlon folder (see train_vnet.py)")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", type=Path, help="model for all cases")
    which.add_argument("--model-of", nargs="+", metavar="CASE=ONNX", help="model for each case")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    options = parser.parse_args(arguments)
    try:
        cases = read_cases(options.data)
        check_names(cases)
        if options.model:
            models = {case.name: options.model for case in cases}
        else:
            pairs = [text.partition("=")[::2] for text in options.model_of]
            models = {name: Path(file) for name, file in pairs}
            unknown = set(models) - {case.name for case in cases}
            if unknown:
                raise StagingError(
                    f"{options.data}: there is no case {', '.join(sorted(unknown))}."
                )
            for case in cases:
                if case.name in models:
                    check_not_trained_on(models[case.name], {case.name: case.ct})
        found = evaluate(cases, models, options.output)
    except (StagingError, OSError) as refusal:
        print(refusal, file=sys.stderr)
        return 1
    for line in table(found):
        print("  ".join(line))
    return 0


if __name__ == "__main__":
    sys.exit(main())
