"""Whole classifiers, exported from PyTorch and prepared: gradients as autograd's, maps as MONAI's.

Random weights. The networks' names indicate the blocks that are tested; small versions
(small_networks.py) stand in for torchvision's.
"""

import warnings

import numpy as np
import pytest

from LiverFibrosisStagingLib.gradcam_onnx.backprop import shape_name
from LiverFibrosisStagingLib.gradcam_onnx.explainable import ExplainableModel, Forward
from LiverFibrosisStagingLib.gradcam_onnx.gradcam import METHODS

torch = pytest.importorskip("torch", reason="the independent implementation")
onnx = pytest.importorskip("onnx", reason="prepares the models")
pytest.importorskip("onnxscript", reason="PyTorch's exporter")
nets = pytest.importorskip("monai.networks.nets", reason="the networks")
import onnxruntime  # noqa: E402
import small_networks  # noqa: E402
from monai.visualize import GradCAM  # noqa: E402
from torch_twin import TorchTwin  # noqa: E402

from lfs.build import Build  # noqa: E402
from lfs.export import export as export_staging  # noqa: E402
from lfs.network import LFSNetwork  # noqa: E402
from LiverFibrosisStagingLib.gradcam_onnx.make_explainable import make_explainable  # noqa: E402
from runs.networks import metadata  # noqa: E402

CLASS = 2
ONE, RGB = {"n_input_channels": 1, "num_classes": 4}, {"in_channels": 1, "num_classes": 4}

# Name: network, input, target layer.
NETWORKS = {
    "DenseNet121 3-D": (  # a quarter as wide
        lambda: nets.DenseNet121(
            spatial_dims=3, in_channels=1, out_channels=4, init_features=16, growth_rate=8
        ),
        (1, 48, 48, 48),
        "features.denseblock3",
    ),
    "ResNet-18 2-D": (lambda: nets.resnet18(spatial_dims=2, **ONE), (1, 64, 64), "layer3"),
    "ResNet-18 3-D": (  # a quarter as wide
        lambda: nets.ResNet("basic", [2, 2, 2, 2], [16, 32, 64, 128], spatial_dims=3, **ONE),
        (1, 32, 32, 32),
        "layer2",
    ),
    "ResNet-50 2-D": (lambda: nets.resnet50(spatial_dims=2, **ONE), (1, 64, 64), "layer4"),
    "ResNet-50 3-D": (  # a quarter as wide
        lambda: nets.ResNet("bottleneck", [3, 4, 6, 3], [16, 32, 64, 128], spatial_dims=3, **ONE),
        (1, 32, 32, 32),
        "layer3",
    ),
    "SEResNet-50": (lambda: nets.SEResNet50(spatial_dims=2, **RGB), (1, 64, 64), "layer3"),
    "EfficientNet-B0": (
        lambda: nets.EfficientNetBN("efficientnet-b0", pretrained=False, spatial_dims=2, **RGB),
        (1, 64, 64),
        "_blocks.5",
    ),
    "VGG": (small_networks.vgg, (1, 48, 48), "4"),
    "MobileNetV3": (small_networks.mobilenet_v3, (1, 48, 48), "3"),
    "ConvNeXt": (small_networks.convnext, (1, 48, 48), "2"),
}


def export(network, x, path, dynamo=False):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"external_data": False, "verbose": False} if dynamo else {}
        torch.onnx.export(
            network, (x,), path, dynamo=dynamo, opset_version=18 if dynamo else 17, **options
        )


def tensor_like(path, x, values):
    """Name of the ONNX tensor that holds the same numbers as a PyTorch module gave."""
    model = onnx.load(path)
    made = {name for node in model.graph.node for name in node.output if node.op_type != "Constant"}
    names = sorted(made)
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    found = session.run(names, {session.get_inputs()[0].name: x})
    alike = {n: np.abs(v - values).max() for n, v in zip(names, found) if v.shape == values.shape}
    return min(alike, key=alike.get)


def autograd(network, layer, x):
    """Feature maps and gradient of one class's score, by a hook and autograd."""
    seen = []
    module = network.get_submodule(layer)
    hook = module.register_forward_hook(
        lambda _, __, output: seen.append(output.clone()) or seen[0]
    )
    logits = network(x)
    logits = logits[0] if isinstance(logits, tuple) else logits
    hook.remove()
    (gradient,) = torch.autograd.grad(logits[:, CLASS].sum(), seen[0])
    return seen[0].detach().numpy(), gradient.numpy()


def relative_error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def seeded(make):
    torch.manual_seed(3)
    network = make().eval()
    for module in network.modules():  # statistics as if it had been trained
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            torch.nn.init.normal_(module.running_mean, 0, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network


@pytest.mark.parametrize("dynamo", [False, True], ids=["traced", "dynamo"])
@pytest.mark.parametrize("name", NETWORKS)
def test_network_is_explained_as_by_autograd_and_monai(name, dynamo, tmp_path):
    if dynamo and name not in ("VGG", "MobileNetV3", "ConvNeXt", "EfficientNet-B0"):
        pytest.skip("PyTorch's newer exporter takes long; four networks are enough")
    make, shape, layer = NETWORKS[name]
    network = seeded(make)
    x = torch.randn(1, *shape)
    path, prepared = tmp_path / "network.onnx", tmp_path / "prepared.onnx"
    export(network, x, path, dynamo)
    features, gradient = autograd(network, layer, x)
    make_explainable(path, tensor_like(path, x.numpy(), features), prepared)
    model = ExplainableModel(prepared)
    forward = model.run(x.numpy())
    assert relative_error(forward.tensors[model.layer.target], features) < 1e-4
    assert relative_error(model.gradient(forward, CLASS), gradient) < 1e-4
    cam = GradCAM(nn_module=network, target_layers=layer)
    compared = 0
    for chosen in range(4):  # with random weights some maps are zero
        expected = cam.compute_map(x, class_idx=chosen).detach().numpy()[:, 0]
        found = model.explain(forward, chosen)
        assert found.shape == expected.shape
        if expected.max() > 1e-9:
            compared += 1
            assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.9999
            assert relative_error(found, expected) < 1e-3
    assert compared


def test_last_block_of_a_vision_transformer(tmp_path):
    pytest.importorskip("einops", reason="a part of MONAI's ViT")
    network = seeded(
        lambda: nets.ViT(
            in_channels=1,
            img_size=(32, 24),
            patch_size=(8, 8),
            hidden_size=24,
            mlp_dim=48,
            num_layers=2,
            num_heads=3,
            classification=True,
            num_classes=4,
            spatial_dims=2,
            post_activation=None,
        )
    )
    x = torch.randn(1, 1, 32, 24)
    path, prepared = tmp_path / "vit.onnx", tmp_path / "prepared.onnx"

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, x):
            return self.network(x)[0]

    export(Logits(), x, path)
    features, gradient = autograd(network, "blocks.0", x)
    make_explainable(path, tensor_like(path, x.numpy(), features), prepared, grid=(4, 3))
    model = ExplainableModel(prepared)
    forward = model.run(x.numpy())
    assert relative_error(model.gradient(forward, CLASS), gradient) < 1e-4
    # The class token comes first; the others are the image's patches, row by row.
    maps, gradients = (
        v[:, 1:].reshape(1, 4, 3, 24).transpose(0, 3, 1, 2) for v in (features, gradient)
    )
    expected = np.maximum((gradients.mean((2, 3), keepdims=True) * maps).sum(1), 0)
    found = model.grad_cam(x.numpy(), CLASS)
    assert found.shape == (1, 4, 3) and expected.max() > 0
    assert relative_error(found, expected) < 1e-3


@pytest.fixture(scope="module")
def small_staging_network(tmp_path_factory):
    """As shipped, but with smaller patches and without training."""
    torch.manual_seed(3)
    network = LFSNetwork((16, 40, 48)).eval()
    path = tmp_path_factory.mktemp("small") / "LFS.onnx"
    described = metadata("small", "no data", [], Build(network.patch_size))
    export_staging(network, path, described | {"calibration": {"temperature": 1.0}})
    return path


@pytest.mark.parametrize(
    ("file", "convolution"),
    [*(("small_staging_network", number) for number in (1, 2, 3, 4)), ("single_path", 4)],
)
def test_every_convolution_of_the_staging_network(file, convolution, request, tmp_path):
    model_path = request.getfixturevalue(file)
    graph = onnx.load(model_path).graph
    activations = [node.output[0] for node in graph.node if node.op_type == "LeakyRelu"]
    layer = activations[convolution - 1]
    prepared = tmp_path / "prepared.onnx"
    make_explainable(model_path, layer, prepared, scores="logits")
    model = ExplainableModel(prepared)
    size = [d.dim_value for d in graph.input[0].type.tensor_type.shape.dim[1:]]
    x = np.random.default_rng(5).uniform(0.4, 0.9, (1, *size)).astype(np.float32)
    # From the same forward pass: rounding may choose another maximum in a pooling.
    twin = TorchTwin(model_path).eval()
    values = twin.tensors(torch.tensor(x))
    tensors = {name: value.detach().numpy() for name, value in values.items()}
    shapes = {shape_name(name): np.array(value.shape) for name, value in tensors.items()}
    forward = Forward(tensors["logits"], {**tensors, **shapes})
    compared = 0
    for chosen in range(5):
        (expected,) = torch.autograd.grad(
            values["logits"][0, chosen], values[layer], retain_graph=True
        )
        expected = expected.numpy()
        assert relative_error(model.gradient(forward, chosen), expected) < 1e-4
        wanted = np.maximum(
            (expected.mean((2, 3, 4))[..., None, None, None] * tensors[layer]).sum(1), 0
        )
        if wanted.max() > 1e-9:
            compared += 1
            assert relative_error(model.explain(forward, chosen), wanted) < 1e-4
            found = model.grad_cam(x, chosen)
            assert np.corrcoef(found.ravel(), wanted.ravel())[0, 1] > 0.9999
    assert compared


@pytest.mark.parametrize("method", METHODS)
def test_methods_equal_the_other_implementation(method, tmp_path):
    """pytorch-grad-cam, which needs torchvision."""
    pytest.importorskip("torchvision")
    cam = pytest.importorskip("pytorch_grad_cam", reason="the other implementation")
    kinds = {
        "gradcam": cam.GradCAM,
        "gradcam++": cam.GradCAMPlusPlus,
        "hirescam": cam.HiResCAM,
        "layercam": cam.LayerCAM,
        "xgradcam": cam.XGradCAM,
    }
    network = seeded(small_networks.vgg)
    with torch.no_grad():
        network[-1].weight *= 100  # else the other's 1e-6, added to squared gradients, counts
    x = torch.randn(1, 1, 48, 48)
    path, prepared = tmp_path / "network.onnx", tmp_path / "prepared.onnx"
    export(network, x, path)
    features, _ = autograd(network, "4", x)
    make_explainable(path, tensor_like(path, x.numpy(), features), prepared)
    found = ExplainableModel(prepared).grad_cam(x.numpy(), CLASS, method)
    with kinds[method](model=network, target_layers=[network[4]]) as other:
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        other(input_tensor=x, targets=[ClassifierOutputTarget(CLASS)])
        expected = other.get_cam_image(
            x,
            network[4],
            [ClassifierOutputTarget(CLASS)],
            other.activations_and_grads.activations[0].detach().numpy(),
            other.activations_and_grads.gradients[0].detach().numpy(),
            False,
        )
    expected = np.maximum(expected, 0)
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.9999
