"""Collected rows against float64 NumPy, torch's own train mode and a loop over batches; the model untouched."""

import copy

import numpy as np
import pytest
import torch
import torchvision
from batchnorm_reference import assert_same, batchnorm_modules, float64, give_nontrivial_statistics, snapshot
from timm.layers.norm_act import BatchNormAct2d, FrozenBatchNormAct2d
from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d

from dynbn_lightning.batchnorm import BNStatsBank
from dynbn_lightning.batchnorm.collecting import collect_statistics
from dynbn_lightning.batchnorm.moments import MomentAccumulator
from dynbn_lightning.errors import BankError, DataError, RoutingError


def small_network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(6, 4, 3),
        nn.BatchNorm2d(4, affine=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.BatchNorm1d(4),
    )
    give_nontrivial_statistics(model, torch.Generator().manual_seed(0))
    return model.eval()


def images(count, seed=0, shift=0.0):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * 1.5 + shift


def collect(model, batches):
    return BNStatsBank.collect(model, {"fog": batches}, progress=False)


def test_one_batch_equals_train_mode_with_cumulative_averaging():
    model = small_network()
    trained = copy.deepcopy(model)
    for layer in batchnorm_modules(trained).values():
        layer.reset_running_stats()
        layer.momentum = None
        layer.train()  # dropout stays off
    trained(images(32))
    row = collect(model, [images(32)])["fog"]
    for name, layer in batchnorm_modules(trained).items():
        torch.testing.assert_close(row[name][0], layer.running_mean, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(row[name][1], layer.running_var, rtol=1e-5, atol=1e-7)


def test_one_batch_equals_train_mode_on_resnet18():
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=5).eval()
    trained = copy.deepcopy(model)
    for layer in batchnorm_modules(trained).values():
        layer.momentum = None
    batch = torch.randn(6, 3, 64, 64)
    trained.train()(batch)
    row = collect(model, [batch])["fog"]
    for name, layer in batchnorm_modules(trained).items():
        torch.testing.assert_close(row[name][0], layer.running_mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(row[name][1], layer.running_var, rtol=1e-4, atol=1e-5)


def test_unequal_batches_merge_to_the_moments_of_all_images():
    # The first layer's input doesn't depend on how images are batched: pooled moments are exact there.
    model = small_network()
    batches = [images(5, 1), images(2, 2, shift=2.0), images(17, 3, shift=-1.0)]
    mean, var = collect(model, batches)["fog"]["1"]
    with torch.no_grad():
        activations = float64(copy.deepcopy(model[0]).double()(torch.cat(batches).double()))
    values = activations.transpose(1, 0, 2, 3).reshape(6, -1)
    np.testing.assert_allclose(float64(mean), values.mean(1), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(float64(var), values.var(1, ddof=1), rtol=1e-5)
    within_only = np.mean([float64(model[0](batch)).var(axis=(0, 2, 3), ddof=1) for batch in batches], axis=0)
    assert (float64(var) > within_only * 1.05).any()  # so that forgetting the variance between batches would show


def test_later_layers_see_batches_normalised_by_their_own_moments():
    model = small_network().double()
    batches = [images(8, 1).double(), images(12, 2, shift=1.5).double()]
    convolved = []
    for batch in batches:
        with torch.no_grad():
            x = float64(model[0](batch))
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3))  # biased, as batch norm normalises
        weight, bias = float64(model[1].weight), float64(model[1].bias)
        x = (x - mean[:, None, None]) / np.sqrt(var[:, None, None] + model[1].eps)
        x = np.maximum(x * weight[:, None, None] + bias[:, None, None], 0)
        with torch.no_grad():
            convolved.append(float64(model[4](torch.from_numpy(x))))
    values = np.concatenate([x.transpose(1, 0, 2, 3).reshape(4, -1) for x in convolved], axis=1)
    mean, var = collect(model, batches)["fog"]["5"]
    np.testing.assert_allclose(float64(mean), values.mean(1), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(float64(var), values.var(1, ddof=1), rtol=1e-6)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.BatchNorm1d(4), (9, 4)),
        (nn.BatchNorm1d(4), (5, 4, 6)),
        (nn.BatchNorm3d(4), (3, 4, 2, 3, 2)),
        (nn.SyncBatchNorm(4), (5, 4, 3, 3)),
        (FrozenBatchNorm2d(4), (5, 4, 3, 3)),
        (BatchNormAct2d(4, act_layer=nn.SiLU), (5, 4, 3, 3)),
        (FrozenBatchNormAct2d(4, act_layer=nn.SiLU), (5, 4, 3, 3)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_every_layer_class_is_measured_and_normalises_by_what_was_measured(layer, shape, dtype):
    """The second layer's input is the first one's output, so it checks the normalisation, activation included."""
    model = nn.Sequential(copy.deepcopy(layer), copy.deepcopy(layer)).eval()
    give_nontrivial_statistics(model, torch.Generator().manual_seed(0))
    model.to(dtype)
    x = (torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 3 + 1).to(dtype)
    row = collect(model, [x, x + 1])["fog"]
    axes = (0, *range(2, len(shape)))
    pooled, outputs = [], []
    for batch in (float64(x), float64(x + 1)):
        per_channel = (-1,) + (1,) * (len(shape) - 2)
        normalized = (batch - batch.mean(axes, keepdims=True)) / np.sqrt(batch.var(axes, keepdims=True) + layer.eps)
        normalized = normalized * float64(model[0].weight).reshape(per_channel)
        normalized = normalized + float64(model[0].bias).reshape(per_channel)
        outputs.append(normalized / (1 + np.exp(-normalized)) if hasattr(layer, "act") else normalized)
        pooled.append(batch)
    tolerance = {torch.float64: 1e-6, torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype]
    for name, batches in (("0", pooled), ("1", outputs)):
        values = np.concatenate(batches)
        np.testing.assert_allclose(float64(row[name][0]), values.mean(axes), rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(float64(row[name][1]), values.var(axes, ddof=1), rtol=tolerance)


def test_accumulator_merges_what_float32_sums_would_lose():
    rng = np.random.default_rng(0)
    batches = [rng.normal(1e4 + step, 0.1, (size, 2)) for step, size in enumerate((3, 50, 2, 1000))]
    accumulator = MomentAccumulator()
    for batch in batches:
        accumulator.add(len(batch), torch.tensor(batch.mean(0)), torch.tensor(batch.var(0, ddof=1)))
    values = np.concatenate(batches)
    mean, var = accumulator.result()
    assert mean.dtype == var.dtype == torch.float32
    np.testing.assert_allclose(float64(mean), values.mean(0), rtol=1e-7)
    np.testing.assert_allclose(float64(var), values.var(0, ddof=1), rtol=1e-6)


def test_the_model_is_untouched_and_sees_each_image_once():
    model = small_network().train()
    model[1].eval()  # flags that differ must come back as they were
    before = snapshot(model)
    seen = []
    handle = model[0].register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    bank = BNStatsBank.collect(
        model, {"clean": [images(50)], "fog": [images(4), images(3)], "frost": iter([images(2)])}, progress=False
    )
    handle.remove()
    assert seen == [4, 3, 2]  # row 0 needs no images
    assert_same(before, model)
    assert bank.rows == ("clean", "fog", "frost")
    assert bank.provenance["image_counts"] == {"fog": 7, "frost": 2}
    for name, layer in batchnorm_modules(model).items():
        assert torch.equal(bank["clean"][name][0], layer.running_mean)
        assert torch.equal(bank["clean"][name][1], layer.running_var)


def test_dropout_and_grad_are_off_while_collecting():
    model = small_network().train()
    first, second = (collect(model, [images(16)]) for _ in range(2))
    assert torch.equal(first.mean, second.mean)
    assert torch.equal(first.mean, collect(model.eval(), [images(16)]).mean)
    assert not first.mean.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["loader", "model"])
def test_the_model_is_given_back_when_a_batch_raises(error, where):
    model = small_network().train()
    before = snapshot(model)

    def batches():
        yield images(4)
        if where == "loader":
            raise error("stop")
        yield images(4)

    def stop_at_the_second(module, inputs, output, calls=[]):  # noqa: B006
        calls.append(1)
        if where == "model" and len(calls) == 2:
            raise error("stop")

    handle = model[4].register_forward_hook(stop_at_the_second)
    with pytest.raises(error, match="stop"):
        collect(model, batches())
    handle.remove()
    assert_same(before, model)


def test_tuples_that_begin_with_images_are_batches_too():
    model = small_network()
    plain = collect(model, [images(6)])
    assert torch.equal(collect(model, [(images(6), torch.zeros(6))]).mean, plain.mean)
    assert torch.equal(collect(model, [[images(6)]]).var, plain.var)


def test_a_layer_outside_the_forward_keeps_its_own_statistics():
    class WithAuxiliaryHead(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.auxiliary = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.auxiliary(self.norm(x)) if self.training else self.norm(x)

    model = WithAuxiliaryHead().eval()
    give_nontrivial_statistics(model, torch.Generator().manual_seed(0))
    row = collect(model, [images(6)])["fog"]
    assert torch.equal(row["auxiliary"][0], model.auxiliary.running_mean)
    assert torch.equal(row["auxiliary"][1], model.auxiliary.running_var)
    assert not torch.equal(row["norm"][0], model.norm.running_mean)


def test_a_layer_used_twice_pools_both_inputs():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x):
            return self.norm(x), self.norm(x + 2)

    mean, var = collect(Twice().eval(), [images(6)])["fog"]["norm"]
    values = np.concatenate([float64(images(6)), float64(images(6)) + 2])
    np.testing.assert_allclose(float64(mean), values.mean((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(float64(var), values.var((0, 2, 3), ddof=1), rtol=1e-5)


def test_half_precision_models_get_their_dtype_and_float32_statistics():
    model = small_network()
    expected = collect(model, [images(16)])
    bank = collect(model.bfloat16(), [images(16)])
    assert bank.mean.dtype == torch.float32
    torch.testing.assert_close(bank.mean, expected.mean, rtol=0.05, atol=0.05)
    torch.testing.assert_close(bank.var, expected.var, rtol=0.1, atol=0.05)


def test_progress_is_shown_unless_off(capfd):
    collect(small_network(), [images(4)])
    assert capfd.readouterr() == ("", "")
    BNStatsBank.collect(small_network(), {"fog": [images(4)]})
    shown = capfd.readouterr()
    assert "BatchNorm statistics" in shown.out + shown.err


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "row 'fog': no image batches"),
        ([torch.zeros(4, 3, 8, 8, dtype=torch.uint8)], "row 'fog': .*torch.uint8"),
        ([{"image": images(4)}], "row 'fog': .*got dict"),
        ([images(4)[:0]], r"row 'fog': .*\(0, 3, 8, 8\)"),
        ([images(4).index_fill(0, torch.tensor([1]), float("nan"))], "row 'fog': .*layer '1'.*NaN"),
    ],
    ids=["empty", "uint8", "dict", "no images", "NaN"],
)
def test_bad_batches_are_refused_and_name_the_row(batches, message):
    model = small_network()
    before = snapshot(model)
    with pytest.raises(DataError, match=message):
        collect(model, batches)
    assert_same(before, model)


def test_a_single_value_per_channel_has_no_variance():
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4)).eval()
    with pytest.raises(RoutingError, match="one value per channel"):
        collect(model, [torch.randn(1, 4, 1, 1)])


def test_no_row_besides_clean_is_refused():
    with pytest.raises(BankError, match="no rows to measure"):
        BNStatsBank.collect(small_network(), {"clean": [images(4)]}, progress=False)


def test_collect_statistics_returns_names_moments_and_count():
    statistics, count = collect_statistics(small_network(), [images(4), images(5)])
    assert count == 9
    assert {name: (mean.shape, var.shape) for name, (mean, var) in statistics.items()} == {
        "1": ((6,), (6,)),
        "5": ((4,), (4,)),
        "8": ((4,), (4,)),
    }
