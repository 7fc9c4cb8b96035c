"""Autocast, inference mode, channels last, shared modules, copies and dropped patches."""

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from batchnorm_reference import assert_same, float64, give_nontrivial_statistics, make_bank, snapshot, with_row_loaded
from timm.layers.norm_act import BatchNormAct2d
from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d

from dynbn_lightning.batchnorm import (
    BatchStatisticsPolicy,
    Patch,
    PatchedLayer,
    find_batchnorm_layers,
    patch_with_bank,
    routed,
    unpatch,
)

ROWS = ("clean", "fog", "frost")
ASSIGNED = [1, 0, 2, 0]
BOUND = {"cpu": 1e-5, "cuda": 1e-2}  # convolutions in float32; in TF32
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@pytest.fixture(
    params=[
        "cpu",
        pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")),
    ]
)
def device(request):
    return request.param


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6))
    give_nontrivial_statistics(model, torch.Generator().manual_seed(0))
    return model.eval()


@pytest.fixture
def bank(model):
    return make_bank(model, ROWS, torch.Generator().manual_seed(1))


@pytest.fixture
def images():
    return torch.randn(len(ASSIGNED), 3, 9, 7, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def image_by_image(model, bank, images):
    rows = zip(ASSIGNED, images.split(1), strict=True)
    return torch.cat([with_row_loaded(model, bank, ROWS[row])(image) for row, image in rows])


# Precisions and layouts


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@torch.no_grad()
def test_autocast_equals_image_by_image_under_the_same_autocast(model, bank, images, device, dtype, memory_format):
    model.to(device, memory_format=FORMATS[memory_format])
    images = images.to(device, memory_format=FORMATS[memory_format])
    with torch.autocast(device, dtype):
        own, expected = model(images), image_by_image(model, bank, images)
        with routed(model, bank) as routing:
            routing.set(torch.tensor(ASSIGNED))
            out = model(images)
    assert out.dtype == own.dtype == dtype
    assert out.stride() == own.stride()
    bound = 8 * torch.finfo(dtype).eps  # both layers round, and so do both convolutions, whose order of sums is free
    torch.testing.assert_close(out, expected, rtol=bound, atol=bound)
    assert (expected - own)[[0, 2]].abs().amax((1, 2, 3)).min() > 4 * bound
    if device == "cpu":
        assert torch.equal(out[[1, 3]], own[[1, 3]])
    else:
        torch.testing.assert_close(out[[1, 3]], own[[1, 3]], rtol=bound, atol=bound)


@torch.no_grad()
def test_channels_last_is_kept_and_means_the_same(model, bank, images, device):
    model.to(device)
    images = images.to(device)
    with routed(model, bank) as routing:
        routing.set(torch.tensor(ASSIGNED))
        contiguous = model(images)
    model.to(memory_format=torch.channels_last)
    images = images.to(memory_format=torch.channels_last)
    own, alone = model(images), image_by_image(model, bank, images)
    with routed(model, bank) as routing:
        routing.set(torch.tensor(ASSIGNED))
        out = model(images)
    assert out.stride() == own.stride()
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out, alone, rtol=BOUND[device], atol=BOUND[device])
    torch.testing.assert_close(out, contiguous, rtol=BOUND[device], atol=BOUND[device])
    if device == "cpu":
        assert torch.equal(out[[1, 3]], own[[1, 3]])


@pytest.mark.parametrize(
    "memory_format", [torch.contiguous_format, torch.channels_last, torch.channels_last_3d], ids=str
)
def test_gradients_are_those_of_a_float64_loop(memory_format):
    is_3d = memory_format == torch.channels_last_3d
    layer = (nn.BatchNorm3d if is_3d else nn.BatchNorm2d)(5)
    model = nn.Sequential(layer).double().eval()
    generator = torch.Generator().manual_seed(0)
    give_nontrivial_statistics(model, generator)
    bank = make_bank(model, ROWS, generator)
    shape = (len(ASSIGNED), 5, *((2, 4, 3) if is_3d else (4, 3)))
    x, upstream = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    x = x.to(memory_format=memory_format).requires_grad_()
    with routed(model, bank) as routing:
        routing.set(torch.tensor(ASSIGNED))
        out = model(x)
        out.backward(upstream)
    assert out.is_contiguous(memory_format=memory_format)
    values, gradients, weight = float64(x), float64(upstream), float64(layer.weight)
    of_x, of_weight, of_bias = np.empty_like(values), np.zeros(5), np.zeros(5)
    for n, row in enumerate(ASSIGNED):
        for c in range(5):
            root = np.sqrt(float64(bank.var)[row, c] + layer.eps)
            of_x[n, c] = gradients[n, c] * weight[c] / root
            of_weight[c] += (gradients[n, c] * (values[n, c] - float64(bank.mean)[row, c]) / root).sum()
            of_bias[c] += gradients[n, c].sum()
    np.testing.assert_allclose(float64(x.grad), of_x, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(float64(layer.weight.grad), of_weight, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(float64(layer.bias.grad), of_bias, rtol=1e-9, atol=1e-12)


# Inference mode


@pytest.mark.parametrize(
    "run", [torch.inference_mode, torch.no_grad, torch.enable_grad], ids=lambda mode: mode.__name__
)
@pytest.mark.parametrize("set_inside", [True, False])
@pytest.mark.parametrize("made_inside", [True, False])
def test_made_and_set_in_inference_mode_or_not_and_used_in_any(model, bank, images, made_inside, set_inside, run):
    expected, before = image_by_image(model, bank, images), snapshot(model)
    with torch.inference_mode(made_inside):
        patch, routing = patch_with_bank(model, bank)
    with patch:
        for assignment in (torch.tensor(ASSIGNED), torch.eye(3)[ASSIGNED]):
            with torch.inference_mode(set_inside):
                routing.set(assignment.clone())
            with run():
                torch.testing.assert_close(model(images), expected, rtol=1e-5, atol=1e-5)
        with torch.inference_mode(set_inside):
            routing.set("frost")
        with run():
            shared = model(images)
        torch.testing.assert_close(shared[2], expected[2], rtol=1e-5, atol=1e-5)
    assert_same(before, model)
    model(images).sum().backward()
    assert model[0].weight.grad is not None


# Shared modules


class Repeated(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.first, self.head, self.again = block, nn.BatchNorm2d(3), block

    def forward(self, x):
        return self.again(self.head(self.first(x)))


@pytest.fixture
def repeated():
    torch.manual_seed(0)
    model = Repeated(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)))
    give_nontrivial_statistics(model, torch.Generator().manual_seed(0))
    return model.eval()


@torch.no_grad()
def test_a_module_under_two_names_is_routed_under_both(repeated, images):
    bank = make_bank(repeated, ROWS, torch.Generator().manual_seed(1))
    assert list(bank.layers) == ["first.1", "head"]
    own, before, expected = repeated(images), snapshot(repeated), image_by_image(repeated, bank, images)
    with routed(repeated, bank) as routing:
        routing.set(torch.tensor(ASSIGNED))
        out = repeated(images)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(out[1], own[1])
    assert_same(before, repeated)


@pytest.mark.parametrize("name", ["first", "first.1", "again", "again.1"])
def test_a_module_under_two_names_is_skipped_by_either(repeated, name):
    assert list(find_batchnorm_layers(repeated, skip=[name])) == ["head"]


# Copies, and patches that nobody undoes


MODELS = {
    "BatchNorm2d": lambda: nn.BatchNorm2d(8),
    "SyncBatchNorm": lambda: nn.SyncBatchNorm(8),
    "FrozenBatchNorm2d": lambda: FrozenBatchNorm2d(8),
    "BatchNormAct2d": lambda: BatchNormAct2d(8, act_layer=nn.SiLU),
}


def with_layer(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), MODELS[name](), nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6)).eval()
    give_nontrivial_statistics(model, torch.Generator().manual_seed(0))
    return model, make_bank(model, ROWS, torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"]
)
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_a_copy_of_a_patched_model_is_unpatched_and_can_be_patched_again(name, duplicate, images):
    model, bank = with_layer(name)
    own, before = model(images), snapshot(model)
    with routed(model, bank) as routing:
        routing.set(torch.tensor(ASSIGNED))
        out = model(images)
        copied = duplicate(model)
        unpatch(copied)
        assert_same(before, copied)
        assert torch.equal(copied(images), own)
        assert torch.equal(model(images), out)  # the original is as patched as before
        with routed(copied, bank) as of_the_copy:
            of_the_copy.set(torch.tensor(ASSIGNED))
            assert torch.equal(copied(images), out)
        unpatch(copied)
        assert_same(before, copied)
    assert_same(before, model)


IN_ANOTHER_PROCESS = """
import pickle, sys, torch
model, images, own, routed = pickle.load(open(sys.argv[1], "rb"))
with torch.no_grad():
    assert torch.equal(model(images), routed)
    from dynbn_lightning.batchnorm import unpatch
    unpatch(model)
    assert torch.equal(model(images), own)
print(type(model[1]).__module__, type(model[1]).__name__, sorted(vars(model[1])))
"""


@torch.no_grad()
def test_another_process_unpickles_and_unpatches(images, tmp_path):
    model, bank = with_layer("BatchNormAct2d")
    own, attributes = model(images), sorted(vars(model[1]))
    with routed(model, bank) as routing:
        routing.set(torch.tensor(ASSIGNED))
        (tmp_path / "model.pkl").write_bytes(pickle.dumps((model, images, own, model(images))))
    command = [sys.executable, "-c", IN_ANOTHER_PROCESS, str(tmp_path / "model.pkl")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"timm.layers.norm_act BatchNormAct2d {attributes}"


@torch.no_grad()
def test_a_patch_that_is_dropped_gives_the_model_back(model, bank, images):
    own, before = model(images), snapshot(model)
    patch = Patch(model, lambda name, layer: BatchStatisticsPolicy()).apply()
    assert not torch.equal(model(images), own)
    del patch
    assert_same(before, model)
    patch, routing = patch_with_bank(model, bank)
    patch.apply()
    routing.set("fog")
    del patch
    assert_same(before, model)
    assert torch.equal(model(images), own)
    patch = Patch(model, lambda name, layer: BatchStatisticsPolicy()).apply()
    patch.undo()
    with routed(model, bank):
        del patch  # undone long ago: what another has patched since stays
        assert isinstance(model[1], PatchedLayer)
