"""Banks, quantiles, detectors, metrics and predictions made by several processes are those that one makes."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "callbacks"))

from callback_models import bare_trainer
from methods_on_processes import Observed, small_data
from reported_modules import TEST_IMAGES, Silent, make_network, stored_images
from started_processes import failures, of_several, start
from torchmetrics import MeanMetric

from dynbn_lightning import BNStatsBank, ClassifierModule, QuantileBank
from dynbn_lightning.batchnorm import PROPAGATIONS
from dynbn_lightning.fitting import fit_detector

WORLDS = (2, 3)
IMAGES_PER_ROW, BATCH_SIZE = 14, 4  # 4 batches


def data_of(**options: Any) -> Any:
    return small_data(**{"batch_size": 3, "row_per": "cell", **options})


def collect(folder: Path | None = None) -> dict[str, Any]:
    loaders = data_of().row_loaders(images_per_row=IMAGES_PER_ROW, batch_size=BATCH_SIZE)
    found: dict[str, Any] = {"batches": [len(list(batches)) for batches in loaders.values()]}
    found["lengths"] = [len(batches) for batches in loaders.values()]
    for propagate in PROPAGATIONS:
        path = None if folder is None else folder / f"{propagate}.safetensors"
        found[propagate] = BNStatsBank.collect(make_network(), loaders, propagate=propagate, path=path, progress=False)
    path = None if folder is None else folder / "quantiles.safetensors"
    found["quantiles"] = QuantileBank.collect(make_network(), loaders, count=8, path=path, progress=False)
    return found


def score(stream: str, entry: str = "test", **options: Any) -> dict[str, float]:
    trainer = bare_trainer(**options)
    module = ClassifierModule(make_network())
    getattr(trainer, entry)(module, datamodule=data_of(stream=stream, source=stored_images(60, 0)), verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


class Predicts(Silent):
    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        info = self.trainer.datamodule.batch_info
        return [*zip(info.names, info.indices, strict=True)], self(batch)


def predict(stream: str, **options: Any) -> list[Any]:
    predictions = bare_trainer(**options).predict(Predicts(), datamodule=data_of(stream=stream))
    loaders = predictions if isinstance(predictions[0], list) else [predictions]
    return [one for loader in loaders for one in loader]


class LogsInSteps(Observed):
    def step(self, batch: Any) -> None:
        super().step(batch)
        self.log("mean", batch[0].mean(), on_step=True, sync_dist=True)


class HasMetric(Observed):
    def __init__(self) -> None:
        super().__init__()
        self.metric = MeanMetric(dist_sync_on_step=True)


def refusals(world: int) -> dict[str, str]:
    told = {}
    for name, module, data in (
        ("uneven", LogsInSteps(), data_of(batch_size={2: 5, 3: 5}[world])),
        ("few", Observed(), data_of(stream="sequential", batch_size=TEST_IMAGES)),
        ("limited", Observed(), data_of(batch_size=5)),
        ("metric", HasMetric(), data_of(batch_size=5)),
    ):
        limit = {"limit_test_batches": 0.2} if name == "limited" else {}
        try:
            bare_trainer(**of_several(world), **limit).test(module, datamodule=data, verbose=False)
            told[name] = "nothing"
        except Exception as error:
            told[name] = f"{type(error).__name__}: {error}"
    bare_trainer(**of_several(world)).test(
        LogsInSteps(), datamodule=data_of(batch_size={2: 6, 3: 4}[world]), verbose=False
    )
    return told


def fit(folder: Path, world: int) -> dict[str, Any]:
    data = data_of(source=stored_images(60, 0), batch_size=8)
    path = folder / "detector.ckpt"
    detector = fit_detector(data, 2, output=path, enable_progress_bar=False, accelerator="cpu", **of_several(world))
    return {
        "steps": detector.trainer.global_step,
        "weights": {name: value.clone() for name, value in detector.state_dict().items()},
        "written": torch.load(path, weights_only=True)["state_dict"],
    }


def run_all(rank: int, world: int, folder: Path) -> None:
    found = {
        "collected": collect(folder),
        "scores": {stream: score(stream, **of_several(world)) for stream in ("mixed", "sequential")},
        "validated": score("mixed", "validate", **of_several(world)),
        "predicted": {stream: predict(stream, **of_several(world)) for stream in ("mixed", "sequential")},
        "refused": refusals(world),
        "fitted": fit(folder, world),
    }
    torch.save(found, folder / f"{rank}.pt")


@pytest.fixture(scope="module", params=WORLDS)
def world(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture(scope="module")
def folder(world: int, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tools")
    start(world, run_all, folder)
    assert failures(folder) == []
    return folder


@pytest.fixture(scope="module")
def found(folder: Path, world: int) -> list[dict[str, Any]]:
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]


@pytest.fixture(scope="module")
def collected_alone() -> dict[str, Any]:
    return collect()


def test_the_batches_of_a_row_are_dealt_in_turn(found, world, collected_alone):
    of_ranks = [its["collected"]["batches"] for its in found]
    assert [its["collected"]["lengths"] for its in found] == of_ranks
    assert [sum(batches) for batches in zip(*of_ranks, strict=True)] == collected_alone["batches"] == [4] * 5
    assert [batches[0] for batches in of_ranks] == {2: [2, 2], 3: [2, 1, 1]}[world]


@pytest.mark.parametrize("propagate", PROPAGATIONS)
def test_a_bank_is_that_of_one_process(found, folder, propagate, collected_alone):
    alone = collected_alone[propagate]
    banks = [its["collected"][propagate] for its in found]
    for bank in (*banks, BNStatsBank.load(folder / f"{propagate}.safetensors")):
        assert (bank.rows, bank.provenance) == (alone.rows, alone.provenance)
        assert bank.provenance["image_counts"] == dict.fromkeys(bank.rows[1:], IMAGES_PER_ROW)
        torch.testing.assert_close(bank.mean, alone.mean, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(bank.var, alone.var, rtol=1e-6, atol=1e-6)
        assert torch.equal(bank.mean, banks[0].mean)


def test_quantiles_are_those_of_one_process(found, folder, collected_alone):
    alone = collected_alone["quantiles"]
    for bank in (
        *(its["collected"]["quantiles"] for its in found),
        QuantileBank.load(folder / "quantiles.safetensors"),
    ):
        assert bank.rows == alone.rows
        torch.testing.assert_close(bank.quantiles, alone.quantiles, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("stream", ["mixed", "sequential"])
def test_every_score_is_that_of_one_process(found, stream):
    alone = score(stream)
    assert len(alone) == 7
    for its in found:
        assert its["scores"][stream] == alone


def test_validation_alone_gives_the_scores_of_one_process(found):
    alone = score("mixed", "validate")
    assert len(alone) >= 2
    for its in found:
        assert its["validated"] == pytest.approx(alone, rel=1e-6)


@pytest.mark.parametrize("stream", ["mixed", "sequential"])
def test_each_image_is_predicted_once(found, stream):
    alone = {place: logits for places, batch in predict(stream) for place, logits in zip(places, batch, strict=True)}
    together = [
        (place, logits)
        for its in found
        for places, batch in its["predicted"][stream]
        for place, logits in zip(places, batch, strict=True)
    ]
    assert len(together) == len(alone) == 5 * TEST_IMAGES
    assert {place for place, _ in together} == set(alone)
    for place, logits in together:
        assert torch.equal(logits, alone[place])


def test_steps_that_wait_for_all_processes_are_refused_where_batches_do_not_go_round(found, world):
    for its in found:
        told = its["refused"]["uneven"]
        assert told.startswith("DataError: 'mean' is logged with sync_dist=True and on_step=True")
        assert f"7 batches don't go round evenly among {world} processes" in told


def test_metrics_that_wait_in_steps_are_refused_too(found):
    for its in found:
        assert its["refused"]["metric"].startswith("DataError: MeanMetric has dist_sync_on_step=True")


def test_limits_that_leave_nothing_to_some_processes_are_refused_on_all(found, world):
    for its in found:
        told = its["refused"]["limited"]
        assert told.startswith(
            f"DataError: the loader 'mixed' has 7 batches for {world} processes, of which a limit of 0.2"
        )


def test_fewer_batches_than_processes_are_refused_on_all(found, world):
    for its in found:
        assert its["refused"]["few"].startswith(f"DataError: the loader 'clean' has 1 batches for {world} processes")


def test_a_detector_is_the_same_on_all_processes_and_written_by_one(found, world):
    first = found[0]["fitted"]
    assert first["steps"] == 2 * -(-(60 - 15) // (8 * world))
    for its in found:
        assert its["fitted"]["weights"].keys() == first["weights"].keys()
        for name, value in its["fitted"]["weights"].items():
            assert torch.equal(value, first["weights"][name])
            assert torch.equal(value, first["written"][name])
