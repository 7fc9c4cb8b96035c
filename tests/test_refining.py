"""Refining rows on a tiny network: what changes, that it helps, and what is left alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tuning_models import assert_untouched, make_bank, make_data, make_model, parts_drawn, snapshot

from dynbn_lightning import BNStatsBank, refine
from dynbn_lightning.batchnorm import Calibration, Statistics, routed
from dynbn_lightning.errors import BankError, DataError
from dynbn_lightning.refining import RowAffine
from dynbn_lightning.tuning import disagreement

IMAGES = 640


def calibrated(bank: BNStatsBank) -> BNStatsBank:
    shares = torch.tensor([[0.0, 0.0], [0.2, 0.4], [0.3, 0.1]])
    return replace(bank, calibration=Calibration(shares, shares.flip(1) / 2))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return make_model()


@pytest.fixture(scope="module")
def bank(model: nn.Module) -> BNStatsBank:
    return calibrated(make_bank(model, make_data()))


@pytest.fixture(scope="module")
def refined(model: nn.Module, bank: BNStatsBank) -> BNStatsBank:
    return refine(model, bank, make_data(), images=IMAGES, progress=False)


def tables(bank: BNStatsBank) -> tuple[Tensor, Tensor]:
    assert bank.weight is not None
    assert bank.bias is not None
    return bank.weight, bank.bias


def own_affine(model: nn.Module) -> tuple[Tensor, Tensor]:
    layers = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    return torch.cat([layer.weight.detach() for layer in layers]), torch.cat([layer.bias.detach() for layer in layers])


@torch.no_grad()
def mean_loss(model: nn.Module, bank: BNStatsBank, criterion: str) -> float:
    """What refining minimises, over all of its draws: images on their true rows."""
    losses = []
    for batch in make_data().drawn_batches(IMAGES, "fit", clean=False):
        truth = model(batch.clean)
        with routed(model, bank) as routing:
            routing.set(batch.rows)
            predicted = model(batch.images)
        if criterion == "labels":
            losses.append(F.cross_entropy(predicted, batch.labels))
        else:
            log_ratio = truth.log_softmax(1) - predicted.log_softmax(1)
            losses.append((truth.softmax(1) * log_ratio).sum(1).mean())
    return float(torch.stack(losses).mean())


def test_scales_and_shifts_change_and_nothing_else(bank: BNStatsBank, refined: BNStatsBank) -> None:
    assert refined.refined
    assert not bank.refined
    assert torch.equal(refined.mean, bank.mean)
    assert torch.equal(refined.var, bank.var)
    assert refined.calibration is bank.calibration
    for name in ("rows", "layers", "fingerprints", "skip"):
        assert getattr(refined, name) == getattr(bank, name)
    assert not any(table.requires_grad for table in tables(refined))


def test_row_0_keeps_the_models_own(model: nn.Module, refined: BNStatsBank) -> None:
    for table, own in zip(tables(refined), own_affine(model), strict=True):
        assert torch.equal(table[0], own)
        for row in table[1:]:
            assert (row - own).abs().max() > 1e-3
        assert not torch.equal(table[1], table[2])


def test_what_was_done_is_told(bank: BNStatsBank, refined: BNStatsBank) -> None:
    said = refined.provenance["refined"]
    assert said == {"criterion": "labels", "images": IMAGES, **make_data().provenance()}
    assert refined.unrefined().provenance == bank.provenance


@pytest.mark.parametrize("criterion", ["labels", "consistency"])
@pytest.mark.parametrize("with_calibration", [True, False])
def test_the_loss_is_lowered_on_the_images_it_was_tuned_on(
    model: nn.Module, bank: BNStatsBank, criterion: Any, with_calibration: bool
) -> None:
    bank = bank if with_calibration else bank.uncalibrated()
    refined = refine(model, bank, make_data(), images=IMAGES, criterion=criterion, progress=False)
    assert refined.provenance["refined"]["criterion"] == criterion
    start, end = (mean_loss(model, one, criterion) for one in (bank, refined))
    assert end < 0.95 * start


def test_the_same_again_whatever_was_refined_before(model: nn.Module, bank: BNStatsBank, refined: BNStatsBank) -> None:
    torch.manual_seed(9)
    again = refine(model, refined, make_data(), images=IMAGES, progress=False)
    assert all(torch.equal(mine, its) for mine, its in zip(tables(again), tables(refined), strict=True))
    assert again.provenance == refined.provenance
    without = refine(model, bank.uncalibrated(), make_data(), images=IMAGES, progress=False)
    assert not torch.equal(tables(without)[0], tables(refined)[0]), "rows are refined as they are blended"


def test_the_cells_of_a_corruption_learn_together(model: nn.Module) -> None:
    """A cell that is never drawn moves with its corruption's others; one of a corruption that is never drawn stays."""
    data = make_data(row_per="cell")
    bank = make_bank(model, data)
    assert bank.rows[1:] == ("gaussian_noise/3", "gaussian_noise/5", "contrast/3", "contrast/5")
    draw = data.drawn_batches

    def one_cell(*args: Any, **options: Any) -> Any:
        batches = list(draw(*args, **options))
        return [batch._replace(rows=torch.full_like(batch.rows, 1)) for batch in batches]

    data.drawn_batches = one_cell  # type: ignore[method-assign]
    weight, _ = tables(refine(model, bank, data, images=IMAGES, progress=False))
    moved = (weight - own_affine(model)[0]).abs().amax(1)
    assert moved[1] > moved[2] > 1e-3
    assert moved[[0, 3, 4]].tolist() == [0, 0, 0]


def test_it_looks_at_the_images_that_the_bank_was_collected_from(model: nn.Module, bank: BNStatsBank) -> None:
    data = make_data()
    parts = parts_drawn(data)
    refine(model, bank, data, images=64, progress=False)
    assert parts == [("fit", False)]


def test_row_0_stays_whatever_is_learned(model: nn.Module) -> None:
    weight, bias = own_affine(model)
    affine = RowAffine(Statistics(weight, weight.abs(), weight, bias), torch.tensor([0, 1, 1, 2]))
    with torch.no_grad():
        for parameter in affine.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
        scales, shifts = affine()
        changes = affine.of_corruption[:, [0, 1, 1, 2]] + affine.of_row
    for table, own, change in zip((scales, shifts), (weight, bias), changes, strict=True):
        assert torch.equal(table[0], own)
        torch.testing.assert_close(table[1:], own + change[1:])


def test_the_model_is_left_as_it_was(model: nn.Module, bank: BNStatsBank, monkeypatch: pytest.MonkeyPatch) -> None:
    model.train()
    model[1].eval()  # type: ignore[index]
    before = snapshot(model)
    try:
        refine(model, bank, make_data(), images=128, progress=False)
        assert_untouched(model, before)
        steps = []

        def interrupted(logits: Tensor, target: Tensor) -> Tensor:
            steps.append(1)
            if len(steps) == 2:
                raise KeyboardInterrupt
            return disagreement(logits, target)

        monkeypatch.setattr("dynbn_lightning.refining.disagreement", interrupted)
        with pytest.raises(KeyboardInterrupt):
            refine(model, bank, make_data(), images=128, progress=False)
        assert_untouched(model, before)
    finally:
        model.eval()


def test_other_data_rows_and_models_are_refused(model: nn.Module, bank: BNStatsBank) -> None:
    options: dict[str, Any] = {"images": 64, "progress": False}
    with pytest.raises(DataError, match="collected with seed 0, this data has 1"):
        refine(model, bank, make_data(seed=1), **options)
    with pytest.raises(BankError, match="not the same ones"):
        refine(model, bank, make_data(row_per="cell"), **options)
    with pytest.raises(BankError, match="another model"):
        refine(make_model(seed=1), bank, make_data(), **options)
    with pytest.raises(DataError, match="did you mean 'consistency'"):
        refine(model, bank, make_data(), criterion="consistent", **options)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="images=0"):
        refine(model, bank, make_data(), images=0, progress=False)
