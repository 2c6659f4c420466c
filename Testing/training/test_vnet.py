"""The V-Net's training: data, augmentation, loss, resumption, export."""

import json

import numpy as np
import pytest
import SimpleITK as sitk

torch = pytest.importorskip("torch", reason="the V-Net is trained with PyTorch")
pytest.importorskip("onnx", reason="the V-Net is exported to ONNX")

import monai.losses  # noqa: E402
import train_vnet  # noqa: E402
from phantom_cohorts import MEDIUM, write_cohort  # noqa: E402

from LiverFibrosisStagingLib.imaging.segmentation import CLASSES, SegmentationModel  # noqa: E402
from vnet import data as vnet_data  # noqa: E402
from vnet.network import VNet, export, load_weights  # noqa: E402

ABOUT = {
    "contract": 1,
    "name": "small",
    "classes": list(CLASSES),
    "window_hu": list(vnet_data.WINDOW_HU),
    "spacing_mm": list(vnet_data.SPACING_MM),
    "multiple_of": 2,
    "intended_use": "Research use only.",
}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """The manifest of five phantoms, which is also a list of labelled CTs."""
    return write_cohort(tmp_path_factory.mktemp("cohort"), range(5), 5, **MEDIUM)


@pytest.fixture(scope="module")
def prepared(cohort, tmp_path_factory):
    return vnet_data.prepare(vnet_data.read_cases(cohort), tmp_path_factory.mktemp("cache"))


def test_exported_network_equals_pytorch(tmp_path):
    torch.manual_seed(0)
    network = VNet((4, 6), (1, 2)).eval()
    export(network, tmp_path / "VNet.onnx", ABOUT)
    model = SegmentationModel(tmp_path / "VNet.onnx")
    assert model.card.multiple_of == network.multiple == 2
    volume = np.random.default_rng(0).random((10, 12, 14)).astype(np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(volume[None, None])).softmax(dim=1)[0].numpy()
    np.testing.assert_allclose(model.run(volume), expected, atol=1e-4)

    other = VNet((4, 6), (1, 2))  # as for fine-tuning a shipped file
    load_weights(other, tmp_path / "VNet.onnx")
    for name, values in network.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(other.state_dict()[name], values)
    torch.save({"network": network.state_dict()}, tmp_path / "checkpoint.pt")
    load_weights(other, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="another network"):
        load_weights(VNet((4, 8), (1, 2)), tmp_path / "VNet.onnx")


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_normalisation_is_that_of_inference_and_has_gradients(frozen):
    torch.manual_seed(0)
    network = VNet((4, 6), (1, 1)).train()
    train_vnet._freeze_statistics(network, frozen)
    volume = torch.rand(1, 1, 8, 8, 8)
    before = {name: values.clone() for name, values in network.named_buffers()}
    network(volume).sum().backward()
    kept = all(torch.equal(values, before[name]) for name, values in network.named_buffers())
    assert kept == frozen
    assert all(parameter.grad is not None for parameter in network.parameters())
    in_training = network(volume)
    assert torch.allclose(in_training, network.eval()(volume), atol=1e-6) == frozen


def test_loss_is_dice_and_cross_entropy():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, 6)
    labels = torch.randint(0, 3, (2, 1, 4, 5, 6))
    known = torch.ones(2, 3, dtype=torch.bool)
    dice = monai.losses.DiceLoss(
        include_background=False,
        to_onehot_y=True,
        softmax=True,
        squared_pred=True,
        smooth_nr=1.0,
        smooth_dr=1.0,
    )
    expected = dice(logits, labels) + torch.nn.functional.cross_entropy(logits, labels[:, 0])
    assert train_vnet.loss(logits, labels, known).item() == pytest.approx(expected.item(), rel=1e-5)


def test_an_organ_without_a_mask_may_be_anywhere_in_the_background():
    labels = torch.zeros(1, 1, 2, 2, 2, dtype=torch.long)
    labels[..., 0] = 1
    background, spleen = torch.full((2, 1, 3, 2, 2, 2), -9.0)
    for logits, other in ((background, 0), (spleen, 2)):
        logits[:, 1][labels[:, 0] == 1] = 9.0
        logits[:, other][labels[:, 0] == 0] = 9.0
    known, unknown = torch.tensor([[True, True, True]]), torch.tensor([[True, True, False]])
    losses = [train_vnet.loss(logits, labels, unknown) for logits in (background, spleen)]
    assert losses[0].item() == pytest.approx(losses[1].item(), abs=1e-4)
    assert losses[0].item() < 0.1
    assert train_vnet.loss(spleen, labels, known) > 1.0


def test_grid_and_labels_of_a_phantom(cohort, prepared):
    case = vnet_data.read_cases(cohort)[0]
    liver = sitk.ReadImage(case.liver.file)
    millilitres = sitk.GetArrayViewFromImage(liver).sum() * np.prod(liver.GetSpacing()) / 1000
    item = prepared[0]
    assert item["known"].tolist() == [True, True, True]
    assert all(n % vnet_data.MULTIPLE == 0 for n in item["volume"].shape[1:])
    voxels = np.count_nonzero(item["labels"] == vnet_data.LIVER)
    found = voxels * np.prod(vnet_data.SPACING_MM) / 1000
    assert found == pytest.approx(millilitres, rel=0.02)


def test_patches_depend_on_seed_and_number_and_are_not_mirrored(prepared):
    patches = vnet_data.Patches(None, prepared, 1.0, range(20), seed=3)
    shown = 0
    for number in range(20):
        volume, labels, _ = patches[number]
        assert volume.shape == labels.shape == (1, *vnet_data.PATCH_SIZE)
        assert volume.min() >= 0 and volume.max() <= 1
        assert set(labels.unique().tolist()) <= {0, 1, 2}
        places = [np.argwhere(labels[0].numpy() == label) for label in (1, 2)]
        if min(map(len, places)) > 200:
            shown += 1
            # LPS: the columns begin on the patient's right, the side of the liver.
            assert places[0][:, 2].mean() < places[1][:, 2].mean()
    assert shown >= 4
    again = vnet_data.Patches(None, prepared, 1.0, range(7, 20), seed=3)
    torch.testing.assert_close(again[0][0], patches[7][0])
    assert not torch.equal(patches[7][0], patches[8][0])


def test_interrupted_training_is_resumed(cohort, tmp_path, monkeypatch):
    cases = vnet_data.read_cases(cohort)[:2]
    monkeypatch.setattr(vnet_data, "PATCH_SIZE", (16, 24, 24))
    monkeypatch.setattr(train_vnet, "SAVE_EVERY", 1)
    monkeypatch.setattr(train_vnet, "VNet", lambda: VNet((4, 6), (1, 1)))
    schedule = train_vnet.Schedule(steps=3, batch=1)

    def run(folder):
        return train_vnet.train([], cases, tmp_path / folder, schedule, workers=0)

    whole = SegmentationModel(run("whole"))
    real = train_vnet.loss
    calls = []

    def killed(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(train_vnet, "loss", killed)
    with pytest.raises(KeyboardInterrupt):
        run("killed")
    assert not (tmp_path / "killed" / "VNet.onnx").exists()
    monkeypatch.setattr(train_vnet, "loss", real)
    resumed = SegmentationModel(run("killed"))
    volume = np.random.default_rng(0).random((8, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(resumed.run(volume), whole.run(volume), atol=1e-4)
    steps = [line.split(",")[0] for line in (tmp_path / "killed" / "log.csv").read_text().split()]
    assert steps == ["step", "1", "2", "3"]
    assert resumed.card.training["phantoms"] == 2


def write_decathlon(folder, labels, cases=1):
    """A folder in Decathlon layout; the labels 0..n are beside each other in the volume."""
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "labelsTr").mkdir()
    names = [f"case_{n}.nii.gz" for n in range(cases)]
    voxels = np.zeros((20, 40, 40), np.int16) - 1000
    marked = np.zeros((20, 40, 40), np.uint8)
    for label in labels:
        where = slice(4 + 6 * int(label), 10 + 6 * int(label))
        voxels[4:16, 10:30, where], marked[4:16, 10:30, where] = 100, int(label)
    for name in names:
        for kind, array in (("imagesTr", voxels), ("labelsTr", marked)):
            image = sitk.GetImageFromArray(array)
            image.SetSpacing((8.0, 8.0, 8.0))
            sitk.WriteImage(image, str(folder / kind / name))
    pairs = [{"image": f"./imagesTr/{n}", "label": f"./labelsTr/{n}"} for n in names]
    text = json.dumps({"labels": labels, "training": pairs})
    (folder / "dataset.json").write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("labels", "livers", "spleens"),
    [
        ({"0": "background", "1": "liver", "2": "cancer"}, (1, 2), None),
        ({"0": "background", "1": "spleen"}, None, (1,)),
        ({"0": "background", "1": "spleen", "2": "left kidney", "3": "liver"}, (3,), (1,)),
    ],
)
def test_decathlon_folders(labels, livers, spleens, tmp_path):
    (case,) = vnet_data.read_cases(write_decathlon(tmp_path / "task", labels))
    assert [m and m.labels for m in case[2:]] == [livers, spleens]
    item = vnet_data.prepare([case], tmp_path / "cache")[0]
    assert item["known"].tolist() == [True, livers is not None, spleens is not None]
    found = sorted(set(item["labels"].unique().tolist()) - {0})
    assert found == [n for n, part in ((1, livers), (2, spleens)) if part]
    liver = (item["labels"] == 1).sum().item() * 64 / 1000
    expected = sum(6 * 12 * 20 for _ in livers or ()) * 512 / 1000
    assert liver == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda t: t, "dataset.json"),
        (
            lambda t: write_decathlon(t / "x", {"0": "background", "1": "lung"}),
            "a liver or a spleen is needed",
        ),
        (lambda t: t / "none.csv", "none.csv"),
        (lambda t: _csv(t, "ct\na.nii.gz\n"), "a have no mask"),
    ],
)
def test_unsuitable_data_is_refused(make, sentence, tmp_path, capsys):
    source = make(tmp_path)
    assert train_vnet.main([str(source), "-o", str(tmp_path / "run")]) == 1
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_leaving_out_an_unknown_case_is_refused(cohort, tmp_path, capsys):
    arguments = [str(cohort), "--leave-out", "none", "-o", str(tmp_path / "run")]
    assert train_vnet.main(arguments) == 1
    assert "there is no case none" in capsys.readouterr().err


def _csv(folder, text):
    path = folder / "list.csv"
    path.write_text(text, encoding="utf-8")
    return path
