"""Refinement of probabilities by HU, and selection of components without holes and bridges."""

import numpy as np
import pytest
import SimpleITK as sitk
from sklearn.naive_bayes import CategoricalNB

from LiverFibrosisStagingLib.imaging import refinement
from LiverFibrosisStagingLib.imaging.components import components
from LiverFibrosisStagingLib.imaging.masks import dilated_by_ball, eroded_by_ball
from LiverFibrosisStagingLib.imaging.refinement import BIN_HU, organs_on_ct

SIZE = (20, 40, 48)


def box(z, y, x):
    """Where, bool, for three (first, last) pairs."""
    inside = np.zeros(SIZE, bool)
    inside[tuple(slice(*ends) for ends in (z, y, x))] = True
    return inside


LIVER = box((4, 16), (8, 32), (4, 24))
STOMACH = box((4, 16), (8, 20), (24, 32))
SPLEEN = box((6, 14), (22, 32), (36, 44))


@pytest.fixture
def patient():
    """Probabilities and HU: liver, spleen, and a contrast-filled stomach misclassified as liver."""
    rng = np.random.default_rng(0)
    hu = rng.normal(-90, 15, SIZE).astype(np.float32)
    for where, mean in ((LIVER, 105), (SPLEEN, 125), (STOMACH, 235)):
        hu[where] = rng.normal(mean, 12, np.count_nonzero(where))
    probabilities = np.zeros((3, *SIZE), np.float32)
    probabilities[1] = np.select([LIVER, STOMACH], [0.9, 0.6], 0.01)
    probabilities[2] = np.where(SPLEEN, 0.8, 0.01)
    probabilities[1, 4:7][LIVER[4:7]] = 0.3  # the network's doubt
    probabilities[0] = 1 - probabilities[1:].sum(axis=0)
    return probabilities, hu


def refine_em_mrf(probabilities, hu):
    image = sitk.GetImageFromArray(hu)
    image.SetSpacing((4.0, 4.0, 4.0))
    return refinement.refine_em_mrf(probabilities, image)


def most_probable(probabilities):
    return probabilities.argmax(axis=0)


def test_voxels_unlike_the_liver_are_removed_and_similar_ones_added(patient):
    probabilities, hu = patient
    before = most_probable(probabilities)
    assert (before[STOMACH] == 1).all() and (before[4:7][LIVER[4:7]] == 0).all()
    refined = refine_em_mrf(probabilities, hu)
    np.testing.assert_allclose(refined.sum(axis=0), 1, atol=1e-5)
    after = most_probable(refined)
    assert np.mean(after[STOMACH] == 1) < 0.01
    assert np.mean(after[LIVER] == 1) > 0.98
    assert np.mean(after[SPLEEN] == 2) > 0.98


def test_contrast_phase_does_not_matter(patient):
    """The same patient with 50 HU less gives the same result."""
    probabilities, hu = patient
    expected = refine_em_mrf(probabilities, hu)
    np.testing.assert_allclose(refine_em_mrf(probabilities, hu - 50), expected, atol=1e-3)


def test_one_iteration_is_bayes_rule(patient, monkeypatch):
    """scikit-learn's naive Bayes, trained on the same voxels, predicts the same classes."""
    monkeypatch.setattr(refinement, "ITERATIONS", 1)
    monkeypatch.setattr(refinement, "MAX_GROWTH_MM", {1: 1e3, 2: 1e3})
    probabilities, hu = patient
    probabilities[1][STOMACH] = 0.01  # nothing is odd, everything near enough
    probabilities[0] = 1 - probabilities[1:].sum(axis=0)
    bins = ((hu - hu.min()) / BIN_HU).astype(int).reshape(-1, 1)
    sure = [(probabilities[n] > 0.5).ravel() for n in range(3)]
    training = np.concatenate([np.flatnonzero(part) for part in sure])
    classes = np.concatenate([np.full(part.sum(), n) for n, part in enumerate(sure)])
    bayes = CategoricalNB(alpha=0.5, fit_prior=False, min_categories=int(bins.max()) + 1)
    bayes.fit(bins[training], classes)
    theirs = bayes.predict_log_proba(bins).T + np.log(probabilities.reshape(3, -1))
    ours = most_probable(refine_em_mrf(probabilities, hu)).ravel()
    assert np.mean(ours == theirs.argmax(axis=0)) > 0.99


def test_neighbourhoods_are_those_of_a_gaussian_filter():
    """In a part of an image that is 0 around it, at one edge of the image."""
    part = (slice(0, 9), slice(7, 25), slice(20, 41))
    values = np.zeros(SIZE, np.float32)
    values[part] = np.random.default_rng(0).random(values[part].shape)
    spacing = (3.0, 4.0, 6.0)
    variance = [(refinement.NEIGHBOURHOOD_MM / step) ** 2 for step in spacing]
    theirs = sitk.DiscreteGaussian(sitk.GetImageFromArray(values), variance, 9, 0.01, False)
    along = [
        refinement._smoother(n, step)[at, at] for n, step, at in zip(SIZE, spacing[::-1], part)
    ]
    ours = refinement._smooth(values[part], along)
    np.testing.assert_allclose(ours, sitk.GetArrayFromImage(theirs)[part], atol=1e-6)


def test_a_spleen_found_in_part_is_completed(patient):
    """But voxels beyond the spleen's maximum growth are not added, whatever their HU."""
    probabilities, hu = patient
    upper, lower = SPLEEN & box((10, 20), (0, 40), (0, 48)), box((6, 10), (22, 32), (36, 44))
    far = box((0, 2), (0, 8), (40, 48))
    probabilities[2][lower] = 0.02
    probabilities[0] = 1 - probabilities[1:].sum(axis=0)
    hu[far] = 125
    found = most_probable(refine_em_mrf(probabilities, hu)) == 2
    assert np.mean(found[upper]) > 0.98 and np.mean(found[lower]) > 0.9
    assert not found[far].any()


def test_without_organs_nothing_is_added(patient):
    hu = patient[1]
    nothing = np.stack([np.ones(SIZE), np.zeros(SIZE), np.zeros(SIZE)]).astype(np.float32)
    np.testing.assert_allclose(refine_em_mrf(nothing, hu), nothing, atol=1e-6)


@pytest.fixture
def grid():
    image = sitk.Image(SIZE[::-1], sitk.sitkUInt8)
    image.SetSpacing((4.0, 4.0, 4.0))
    return image


def masks(liver, spleen, grid):
    """Masks on a finer CT for probabilities of 0 and 1, sampled on the grid's voxels."""
    ct = sitk.Image([2 * n for n in grid.GetSize()], sitk.sitkInt16)
    ct.SetSpacing((2.0, 2.0, 2.0))
    ct.SetOrigin((-1.0, -1.0, -1.0))
    none = ~(liver | spleen)
    sure = np.stack([none, liver, spleen]).astype(np.float32)
    found = []
    for part in organs_on_ct(sure, grid, ct):
        assert components(part.inside)[0].max() <= 1
        mask = np.zeros(ct.GetSize()[::-1], bool)
        mask[part.box] = part.inside
        found.append(mask[::2, ::2, ::2])
    return found


def labelled(liver, grid):
    return masks(liver, np.zeros(SIZE, bool), grid)[0]


def test_both_organs_are_found_apart(grid):
    liver, spleen = masks(LIVER, SPLEEN, grid)
    assert np.mean(liver[LIVER]) > 0.9 and not liver[SPLEEN].any()
    assert np.mean(spleen[SPLEEN]) > 0.9 and not spleen[LIVER].any()


def test_a_hole_of_the_liver_is_not_spleen(grid):
    hole = box((9, 12), (15, 18), (10, 13))
    liver, spleen = masks(LIVER & ~hole, hole, grid)
    assert liver[hole].all() and not spleen.any()


def test_holes_are_filled_and_other_components_removed(grid):
    hollow = LIVER & ~box((8, 11), (15, 20), (10, 14))
    found = labelled(hollow | SPLEEN, grid)
    assert np.mean(found[LIVER]) > 0.9 and not found[SPLEEN].any()
    assert found[box((9, 10), (16, 19), (11, 13))].all()


def test_a_hole_is_filled_and_a_bay_at_the_edge_is_not():
    organ = np.ones((8, 14, 16), bool)  # up to the edge of the array on all sides
    organ[3:5, 5:8, 10:13] = organ[3:5, 5:8, :4] = False
    margin = np.where(organ, 0.5, -0.5).astype(np.float32)
    kept = refinement._clean_margin(margin, 4.0, (4.0, 4.0, 4.0)) > 0
    filled = sitk.BinaryFillhole(sitk.GetImageFromArray(organ.view(np.uint8)))
    np.testing.assert_array_equal(kept, sitk.GetArrayFromImage(filled) > 0)
    assert kept[3:5, 5:8, 10:13].all() and not kept[3:5, 5:8, :4].any()


def test_parts_beyond_a_thin_bridge_are_removed(grid):
    bridge = box((9, 10), (26, 27), (24, 36))
    found = labelled(LIVER | bridge | SPLEEN, grid)
    assert np.mean(found[LIVER]) > 0.9 and not found[SPLEEN].any()


def test_without_an_organ_there_is_no_label(grid):
    assert not labelled(np.zeros(SIZE, bool), grid).any()


@pytest.mark.parametrize("radius", [(1, 1, 1), (0, 2, 2), (2, 2, 2), (3, 3, 3), (1, 4, 3)])
def test_balls_are_those_of_simpleitk(radius):
    """At the array's edges as well."""
    inside = np.random.default_rng(0).random((12, 17, 21)) < 0.5
    few, many = inside & np.roll(inside, 1, 0) & np.roll(inside, 2, 1), LIVER[:12] | STOMACH[:12]
    for mask in (few, many, ~few):
        image = sitk.GetImageFromArray(mask.view(np.uint8))
        thin = sitk.BinaryErode(image, radius[::-1], sitk.sitkBall)
        wide = sitk.BinaryDilate(image, radius[::-1], sitk.sitkBall)
        assert (eroded_by_ball(mask, radius) == sitk.GetArrayFromImage(thin)).all()
        assert (dilated_by_ball(mask, radius) == sitk.GetArrayFromImage(wide)).all()
