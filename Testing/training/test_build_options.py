"""Grid, HU and size of a network from the command line to the exported file."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("monai")

import train  # noqa: E402
from phantom_cohorts import TINY, write_cohort  # noqa: E402

from cases.manifest import read_manifest  # noqa: E402
from common.options import with_options  # noqa: E402
from lfs import build, data, export  # noqa: E402
from lfs.network import LFSNetwork  # noqa: E402
from lfs.schedule import Schedule, check_crop  # noqa: E402
from LiverFibrosisStagingLib import StagingError, StagingModel  # noqa: E402
from LiverFibrosisStagingLib.staging import stage  # noqa: E402
from runs import networks  # noqa: E402

OPTIONS = (
    "--patch-size 12 32 40 --spacing 12 10.5 11 --window -200 300 --limits 0 200 "
    "--smoothing 3 --channels 2 3 4 5 --dense 6"
)


def built(options, base=build.FULL):
    parsed = train._parser().parse_args(["--manifest", "m", "-o", "r", *options.split()])
    return with_options(base, parsed)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return write_cohort(
        tmp_path_factory.mktemp("cohort") / "one", [i % 5 for i in range(12)], **TINY
    )


def test_nothing_given_is_the_network_of_before():
    assert built("") == build.FULL == build.Build()
    assert built("", build.SMALL) == build.SMALL
    network, plain = build.FULL.network(0), LFSNetwork()
    assert (network.mean, network.std, network.limit) == pytest.approx((0.65, 0.08, 2.0))
    assert [p.shape for p in network.parameters()] == [p.shape for p in plain.parameters()]


def test_options_reach_the_network():
    found = built(OPTIONS)
    assert found == build.Build(
        (12, 32, 40), (12.0, 10.5, 11.0), (2, 3, 4, 5), 6, (-200.0, 300.0), (0.0, 200.0), 3.0
    )
    network = found.network(1)
    assert network.patch_size == (12, 32, 40)
    assert [network.head[0].out_channels, network.tail[1].out_channels] == [2, 5]
    # What the first convolution sees of HU below, at and above the limits.
    seen = []
    network.head[0].register_forward_hook(lambda _, given, __: seen.append(given[0]))
    hu = torch.tensor([-150.0, 0.0, 50.0, 100.0, 200.0, 280.0])
    volume = ((hu + 200) / 500).reshape(-1, 1, 1, 1, 1).expand(-1, 1, *network.patch_size)
    network.eval().features(volume)
    np.testing.assert_allclose(seen[0][:, 0, 0, 0, 0], [-2, -2, -1, 0, 2, 2], atol=1e-5)


def test_the_exported_file_stages_with_them(cohort, tmp_path):
    """Training and staging prepare the same volume."""
    found = built(OPTIONS)
    case = read_manifest(cohort)[1]
    prepared = data.prepare([case], tmp_path / "cache", found)[0]
    network = found.network(0).eval()
    metadata = networks.metadata("options", "Two phantoms, no patient.", [case], found)
    path = tmp_path / "LFS.onnx"
    export.export(network, path, metadata | {"calibration": {"temperature": 1.0}})
    card = StagingModel.load(path).card
    assert card.window_hu == (-200, 300) and card.spacing_mm == (12, 10.5, 11)
    assert card.patch_size == (12, 32, 40) and card.smoothing_mm == 3
    staged = stage(case.ct, case.liver, case.spleen, path).forward_pass
    patches = data.sections(prepared, 12, data.PATCH_OVERLAP)
    with torch.no_grad():
        expected = network(torch.from_numpy(patches)).numpy()
    found_logits = np.concatenate([one.logits for one in staged.forwards])
    np.testing.assert_allclose(found_logits, expected, atol=5e-3)  # 256 grey values
    assert np.ptp(expected) > 0.05
    other = data.prepare([case], tmp_path / "cache", built(OPTIONS + " --window -200 310"))[0]
    assert not torch.equal(other["volume"], prepared["volume"])


def test_augmentation_is_in_hu():
    """The same changes of contrast and noise in any window."""
    wide = build.Build(window=(-525.0, 525.0))
    shifts = [data.augmentation(one).transforms[2].offsets[1] for one in (build.FULL, wide)]
    assert shifts == pytest.approx([17.5 / 350, 17.5 / 1050])


@pytest.mark.parametrize(
    "options, refused",
    [
        ("--patch-size 32 168 220", "patch size 32 168 220: multiples of 4 8 8 voxels"),
        ("--patch-size 0 168 216", "patch size 0 168 216"),
        ("--patch-size 4096 168 216", "67108864 in all at most"),
        ("--spacing 4 2 -2", "spacing 4 2 -2: 0.5 to 50 mm"),
        ("--spacing 4 2 nan", "spacing 4 2 nan"),
        ("--window 225 -125", "window 225 -125: the lower HU first"),
        ("--window nan 225", "window nan 225"),
        ("--limits 158 46", "limits 158 46: two HU within the window -125 225"),
        ("--limits 46 400", "limits 46 400: two HU within the window"),
        ("--smoothing -1", "smoothing -1: 0 to 10 mm"),
        ("--channels 8 16 0 64", "channels 8 16 0 64, dense 64: 1 or more"),
        ("--crop 400", "crop 400: 8 to 168 voxels"),
        ("--workers -1", "workers -1: 0 or more"),
        ("--epochs 0", "epochs 0: 1 or more"),
        ("--steps 4", "4 steps, 176 of them with crops"),
    ],
)
def test_bad_values_are_refused_in_a_sentence(options, refused, cohort, tmp_path, capsys):
    command = ["--manifest", str(cohort), "-o", str(tmp_path / "run"), "--folds", "2"]
    assert train.main([*command, *options.split()]) == 1
    assert refused in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_crops_fit_in_the_sections():
    check_crop(Schedule(crop=32), built(OPTIONS))
    with pytest.raises(StagingError, match="crop 33: 8 to 32 voxels"):
        check_crop(Schedule(crop=33), built(OPTIONS))
