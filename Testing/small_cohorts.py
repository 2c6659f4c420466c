"""Cohorts of the coarse sample, and what a batch has written about them, but for times."""

import csv
import json

import SimpleITK as sitk

TIMES = ("date", "seconds")


def coarse_sample(sample):
    """The sample's images with a tenth of its voxels; sample: their paths."""
    images = {
        name: sitk.BinShrink(sitk.ReadImage(str(path)), [3, 3, 2]) for name, path in sample.items()
    }
    images["ct"] = sitk.Cast(images["ct"], sitk.sitkInt16)
    return images


def cohort(root, coarse, brighter=0, case="p1"):
    """One case below `root`; the patient of another cohort is as many HU brighter."""
    (root / case).mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(coarse["ct"] + brighter, str(root / case / "ct.nii.gz"))
    sitk.WriteImage(coarse["liver"], str(root / case / "liver.nii.gz"))
    return root


def table(output):
    with (output / "results.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]


def summaries(output):
    found = {}
    for path in sorted(output.rglob("staging.json")):
        summary = json.loads(path.read_text())
        found[path.parent.name] = {k: v for k, v in summary.items() if k not in TIMES}
    return found
