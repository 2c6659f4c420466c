"""For tests of DICOM output: a series, a result without staging, and a check of frames' places."""

import shutil
import subprocess

import numpy as np
import pytest
import SimpleITK as sitk
from bad_inputs import hu_array, image, write_slices

from LiverFibrosisStagingLib.signs.measure import UNITS

FRAME = "1.2.3.9"
TAGS = {"0020|0052": FRAME, "0008|0020": "20200102", "0008|0050": "A-1"}
NUMBERS = {"mean": 1.5, "share": 0.25, "volume_ml": 100.0}
SUMMARY = {
    "research_use": "Research use only.",
    "stage": "F3",
    "probabilities": dict(zip(("F0", "F1", "F2", "F3", "F4"), (0.1, 0.1, 0.1, 0.5, 0.2))),
    "scores": {"significant": 0.8, "advanced": 0.7, "cirrhosis": 0.2},
    "operating_points": {
        "significant": {"point": 0.8, "positive": True},
        "advanced": {"point": 0.75, "positive": False},
        "cirrhosis": None,
    },
    "supported": False,
    "reasons": ["A check failed."],
    "location_map": {"explained": "cirrhosis", "pattern": {"name": "", "sentence": ""}},
    "measurements": dict.fromkeys(("liver", "liver_surface", "liver_core", "rest"), NUMBERS),
    "agreement": {"sentence": "No sign was measured."},
    "signs": dict.fromkeys(UNITS),
    "signs_notes": {"spleen_volume_ml": "There is no mask of the spleen."},
    "signs_placed": [],
    "warnings": ["Some warning."],
    "model": {"name": "M", "sha256": "a" * 64, "trained_on": "P", "intended_use": "R"},
    "segmentation": {
        "name": "V-Net",
        "sha256": "b" * 64,
        "edited": False,
        "organs": ["liver", "spleen"],
    },
}


def turned(volume, degrees, flips):
    """The voxels in another direction: axes flipped, then turned about x and z."""
    turn = sitk.Euler3DTransform()
    turn.SetRotation(np.radians(degrees), 0.0, np.radians(degrees / 2))
    made = sitk.Flip(volume, flips)
    axes = np.array(turn.GetMatrix()).reshape(3, 3) @ np.array(made.GetDirection()).reshape(3, 3)
    made.SetDirection(axes.ravel().tolist())
    return made


def series(folder, degrees=0.0, flips=(False, False, False), tags=None, **options):
    volume = image(hu_array(12))
    volume.SetSpacing((4.0, 5.0, 3.0))
    return write_slices(folder, turned(volume, degrees, flips), {**TAGS, **(tags or {})}, **options)


def edited(folder, change):
    import pydicom

    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        change(dataset)
        dataset.save_as(path)
    return folder


def organs_and_map(ct):
    """Asymmetric organs and a map that is 0 below and above some slices, on a CT's grid."""
    shape = ct.GetSize()[::-1]
    labels, values = np.zeros(shape, np.uint8), np.zeros(shape, np.float32)
    labels[2:9, 10:30, 5:20] = 1
    labels[4:7, 30:40, 40:44] = 2
    values[1:10] = np.random.default_rng(1).gamma(2.0, size=values[1:10].shape)
    made = sitk.GetImageFromArray(labels), sitk.GetImageFromArray(values)
    for each in made:
        each.CopyInformation(ct)
    return made


def frames_of(dataset, pixels):
    """Position (mm), segment number (or None), source instance and pixels of each frame."""
    for frame, values in zip(dataset.PerFrameFunctionalGroupsSequence, pixels):
        number = None
        if "SegmentIdentificationSequence" in frame:
            number = frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        (derived,) = frame.DerivationImageSequence
        (referred,) = derived.SourceImageSequence
        position = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
        yield position, number, referred.ReferencedSOPInstanceUID, values


def check_frames(dataset, pixels, image_of, files):
    """Each frame has the image's values, at its place, and refers to the slice there."""
    (orientation,) = dataset.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence
    (measures,) = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    axes = np.array(orientation.ImageOrientationPatient, float).reshape(2, 3)
    rows, columns = map(float, measures.PixelSpacing)
    # Read anew by ITK, which has the position of each file's first voxel.
    by_instance = {}
    for file in files:
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(file))
        reader.ReadImageInformation()
        by_instance[reader.GetMetaData("0008|0018").strip("\0 ")] = reader.GetOrigin()
    seen = set()
    for position, number, instance, values in frames_of(dataset, pixels):
        np.testing.assert_allclose(position, by_instance[instance], atol=1e-5)
        corners = [(0, 0), (values.shape[0] - 1, 0), (0, values.shape[1] - 1)]
        for row, column in corners:
            point = position + axes[0] * columns * column + axes[1] * rows * row
            index = image_of.TransformPhysicalPointToContinuousIndex(point.tolist())
            np.testing.assert_allclose(index, np.rint(index), atol=1e-3)
        # A few hundred pixels, in all rows and columns of a small frame.
        step = max(1, values.size // 300) | 1
        for row, column in np.argwhere(np.ones(values.shape))[::step]:
            point = position + axes[0] * columns * column + axes[1] * rows * row
            index = image_of.TransformPhysicalPointToIndex(point.tolist())
            expected = image_of[index] if number is None else image_of[index] == number
            assert values[row, column] == np.float32(expected)
        seen.add((instance, number))
    assert len(seen) == len(dataset.PerFrameFunctionalGroupsSequence)


def run(tool, package, *arguments):
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} (Debian package {package}) is not installed")
    return subprocess.run([tool, *arguments], capture_output=True, text=True, check=False)


def errors_of(path):
    """The errors that dciodvfy finds in a segmentation, a parametric map or a report."""
    found = run("dciodvfy", "dicom3tools", "-new", str(path))
    said = (found.stdout + found.stderr).splitlines()
    assert {"Segmentation", "ParametricMap", "ComprehensiveSR"} & set(said), said
    return [line for line in said if line.startswith(("Error", "Abort"))]
