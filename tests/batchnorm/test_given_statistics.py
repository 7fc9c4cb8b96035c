"""`Routing.use`: statistics of one's own, and what gradients to them do in models with calibrated and refined banks."""

from dataclasses import replace

import pytest
import torch
from batchnorm_reference import assert_same, give_nontrivial_statistics, make_bank, snapshot
from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d

from dynbn_lightning.batchnorm import BNStatsBank, Calibration, Statistics, routed
from dynbn_lightning.errors import RoutingError

ROWS, WIDTHS, N = ("clean", "fog", "frost"), (4, 5, 5), 3
WEIGHTS = torch.tensor([[0.2, 0.3, 0.5], [1, 0, 0], [0.1, 0.8, 0.1]], dtype=torch.float64)
FORMATS = [torch.contiguous_format, torch.channels_last]


@pytest.fixture
def model():
    torch.manual_seed(0)
    stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.SiLU(), nn.Conv2d(4, 5, 3))
    layers = [stem, nn.BatchNorm2d(5), nn.SiLU(), FrozenBatchNorm2d(5), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(20, 4)]
    model = nn.Sequential(*layers).eval()
    give_nontrivial_statistics(model, torch.Generator().manual_seed(0))
    return model.double()


@pytest.fixture
def bank(model):
    bank, generator = make_bank(model, ROWS, torch.Generator().manual_seed(1)), torch.Generator().manual_seed(2)
    shares = torch.rand(2, len(ROWS), len(WIDTHS), generator=generator) * 0.8 + 0.1
    shares[:, 0] = 0
    weight, bias = torch.rand(2, *bank.mean.shape, generator=generator) + 0.5
    own = [[layer.weight, layer.bias] for layer in (model[0][1], model[1], model[3])]
    weight[0], bias[0] = (torch.cat(parts).detach().float() for parts in zip(*own, strict=True))
    # As the model has them: what the float32 bank lacks to float64 would show.
    for layer, (mean, var) in zip((model[0][1], model[1], model[3]), bank["clean"].values(), strict=True):
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(var)
    return replace(bank, weight=weight, bias=bias, calibration=Calibration(*shares))


def images(memory_format=torch.contiguous_format):
    x = torch.randn(N, 3, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return x.to(memory_format=memory_format)


def tables_of(bank: BNStatsBank):
    """Means, variances, scales, shifts and both shares, to be tuned."""
    calibration = bank.calibration
    tables = (*bank.statistics[:4], calibration.source_share, calibration.image_share)
    return [table.double().requires_grad_() for table in tables]


def statistics_of(tables):
    *rows, source_share, image_share = tables
    return Statistics(*rows).blended_with_source(source_share, WIDTHS)._replace(image_share=image_share).mixed(WEIGHTS)


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_what_is_given_does_what_the_same_bank_does(model, bank, memory_format):
    x, before = images(memory_format), snapshot(model)
    with routed(model, bank) as routing, torch.no_grad():
        routing.set(WEIGHTS)
        expected = model(x)
    with routed(model, bank.uncalibrated().unrefined()) as routing:
        with torch.no_grad():
            routing.use(statistics_of(tables_of(bank)))
            torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)
        routing.use(statistics_of(tables_of(bank)))
        torch.testing.assert_close(model(x).detach(), expected, rtol=1e-9, atol=1e-9)
    assert_same(before, model)


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_gradients_of_all_tables_are_finite_differences_and_the_model_gets_none(model, bank, memory_format):
    x, tables, step = images(memory_format), tables_of(bank), 1e-6
    with routed(model, bank.uncalibrated().unrefined()) as routing:

        def loss(tables):
            routing.use(statistics_of(tables))
            return model(x).log_softmax(1)[:, 1].square().mean()

        gradients = torch.autograd.grad(loss(tables), tables)
        generator = torch.Generator().manual_seed(4)
        for number, gradient in enumerate(gradients):
            direction = torch.randn(gradient.shape, generator=generator, dtype=torch.float64)
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    moved = list(tables)
                    moved[number] = tables[number] + sign * step * direction
                    values.append(loss(moved))
            assert gradient.abs().sum() > 0
            slope = float(values[0] - values[1]) / (2 * step)
            assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-5, abs=1e-9), number
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(table.grad is None for table in tables)


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("wanted", ["weight", "bias"])
def test_gradients_reach_scales_and_shifts_alone(model, bank, wanted, memory_format):
    rows = bank.statistics.map(torch.Tensor.double)
    rows = rows._replace(**{wanted: getattr(rows, wanted).requires_grad_()})
    table = getattr(rows, wanted)
    with routed(model, bank.unrefined()) as routing:

        def loss(rows):
            routing.use(rows.map(lambda values: values[[1, 0, 2]]))
            return model(images(memory_format)).square().sum()

        (gradient,) = torch.autograd.grad(loss(rows), table)
        values = []
        for step in (1e-6, -1e-6):
            moved = table.detach().clone()
            moved[2] += step
            with torch.no_grad():
                values.append(float(loss(rows._replace(**{wanted: moved}))))
    assert float(gradient[2].sum()) == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-6)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_gradients_pass_through_images_own_moments(model, bank):
    x = images()[:1].requires_grad_()
    with routed(model, bank) as routing:
        routing.set(torch.tensor([2]))
        assert torch.autograd.gradcheck(model, x)


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_a_forward_with_gradients_differs_by_rounding_alone(model, bank, memory_format):
    x = images(memory_format).float()
    model.float()
    with routed(model, bank) as routing:
        routing.set(torch.tensor([1, 0, 2]))
        with torch.no_grad():
            expected = model(x)
        out = model(x)
    assert out.requires_grad
    torch.testing.assert_close(out.detach(), expected, rtol=1e-5, atol=1e-5)


def test_what_is_given_is_for_its_batch_until_something_else_is_said(model, bank):
    with torch.no_grad(), routed(model, bank) as routing:
        own = model(images())
        routing.set(torch.tensor([1, 2]), copies="adjacent")
        routing.use(bank.statistics.map(lambda table: table.double()[[1, 0, 2]]))
        out = model(images())
        assert [torch.equal(one, before) for one, before in zip(out, own, strict=True)] == [False, True, False]
        for count in (1, 2, 6):
            with pytest.raises(RoutingError, match=f"sees a batch of {count} but rows were assigned to 3 images"):
                model(images().repeat(2, 1, 1, 1)[:count])
        model.train()
        with pytest.raises(RoutingError, match="in training mode while it is routed"):
            model(images())
        model.eval()
        assert torch.equal(model(images()), out)
        routing.clear()
        assert torch.equal(model(images()), own)
    with torch.no_grad():
        assert torch.equal(model(images()), own)


def test_an_empty_batch_goes_through_a_row_that_all_share(model, bank):
    with torch.no_grad(), routed(model, bank) as routing:
        routing.set("fog")
        assert model(images()[:0]).shape == (0, 4)
