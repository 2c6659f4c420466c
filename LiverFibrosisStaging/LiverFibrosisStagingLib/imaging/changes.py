"""Changes to a CT that show what a stage depends on: surroundings, texture, spleen, surface.

Everything that is not changed keeps its HU, and the masks fit what the changed CT shows. Masks are
non-zero inside, on the CT's grid, in any orientation.
"""

from dataclasses import replace

import numpy as np
import SimpleITK as sitk

from .grid import AIR_HU, WorkingGrid, bounding_box, bounds, coarse_body
from .masks import eroded, volume_ml

FAT_HU = -100.0
KEPT_MM = 3.0  # around the organs, so that their edges stay as they are
CORE_MM = 8.0  # depth of the liver's core
RIM_MM = 2.0  # around the spleen, of voxels that contain some of it
STEPS_MM = 1.0  # sigma that removes the steps of a mask's voxels
SMOOTHED_MM = 5.0  # sigma: waves of the surface up to about 3 cm are removed
FARTHEST_MM = 4.0  # that the surface is moved
FADING_MM = 15.0  # from the surface: beyond it nothing is moved


def surroundings_as_fat(ct: sitk.Image, liver: sitk.Image, spleen: sitk.Image | None) -> sitk.Image:
    """The CT with fat in the whole body farther than KEPT_MM from liver and spleen."""
    organs = liver != 0 if spleen is None else sitk.Or(liver != 0, spleen != 0)
    coarse, inside = coarse_body(ct, *bounds(ct))
    body = sitk.GetImageFromArray(inside.astype(np.uint8))
    body.CopyInformation(coarse)
    body = sitk.Resample(body, ct, sitk.Transform(), sitk.sitkNearestNeighbor, 0)
    hu = sitk.GetArrayFromImage(ct)
    far = sitk.GetArrayFromImage(_distance(organs)) > KEPT_MM
    hu[far & (sitk.GetArrayViewFromImage(body) > 0)] = FAT_HU
    return _like(ct, hu)


def without_organs(grid: WorkingGrid, window_hu: tuple[float, float]) -> WorkingGrid:
    """The working grid with fat in place of liver, spleen and one voxel around them; empty masks.

    A CT without liver would be refused, so it is the network's input that is changed. window_hu: of
    the model.
    """
    organs = grid.liver if grid.spleen is None else sitk.Or(grid.liver, grid.spleen)
    near = sitk.BinaryDilate(organs, [1, 1, 1], sitk.sitkBox, 0, 1)
    low, high = window_hu
    fat = float(np.clip((FAT_HU - low) / (high - low), 0, 1))
    return replace(
        grid,
        volume=sitk.Mask(grid.volume, near, fat, 1),
        liver=grid.liver * 0,
        spleen=None if grid.spleen is None else grid.spleen * 0,
    )


def uniform_core(ct: sitk.Image, liver: sitk.Image) -> sitk.Image:
    """The CT with the liver's median in all of the liver that is deeper than CORE_MM."""
    hu = sitk.GetArrayFromImage(ct)
    inside = sitk.GetArrayViewFromImage(liver) != 0
    hu[eroded(inside, CORE_MM, liver.GetSpacing()[::-1]) & inside] = np.median(hu[inside])
    return _like(ct, hu)


def smaller_spleen(
    ct: sitk.Image, liver: sitk.Image, spleen: sitk.Image, target_ml: float
) -> tuple[sitk.Image, sitk.Image] | None:
    """CT and spleen mask with the spleen shrunk about its centre to a volume, fat in its place.

    None if the spleen is not larger than `target_ml`.
    """
    factor = (target_ml / volume_ml(spleen)) ** (1 / 3)
    if factor >= 1:
        return None
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.Execute(spleen != 0)
    to_original = sitk.ScaleTransform(3, [1 / factor] * 3)
    to_original.SetCenter(shape.GetCentroid(1))
    nearest = sitk.sitkNearestNeighbor
    small = sitk.And(sitk.Resample(spleen != 0, ct, to_original, nearest, 0), liver == 0)
    shrunk = sitk.GetArrayFromImage(sitk.Resample(ct, to_original, sitk.sitkLinear, FAT_HU))
    hu = sitk.GetArrayFromImage(ct)
    before = sitk.GetArrayFromImage(_distance(spleen != 0)) <= RIM_MM
    hu[before & (sitk.GetArrayViewFromImage(liver) == 0)] = FAT_HU
    inside = sitk.GetArrayViewFromImage(small) != 0
    hu[inside] = shrunk[inside]
    return _like(ct, hu), small


def smooth_surface(ct: sitk.Image, liver: sitk.Image) -> tuple[sitk.Image, sitk.Image]:
    """CT and liver mask with the liver's surface brought to that of the smoothed mask.

    The tissue is moved along the surface's normals by at most FARTHEST_MM, less and less away from
    the surface. The liver keeps its volume.
    """
    box = _around(liver, FADING_MM)
    inside, part = (sitk.RegionOfInterest(image, *box) for image in (liver != 0, ct))
    share = sitk.Cast(inside, sitk.sitkFloat32)
    soft = sitk.SmoothingRecursiveGaussian(share, SMOOTHED_MM)
    level = _level(soft, np.count_nonzero(sitk.GetArrayViewFromImage(inside)))
    before = sitk.SmoothingRecursiveGaussian(_distance(inside), STEPS_MM)
    wanted = sitk.SmoothingRecursiveGaussian(_distance(soft >= level), 2 * STEPS_MM)
    found = sitk.GetArrayViewFromImage(before)
    near = np.clip(1 - np.abs(found) / FADING_MM, 0, 1)
    shift = sitk.GetArrayViewFromImage(wanted) - found
    shift = np.clip(shift, -FARTHEST_MM, FARTHEST_MM) * near
    # `before` rises by 1 mm per mm along its gradient, in patient axes.
    normal = sitk.Gradient(before, True, True)
    field = sitk.GetArrayFromImage(normal).astype(np.float64) * shift[..., None]
    to_original = sitk.DisplacementFieldTransform(_like(part, field))
    moved = sitk.Resample(part, to_original, sitk.sitkLinear, AIR_HU)
    mask = sitk.Resample(share, to_original, sitk.sitkLinear) >= 0.5
    mask = sitk.Cast(mask, liver.GetPixelID())
    (size, first), start = box, [0, 0, 0]
    return sitk.Paste(ct, moved, size, start, first), sitk.Paste(liver, mask, size, start, first)


def _level(image: sitk.Image, count: int) -> float:
    """The value that `count` voxels of an image reach."""
    return float(np.partition(sitk.GetArrayFromImage(image), -count, axis=None)[-count])


def _around(mask: sitk.Image, margin_mm: float) -> tuple[list[int], list[int]]:
    """Size and first voxel (x, y, z) of the box around a mask with a margin, inside the image."""
    found = bounding_box(sitk.GetArrayViewFromImage(mask))[::-1]
    size, first = [], []
    for part, step, n in zip(found, mask.GetSpacing(), mask.GetSize()):
        margin = int(np.ceil(margin_mm / step))
        low, high = max(part.start - margin, 0), min(part.stop + margin, n)
        size.append(high - low)
        first.append(low)
    return size, first


def _distance(inside: sitk.Image) -> sitk.Image:
    """Distance in mm to a mask of 0 and 1, negative inside."""
    return sitk.SignedMaurerDistanceMap(
        inside, insideIsPositive=False, squaredDistance=False, useImageSpacing=True
    )


def _like(image: sitk.Image, array: np.ndarray) -> sitk.Image:
    """An array [slice, row, column(, component)] as an image with the geometry of another."""
    made = sitk.GetImageFromArray(array, isVector=array.ndim == 4)
    made.CopyInformation(image)
    return made
