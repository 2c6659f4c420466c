"""The V-Net in a long scan: the slabs near liver and spleen, with the same result as from all."""

import threading

import numpy as np
import pytest
import SimpleITK as sitk

from LiverFibrosisStagingLib.errors import Cancelled
from LiverFibrosisStagingLib.imaging import segmentation
from LiverFibrosisStagingLib.imaging.segmentation import SLAB_SLICES, shipped_network

SLICES = 400  # of 4 mm
LIVER_HU, SPLEEN_HU = 105.0, 145.0


class Network:
    """Takes for organs what has their HU; less sure at a slab's lower end, as a real network."""

    card = shipped_network().card

    def __init__(self):
        self.slabs = 0

    def run(self, volume, cancel=None):
        self.slabs += 1
        low, high = self.card.window_hu
        hu = low + volume * (high - low)
        made = np.zeros((3, *volume.shape), np.float32)
        made[1], made[2] = abs(hu - LIVER_HU) < 10, abs(hu - SPLEEN_HU) < 10
        made[1:] *= np.linspace(0.7, 0.9, len(volume))[:, None, None]
        made[0] = 1 - made[1:].sum(axis=0)
        return made


def scan(liver, lungs=None):
    """HU: a liver, a spleen and lungs in a body; liver, lungs: first and last slice."""
    hu = np.full((SLICES, 32, 32), 40.0, np.float32)
    if lungs is not None:
        hu[slice(*lungs), 4:28, 2:30] = -850
    if liver is not None:
        hu[slice(*liver), 4:22, 2:16] = LIVER_HU
        hu[liver[0] + 20 : liver[1] - 5, 20:28, 24:30] = SPLEEN_HU
    image = sitk.GetImageFromArray(hu)
    image.SetSpacing((4.0, 4.0, 4.0))
    return image


def found(image, monkeypatch=None):
    """Probabilities, and how many slabs were processed; with monkeypatch, of all slabs."""
    network = Network()
    if monkeypatch is not None:
        monkeypatch.setattr(segmentation, "FOUND_LIVER_ML", np.inf)
    return segmentation._run(network, image, lambda *_: None, None), network.slabs


@pytest.mark.parametrize(
    ("liver", "lungs", "slabs"),
    [
        pytest.param((0, 50), (45, 120), 1, id="lower end"),
        pytest.param((350, 400), (390, 400), 1, id="upper end"),
        pytest.param((180, 235), (225, 300), 3, id="middle"),
        pytest.param((350, 400), None, 1, id="lungs not in the scan"),
        pytest.param((200, 250), (20, 120), 5, id="lungs elsewhere"),
    ],
)
def test_far_slabs_are_left_out_with_the_same_result(liver, lungs, slabs, monkeypatch):
    image = scan(liver, lungs)
    near, processed = found(image)
    everywhere, every = found(image, monkeypatch)
    np.testing.assert_allclose(near, everywhere, atol=1e-6)
    assert (near[1] > 0.5).any() and (near[2] > 0.5).any()
    assert processed <= slabs <= every == 6


def test_without_a_liver_all_slabs_are_processed():
    probabilities, processed = found(scan(None, (100, 200)))
    assert processed == 6 and (probabilities[0] == 1).all()


def test_a_scan_is_cancelled_between_slabs():
    cancel, network = threading.Event(), Network()
    run = network.run

    def cancelled(volume, token):
        cancel.set()
        return run(volume)

    network.run = cancelled
    ct = sitk.Cast(scan(None, (100, 200)), sitk.sitkInt16)
    assert ct.GetSize()[2] > SLAB_SLICES
    with pytest.raises(Cancelled):
        segmentation.segment_checked(ct, "the phantom", network, cancel=cancel)
    assert network.slabs == 1
