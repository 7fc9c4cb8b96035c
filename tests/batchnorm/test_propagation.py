"""What the layers before a layer do while it is measured: each `propagate` against a float64 walk through the model."""

import itertools

import numpy as np
import pytest
import torch
from batchnorm_reference import (
    assert_same,
    batchnorm_modules,
    float64,
    give_nontrivial_statistics,
    normalize_image_by_image,
    snapshot,
)
from timm.layers.norm_act import BatchNormAct2d
from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d

from dynbn_lightning.batchnorm import PROPAGATIONS, BNStatsBank
from dynbn_lightning.batchnorm.collecting import collect_statistics
from dynbn_lightning.errors import DataError, RoutingError

IMAGES = 21


class Residual(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


def residual_network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3, bias=False),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        Residual(nn.Conv2d(5, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.BatchNorm1d(5),
        nn.Linear(5, 4),
        nn.BatchNorm1d(4),
    )
    give_nontrivial_statistics(model, torch.Generator().manual_seed(0))
    return model.eval()


def network_of_frozen_and_timm_layers():
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3),
        FrozenBatchNorm2d(5, eps=0.01),
        nn.Conv2d(5, 4, 3),
        BatchNormAct2d(4, act_layer=nn.SiLU),
        nn.Conv2d(4, 3, 3),
        nn.BatchNorm2d(3),
    )
    give_nontrivial_statistics(model, torch.Generator().manual_seed(1))
    return model.eval()


def images(count=IMAGES):
    generator = torch.Generator().manual_seed(2)
    brightness = torch.randn(count, 1, 1, 1, generator=generator)  # so that batches differ
    return torch.randn(count, 3, 8, 8, generator=generator) * 1.5 + brightness


def collect(model, batches, propagate):
    return BNStatsBank.collect(model, {"fog": batches}, propagate=propagate, progress=False)


# The reference: a float64 walk that hands each BatchNorm layer's input over


def convolve(layer, x):
    weight, (padding, _) = float64(layer.weight), layer.padding
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    height, width = x.shape[2] - weight.shape[2] + 1, x.shape[3] - weight.shape[3] + 1
    out = np.zeros((len(x), len(weight), height, width))
    for row in range(weight.shape[2]):
        for column in range(weight.shape[3]):
            window = x[:, :, row : row + height, column : column + width]
            out += np.einsum("oc,nchw->nohw", weight[:, :, row, column], window)
    return out if layer.bias is None else out + float64(layer.bias)[:, None, None]


STEPS = {
    nn.Conv2d: convolve,
    nn.Linear: lambda layer, x: x @ float64(layer.weight).T + float64(layer.bias),
    nn.ReLU: lambda layer, x: np.maximum(x, 0),
    nn.AdaptiveAvgPool2d: lambda layer, x: x.mean((2, 3), keepdims=True),
    nn.Flatten: lambda layer, x: x.reshape(len(x), -1),
}


def walk(module, x, batchnorm, name=""):
    if isinstance(module, nn.Sequential):
        out = x
        for child, step in module.named_children():
            out = walk(step, out, batchnorm, f"{name}{child}.")
        return x + out if isinstance(module, Residual) else out
    if type(module) in STEPS:
        return STEPS[type(module)](module, x)
    return batchnorm(name[:-1], module, x)


def moments(values, ddof):
    axes = (0, *range(2, values.ndim))
    return values.mean(axes), values.var(axes, ddof=ddof)


def normalize(layer, x, mean, var):
    activation = (lambda values: values / (1 + np.exp(-values))) if hasattr(layer, "act") else np.positive
    affine = float64(layer.weight), float64(layer.bias)
    return normalize_image_by_image(x, [mean] * len(x), [var] * len(x), *affine, layer.eps, activation)


def reference_row(model, batches, propagate):
    inputs = {name: [] for name in batchnorm_modules(model)}

    def batchnorm(name, layer, x):
        inputs[name].append(x)
        mean, var = float64(layer.running_mean), float64(layer.running_var)
        if propagate != "source":
            mean, var = moments(x, ddof=1 if propagate == "sequential" else 0)
        return normalize(layer, x, mean, var)

    batches = [float64(batch) for batch in batches]
    for batch in [np.concatenate(batches)] if propagate == "sequential" else batches:
        walk(model, batch, batchnorm)
    return {name: moments(np.concatenate(seen), ddof=1) for name, seen in inputs.items()}


def assert_close(row, expected, tolerance):
    """Means within `tolerance` standard deviations, variances within that share of themselves."""
    for name, (mean, var) in expected.items():
        np.testing.assert_array_less(np.abs(float64(row[name][0]) - mean), tolerance * np.sqrt(var), err_msg=name)
        np.testing.assert_array_less(np.abs(float64(row[name][1]) / var - 1), tolerance, err_msg=name)


@pytest.mark.parametrize("make_model", [residual_network, network_of_frozen_and_timm_layers])
@pytest.mark.parametrize("propagate", PROPAGATIONS)
def test_rows_equal_a_float64_walk(make_model, propagate):
    model = make_model().double()
    batches = list(images().double().split([4, 12, 5]))
    before = snapshot(model)
    bank = collect(model, batches, propagate)
    assert_same(before, model)
    assert_close(bank["fog"], reference_row(model, batches, propagate), 1e-6)  # a bank holds float32
    assert bank.provenance["propagate"] == propagate


def test_the_three_ways_agree_at_the_first_layer_alone():
    rows = [collect(residual_network(), images().split(7), propagate)["fog"] for propagate in PROPAGATIONS]
    for first, second in itertools.combinations(rows, 2):
        for name in first:
            off = (first[name][1] / second[name][1] - 1).abs()
            assert (off < 1e-5).all() if name == "1" else (off > 1e-3).any(), name


@pytest.mark.parametrize("size", [1, 3, 7, IMAGES])
@pytest.mark.parametrize("propagate", ["source", "sequential"])
def test_source_and_sequential_rows_are_those_of_any_batch_size(propagate, size):
    model = residual_network()
    expected = reference_row(model, [images()], propagate)
    assert_close(collect(model, images().split(size), propagate)["fog"], expected, 1e-5)


def test_one_value_per_channel_is_too_few_for_batch_in_a_batch_and_for_the_others_in_all():
    with pytest.raises(RoutingError, match=r"one value per channel.*larger batches"):
        collect(residual_network(), images().split(1), "batch")
    for propagate in ("source", "sequential"):
        with pytest.raises(DataError, match="row 'fog': one value per channel has no variance: more images"):
            collect(residual_network(), [images(1)], propagate)


def test_sequential_is_batch_in_one_batch_but_for_the_unbiased_variance():
    """Which scales the layers before a layer by 1 - 1/2n, where n values per channel are the fewest of any of them.

    The mean is compared in root mean squares, for ReLUs and averaging give means that are far larger than deviations.
    """
    model = residual_network()
    batch, sequential = (collect(model, [images()], propagate)["fog"] for propagate in ("batch", "sequential"))
    bound = 1e-6  # at the first layer
    for name in batchnorm_modules(model):
        mean, var = batch[name]
        off_mean = (sequential[name][0] - mean).abs() / (mean.square() + var).sqrt()
        off_var = (sequential[name][1] / var - 1).abs()
        assert max(off_mean.max(), off_var.max()) <= bound, name
        bound = 2 / (IMAGES - 1) if name in ("6", "8") else 2 / (IMAGES * 6 * 6 - 1)
    last = sequential["8"][1] / batch["8"][1]
    # From layer 6 to layer 8 all is linear; the rest is eps in layer 6 and the layers before it.
    torch.testing.assert_close(last, torch.full_like(last, (IMAGES - 1) / IMAGES), rtol=0.005, atol=0)


def test_sequential_merges_the_calls_so_far_of_a_layer_used_twice():
    torch.manual_seed(3)
    shared, convolution, tanh = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.Tanh()
    model = nn.Sequential(shared, convolution, tanh, shared, convolution, tanh, nn.BatchNorm2d(3)).double().eval()
    give_nontrivial_statistics(model, torch.Generator().manual_seed(3))

    def block(x, statistics):
        return np.tanh(convolve(convolution, normalize(shared, x, *statistics)))

    first = float64(images().double())
    second = block(first, moments(first, 1))
    merged = moments(np.concatenate([first, second]), 1)
    expected = {"0": merged, "6": moments(block(block(first, merged), merged), 1)}
    assert_close(collect(model, images().double().split(8), "sequential")["fog"], expected, 1e-6)


@pytest.mark.parametrize("propagate", PROPAGATIONS)
def test_collect_statistics_measures_the_same_and_reads_a_generator_once(propagate):
    model, batches = residual_network(), images().split(7)
    row = collect(model, batches, propagate)["fog"]
    statistics, count = collect_statistics(model, (batch for batch in batches), propagate)
    assert count == IMAGES
    for name, (mean, var) in statistics.items():
        assert torch.equal(mean, row[name][0])
        assert torch.equal(var, row[name][1])


class InTheOrderOfTheBrightness(nn.Module):
    """Calls its layers `first`, then `second` for bright batches, and as `for_dark` says for dark ones."""

    def __init__(self, for_dark):
        super().__init__()
        self.first, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.for_dark = for_dark

    def forward(self, x):
        for name in ("first", "second") if x.mean() > 0 else self.for_dark:
            x = getattr(self, name)(x)
        return x


@pytest.mark.parametrize(
    "for_dark",
    [("second", "first"), ("first",), ("first", "first", "second"), ("first", "second", "first")],
    ids=", ".join,
)
@pytest.mark.parametrize("signs", [(1, -1), (-1, 1)], ids=["bright first", "dark first"])
def test_sequential_refuses_another_order_from_batch_to_batch(for_dark, signs):
    model = InTheOrderOfTheBrightness(for_dark)
    before = snapshot(model)
    with pytest.raises(RoutingError, match=r"another order.*layer '(first|second)'.*use propagate=\"batch\""):
        collect(model, [sign * images().abs() for sign in signs], "sequential")
    assert_same(before, model)
    collect(model, [sign * images().abs() for sign in signs], "batch")


@pytest.mark.parametrize("propagate", ["source", "sequential"])
def test_a_layer_outside_the_forward_keeps_its_own(propagate):
    model = InTheOrderOfTheBrightness(for_dark=["first"])
    give_nontrivial_statistics(model, torch.Generator().manual_seed(4))
    row = collect(model, [-images().abs()], propagate)["fog"]
    assert torch.equal(row["second"][0], model.second.running_mean)
    assert torch.equal(row["second"][1], model.second.running_var)
    assert not torch.equal(row["first"][0], model.first.running_mean)


@pytest.mark.parametrize(
    ("propagate", "batches", "message"),
    [
        ("sequental", [images()], "propagate='sequental': did you mean 'sequential'?"),
        ("none", [images()], "propagate='none': known: batch, source, sequential"),
        ("source", [], "row 'fog': no image batches"),
        ("sequential", [], "row 'fog': no image batches"),
        ("source", [images(), images() * float("nan")], "row 'fog': .*layer '1'.*NaN or infinite"),
        ("sequential", [images(), images() * float("inf")], "row 'fog': .*layer '1'.*NaN or infinite"),
        ("sequential", [images(), images().byte()], "row 'fog': .*torch.uint8"),
    ],
)
def test_what_cannot_be_measured_leaves_the_model_untouched(propagate, batches, message):
    model = residual_network().train()
    before = snapshot(model)
    with pytest.raises(DataError, match=message):
        collect(model, batches, propagate)
    assert_same(before, model)


@pytest.mark.parametrize("propagate", PROPAGATIONS)
def test_autocast_gives_float32_rows_as_near_as_bfloat16_activations_are(propagate):
    """Activations are rounded to 2**-9 of themselves, at each of up to five layers one after another."""
    model, batches = residual_network(), images().split(7)
    with torch.autocast("cpu", torch.bfloat16):
        bank = collect(model, batches, propagate)
    assert bank.mean.dtype == bank.var.dtype == torch.float32
    assert_close(bank["fog"], reference_row(model, batches, propagate), 5 * 2**-8)


@pytest.mark.parametrize("propagate", PROPAGATIONS)
def test_channels_last_gives_the_same_row(propagate):
    model, batches = residual_network(), images().split(7)
    contiguous = collect(model, batches, propagate)["fog"]
    batches = [batch.to(memory_format=torch.channels_last) for batch in batches]
    row = collect(model.to(memory_format=torch.channels_last), batches, propagate)["fog"]
    assert_close(row, {name: (float64(mean), float64(var)) for name, (mean, var) in contiguous.items()}, 1e-5)
