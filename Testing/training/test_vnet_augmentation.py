"""Augmentation of CTs with labels: what each transform changes, and what it must not change."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="augmentation is done with PyTorch")
pytest.importorskip("monai", reason="augmentation is done with MONAI")

from vnet import augmentation as vnet_augmentation  # noqa: E402
from vnet.augmentation import (  # noqa: E402
    LIVER,
    SPLEEN,
    Alike,
    Contrast,
    Deform,
    FieldOfView,
    Hearts,
    Neighbours,
    Surroundings,
    ThickSlices,
    Tumours,
    augmentation,
)

PATCH = (32, 40, 48)
WINDOW = (-150.0, 250.0)
HU = 1 / 400


@pytest.fixture
def item():
    """A body (50 HU) in air with a liver (100 HU) on the right and a spleen (120 HU)."""
    z, y, x = np.ogrid[:40, :44, :52]
    volume = np.zeros((1, 40, 44, 52), np.float32)
    labels = np.zeros(volume.shape, np.uint8)
    for centre, radii, hu, label in (
        ((20, 22, 26), (60, 18, 23), 50, 0),
        ((20, 22, 17), (12, 12, 10), 100, LIVER),
        ((20, 24, 38), (8, 6, 5), 120, SPLEEN),
    ):
        parts = ((a - c) / r for a, c, r in zip((z, y, x), centre, radii))
        inside = np.broadcast_to(sum(p**2 for p in parts) < 1, volume.shape)
        volume[inside], labels[inside] = (hu - WINDOW[0]) * HU, label
    return {"volume": torch.from_numpy(volume), "labels": torch.from_numpy(labels)}


def changed(transform, item, seed):
    """The item after the transform, with probability 1."""
    transform.prob = 1.0
    transform.set_random_state(seed)
    return transform(item)


def volumes(labels):
    return [(labels == label).sum().item() for label in (LIVER, SPLEEN)]


def test_volume_and_labels_are_deformed_alike(item):
    """The deformed volume of the liver's label equals the deformed label."""
    marked = {**item, "volume": (item["labels"] == LIVER).float()}
    for seed in range(6):
        made = changed(Deform(PATCH), marked, seed)
        assert made["volume"].shape == made["labels"].shape == (1, *PATCH)
        agree = (made["volume"] >= 0.5) == (made["labels"] == LIVER)
        assert agree.float().mean() > 0.9999
        assert volumes(made["labels"])[0] > 0


def test_anatomy_varies_and_is_not_mirrored(item):
    before = volumes(item["labels"])
    ratios = []
    for seed in range(25):
        labels = changed(Deform(PATCH), item, seed)["labels"][0]
        after = volumes(labels)
        ratios.append([a / b for a, b in zip(after, before)])
        liver, spleen = (np.argwhere(labels.numpy() == n)[:, 2].mean() for n in (LIVER, SPLEEN))
        assert liver < spleen  # no flips
    low, high = np.percentile(ratios, [5, 95], axis=0)
    assert (low < 0.75).all() and (high > 1.3).all()
    # The ratio of spleen and liver volume varies too.
    own = np.array(ratios)[:, 1] / np.array(ratios)[:, 0]
    assert own.std() / own.mean() > 0.15


@pytest.mark.parametrize(
    ("transform", "may_change"),
    [
        (lambda: Neighbours(HU), lambda item: item["labels"] == 0),
        (lambda: Tumours(HU), lambda item: item["labels"] == LIVER),
        (lambda: Contrast(HU, 190 * HU), lambda item: item["volume"] > 0),
        (Surroundings, lambda item: item["volume"] == 0),
    ],
)
def test_each_transform_changes_only_its_region(transform, may_change, item):
    differs = 0
    for seed in range(8):
        made = changed(transform(), item, seed)
        assert torch.equal(made["labels"], item["labels"])
        where = made["volume"] != item["volume"]
        differs += where.any().item()
        assert not (where & ~may_change(item)).any()
    assert differs >= 6


def test_a_heart_lies_above_or_at_the_liver_in_front_of_the_spine(item):
    item["volume"][:, 36:], item["labels"][:, 36:] = 0, 0  # the scan ends
    for seed in range(8):
        made = changed(Hearts(HU, WINDOW), item, seed)
        assert torch.equal(made["labels"], item["labels"])
        where = np.argwhere((made["volume"] != item["volume"])[0].numpy())
        z, y, x = where.mean(axis=0)
        assert len(where) > 200 and where[:, 0].max() < 36
        assert z > 20 and y < 22 and x > 17  # the middle of liver and body; the liver's
        assert not item["labels"][0][tuple(where.T)].any()


def test_kidneys_get_nearly_the_hu_of_an_organ(item):
    item["volume"][0, 10:14, 30:34, 26:30] = (230 - WINDOW[0]) * HU
    for seed in range(6):
        made = changed(Alike(), item, seed)
        kidney = made["volume"][0, 11, 31, 27].item() / HU + WINDOW[0]
        assert 99 < kidney < 176  # from that of the liver to halfway from that of the spleen
        differs = made["volume"] != item["volume"]
        assert differs.sum() == 64 and torch.equal(made["labels"], item["labels"])


def test_labels_outside_the_field_of_view_are_removed(item):
    for seed in range(12):
        made = changed(FieldOfView(), item, seed)
        black = made["volume"] == 0
        assert not made["labels"][black].any()
        kept = ~black & (item["volume"] > 0)
        assert torch.equal(made["labels"][kept], item["labels"][kept])


def test_thick_slices_are_means(item):
    made = changed(ThickSlices(), item, 0)["volume"][0]
    same = (made[1:] == made[:-1]).flatten(1).all(dim=1)
    assert same.float().mean() >= 0.45
    assert made.mean().item() == pytest.approx(item["volume"].mean().item(), rel=1e-3)


def test_the_augmentation_depends_on_the_seed_only(item):
    whole = augmentation(PATCH, WINDOW)
    results = []
    for seed in (3, 4, 3):
        whole.set_random_state(seed)
        made = whole(item)
        assert made["volume"].shape == (1, *PATCH) and made["volume"].isfinite().all()
        assert set(made["labels"].unique().tolist()) <= {0, LIVER, SPLEEN}
        results.append(torch.as_tensor(made["volume"]))
    assert torch.equal(results[0], results[2]) and not torch.equal(results[0], results[1])


def test_every_transform_is_part_of_the_augmentation():
    kinds = {type(part) for part in augmentation(PATCH, WINDOW).transforms}
    own = {
        kind
        for kind in vars(vnet_augmentation).values()
        if isinstance(kind, type) and issubclass(kind, vnet_augmentation._OfBoth)
    }
    assert own - {vnet_augmentation._OfBoth} <= kinds
