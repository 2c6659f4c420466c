"""Location maps of cases with a single painted sign, whose region is known."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from insilico.paint import Case  # noqa: E402
from LiverFibrosisStagingLib.explanation_check import SURROUNDINGS, passes  # noqa: E402
from painted import truth  # noqa: E402
from painted.check import COUNTERFACTUALS, model_checks  # noqa: E402
from painted.maps import SCALE  # noqa: E402
from painted.network import Input, SignNetwork  # noqa: E402

SMALL = Input((16, 48, 64))
GRID = np.meshgrid(*(np.arange(n) for n in (16, 50, 66)), indexing="ij")


def ball(centre, radii):
    return sum(((g - c) / r) ** 2 for g, c, r in zip(GRID, centre, radii)) < 1


class Painter:
    """Two bodies; the spleen grows with its sign, nothing else changes."""

    bodies = (SimpleNamespace(name="a"), SimpleNamespace(name="b"))

    def case(self, seed, body, stage=None, only=None, spacing=None):
        wide = 12 if stage == 4 and only == {"spleen"} else 6
        liver, spleen = ball((8, 25, 20), (7, 16, 16)), ball((8, 25, 48), (6, wide, 8))
        hu = np.where(liver | spleen, 110.0, 40.0) + body + seed % 3
        tensors = [torch.as_tensor(a) for a in (np.float32(hu), liver, spleen & ~liver)]
        return Case(*tensors, (4.0, 2.0, 2.0), {"measured_lsvr": 0.25})


class SpleenNetwork(nn.Module):
    """Features are the spleen, and a tenth of it in the liver; the stage rises with their sum."""

    given = SMALL

    def features(self, x):
        liver, spleen = (functional.avg_pool3d(x[:, k : k + 1], SCALE) for k in (1, 2))
        return spleen + 0.1 * liver

    def outputs(self, features):
        return features.sum(dim=(1, 2, 3, 4))[:, None] * torch.arange(5.0) / 100, None

    def forward(self, x):
        return self.outputs(self.features(x))

    def separate(self):
        pass


@pytest.fixture(scope="module")
def found():
    return truth.single_signs([SpleenNetwork(), SpleenNetwork()], [[0], [1]], Painter(), 1)


def test_a_map_of_the_spleen_is_denser_there(found):
    ratios = {}
    for row in found:
        ratios.setdefault((row.sign, row.score, row.map), []).append(row.ratio)
    assert len(found) == 2 * 4 * 2 * 6  # bodies, signs, networks, maps
    for score in truth.SCORES:
        assert 4 < min(ratios["spleen", score, "F4"]) <= max(ratios["spleen", score, "F4"]) <= 10
        assert max(ratios["texture", score, "F4"]) < 1
    # Only the spleen grows: what it adds is in the spleen, and the other signs add nothing.
    assert min(ratios["spleen", "F4", "F4 - F0"]) > 100
    assert np.isnan(ratios["texture", "F4", "F4 - F0"]).all()


def test_the_expected_stage_rises_with_the_painted_sign_only(found):
    assert all((row.moved > 0.01) == (row.sign == "spleen") for row in found)


def test_regions_of_the_signs():
    liver, spleen = ball((8, 25, 20), (7, 16, 16)), ball((8, 25, 48), (6, 8, 8))
    masks = torch.as_tensor(np.stack([liver, spleen]).astype(np.float32))
    about = {key: value.numpy() > 0 for key, value in truth.regions(masks, 0.25).items()}
    assert (about["spleen"] == spleen).all()
    assert ((about["texture"] | about["surface"]) & liver == liver).all()
    assert not (about["texture"] & about["surface"]).any()
    depth = np.sqrt(((GRID[1] - 25) * 2.0) ** 2 + ((GRID[2] - 20) * 2.0) ** 2)[8]
    middle = about["surface"][8]
    assert middle[(depth > 27.5) & (depth < 34.5)].all() and not middle[depth < 25].any()
    assert not middle[depth > 37].any()
    share = about["lobes"].sum() / liver.sum()
    assert share == pytest.approx(0.2, abs=0.05) and about["lobes"][:, :, 20:].sum() > 0
    assert not about["lobes"][:, :, :20].any()  # the patient's left has the higher columns


def test_the_field_is_the_same_for_both_cases():
    cases = [Painter().case(0, 0, stage, {"spleen"}) for stage in (4, 0)]
    hu, masks = truth.same_field(cases, SMALL)
    assert hu.shape == (2, 1, *SMALL.patch_size) and torch.equal(masks[0, 0], masks[1, 0])
    assert masks[0, 1].sum() > 1.5 * masks[1, 1].sum()
    assert hu[0, 0][masks[0, 0] > 0].median() == pytest.approx(105)


def test_the_control_has_other_weights_and_the_same_layers():
    network = SignNetwork(SMALL).eval()
    network.signs[0].running_mean += 3
    before = network.signs[1].weight.clone()
    one, two = (truth.untrained(network, seed) for seed in (0, 1))
    assert torch.equal(network.signs[1].weight, before) and not one.training
    for control in (one, two):
        assert not torch.allclose(control.signs[1].weight, before * network.own_maps)
        assert (control.signs[1].weight[network.own_maps == 0] == 0).all()
        assert torch.equal(control.signs[0].running_mean, network.signs[0].running_mean)
    assert not torch.allclose(one.stages[0].weight, two.stages[0].weight)
    assert torch.equal(truth.untrained(network, 0).stages[0].weight, one.stages[0].weight)


def test_files_hold_a_row_for_each_map_and_medians_by_network(found, tmp_path):
    entries = truth.write_truth(found, tmp_path / "out")
    rows = list(csv.DictReader((tmp_path / "out" / "truth.csv").open(newline="")))
    assert len(rows) == len(found)
    written = json.loads((tmp_path / "out" / "truth.json").read_text())
    assert written["single_signs"] == entries and "Research use only" in written["research_use"]
    (entry,) = (e for e in entries if [*e.values()][:4] == ["spleen", "trained", "expected", "F4"])
    medians = [
        np.median(
            [
                r.ratio
                for r in found
                if r[:3] == ("spleen", "trained", fold) and r[5:7] == ("expected", "F4")
            ]
        )
        for fold in (0, 1)
    ]
    assert entry["ratio"]["median"] == pytest.approx(np.median(medians), abs=1e-4)
    assert (entry["cases"], entry["networks"], entry["empty"]) == (2, 2, 0)


def test_metadata_of_a_models_own_check():
    change = {"cases": 9, "mean": 0.0, "mean_absolute": 0.1, "largest": 0.4, "cirrhosis": 0.9}
    metrics = {"cases": 9, "counterfactuals": dict.fromkeys(COUNTERFACTUALS, change)}
    checks = model_checks(metrics)
    assert checks["source"] == "9 cases painted into unseen bodies" and passes(checks["moved"])
    assert set(checks["moved"][SURROUNDINGS]) == {"cases", "mean", "mean_absolute", "largest"}
