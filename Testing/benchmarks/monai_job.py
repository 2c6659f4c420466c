"""One Stage with a location map of F4 as a PyTorch and MONAI script would compute it.

The networks are the files of the library, run node by node in PyTorch (`torch_twin`); reading,
resampling and Grad-CAM are MONAI's. `bench.py` compares it with the library. Plain: as MONAI's
documentation shows Grad-CAM, a forward pass for the probabilities and `GradCAM` on the network as
it is. Tuned: one forward pass a patch, no gradient before the explained layer and none of the
weights. In both, tensors are freed after their last use where no gradient needs them, and the V-Net
runs on the body's box at once. Neither checks its input, refines the outlined organs or measures
anything.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from monai import transforms as mt
from monai.data import MetaTensor
from monai.visualize import GradCAM
from torch.nn import functional as F
from torch_twin import TorchTwin

from LiverFibrosisStagingLib.card import Card
from LiverFibrosisStagingLib.gradcam_onnx.onnx_file import read_onnx
from LiverFibrosisStagingLib.imaging.grid import AIR_HU, BODY_THRESHOLD_HU, patch_starts
from LiverFibrosisStagingLib.imaging.segmentation import METADATA_KEY
from LiverFibrosisStagingLib.model import read_card
from LiverFibrosisStagingLib.report.colors import BAND_COUNT
from LiverFibrosisStagingLib.resources import default_model_path

EXPLAINED = 4


@dataclass(frozen=True)
class MonaiResult:
    """probabilities of F0..F4; location map and labels of its ten bands on the CT's grid."""

    probabilities: list[float]
    location_map: MetaTensor
    labels: torch.Tensor


def stage_with_monai(ct: str, liver: str | None, model: Path, plain: bool = False) -> MonaiResult:
    """Stage a CT; liver: a label image with 1 liver and 2 spleen, by default the V-Net's."""
    card = read_card(model)
    if plain:
        network = TorchTwin(model).eval()
    else:
        network = TorchTwin(model, explained=card.target_layer).eval().requires_grad_(False)
    read = mt.Compose([mt.LoadImage(), mt.EnsureChannelFirst()])
    original = read(ct)
    to_lps = mt.Orientation(axcodes="LPS")
    scan = to_lps(original)
    organs = outlined(scan) if liver is None else to_lps(read(liver))
    volume, inside = working_volume(scan, organs, card)
    logits, maps = [], torch.zeros(inside.shape)
    count = torch.zeros(inside.shape[-1])
    network.register_forward_hook(lambda _, __, found: logits.append(found.detach()))
    # postprocessing: as it is, instead of MONAI's inversion and scaling to 0..1.
    cam = GradCAM(network, f"nodes.{card.target_layer}", postprocessing=lambda x: x)
    slices = card.patch_size[0]
    for start in patch_starts(volume.shape[-1], slices, card.patch_overlap):
        patch = volume.as_tensor()[..., start : start + slices].permute(0, 3, 2, 1)[None]
        if plain:
            with torch.no_grad():
                network(patch)
        found = torch.as_tensor(cam(patch, class_idx=EXPLAINED)).detach()
        maps[..., start : start + slices] += found[0].permute(0, 3, 2, 1)
        count[start : start + slices] += 1
    maps = maps / count * inside
    maps /= maps[inside].mean()
    location = MetaTensor(maps, affine=volume.affine)
    relative = mt.ResampleToMatch(mode="bilinear", padding_mode="zeros")(location, original)
    labels = torch.ceil(relative.as_tensor() / relative.max() * BAND_COUNT).to(torch.uint8)
    # Of the plain job, each patch's logits are there twice.
    scores = torch.cat(logits).mean(0) / card.temperature
    return MonaiResult(scores.double().softmax(0).tolist(), relative, labels)


def outlined(scan: MetaTensor) -> MetaTensor:
    """Labels of liver and spleen by the V-Net; its probabilities are resampled to the CT."""
    path = default_model_path("VNet.onnx")
    card = json.loads(read_onnx(path).metadata[METADATA_KEY])
    network = TorchTwin(path).eval()
    coarse = mt.Compose(
        [
            mt.Spacing(card["spacing_mm"][::-1]),
            mt.CropForeground(
                select_fn=lambda hu: hu > BODY_THRESHOLD_HU,
                k_divisible=card["multiple_of"],
                constant_values=AIR_HU,
            ),
        ]
    )(scan)
    windowed = mt.ScaleIntensityRange(*card["window_hu"], 0.0, 1.0, clip=True)(coarse)
    with torch.inference_mode():
        found = network(windowed.as_tensor().permute(0, 3, 2, 1)[None])[0].permute(0, 3, 2, 1)
        probabilities = mt.ResampleToMatch()(MetaTensor(found, affine=coarse.affine), scan)
        return MetaTensor(probabilities.as_tensor().argmax(0, keepdim=True), affine=scan.affine)


def working_volume(
    scan: MetaTensor, organs: MetaTensor, card: Card
) -> tuple[MetaTensor, torch.Tensor]:
    """The network's input [channels, x, y, z] at its spacing and in-plane size, and the body."""
    spacing = card.spacing_mm[::-1]
    hu = mt.Spacing(spacing)(scan)
    labels = mt.ResampleToMatch(mode="nearest")(organs.float(), hu)
    centre, size = field_of_view(hu.as_tensor(), labels.as_tensor(), card)
    hu, labels = (
        mt.ResizeWithPadOrCrop(size, constant_values=outside)(
            mt.SpatialCrop(roi_center=centre, roi_size=size)(image)
        )
        for image, outside in ((hu, AIR_HU), (labels, 0))
    )
    inside, labels = hu.as_tensor() > BODY_THRESHOLD_HU, labels.as_tensor()
    if card.smoothing_mm:
        hu = mt.GaussianSmooth([card.smoothing_mm / step for step in spacing])(hu)
    if card.liver_hu is not None:
        hu = hu + (card.liver_hu - hu.as_tensor()[labels == 1].median())
    volume = mt.ScaleIntensityRange(*card.window_hu, 0.0, 1.0, clip=True)(hu).as_tensor()
    if card.fill is not None:
        near = (labels > 0).float()
        for axis, step in enumerate(spacing):  # a box, one axis after the other
            radius = [0, 0, 0]
            radius[axis] = round(card.fill["beyond_mm"] / step)
            near = F.max_pool3d(near, [2 * n + 1 for n in radius], 1, radius)
        low, high = card.window_hu
        volume = torch.where(near > 0, volume, (card.fill["hu"] - low) / (high - low))
    channels = {"ct": volume, "liver": (labels == 1).float(), "spleen": (labels == 2).float()}
    joined = torch.cat([channels[name] for name in card.channels])
    return MetaTensor(joined, affine=hu.affine), inside


def field_of_view(
    hu: torch.Tensor, labels: torch.Tensor, card: Card
) -> tuple[list[int], list[int]]:
    """Centre and size (x, y, z) in voxels: all of the liver, in plane the organs or the body."""
    slices, rows, columns = card.patch_size
    by_organs = card.field == "organs"
    wanted = labels[0] > 0 if by_organs else labels[0] == 1
    held = torch.nonzero(wanted)
    first, last = held.amin(0), held.amax(0) + 1
    centre = ((first + last) // 2).tolist()
    if not by_organs:
        body = hu[0] > BODY_THRESHOLD_HU
        for axis in (0, 1):
            profile = body.sum([other for other in range(3) if other != axis]).double()
            centre[axis] = int((profile * torch.arange(len(profile))).sum() / profile.sum())
    return centre, [columns, rows, max(slices, int(last[2] - first[2]))]
