from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from dynbn_lightning.models import CIFAR_RESNETS, NORMALIZATIONS, CifarResNet, cifar_resnet8, cifar_resnet20, load_model
from dynbn_lightning.models.cifar_resnet import BasicBlock


@pytest.mark.parametrize(
    ("name", "parameters"),  # table 6 of the paper, in millions: 0.27, 0.46, 0.66, 0.85, 1.7
    [
        ("cifar_resnet20", 269_722),
        ("cifar_resnet32", 464_154),
        ("cifar_resnet44", 658_586),
        ("cifar_resnet56", 853_018),
        ("cifar_resnet110", 1_727_962),
    ],
)
def test_has_the_parameters_of_the_paper(name, parameters):
    model = CIFAR_RESNETS[name]()
    assert sum(p.numel() for p in model.parameters()) == parameters
    layers = sum(isinstance(m, torch.nn.Conv2d | torch.nn.Linear) for m in model.modules())
    assert name == f"cifar_resnet{layers}"


def test_width_and_classes_are_free():
    model = cifar_resnet8(num_classes=7, width=6).eval()
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    assert model.linear.weight.shape == (7, 24)


@pytest.mark.parametrize("depth", [2, 9, 18, 51])
def test_refuses_a_depth_that_is_not_six_n_plus_two(depth):
    with pytest.raises(ValueError, match="6n"):
        CifarResNet(depth)


def test_shortcut_subsamples_and_pads_evenly():
    x = torch.randn(2, 4, 8, 8)
    y = BasicBlock(4, 8, stride=2).shortcut(x)
    assert y.shape == (2, 8, 4, 4)
    assert torch.equal(y[:, 2:6], x[:, :, ::2, ::2])
    assert not y[:, :2].any()
    assert not y[:, 6:].any()


def test_forward_is_that_of_a_plain_reference():
    torch.manual_seed(0)
    model = cifar_resnet20().eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(module.weight)
            torch.nn.init.normal_(module.bias)
    state = model.double().state_dict()

    def norm(x, at):
        mean, var, weight, bias = (
            state[f"{at}.{k}"][:, None, None] for k in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    images = torch.randn(2, 3, 32, 32, dtype=torch.double)
    x = norm(F.conv2d(images, state["conv1.weight"], padding=1), "bn1").clamp(min=0)
    for stage in (1, 2, 3):
        for block in range(3):
            at, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = norm(F.conv2d(x, state[f"{at}.conv1.weight"], padding=1, stride=stride), f"{at}.bn1").clamp(min=0)
            y = norm(F.conv2d(y, state[f"{at}.conv2.weight"], padding=1), f"{at}.bn2")
            x = x[:, :, ::stride, ::stride]
            pad = torch.zeros(2, (y.shape[1] - x.shape[1]) // 2, *y.shape[2:], dtype=torch.double)
            x = (torch.cat([pad, x, pad], dim=1) + y).clamp(min=0)
    logits = x.flatten(2).mean(2) @ state["linear.weight"].T + state["linear.bias"]
    with torch.no_grad():
        torch.testing.assert_close(model(images), logits)


@pytest.mark.parametrize(
    ("name", "file", "right"),
    [
        ("cifar_resnet20", "resnet20-12fca82f.th", 455),
        ("cifar_resnet32", "resnet32-d509ac18.th", 466),
        ("cifar_resnet56", "resnet56-4bfd9763.th", 470),
    ],
)
def test_public_weights_reach_their_accuracy(dynbn_data, name, file, right):
    model = load_model(name, checkpoint=dynbn_data / "weights" / file)
    assert model.input_normalization == NORMALIZATIONS["imagenet"]
    folders = sorted((dynbn_data / "cifar10" / "test").iterdir())
    paths = [(path, label) for label, folder in enumerate(folders) for path in sorted(folder.iterdir())]
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) for path, _ in paths]) / 255
    with torch.inference_mode():
        predicted = model(model.input_normalization.apply(pixels)).argmax(1)
    # Another CPU's rounding may turn an image whose two best logits are nearly equal.
    assert abs(int((predicted == torch.tensor([label for _, label in paths])).sum()) - right) <= 1
