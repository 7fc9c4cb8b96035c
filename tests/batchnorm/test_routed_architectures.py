"""Whole networks: one routed pass equals evaluating each image with its row loaded into the running statistics."""

from functools import partial

import pytest
import timm
import torch
import torchvision
from batchnorm_reference import assert_same, batchnorm_modules, make_bank, snapshot, with_row_loaded
from torch import nn

from dynbn_lightning.batchnorm import BNStatsBank, routed
from dynbn_lightning.errors import UnsupportedModelError

ROWS = ("clean", "fog", "frost")
ASSIGNED = [1, 0, 2, 1]
TORCHVISION = ("resnet18", "resnet50", "efficientnet_b0", "mobilenet_v3_small", "regnet_y_400mf", "densenet121")
TIMM = ("resnet18", "resnet50", "efficientnet_b0", "mobilenetv3_small_100", "regnety_002", "densenet121")
ARCHITECTURES = {
    **{f"torchvision {name}": partial(torchvision.models.get_model, name, num_classes=7) for name in TORCHVISION},
    **{f"timm {name}": partial(timm.create_model, name, num_classes=7) for name in TIMM},
}


@torch.no_grad()
def with_working_statistics(model, generator):
    """Running statistics measured on noise, then disturbed: far from 0 and 1, with activations that stay in range."""
    images = torch.randn(8, 3, 64, 64, generator=generator)
    layers = batchnorm_modules(model)
    for layer in layers.values():
        layer.momentum = None
    model.train()(images)
    for layer in layers.values():
        layer.running_mean.add_(torch.randn(layer.num_features, generator=generator) * layer.running_var.sqrt() * 0.2)
        layer.running_var.mul_(torch.rand(layer.num_features, generator=generator) + 0.5)
        layer.weight.copy_(torch.rand(layer.num_features, generator=generator) + 0.5)
        layer.bias.copy_(torch.randn(layer.num_features, generator=generator) * 0.3)
    return model.eval()


def bank_around(model, generator):
    """Rows that lie around the model's own statistics, so that deep networks keep their activations in range."""
    bank = make_bank(model, ROWS, generator)
    mean, var = bank.mean[:1].repeat(len(ROWS), 1), bank.var[:1].repeat(len(ROWS), 1)
    mean[1:] += torch.randn(len(ROWS) - 1, mean.shape[1], generator=generator) * var[1:].sqrt() * 0.3
    var[1:] *= torch.rand(len(ROWS) - 1, mean.shape[1], generator=generator) + 0.7
    return BNStatsBank(rows=ROWS, layers=bank.layers, mean=mean, var=var)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_routed_equals_image_by_image_with_each_row_loaded(name):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = with_working_statistics(ARCHITECTURES[name](), generator).double()  # differences are faults, not rounding
    bank = bank_around(model, generator)
    images = torch.randn(len(ASSIGNED), 3, 64, 64, generator=generator, dtype=torch.float64)
    before = snapshot(model)
    with torch.no_grad():
        own = model(images)
        copies = {row: with_row_loaded(model, bank, ROWS[row]) for row in set(ASSIGNED) - {0}} | {0: model}
        expected = torch.cat([copies[row](image[None]) for row, image in zip(ASSIGNED, images, strict=True)])
        with routed(model, bank) as routing:
            routing.set(torch.tensor(ASSIGNED))
            out = model(images)
            routing.set(nn.functional.one_hot(torch.tensor(ASSIGNED), len(ROWS)).double())
            soft = model(images)
            routing.set(torch.zeros(len(images), dtype=torch.int64))
            assert torch.equal(model(images), own)
        assert torch.equal(model(images), own)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(soft, out, rtol=0, atol=0)
    assert (expected - own)[[0, 2, 3]].abs().amax(1).min() > 0.1  # the rows do matter
    assert_same(before, model)


@pytest.mark.parametrize(
    "create",
    [partial(timm.create_model, "convnext_atto"), torchvision.models.convnext_tiny],
    ids=["timm", "torchvision"],
)
def test_a_model_without_batchnorm_is_refused_by_name(create):
    with pytest.raises(UnsupportedModelError, match=r"ConvNeXt has no BatchNorm layers.*LayerNorm"):
        BNStatsBank.collect(create(num_classes=7), {"fog": [torch.rand(2, 3, 64, 64)]}, progress=False)


def test_layers_that_are_used_twice_or_shared_are_routed_every_time():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution = nn.Conv2d(4, 4, 1, bias=False)
            self.norm = nn.BatchNorm2d(4)
            self.same_norm = self.norm

        def forward(self, x):
            return self.same_norm(self.convolution(self.norm(self.convolution(x))))

    torch.manual_seed(0)
    model = Twice().double().eval()
    bank = make_bank(nn.ModuleDict({"norm": model.norm}), ROWS, torch.Generator().manual_seed(0))
    assert list(bank.layers) == ["norm"]
    images = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    with torch.no_grad(), routed(model, bank) as routing:
        routing.set(torch.tensor([2, 1]))
        out = model(images)
        expected = [with_row_loaded(nn.ModuleDict({"norm": model.norm}), bank, ROWS[row]) for row in (2, 1)]
    for image in range(2):
        norm = nn.BatchNorm2d(4).double().eval()
        norm.load_state_dict(expected[image]["norm"].state_dict())
        by_hand = norm(model.convolution(norm(model.convolution(images[image : image + 1]))))
        torch.testing.assert_close(out[image : image + 1], by_hand, rtol=1e-10, atol=1e-10)
