"""One tester over every supported layer class, dtype, assignment and memory format, against a float64 loop."""

import numpy as np
import pytest
import torch
from batchnorm_reference import (
    STATISTICS_BUFFERS,
    assert_same,
    float64,
    give_nontrivial_statistics,
    make_bank,
    mix_by_total_variance,
    normalize_image_by_image,
    snapshot,
)
from lightning.pytorch.plugins.layer_sync import _BatchNormXd
from timm.layers.norm_act import BatchNormAct2d, FrozenBatchNormAct2d, SyncBatchNormAct
from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d

import dynbn_lightning.callbacks  # noqa: F401  registers Lightning's _BatchNormXd
from dynbn_lightning.batchnorm import routed

EPS = 0.05  # large enough that leaving it out, or adding it after the root, shows in bfloat16
ROWS = ("clean", "fog", "frost", "snow")
N, C = 5, 6
NO_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=NO_CUDA)]


def silu(values):
    return values / (1 + np.exp(-values))


def hard_sigmoid(values):
    return np.clip(values / 6 + 0.5, 0, 1)


def sync_batch_norm_act(channels, **options):
    layer = SyncBatchNormAct(channels, **options)
    layer.act = nn.SiLU()  # as timm.layers.convert_sync_batchnorm leaves it
    return layer


def identity(values):
    return values


LAYERS = {
    "BatchNorm1d": (nn.BatchNorm1d, (), identity),
    "BatchNorm1d_sequence": (nn.BatchNorm1d, (7,), identity),
    "BatchNorm2d": (nn.BatchNorm2d, (4, 3), identity),
    "BatchNorm3d": (nn.BatchNorm3d, (2, 3, 2), identity),
    "SyncBatchNorm": (nn.SyncBatchNorm, (4, 3), identity),
    "_BatchNormXd": (_BatchNormXd, (4, 3), identity),
    "FrozenBatchNorm2d": (FrozenBatchNorm2d, (4, 3), identity),
    "BatchNormAct2d": (lambda c, **o: BatchNormAct2d(c, act_layer=nn.SiLU, **o), (4, 3), silu),
    "SyncBatchNormAct": (sync_batch_norm_act, (4, 3), silu),
    "FrozenBatchNormAct2d": (
        lambda c, **o: FrozenBatchNormAct2d(c, act_layer=nn.Hardsigmoid, **o),
        (4, 3),
        hard_sigmoid,
    ),
}
ALWAYS_AFFINE = {"FrozenBatchNorm2d", "FrozenBatchNormAct2d"}
CASES = [
    (name, affine)
    for name in LAYERS
    for affine in ("both", "neither", "weight", "bias")
    if affine == "both" or name not in ALWAYS_AFFINE
]
ASSIGNMENTS = {
    "hard": torch.tensor([2, 0, 3, 1, 2]),
    "soft": torch.tensor(
        [[0.1, 0.2, 0.3, 0.4], [1, 0, 0, 0], [0.5, 0, 0.5, 0], [0, 0, 0, 1], [0.7, 0.1, 0.1, 0.1]], dtype=torch.float64
    ),
    "source": torch.zeros(N, dtype=torch.int64),
    "source_weights": torch.tensor([[1.0, 0, 0, 0]]).repeat(N, 1),
    "one_row": torch.full((N,), 3),
}
# The layers compute in float32 or better and round once; the frozen ones round at each of their four steps.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-5, torch.bfloat16: 1e-2}
FROZEN_TOLERANCE = {**TOLERANCE, torch.bfloat16: 6e-2}


def make_layer(name, affine, dtype):
    generator = torch.Generator().manual_seed(7)
    factory, spatial, activation = LAYERS[name]
    options = {} if name in ALWAYS_AFFINE else {"affine": affine != "neither"}
    layer = factory(C, eps=EPS, **options)
    if affine == "weight":
        layer.bias = None
    if affine == "bias":
        layer.weight = None
    give_nontrivial_statistics(layer, generator)
    x = torch.randn(N, C, *spatial, generator=generator) * 2 + 0.5
    model = nn.Sequential(layer).eval()
    bank = make_bank(model, ROWS, generator)  # of the float32 model; what it becomes in another dtype still fits
    model.to(dtype)
    if dtype == torch.float64:
        for buffer in STATISTICS_BUFFERS:
            getattr(layer, buffer).mul_(1 + 1e-9)  # statistics that float32 doesn't have
    return model, bank, x.to(dtype), activation


def in_format(x, memory):
    if memory == "strided":  # as (N, length, C).transpose(1, 2), or a crop, hands it over
        return x.transpose(0, 1).contiguous().transpose(0, 1)
    if memory == "channels_last" and x.dim() > 3:
        return x.to(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)
    return x


def reference(model, bank, assignment, x, activation):
    layer = model[0]
    means, variances = float64(bank.mean), float64(bank.var)
    means[0], variances[0] = (float64(getattr(layer, buffer)) for buffer in STATISTICS_BUFFERS)
    if assignment.is_floating_point():
        rows = [mix_by_total_variance(weights, means, variances) for weights in assignment.tolist()]
    else:
        rows = [(means[row], variances[row]) for row in assignment.tolist()]
    weight, bias = (None if value is None else float64(value) for value in (layer.weight, layer.bias))
    return normalize_image_by_image(
        float64(x), [mean for mean, _ in rows], [var for _, var in rows], weight, bias, EPS, activation
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("memory", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(("name", "affine"), CASES, ids=lambda value: value)
def test_equals_a_float64_loop_over_images(name, affine, dtype, memory, device):
    model, bank, x, activation = make_layer(name, affine, dtype)
    model, x = model.to(device), in_format(x, memory).to(device)
    before, untouched = snapshot(model), x.clone()
    own = model(x)
    tolerance = (FROZEN_TOLERANCE if name in ALWAYS_AFFINE else TOLERANCE)[dtype]
    with torch.no_grad(), routed(model, bank) as routing:
        assert torch.equal(model(x), own)  # nothing assigned yet
        for kind, assignment in ASSIGNMENTS.items():
            routing.set(assignment.to(device))
            out = model(x)
            expected = reference(model, bank, assignment, x, activation)
            assert out.dtype == own.dtype, kind
            assert out.shape == own.shape
            assert out.stride() == own.stride(), f"{kind}: another memory format"
            np.testing.assert_allclose(float64(out), expected, rtol=tolerance, atol=tolerance, err_msg=kind)
            on_source = (assignment[:, 0] == 1) if assignment.is_floating_point() else assignment == 0
            # On a CPU the layer's own kernel for strided bfloat16 rounds its statistics too, and CUDA has several.
            same_kernel = device == "cpu" and (memory != "strided" or dtype != torch.bfloat16)
            if kind.startswith("source") or same_kernel:
                assert torch.equal(out[on_source], own[on_source]), f"{kind}: images on row 0"
            else:
                bound = 2 * tolerance
                torch.testing.assert_close(out[on_source], own[on_source], rtol=bound, atol=bound)
        routing.set("snow")
        np.testing.assert_allclose(
            float64(model(x)), reference(model, bank, ASSIGNMENTS["one_row"], x, activation), tolerance, tolerance
        )
        routing.clear()
        assert torch.equal(model(x), own)
    assert torch.equal(model(x), own)
    assert torch.equal(x, untouched)
    assert_same(before, model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("channels", [1, 3, 17, 64])
@pytest.mark.parametrize("spatial", [(1, 1), (5, 7), (16, 16)], ids=str)
@pytest.mark.parametrize("layer_class", [nn.BatchNorm2d, FrozenBatchNorm2d, BatchNormAct2d, FrozenBatchNormAct2d])
def test_images_on_row_0_keep_every_bit_whatever_the_size(layer_class, channels, spatial, dtype):
    generator = torch.Generator().manual_seed(channels)
    layers = [layer_class(channels), layer_class(channels)]  # two: the tables' slices have a stride of their own
    model = nn.Sequential(*layers).eval()
    give_nontrivial_statistics(model, generator)
    bank = make_bank(model, ROWS, generator)
    model.to(dtype)
    x = torch.randn(6, channels, *spatial, generator=generator).to(dtype)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        images = x.to(memory_format=memory_format)
        own = model(images)
        with torch.no_grad(), routed(model, bank) as routing:
            routing.set(torch.tensor([0, 1, 0, 2, 3, 0]))
            out = model(images)
        for image in (0, 2, 5):
            assert torch.equal(out[image], own[image])
        for image in (1, 3, 4):
            assert not torch.equal(out[image], own[image])


@pytest.mark.parametrize("name", LAYERS)
def test_autocast_gives_row_0_the_dtype_and_bits_of_the_layers_own(name):
    model, bank, x, _ = make_layer(name, "both", torch.float32)
    x = x.bfloat16()  # what a convolution hands over under autocast
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        own = model(x)
        with routed(model, bank) as routing:
            routing.set(ASSIGNMENTS["hard"])
            out = model(x)
    assert out.dtype == own.dtype
    assert torch.equal(out[1], own[1])
    assert not torch.equal(out[0], own[0])


def test_dropout_of_timm_layers_is_kept():
    layer = BatchNormAct2d(C, act_layer=nn.SiLU, drop_layer=lambda: nn.Threshold(0.25, -3.0))
    model = nn.Sequential(layer).eval()
    give_nontrivial_statistics(model, torch.Generator().manual_seed(0))
    bank = make_bank(model, ROWS, torch.Generator().manual_seed(1))
    x = torch.randn(2, C, 4, 4)
    with torch.no_grad(), routed(model, bank) as routing:
        routing.set(torch.tensor([1, 2]))
        out = model(x)
    mean, var = bank.mean[1:3], bank.var[1:3]
    normalized = normalize_image_by_image(
        float64(x), float64(mean), float64(var), float64(layer.weight), float64(layer.bias), layer.eps
    )
    expected = silu(np.where(normalized > 0.25, normalized, -3.0))  # dropout first, then the activation
    np.testing.assert_allclose(float64(out), expected, rtol=1e-5, atol=1e-5)


def test_gradients_flow_through_a_routed_layer():
    model, bank, x, _ = make_layer("BatchNorm2d", "both", torch.float64)
    x.requires_grad_()
    with routed(model, bank) as routing:
        routing.set(ASSIGNMENTS["hard"])
        model(x).sum().backward()
    scale = float64(model[0].weight) / np.sqrt(float64(bank.var[3]) + EPS)
    np.testing.assert_allclose(float64(x.grad[2, :, 0, 0]), scale, rtol=1e-6)
    assert model[0].weight.grad is not None
    assert model[0].running_mean.grad is None
