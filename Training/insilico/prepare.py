"""Body files from CTs with masks of liver and spleen; see `insilico/bodies.py`.

    python Training/insilico_bodies.py Training/insilico/recipe.json --data CTS -o BODIES

A recipe lists bodies: {"bodies": [{"name": ..., "ct": FILE, ...}]}. Their organs are a label image
"labels", 1 liver and 2 spleen; or masks "liver" and "spleen"; or, without any of them, those that
the library's network finds. "corrections" (insilico/outlines.py) are then applied. "patient" is the
code of a public collection's patient, by which networks trained on the body are recognised.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.fft
import SimpleITK as sitk
from scipy import ndimage

from common.files import unfinished
from common.resume import patient_digest, voxel_digest
from LiverFibrosisStagingLib import StagingError
from LiverFibrosisStagingLib.imaging.grid import (
    AIR_HU,
    bounding_box,
    lps_grid,
    reorient_to_lps,
    resample_ct,
)
from LiverFibrosisStagingLib.imaging.masks import same_grid
from LiverFibrosisStagingLib.imaging.organs import LIVER_LABEL, SPLEEN_LABEL
from LiverFibrosisStagingLib.imaging.segmentation import segment_organs

from .bodies import coded
from .outlines import corrected

SPACING_MM = (2.5, 1.5, 1.5)
MARGIN_MM = 25.0  # above and below liver and spleen
LAGS = (5, 12, 12)  # voxels


def prepare(ct: sitk.Image, labels: sitk.Image) -> dict[str, np.ndarray]:
    """The content of a body file.

    ct: HU; labels: on the CT's grid, 1 liver, 2 spleen. Raises StagingError if an organ is missing.
    """
    ct, labels = reorient_to_lps(ct), reorient_to_lps(labels)
    statistics = sitk.LabelShapeStatisticsImageFilter()
    statistics.Execute(labels)
    if {LIVER_LABEL, SPLEEN_LABEL} - set(statistics.GetLabels()):
        raise StagingError("labels without liver (1) or spleen (2); both are needed.")
    boxes = [statistics.GetBoundingBox(label) for label in (LIVER_LABEL, SPLEEN_LABEL)]
    step = ct.GetSpacing()[2]
    margin = round(MARGIN_MM / step)
    first = max(min(box[2] for box in boxes) - margin, 0)
    last = min(max(box[2] + box[5] for box in boxes) + margin, ct.GetSize()[2])
    ct, labels = ct[:, :, first:last], labels[:, :, first:last]
    size, spacing = np.array(ct.GetSize()), np.array(ct.GetSpacing())
    wanted = np.array(SPACING_MM[::-1])
    centre = np.array(ct.TransformContinuousIndexToPhysicalPoint(((size - 1) / 2).tolist()))
    grid = lps_grid(centre, np.maximum(np.floor(size * spacing / wanted), 1), wanted)
    hu = resample_ct(ct, grid, AIR_HU)
    organs = [
        resample_ct(sitk.Cast(labels == n, sitk.sitkFloat32), grid, 0.0)
        for n in (LIVER_LABEL, SPLEEN_LABEL)
    ]
    found = np.where(organs[0] > 0.5, LIVER_LABEL, 0) + np.where(organs[1] > 0.5, SPLEEN_LABEL, 0)
    patient = _patient(hu) | (found > 0)
    box = (slice(None), *bounding_box(patient)[1:])
    hu, found, patient = hu[box], found[box].astype(np.uint8), patient[box]
    return {
        "hu": np.where(patient, coded(hu), 0).astype(np.uint8),
        "labels": found,
        "spacing": np.array(SPACING_MM),
        "medians": np.array([_median(hu, found == n) for n in (LIVER_LABEL, SPLEEN_LABEL)]),
        "noise": _autocovariance(hu, found == LIVER_LABEL),
    }


def _patient(hu: np.ndarray) -> np.ndarray:
    """The body with lungs and bowel gas, without table and air."""
    dense = ndimage.binary_opening(hu > -250, np.ones((1, 5, 5)))
    parts, count = ndimage.label(dense)
    largest = parts == 1 + np.argmax(ndimage.sum_labels(dense, parts, range(1, count + 1)))
    closed = ndimage.binary_closing(np.pad(largest, ((0, 0), (6, 6), (6, 6))), np.ones((1, 9, 9)))
    return np.stack([ndimage.binary_fill_holes(part) for part in closed[:, 6:-6, 6:-6]])


def _median(hu: np.ndarray, organ: np.ndarray) -> float:
    """The most common HU of an organ's core: vessels and lesions do not shift it."""
    core = hu[ndimage.binary_erosion(organ, iterations=2)]
    middle, spread = np.median(core), np.percentile(core, 75) - np.percentile(core, 25)
    for _ in range(5):
        middle = np.median(core[np.abs(core - middle) < spread])
    return float(middle)


def _autocovariance(hu: np.ndarray, liver: np.ndarray) -> np.ndarray:
    """Autocovariance of the parenchyma's noise, at lags of 0 .. LAGS voxels along each axis.

    Low frequencies are removed; vessels and lesions, where the smoothed residual is large, are left
    out.
    """
    box = bounding_box(liver)
    liver, hu = liver[box], hu[box]
    core = ndimage.binary_erosion(liver, iterations=2)
    sigma = [4.0 / s for s in SPACING_MM]
    inside = liver.astype(np.float32)
    weight = np.maximum(ndimage.gaussian_filter(inside, sigma), 1e-3)
    middle = np.median(hu[core])
    rest = hu - middle - ndimage.gaussian_filter((hu - middle) * inside, sigma) / weight
    smooth = ndimage.gaussian_filter(rest, [1.5 / s for s in SPACING_MM])
    spread = 1.48 * np.median(np.abs(smooth[core]))
    rest_sd = 1.48 * np.median(np.abs(rest[core]))
    used = core & (np.abs(smooth) < 2.0 * spread) & (np.abs(rest) < 3.5 * rest_sd)
    rest = np.where(used, rest - rest[used].mean(), 0)
    shape = [n + lag for n, lag in zip(rest.shape, LAGS)]
    products = _correlation(rest, shape)
    pairs = _correlation(used.astype(float), shape)
    window = tuple(slice(0, lag + 1) for lag in LAGS)
    return (products[window] / np.maximum(pairs[window], 100)).astype(np.float32)


def _correlation(values: np.ndarray, shape: list[int]) -> np.ndarray:
    """Sums of products at all lags, padded to `shape`."""
    return scipy.fft.irfftn(np.abs(scipy.fft.rfftn(values, shape)) ** 2, shape)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path, help="JSON file that lists CTs and masks")
    parser.add_argument(
        "--data", type=Path, metavar="FOLDER", help="of the files (default: of the recipe)"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="BODIES")
    options = parser.parse_args(arguments)
    try:
        bodies = _bodies(options.recipe)
        options.output.mkdir(parents=True, exist_ok=True)
        for entry in bodies:
            try:
                folder = options.data or options.recipe.parent
                content = prepare(*_read(entry, folder)) | {"origin": _origin(entry, folder)}
            except RuntimeError as error:  # of SimpleITK
                raise StagingError(
                    f"{entry['name']}: {str(error).splitlines()[-1]}; CT and masks are needed."
                ) from None
            file = options.output / f"{entry['name']}.npz"
            with unfinished(file) as partial, partial.open("wb") as stream:
                np.savez_compressed(stream, **content)
            size = " x ".join(map(str, content["hu"].shape))
            liver, spleen = content["medians"]
            noise = float(content["noise"][0, 0, 0]) ** 0.5
            print(
                f"{file.name}: {size} voxels, {file.stat().st_size / 1e6:.1f} MB; liver "
                f"{liver:.0f} HU, spleen {spleen:.0f} HU, noise {noise:.1f} HU"
            )
    except (StagingError, OSError) as refusal:
        print(refusal, file=sys.stderr)
        return 1
    return 0


def _bodies(recipe: Path) -> list[dict[str, Any]]:
    try:
        found = json.loads(recipe.read_text(encoding="utf-8"))["bodies"]
        complete = bool(found) and all({"name", "ct"} <= set(entry) for entry in found)
    except (ValueError, KeyError, TypeError):
        complete = False
    if not complete:
        raise StagingError(f"{recipe}: not a recipe; a list of bodies with name and ct is needed.")
    return found


def _origin(entry: dict[str, Any], folder: Path) -> np.ndarray:
    """Digests (`resume`) by which the body's CT and patient are recognised."""
    found = [voxel_digest(folder / entry["ct"])]
    return np.array([*found, *([patient_digest(entry["patient"])] if "patient" in entry else [])])


def _read(entry: dict[str, Any], folder: Path) -> tuple[sitk.Image, sitk.Image]:
    """CT and label image of a body."""
    ct = sitk.ReadImage(folder / entry["ct"], sitk.sitkFloat32)
    if "labels" in entry:
        labels = sitk.ReadImage(folder / entry["labels"], sitk.sitkUInt8)
    elif "liver" in entry:
        liver, spleen = (
            sitk.ReadImage(folder / entry[organ], sitk.sitkFloat32) > 0.5
            for organ in ("liver", "spleen")
        )
        labels = liver * LIVER_LABEL + sitk.And(spleen, liver == 0) * SPLEEN_LABEL
    else:
        labels = segment_organs(ct)
    if not same_grid(labels, ct):
        raise StagingError(f"{entry['name']}: masks on another grid than the CT; one is needed.")
    corrections = entry.get("corrections")
    return ct, corrected(ct, labels, corrections) if corrections else labels
