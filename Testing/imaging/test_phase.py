"""The contrast phase by HU: on phantoms, on changed phantoms, and on real CTs."""

import numpy as np
import pytest
import SimpleITK as sitk

from LiverFibrosisStagingLib.imaging.aorta import find_aorta, find_spine
from LiverFibrosisStagingLib.imaging.coarse import CoarseScan
from LiverFibrosisStagingLib.imaging.phase import judged, phase_by_hu
from LiverFibrosisStagingLib.imaging.reading import read_ct
from LiverFibrosisStagingLib.imaging.segmentation import segment_checked, shipped_network

PORTAL = {"liver_hu": 105.0, "liver_vessels_hu": 140.0, "aorta_hu": 150.0, "spleen_hu": 120.0}


@pytest.fixture(scope="module")
def phantom():
    from cases.phantom import phantom

    return phantom(4, 2021)


def with_hu(ct, change):
    """The CT with other HU, which `change` makes from an array."""
    changed = sitk.GetImageFromArray(change(sitk.GetArrayFromImage(ct).astype(np.float32)))
    changed.CopyInformation(ct)
    return changed


def unenhanced(hu):
    """Tissue between 40 and 260 HU loses its contrast; dense bone stays."""
    return np.where((hu > 40) & (hu < 260), 40 + 0.1 * (hu - 40), hu)


def arterial(scan):
    """Without contrast, but a disk of 300 HU on the path of the aorta, and a spleen of 80 HU."""
    aorta = find_aorta(scan, find_spine(scan))
    row, column = np.indices(scan.hu.shape[1:])
    from_path = np.hypot(*(grid - p[:, None, None] for grid, p in zip((row, column), aorta.path.T)))
    hu = np.where(from_path * 2 < aorta.radius_mm, 300, unenhanced(scan.hu))
    return CoarseScan(np.where(scan.spleen, 80, hu), scan.body, scan.liver, scan.spleen)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ("portal-venous", False)),
        ({"aorta_hu": None}, ("portal-venous", False)),
        ({"aorta_hu": None, "spleen_hu": None}, ("portal-venous", False)),
        # Early portal-venous phase, high contrast.
        (
            {"aorta_hu": 240.0, "spleen_hu": 160.0, "liver_vessels_hu": 170.0},
            ("portal-venous", False),
        ),
        # Steatosis: the spleen and the vessels are enhanced.
        ({"liver_hu": 50.0, "liver_vessels_hu": 120.0}, ("portal-venous", False)),
        ({"liver_hu": 50.0, "aorta_hu": 190.0, "spleen_hu": 130.0}, ("", False)),
        # A wrong structure taken for the aorta changes nothing.
        ({"aorta_hu": 45.0}, ("portal-venous", False)),
        ({"aorta_hu": 400.0}, ("portal-venous", False)),
        # Without contrast, also with a wrong aorta, with iron, with steatosis.
        (
            {"liver_hu": 55.0, "liver_vessels_hu": 65.0, "aorta_hu": 42.0, "spleen_hu": 48.0},
            ("unenhanced", True),
        ),
        (
            {"liver_hu": 10.0, "liver_vessels_hu": 45.0, "aorta_hu": 42.0, "spleen_hu": 48.0},
            ("unenhanced", True),
        ),
        (
            {"liver_hu": 55.0, "liver_vessels_hu": 65.0, "aorta_hu": None, "spleen_hu": 48.0},
            ("unenhanced", True),
        ),
        (
            {"liver_hu": 55.0, "liver_vessels_hu": 65.0, "aorta_hu": None, "spleen_hu": None},
            ("unenhanced", False),
        ),
        # Early and late arterial (Goshima et al. 2006), and without a spleen.
        (
            {"liver_hu": 55.0, "liver_vessels_hu": 80.0, "aorta_hu": 290.0, "spleen_hu": 83.0},
            ("arterial", True),
        ),
        (
            {"liver_hu": 75.0, "liver_vessels_hu": 125.0, "aorta_hu": 340.0, "spleen_hu": 150.0},
            ("arterial", True),
        ),
        (
            {"liver_hu": 60.0, "liver_vessels_hu": 80.0, "aorta_hu": 250.0, "spleen_hu": None},
            ("arterial", True),
        ),
        # Vessels in the liver enhanced as the aorta is: not clear.
        (
            {"liver_hu": 70.0, "liver_vessels_hu": 190.0, "aorta_hu": 280.0, "spleen_hu": 150.0},
            ("arterial", False),
        ),
        (
            {"liver_hu": 90.0, "liver_vessels_hu": 105.0, "aorta_hu": 110.0, "spleen_hu": 98.0},
            ("late", False),
        ),
        ({"liver_hu": None}, ("", False)),
        ({"liver_hu": 190.0}, ("", False)),
    ],
)
def test_the_rule(changes, expected):
    values = {key: hu for key, hu in {**PORTAL, **changes}.items() if hu is not None}
    assert judged(values) == expected


def test_the_aorta_of_a_phantom_is_found(phantom):
    """The phantom's aorta is a tube with a radius of 11 mm and 155 HU (Training/cohort)."""
    scan = CoarseScan.of(*phantom)
    found = find_aorta(scan, find_spine(scan))
    assert found.radius_mm == 11 and found.length_mm > 0.8 * 3 * len(scan.hu)
    assert found.hu == pytest.approx(155, abs=20)
    turned = CoarseScan.of(*(sitk.DICOMOrient(image, "PIR") for image in phantom))
    assert find_aorta(turned, find_spine(turned)).hu == pytest.approx(found.hu, abs=1)


def test_no_aorta_is_found_where_there_is_none():
    hu = np.full((40, 120, 150), -1000, np.float32)
    hu[:, 20:100, 20:130] = 50
    hu[:, 70:90, 65:85] = 700
    nothing = np.zeros(hu.shape, bool)
    scan = CoarseScan(hu, hu > -250, nothing, nothing)
    assert find_aorta(scan, find_spine(scan)) is None
    assert find_spine(CoarseScan(np.minimum(hu, 50), hu > -250, nothing, nothing)) is None


def test_a_portal_venous_phantom_and_the_same_without_contrast(phantom):
    assert phase_by_hu(CoarseScan.of(*phantom)).name == "portal-venous"
    found = phase_by_hu(CoarseScan.of(with_hu(phantom.ct, unenhanced), *phantom[1:]))
    assert (found.name, found.clear) == ("unenhanced", True)
    assert found.values["aorta_hu"] < 60 and "kidneys_hu" not in found.values


def test_an_arterial_phantom():
    from cases.phantom import phantom

    found = phase_by_hu(arterial(CoarseScan.of(*phantom(0, 5))))
    assert (found.name, found.clear) == ("arterial", True)


def real(path):
    """A real CT and its liver and spleen by automatic segmentation."""
    ct = read_ct(path)
    found = segment_checked(ct, path.name, shipped_network())
    return ct, found.liver, found.spleen


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("hcc011_cirrA_art/ct.nii.gz", ("arterial", True)),
        ("ts_example_ct_nc_masks/ct.nii.gz", ("unenhanced", True)),
        ("ts_example_ct_dicom_slab_pv", ("portal-venous", False)),
        ("neg_dcm_hcc002_2phases_dupz/dicom", ("portal-venous", False)),
    ],
)
def test_real_scans(path, expected, shared_data):
    found = phase_by_hu(CoarseScan.of(*real(shared_data / path)))
    assert (found.name, found.clear) == expected


def test_a_real_portal_venous_scan_and_its_changes(shared_data):
    ct, liver, spleen = real(shared_data / "crlm1004_pv" / "ct.nii.gz")
    found = phase_by_hu(arterial(CoarseScan.of(ct, liver, spleen)))
    assert (found.name, found.clear) == ("arterial", True)
    found = phase_by_hu(CoarseScan.of(with_hu(ct, unenhanced), liver, spleen))
    assert (found.name, found.clear) == ("unenhanced", True)
    rng = np.random.default_rng(0)
    noisy = with_hu(ct, lambda hu: hu + rng.normal(0, 25, hu.shape))
    weaker = with_hu(ct, lambda hu: np.where((hu > 40) & (hu < 260), 40 + 0.85 * (hu - 40), hu))
    parts = [image[70:440, 60:450] for image in (ct, liver, spleen)]
    for changed in ((noisy, liver, spleen), (weaker, liver, spleen), parts):
        assert phase_by_hu(CoarseScan.of(*changed)).name == "portal-venous"
