"""What calibrating and refining share: which data they refuse, clean predictions, and the search."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from tuning_models import make_bank, make_data, make_model

from dynbn_lightning import BNStatsBank
from dynbn_lightning.datamodules.batches import DrawnBatch
from dynbn_lightning.datamodules.row_loaders import Batches
from dynbn_lightning.errors import BankError, DataError
from dynbn_lightning.tuning import (
    CleanPredictions,
    UnfinishedTuning,
    check_bank_and_data,
    disagreement,
    in_evaluation_mode,
    tune,
)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return make_model()


@pytest.fixture(scope="module")
def bank(model: nn.Module) -> BNStatsBank:
    return make_bank(model, make_data())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 1}, "collected with seed 0, this data has 1"),
        ({"validation_fraction": 0.5}, r"collected with validation_fraction 0\.4, this data has 0\.5"),
        ({"normalization": "imagenet"}, "collected with normalization"),
        ({"preset": "imagenet"}, "collected with preset 'cifar', this data has 'imagenet'"),
    ],
)
def test_data_that_would_hold_other_images_out_is_refused(
    model: nn.Module, bank: BNStatsBank, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        check_bank_and_data(model, bank, make_data(**options), "labels")


def test_a_bank_of_another_source_is_refused(model: nn.Module, bank: BNStatsBank) -> None:
    check_bank_and_data(model, bank, make_data(), "labels")
    check_bank_and_data(model, replace(bank, provenance={}), make_data(seed=1), "labels")  # nothing is known of it
    elsewhere = replace(bank, provenance={**bank.provenance, "source": "cifar10"})
    with pytest.raises(DataError, match="collected with source 'cifar10', this data has 'TensorDataset'"):
        check_bank_and_data(model, elsewhere, make_data(), "labels")
    with pytest.raises(BankError, match="the bank has 3 rows, the data has 5 and not the same ones"):
        check_bank_and_data(model, bank, make_data(row_per="cell"), "labels")


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.seen = nn.Linear(4, 3), 0

    def forward(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        logits: Tensor = self.layer(images)
        return logits


def batch_of(images: Tensor, *indices: int) -> DrawnBatch:
    zeros = torch.zeros(len(indices), dtype=torch.int64)
    return DrawnBatch(torch.full((len(indices), 4), float("nan")), images[list(indices)], zeros, zeros, indices)


def test_each_clean_image_is_predicted_once() -> None:
    torch.manual_seed(0)
    model, images = Counting(), torch.randn(6, 4)
    expected = model.layer(images).log_softmax(1).detach()
    predictions = CleanPredictions(model)
    for indices, seen in (((3, 1, 3), 2), ((1, 5, 0, 3), 4), ((0, 0), 4), ((4, 2), 6), ((5, 4, 3, 2, 1, 0), 6)):
        predicted = predictions(batch_of(images, *indices))
        assert model.seen == seen
        assert not predicted.requires_grad
        torch.testing.assert_close(predicted, expected[list(indices)])


def test_disagreement() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, others = torch.randn(2, 5, 3, generator=generator)
    labels = torch.tensor([0, 2, 1, 1, 0])
    chosen = torch.stack([row.exp()[label] / row.exp().sum() for row, label in zip(logits, labels, strict=True)])
    torch.testing.assert_close(disagreement(logits, labels), -chosen.log().mean())
    target, mine = others.softmax(1), logits.softmax(1)
    expected = (target * (target / mine).log()).sum(1).mean()
    torch.testing.assert_close(disagreement(logits, others.log_softmax(1)), expected)
    assert disagreement(others, others.log_softmax(1)).item() == pytest.approx(0, abs=1e-6)


def test_tuning_lowers_the_loss_and_touches_its_parameters_alone() -> None:
    parameter, other = (torch.tensor([3.0], requires_grad=True) for _ in range(2))
    zeros = torch.zeros(1, dtype=torch.int64)
    batches = Batches(lambda: iter([batch_of(torch.zeros(1, 4), 0)] * 200), 200)

    def loss_of(batch: DrawnBatch) -> Tensor:
        assert batch.rows is not zeros
        return (parameter * other - 1).square().sum()

    with torch.no_grad():
        losses = tune(
            [parameter],
            loss_of,
            lambda start: batches,
            learning_rate=0.1,
            description="",
            progress=False,
            unfinished=UnfinishedTuning(None, "", {}, {}),
            predictions=CleanPredictions(nn.Identity()),
        )
    assert len(losses) == 200
    assert losses[0] == pytest.approx(64)
    assert losses[-1] < 1e-3
    assert parameter.item() == pytest.approx(1 / 3, abs=1e-2)
    assert other.item() == 3
    assert other.grad is None


def test_evaluation_mode_ends_with_the_block() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.Sequential(nn.Dropout(), nn.BatchNorm1d(1))).train()
    model[1][0].eval()  # type: ignore[index]
    modes = [module.training for module in model.modules()]

    def interrupted() -> None:
        with in_evaluation_mode(model) as device:
            assert device == torch.device("cpu")
            assert not any(module.training for module in model.modules())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [module.training for module in model.modules()] == modes == [True, True, True, False, True]
    with in_evaluation_mode(nn.ReLU()) as device:
        assert device == torch.device("cpu"), "a model without parameters"
