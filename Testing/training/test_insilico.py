"""Painted fibrosis on a phantom as the body: signs as drawn, and nothing else from the stage."""

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("scipy")
pytest.importorskip("matplotlib")
import SimpleITK as sitk
import torch
from scipy import ndimage

from cases.manifest import read_manifest
from cases.phantom import phantom
from insilico import cohort, paint, prepare
from insilico.bodies import LEVELS_HU, body, coded, load_bodies
from LiverFibrosisStagingLib import StagingError

SPACING = (5.0, 3.0, 3.0)


@pytest.fixture(scope="module")
def coarse():
    """Bodies and canvas at a spacing that is quick to compute."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "SPACING_MM", SPACING)
        patch.setattr(paint, "CANVAS_MM", SPACING)
        yield


@pytest.fixture(scope="module")
def scan():
    """CT and label image of a healthy phantom."""
    made = phantom(0, 3, spacing=(5.0, 3.0, 3.0), size=(46, 108, 132))
    return made.ct, made.liver + sitk.And(made.spleen, made.liver == 0) * 2


@pytest.fixture(scope="module")
def bodies(coarse, scan, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bodies")
    # As `prepare.main` writes it.
    content = prepare.prepare(*scan) | {"origin": np.array(["phantom"])}
    np.savez_compressed(folder / "phantom.npz", **content)
    return load_bodies(folder)


@pytest.fixture(scope="module")
def painter(bodies):
    return paint.Painter(bodies)


@pytest.fixture(scope="module")
def pair(painter):
    """The same patient with F0 and F4."""
    return [painter.case(12, 0, stage, spacing=SPACING) for stage in (0, 4)]


def distance_mm(mask):
    return ndimage.distance_transform_edt(~mask.numpy(), sampling=SPACING)


def test_a_body_keeps_the_scan(scan, bodies):
    ct, labels = scan
    (found,) = bodies
    voxel_ml = np.prod(SPACING) / 1000
    for label, organ in ((1, found.liver), (2, found.spleen)):
        given = float((sitk.GetArrayViewFromImage(labels) == label).sum()) * 0.045
        assert (organ < 0).sum() * voxel_ml == pytest.approx(given, rel=0.04)
    hu = sitk.GetArrayViewFromImage(ct)
    core = ndimage.binary_erosion(sitk.GetArrayViewFromImage(labels) == 1, iterations=3)
    assert found.medians[0] == pytest.approx(np.median(hu[core]), abs=3)
    assert found.hu.min() == -1000
    assert found.hu.max() > 200


def test_codes_are_near_the_hu():
    soft = np.linspace(-150, 250, 999)
    assert np.abs(LEVELS_HU[coded(soft)] - soft).max() <= 1.3
    assert coded(np.array([-3024.0, 5000.0])).tolist() == [1, len(LEVELS_HU) - 1]
    assert len(LEVELS_HU) <= 256


def test_the_spleen_has_its_target_volume(painter):
    for stage, seed in ((0, 1), (2, 5), (3, 6), (4, 12)):
        case = painter.case(seed, 0, stage, spacing=SPACING)
        target = case.truth["spleen_ml"]
        assert case.truth["measured_spleen_ml"] == pytest.approx(target, rel=0.03)
        assert case.spleen.sum() * np.prod(SPACING) / 1000 == pytest.approx(target, rel=0.04)


def test_the_lobes_have_their_ratio(painter):
    for stage, seed in ((0, 1), (3, 6)):
        truth = painter.case(seed, 0, stage, spacing=SPACING).truth
        assert truth["measured_lsvr"] == pytest.approx(truth["lsvr"], rel=0.1)


def test_masks_fit_the_hu(pair):
    """Across a mask's border the HU change more than across that of a shifted mask."""
    for case in pair:
        hu = case.hu.numpy()

        def contrast(mask, hu=hu):
            inner = mask & ~ndimage.binary_erosion(mask, iterations=1)
            outer = ndimage.binary_dilation(mask, iterations=1) & ~mask
            return np.clip(hu, -150, 150)[inner].mean() - np.clip(hu, -150, 150)[outer].mean()

        for mask in (case.liver.numpy(), case.spleen.numpy()):
            shifts = [np.roll(mask, 2 * way, axis) for axis in range(3) for way in (-1, 1)]
            assert contrast(mask) > 1.3 * max(map(contrast, shifts))
        assert not (case.liver & case.spleen).any()


def test_the_same_seed_gives_the_same_case(painter):
    first, again, other = (painter.case(seed, 0, 3, spacing=SPACING) for seed in (7, 7, 8))
    assert torch.equal(first.hu, again.hu)
    assert first.truth == again.truth
    assert not torch.equal(first.hu, other.hu)


def test_the_stage_changes_nothing_far_from_the_organs(pair):
    healthy, cirrhotic = pair
    assert cirrhotic.truth["spleen_ml"] > healthy.truth["spleen_ml"]
    near = healthy.liver | healthy.spleen | cirrhotic.liver | cirrhotic.spleen
    far = torch.as_tensor(distance_mm(near) > 70)
    assert far.float().mean() > 0.05
    difference = (healthy.hu - cirrhotic.hu).abs()
    assert (difference[far] < 1e-2).float().mean() > 0.99
    assert difference[near].mean() > 3


def test_without_its_signs_a_stage_is_f0(painter, pair):
    """No voxel tells the stage but through a sign: not the surroundings, not the scan."""
    case = painter.case(12, 0, 4, only=(), spacing=SPACING)
    assert torch.equal(case.hu, pair[0].hu)
    assert torch.equal(case.spleen, pair[0].spleen)


def test_surroundings_and_parenchyma_do_not_tell_the_stage(painter):
    """Mean HU of liver, spleen and fat, and the body's size, are those of the other stage."""
    measured = []
    for stage in (0, 4):
        cases = [
            painter.case(seed, 0, stage, only=("surface",), spacing=SPACING) for seed in (1, 2)
        ]
        measured.append(
            [
                (
                    float(c.hu[c.liver].mean()),
                    float(c.hu[c.spleen].mean()),
                    int((c.hu > -300).sum()),
                )
                for c in cases
            ]
        )
    assert np.allclose(*measured, rtol=2e-3, atol=0.5)


@pytest.mark.parametrize(
    ("sign", "field"),
    [
        ("spleen", "spleen_ml"),
        ("lobes", "lsvr"),
        ("surface", "nodularity"),
        ("texture", "texture_hu"),
    ],
)
def test_one_sign_alone(painter, pair, sign, field):
    """With one sign, the others are those of F0; HU change where the sign is."""
    healthy, all_signs = pair
    case = painter.case(12, 0, 4, only=(sign,), spacing=SPACING)
    for name, value in case.truth.items():
        if name == field:
            assert value == all_signs.truth[name] != healthy.truth[name]
        elif name not in ("stage", "severity") and not name.startswith("measured"):
            assert value == healthy.truth[name], name
    difference = (case.hu - healthy.hu).abs().numpy()
    liver, spleen = healthy.liver | case.liver, healthy.spleen | case.spleen
    if sign == "texture":
        assert torch.equal(case.liver, healthy.liver)
        assert difference[distance_mm(healthy.liver) > 15].max() < 1e-2
        assert difference[healthy.liver.numpy()].mean() > 1
    elif sign == "surface":
        depth = ndimage.distance_transform_edt(healthy.liver.numpy(), sampling=SPACING)
        assert difference[(distance_mm(healthy.liver) > 40) | (depth > 40)].max() < 0.5
        assert difference[(depth > 0) & (depth < 4)].mean() > 1
    elif sign == "spleen":
        assert np.mean(difference[distance_mm(spleen | liver) > 70] < 0.5) > 0.99
        assert difference[spleen.numpy()].mean() > difference[liver.numpy()].mean()
    else:
        assert difference[liver.numpy()].mean() > 2 * difference[distance_mm(liver) > 50].mean()


def test_a_tumour_is_healed(coarse, scan):
    """A large dark lesion of the body is not in its painted liver."""
    ct, labels = scan
    hu, organs = (sitk.GetArrayFromImage(image) for image in (ct, labels))
    middle = np.argwhere(organs == 1).mean(axis=0)
    index = np.indices(organs.shape)
    apart = np.sqrt(sum(((i - m) * s) ** 2 for i, m, s in zip(index, middle, SPACING)))
    hu[(apart < 25) & (organs == 1)] -= 60
    sick = sitk.GetImageFromArray(hu)
    sick.CopyInformation(ct)
    painters = [
        paint.Painter([body(name, **prepare.prepare(image, labels))])
        for name, image in (("sick", sick), ("well", ct))
    ]
    cases = [painter.case(4, 0, 0, spacing=SPACING) for painter in painters]
    core = ndimage.binary_erosion((cases[0].liver & cases[1].liver).numpy(), iterations=3)
    smooth = [ndimage.gaussian_filter(case.hu.numpy(), 2)[core] for case in cases]
    assert np.abs(smooth[0] - smooth[1]).max() < 12


def test_a_cohort_has_a_manifest_that_training_reads(painter, tmp_path):
    manifest = cohort.write_cohort(painter, tmp_path, 5, 1, spacing=(8.0, 6.0, 6.0))
    cases = read_manifest(manifest)
    assert sorted(case.stage for case in cases) == [0, 1, 2, 3, 4]
    lines = (tmp_path / "signs.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("patient,body,stage,severity,spleen_ml")
    assert len(lines) == 6
    ct = sitk.ReadImage(tmp_path / "painted_1_0000_ct.nii.gz")
    assert ct.GetSpacing() == (6.0, 6.0, 8.0)
    assert ct.GetPixelID() == sitk.sitkInt16


def test_commands_refuse_with_a_sentence(tmp_path, capsys, scan):
    (tmp_path / "recipe.json").write_text('{"bodies": [{"name": "x"}]}', encoding="utf-8")
    assert prepare.main([str(tmp_path / "recipe.json"), "-o", str(tmp_path / "out")]) == 1
    assert "a list of bodies with name and ct is needed" in capsys.readouterr().err
    assert cohort.main([str(tmp_path), "-o", str(tmp_path / "cohort")]) == 1
    assert "0 bodies; one or more are needed" in capsys.readouterr().err
    with pytest.raises(StagingError, match="without liver"):
        prepare.prepare(scan[0], scan[1] == 1)


def test_outlines_are_corrected():
    from insilico.outlines import corrected

    hu, labels = np.zeros((3, 40, 60), np.float32), np.zeros((3, 40, 60), np.uint8)
    hu[:, 5:35, 5:30] = 100
    labels[:, 10:30, 10:50] = 1
    images = [sitk.GetImageFromArray(array) for array in (hu, labels)]
    removed = {
        "organ": "liver",
        "slices": [0, 2],
        "inside": [[0, 29.5], [0, 60], [40, 60], [40, 29.5]],
    }
    grown = {"organ": "liver", "slices": [1, 1], "inside": None, "hu": [60, 140]}
    found = sitk.GetArrayFromImage(corrected(*images, [removed, grown]))
    box = SimpleNamespace(
        rows=np.flatnonzero(found[0].any(1)), columns=np.flatnonzero(found[0].any(0))
    )
    assert (box.rows[0], box.rows[-1], box.columns[0], box.columns[-1]) == (10, 29, 10, 29)
    rows, columns = np.flatnonzero(found[1].any(1)), np.flatnonzero(found[1].any(0))
    assert abs(rows[0] - 5) <= 1
    assert abs(columns[0] - 5) <= 1
    assert columns[-1] == 29
