"""Drawn signs follow the published values; fields and tubes are what they claim to be."""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("scipy")
import torch
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from insilico import effects, fields, vessels
from LiverFibrosisStagingLib.signs.published import published_signs


@pytest.fixture(scope="module")
def drawn():
    rng = np.random.default_rng(0)
    return [[effects.draw(stage, rng) for _ in range(1500)] for stage in range(5)]


@pytest.mark.parametrize(
    ("sign", "field"),
    [("spleen_volume_ml", "spleen_ml"), ("lsvr", "lsvr"), ("nodularity_mm10", "nodularity")],
)
def test_drawn_signs_have_the_published_median(drawn, sign, field):
    """The truncation lowers means and SD; it does not move medians."""
    for group in published_signs().groups:
        if group.sign.key != sign or group.group not in ("F0", "F1", "F2", "F3", "F4"):
            continue
        values = np.array([getattr(case, field) for case in drawn[int(group.group[1])]])
        spread = np.sqrt(np.log1p((group.sd / group.mean) ** 2))
        median = group.mean * np.exp(-(spread**2) / 2)
        if group.sign.shape == "normal":
            median = group.mean
        assert np.median(values) == pytest.approx(median, rel=0.06)
        assert values.mean() <= group.mean * 1.05


def test_signs_of_portal_hypertension_begin_at_f3(drawn):
    for stage, cases in enumerate(drawn):
        for sign in ("vein_mm", "varices", "ascites_mm"):
            share = np.mean([getattr(case, sign) > 0 for case in cases])
            assert (share == 0) if stage < 3 else (0.02 < share < 0.6)


def test_only_takes_the_other_signs_from_f0():
    rng = [np.random.default_rng(5) for _ in range(3)]
    healthy, all_signs = effects.draw(0, rng[0]), effects.draw(4, rng[1])
    spleen = effects.draw(4, rng[2], only=("spleen",))
    assert spleen.spleen_ml == all_signs.spleen_ml > healthy.spleen_ml
    assert spleen[3:] == healthy[3:]
    with pytest.raises(ValueError, match="signs of"):
        effects.draw(4, rng[0], only=("kidney",))


def test_ceilings_are_at_least_those_of_a_logistic_regression(drawn):
    found = effects.ceilings(1500)
    assert all(found["all"][g] >= found[s][g] - 0.01 for s in effects.SIGNS for g in found["all"])
    cases = [case for stage in drawn for case in stage]
    values = np.array(
        [
            (
                np.log(c.spleen_ml),
                np.log(c.lsvr),
                c.nodularity,
                np.log(c.texture_hu),
                c.portal_mm,
                c.vein_mm > 0,
                c.varices > 0,
                c.ascites_mm > 0,
            )
            for c in cases
        ]
    )
    stages = np.array([case.stage for case in cases])
    for group, first in (("significant", 2), ("advanced", 3), ("cirrhosis", 4)):
        fitted = LogisticRegression(max_iter=2000).fit(values, stages >= first)
        logistic = roc_auc_score(stages >= first, fitted.predict_proba(values)[:, 1])
        assert logistic - 0.01 < found["all"][group] < logistic + 0.05
    # One sign: the likelihood ratio's AUC is the value's own where it rises with the stage.
    spleen = roc_auc_score(stages >= 4, values[:, 0])
    assert found["spleen"]["cirrhosis"] == pytest.approx(spleen, abs=0.02)


def test_noise_has_the_given_correlation():
    z, y, x = np.meshgrid(np.arange(6), np.arange(13), np.arange(13), indexing="ij")
    given = (25 * np.exp(-((z / 1.0) ** 2 + (y / 2.0) ** 2 + (x / 3.0) ** 2))).astype(np.float32)
    generator = torch.Generator().manual_seed(1)
    spacing = (2.0, 1.0, 1.0)
    field = fields.noise_like(given, spacing, (40, 96, 96), spacing, generator).numpy()
    assert field.std() == pytest.approx(1, abs=1e-3)
    for shift in ((1, 0, 0), (0, 2, 0), (0, 0, 3)):
        found = np.mean(field * np.roll(field, shift, (0, 1, 2)))
        assert found == pytest.approx(given[shift] / 25, abs=0.06)


def test_band_noise_and_the_filter_agree_with_scipy():
    generator = torch.Generator().manual_seed(1)
    spacing = (2.0, 1.0, 1.0)
    field = fields.band_noise((40, 80, 80), spacing, (1.5, 4.0), generator)
    assert float(field.mean()) == pytest.approx(0, abs=1e-4)
    slow = ndimage.gaussian_filter(field.numpy(), (4, 8, 8), mode="wrap")
    assert slow.std() < 0.05
    ours = fields.smooth(field, (3.0, 2.0, 0.0), spacing).numpy()
    theirs = ndimage.gaussian_filter(field.numpy(), (1.5, 2.0, 0), mode="nearest")
    assert np.abs(ours - theirs)[5:-5].max() < 0.01


def test_tubes_have_their_radius():
    points, radii = vessels.tube([np.array([20.0, 10.0, 20.0]), np.array([20.0, 50.0, 20.0])], 5.0)
    value = vessels.splat(points, radii, (21, 61, 41), (2.0, 1.0, 1.0), torch.device("cpu"))
    inside = (value > 0.5).numpy()[:, 30]
    assert inside.sum() * 2.0 == pytest.approx(np.pi * 25, rel=0.15)
    assert float(value[10, 30, 24]) == pytest.approx(0.5 + 1 / 8, abs=0.05)


def test_a_tree_follows_murrays_law():
    inside = np.random.default_rng(2).uniform(0, 100, (5000, 3))
    points, radii = vessels.tree(inside, np.zeros(3), 5.0, 60, np.random.default_rng(3))
    assert points.shape == (len(radii), 3)
    assert radii.max() <= 5.0
    # The smallest branches carry one of the tree's ends; what all of them carry is the root's.
    ends = round((5.0 / radii.min()) ** 3)
    assert radii.min() == pytest.approx(5.0 * (1 / ends) ** (1 / 3), rel=1e-6)
    assert 10 < ends <= 60
