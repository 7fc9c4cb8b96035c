"""Calibrated and refined banks through every supported layer class, against a float64 loop over images."""

from dataclasses import replace

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
from test_layer_types import (
    ALWAYS_AFFINE,
    ASSIGNMENTS,
    CASES,
    DEVICES,
    EPS,
    FROZEN_TOLERANCE,
    LAYERS,
    ROWS,
    TOLERANCE,
    C,
    N,
    in_format,
    make_layer,
)
from timm.layers.norm_act import BatchNormAct2d
from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d

from dynbn_lightning.batchnorm import MIXINGS, Calibration, routed

SHARED = torch.tensor([0.05, 0.25, 0.3, 0.4])
KINDS = {**ASSIGNMENTS, "name": "snow", "shared": SHARED}


def calibrated(bank, parts=("source", "image", "refined"), seed=3):
    """The bank with shares drawn for each row and layer, and scales and shifts, those of row 0 to be passed over."""
    generator = torch.Generator().manual_seed(seed)
    source, image = (torch.rand(len(bank), len(bank.layers), generator=generator) * 0.8 + 0.1 for _ in range(2))
    source[0] = image[0] = 0
    calibration = Calibration(source if "source" in parts else source * 0, image if "image" in parts else None)
    if parts and parts != ("refined",):
        bank = replace(bank, calibration=calibration)
    if "refined" in parts:
        weight = torch.rand(bank.mean.shape, generator=generator) + 0.5
        bank = replace(bank, weight=weight, bias=torch.randn(bank.mean.shape, generator=generator) * 0.3)
    return bank


def weights_of_each_image(assignment):
    if isinstance(assignment, str):
        assignment = torch.full((N,), ROWS.index(assignment))
    if not assignment.is_floating_point():
        return [[float(row == number) for number in range(len(ROWS))] for row in assignment.tolist()]
    return assignment.double().expand(N, len(ROWS)).tolist()


def reference(layer, bank, assignment, x, activation, mixing="moments"):
    """What the docstrings of `Statistics` and `Calibration` say, image by image, for a model of one layer."""
    x, means, variances = float64(x), float64(bank.mean), float64(bank.var)
    means[0], variances[0] = (float64(getattr(layer, buffer)) for buffer in STATISTICS_BUFFERS)
    own = [
        np.full(C, default) if value is None else float64(value)
        for default, value in enumerate((layer.bias, layer.weight))
    ]
    shifts, scales = (
        np.stack([own_value] * len(bank)) if table is None else np.concatenate([own_value[None], float64(table)[1:]])
        for own_value, table in zip(own, (bank.bias, bank.weight), strict=True)
    )
    image_shares = np.zeros(len(bank))
    if bank.calibration is not None:
        for row, share in enumerate(float64(bank.calibration.source_share)[:, 0]):
            pair = [0, row]
            means[row], variances[row] = mix_by_total_variance([share, 1 - share], means[pair], variances[pair])
        if bank.calibration.image_share is not None:
            image_shares = float64(bank.calibration.image_share)[:, 0]
    out = np.empty_like(x)
    for n, weights in enumerate(weights_of_each_image(assignment)):
        mean, var = mix_by_total_variance(weights, means, variances, average=mixing == "average")
        share, values = np.dot(weights, image_shares), x[n].reshape(C, -1)
        both = np.stack([mean, values.mean(1)]), np.stack([var, values.var(1)])
        mean, var = mix_by_total_variance([1 - share, share], *both)
        affine = np.dot(weights, scales), np.dot(weights, shifts)
        out[n : n + 1] = normalize_image_by_image(x[n : n + 1], [mean], [var], *affine, EPS, activation)
    return out


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("memory", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(("name", "affine"), CASES, ids=lambda value: value)
def test_equals_a_float64_loop_over_images(name, affine, dtype, memory, device):
    model, bank, x, activation = make_layer(name, affine, dtype)
    bank = calibrated(bank)
    model, x = model.to(device), in_format(x, memory).to(device)
    before, untouched = snapshot(model), x.clone()
    tolerance = 2 * (FROZEN_TOLERANCE if name in ALWAYS_AFFINE else TOLERANCE)[dtype]
    with torch.no_grad():
        own = model(x)
        with routed(model, bank) as routing:
            assert torch.equal(model(x), own)  # nothing assigned yet
            for kind, assignment in KINDS.items():
                routing.set(assignment if kind == "name" else assignment.to(device))
                out = model(x)
                expected = reference(model[0], bank, assignment, x, activation)
                assert (out.dtype, out.shape, out.stride()) == (own.dtype, own.shape, own.stride()), kind
                np.testing.assert_allclose(float64(out), expected, rtol=tolerance, atol=tolerance, err_msg=kind)
                clean = [weights[0] == 1 for weights in weights_of_each_image(assignment)]
                if kind.startswith("source") or (device == "cpu" and (memory != "strided" or dtype != torch.bfloat16)):
                    assert torch.equal(out[clean], own[clean]), f"{kind}: images on row 0"
        assert torch.equal(model(x), own)
    assert torch.equal(x, untouched)
    assert_same(before, model)


@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize(
    "parts", [(), ("source",), ("image",), ("refined",), ("source", "image"), ("image", "refined")], ids="-".join
)
def test_each_part_alone_does_its_own(parts, mixing):
    model, bank, x, activation = make_layer("BatchNorm2d", "both", torch.float64)
    bank = calibrated(bank, parts)
    with torch.no_grad(), routed(model, bank, mixing) as routing:
        for kind, assignment in KINDS.items():
            routing.set(assignment)
            expected = reference(model[0], bank, assignment, x, activation, mixing)
            np.testing.assert_allclose(float64(model(x)), expected, rtol=1e-6, atol=1e-6, err_msg=kind)


@pytest.mark.parametrize("name", LAYERS)
def test_autocast_gives_row_0_the_dtype_and_bits_of_the_layers_own(name):
    model, bank, x, activation = make_layer(name, "both", torch.float32)
    bank, x = calibrated(bank), x.bfloat16()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        own = model(x)
        with routed(model, bank) as routing:
            routing.set(ASSIGNMENTS["soft"])
            out = model(x)
    assert out.dtype == own.dtype
    assert torch.equal(out[1], own[1])
    expected = reference(model[0], bank, ASSIGNMENTS["soft"], x, activation)
    np.testing.assert_allclose(float64(out), expected, rtol=1e-2, atol=1e-2)


# Models of several layers


class Deep(nn.Module):
    """Layers of several widths and classes; nothing between them whose rounding depends on the batch."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.BatchNorm2d(C), nn.ReLU())
        self.act, self.frozen, self.plain = BatchNormAct2d(C), FrozenBatchNorm2d(C), nn.BatchNorm2d(C, affine=False)
        self.head = nn.BatchNorm1d(2 * C)

    def forward(self, x):
        x = self.frozen(self.act(self.stem(x) + 0.1 * x))
        x = torch.cat([x, self.plain(x)], 1)
        return self.head(x.amax((2, 3)) + 0.1 * x[:, :, 0, 0])


@pytest.fixture
def model():
    model = Deep().eval()
    give_nontrivial_statistics(model, torch.Generator().manual_seed(0))
    return model


@pytest.fixture
def bank(model):
    return calibrated(make_bank(model, ROWS, torch.Generator().manual_seed(1)))


def images():
    return torch.randn(N, C, 6, 5, generator=torch.Generator().manual_seed(2)) * 2


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("kind", ["hard", "soft", "source", "name", "shared"])
@pytest.mark.parametrize("parts", [("source", "image", "refined"), ("source", "refined"), ("image",)], ids="-".join)
def test_predictions_keep_their_bits_whatever_the_batch(model, bank, parts, kind, memory_format):
    bank, x = calibrated(bank.uncalibrated().unrefined(), parts), images().to(memory_format=memory_format)
    per_image = kind not in ("name", "shared")
    with torch.no_grad():
        own = model(x)
        with routed(model, bank) as routing:
            routing.set(KINDS[kind])
            together = model(x)
            for image in range(N):
                if per_image:
                    routing.set(KINDS[kind][image : image + 1])
                alone = x[image : image + 1].contiguous(memory_format=memory_format)
                assert torch.equal(model(alone)[0], together[image]), image
    changed = [not torch.equal(out, before) for out, before in zip(together, own, strict=True)]
    assert changed == [weights[0] != 1 for weights in weights_of_each_image(KINDS[kind])]


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_copies_get_all_that_their_image_has(model, bank, kind):
    x = images()
    versions = [x, x.flip(-1), x * 0.5]
    with torch.no_grad(), routed(model, bank) as routing:
        routing.set(KINDS[kind])
        expected = [model(version) for version in versions]
        routing.set(KINDS[kind], copies="stacked")
        assert torch.equal(model(torch.cat(versions)), torch.cat(expected))
        routing.set(KINDS[kind], copies="adjacent")
        out = model(torch.stack(versions, 1).flatten(0, 1))
    assert torch.equal(out, torch.stack(expected, 1).flatten(0, 1))


@pytest.mark.parametrize("source_weight", [0.25, torch.tensor([0.25, 0.5, 0.0, 1.0, 0.125])], ids=["one", "each"])
def test_a_share_of_the_source_comes_on_top(model, bank, source_weight):
    composed = (1 - torch.as_tensor(source_weight).reshape(-1, 1)) * KINDS["soft"]
    composed[:, 0] += source_weight
    with torch.no_grad(), routed(model, bank) as routing:
        routing.set(KINDS["soft"], source_weight=source_weight)
        out = model(images())
        routing.set(composed)
        torch.testing.assert_close(out, model(images()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_models_give_the_same(model, bank, backend):
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend)
    with torch.no_grad(), routed(model, bank) as routing:
        for kind in ("hard", "soft", "name", "source"):
            routing.set(KINDS[kind])
            torch.testing.assert_close(compiled(images()), model(images()), rtol=1e-5, atol=1e-5)
        routing.set(KINDS["hard"][:1], copies="stacked")
        torch.testing.assert_close(compiled(images()), model(images()), rtol=1e-5, atol=1e-5)
    torch._dynamo.reset()
