"""`evaluate` and the fitting helpers: what they refuse, and that they leave model and data alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

from dynbn_lightning import BNStatsBank, CorruptionDataModule, DetectorModule, evaluate
from dynbn_lightning.errors import BankError, DataError, DetectorError, UnsupportedModelError
from dynbn_lightning.fitting import fit_detector
from dynbn_lightning.models import cifar_resnet8


def make_data(**options: Any) -> CorruptionDataModule:
    def images(count: int, seed: int) -> TensorDataset:
        generator = torch.Generator().manual_seed(seed)
        return TensorDataset(
            torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator), torch.arange(count) % 10
        )

    options = {"corruptions": ("fog", "contrast"), "severities": (5,), "batch_size": 5, "stream": "mixed", **options}
    return CorruptionDataModule(images(30, 0), test=images(10, 1), **options)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return cifar_resnet8(width=4).eval()


def test_results_and_what_is_left_alone(model: torch.nn.Module) -> None:
    data = make_data()
    bank = BNStatsBank.collect(model, data.row_loaders(), progress=False)
    detector = DetectorModule(rows=data.rows)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    methods = ("source", "batch_stats", "dynamic_bn/hard", "dynamic_bn/soft", "oracle")
    results = evaluate(
        model, data, methods=methods, streams=("sequential",), bank=bank, detector=detector, progress=False
    )
    assert list(results["methods"]) == list(methods)
    for block in results["methods"].values():
        assert list(block["cells"]) == ["fog/5", "contrast/5"]
        assert all(accuracy * 10 == pytest.approx(round(accuracy * 10)) for accuracy in block["cells"].values())
    assert results["methods"]["oracle"]["clean"] == results["methods"]["source"]["clean"]
    protocol = results["protocol"]
    assert protocol["streams"] == ["sequential"]
    assert protocol["test_images"] == 10
    assert protocol["bank"]["image_counts"] == {"fog": 27, "contrast": 27}
    assert data.stream == "mixed"
    assert data.trainer is None
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_layers_that_the_bank_skips_are_left_alone_by_all_methods() -> None:
    class OwnBatchNorm(torch.nn.BatchNorm2d):
        pass

    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3),
        OwnBatchNorm(4),
        torch.nn.BatchNorm2d(4),
        torch.nn.Flatten(),
        torch.nn.Linear(3600, 10),
    ).eval()
    data = make_data()
    bank = BNStatsBank.collect(model, data.row_loaders(images_per_row=5), skip=["1"], progress=False)
    assert list(bank.layers) == ["2"]
    results = evaluate(model, data, methods=("batch_stats", "oracle"), bank=bank, progress=False)
    assert list(results["methods"]) == ["batch_stats", "oracle"]
    with pytest.raises(UnsupportedModelError, match="OwnBatchNorm"):
        evaluate(model, data, methods=("batch_stats",), progress=False)


def test_bad_input_is_refused_before_any_work(model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_data()
    bank = BNStatsBank.collect(model, data.row_loaders(images_per_row=5), progress=False)
    monkeypatch.setattr("dynbn_lightning.evaluation._test", lambda *args: pytest.fail("work was done"))
    stranger = DetectorModule(rows=("clean", "fog", "snow"))
    refused: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"methods": ("source", "sorce")}, DataError, "did you mean 'source'"),
        ({"methods": ()}, DataError, "one or more"),
        ({"methods": ("oracle",)}, DataError, "needs a bank"),
        ({"methods": ("dynamic_bn/soft",), "bank": bank}, DataError, "needs a detector"),
        ({"methods": ("source",), "streams": ()}, DataError, "one or more"),
        ({"methods": ("source",), "streams": ("mixed", "mixed")}, DataError, "different streams"),
        ({"methods": ("dynamic_bn/soft",), "bank": bank, "detector": stranger}, DetectorError, "snow"),
    ]
    for options, error, message in refused:
        with pytest.raises(error, match=message):
            evaluate(model, data, progress=False, **options)
    with pytest.raises(BankError, match="another model"):
        evaluate(cifar_resnet8(width=8).eval(), data, methods=("oracle",), bank=bank, progress=False)


def test_fit_detector_refuses_what_it_cannot_fit() -> None:
    with pytest.raises(DataError, match="epochs=0"):
        fit_detector(make_data(), 0)
    wide = TensorDataset(torch.zeros(20, 3, 32, 40, dtype=torch.uint8), torch.zeros(20).long())
    with pytest.raises(DataError, match=r"32 x 40.*image_size="):
        fit_detector(CorruptionDataModule(wide, test=wide), 1)


def test_fit_detector_leaves_the_datamodule_as_it_was() -> None:
    data = make_data(task="classifier")
    detector = fit_detector(data, 1, enable_progress_bar=False, accelerator="cpu")
    assert detector.rows == data.rows
    assert data.task == "classifier"
    assert data.trainer is None
