"""The datamodule: what its loaders yield, that pixels depend on what they should alone, and its errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from datamodule_helpers import CORRUPTIONS, Recorder, make_data, random_images, run_test, trainer
from lightning.pytorch.trainer.connectors.data_connector import warning_cache
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from dynbn_lightning import ClassifierModule, DetectorModule, corrupt
from dynbn_lightning.corruptions import Cell
from dynbn_lightning.datamodules.seeds import hashed_seed
from dynbn_lightning.errors import CorruptionError, DataError
from dynbn_lightning.models import Normalization


def test_test_images_are_the_corrupted_normalised_test_images() -> None:
    data = make_data(normalization="imagenet", seed=3)
    seen = run_test(data).images("test")
    assert len(seen) == 12 * (1 + 3 * 2)
    normalization = Normalization.of("imagenet")
    for (name, index), image in seen.items():
        cell = Cell.parse(name)
        pixels = random_images(12, 1)[index][0].unsqueeze(0)
        if not cell.is_clean:
            seed = hashed_seed(3, "test", -1, index, cell.code)
            pixels = corrupt(pixels, cell.corruption, cell.severity, "cifar", seeds=[seed])
        expected = normalization.apply(pixels[0].float() / 255)
        torch.testing.assert_close(image, expected, rtol=0, atol=0)
    assert data.batch_info is None, "forgotten after the test"


def test_pixels_depend_on_seed_image_and_cell_alone() -> None:
    reference = run_test(make_data()).images("test")
    for options in (
        {"batch_size": 1},
        {"batch_size": 256},
        {"stream": "sequential"},
        {"severities": (5, 1), "corruptions": CORRUPTIONS[::-1]},
        {"num_workers": 2},
    ):
        seen = run_test(make_data(**options)).images("test")
        assert seen.keys() == reference.keys()
        for key, image in seen.items():
            assert torch.equal(image, reference[key]), (options, key)
    other = run_test(make_data(seed=1)).images("test")
    assert not torch.equal(other["gaussian_noise/5", 0], reference["gaussian_noise/5", 0])
    assert torch.equal(other["contrast/5", 0], reference["contrast/5", 0]), "contrast draws nothing"


def test_streams() -> None:
    sequential = make_data(stream="sequential")
    assert sequential.stream_names[:2] == ["clean", "gaussian_noise/1"]
    module = run_test(sequential)
    for _, _, names, stage in module.batches:
        assert set(names) == {sequential.stream_names[int(stage.removeprefix("test"))]}
    first_cell = [index for _, indices, _, stage in module.batches if stage == "test0" for index in indices]
    assert sorted(first_cell) == list(range(12))
    assert first_cell != list(range(12)), "folders come class by class: images are shuffled within a cell"
    mixed = run_test(make_data(stream="mixed"))
    assert len(set(mixed.batches[0][2])) > 2
    order = [
        (index, name) for _, indices, names, _ in mixed.batches for index, name in zip(indices, names, strict=True)
    ]
    again = run_test(make_data(stream="mixed"))
    assert order == [
        (index, name) for _, indices, names, _ in again.batches for index, name in zip(indices, names, strict=True)
    ]


def test_predict_yields_images_alone() -> None:
    module, data = Recorder(), make_data()
    predictions = trainer().predict(module, datamodule=data)
    assert predictions is not None
    assert all(isinstance(batch, Tensor) for batch in predictions)
    tested = run_test(make_data()).images("test")
    predicted = module.images("predict")
    assert predicted.keys() == tested.keys()
    assert all(torch.equal(image, tested[key]) for key, image in predicted.items())


def test_fitting_a_detector_sees_training_images_under_rows_drawn_each_epoch() -> None:
    data, module = make_data(task="detector"), Recorder()
    trainer(max_epochs=3, num_sanity_val_steps=0).fit(module, datamodule=data)
    epochs: list[dict[int, str]] = []
    for batch, indices, names, stage in module.batches:
        images, rows = batch
        assert images.dtype == torch.float32
        assert 0 <= images.min() <= images.max() <= 1
        torch.testing.assert_close(images * 255, (images * 255).round(), rtol=0, atol=1e-4)
        for name, row in zip(names, rows.tolist(), strict=True):
            assert data.rows[row] == name.partition("/")[0]
        if stage == "train":
            if not epochs or indices[0] in epochs[-1]:
                epochs.append({})
            epochs[-1].update(zip(indices, names, strict=True))
    assert [len(epoch) for epoch in epochs] == [36, 36, 36]
    assert epochs[0] != epochs[1] != epochs[2]
    held_out = {index for _, indices, _, stage in module.batches if stage == "validate" for index in indices}
    assert len(held_out) == 4
    assert not held_out & set(epochs[0]), "held-out images are not trained on"
    validated = [names for _, _, names, stage in module.batches if stage == "validate"]
    assert validated[0] == validated[1] == validated[2], "validation does not change from epoch to epoch"


def test_fitting_does_not_depend_on_the_batch_size() -> None:
    seen = []
    for batch_size in (4, 36):
        module = Recorder()
        trainer(max_epochs=1).fit(module, datamodule=make_data(batch_size=batch_size))
        seen.append(module.images("train"))
    assert seen[0].keys() == seen[1].keys()
    assert all(torch.equal(image, seen[1][key]) for key, image in seen[0].items())


def test_fitting_a_classifier_sees_moved_clean_images_and_labels() -> None:
    data, module = make_data(task="classifier"), Recorder()
    trainer(max_epochs=2, num_sanity_val_steps=0).fit(module, datamodule=data)
    moved = 0
    for (images, labels), indices, names, stage in module.batches:
        assert set(names) == {"clean"}
        for image, label, index in zip(images, labels.tolist(), indices, strict=True):
            pixels, true_label = random_images(40, 0)[index]
            assert label == true_label
            same = torch.equal((image * 255).round().to(torch.uint8), pixels)
            assert same or stage == "train"
            moved += not same
    assert moved > 50


def test_validation_alone_shows_held_out_training_images_in_the_cells() -> None:
    data, module = make_data(), Recorder()
    trainer().validate(module, datamodule=data, verbose=False)
    seen = module.images("validate")
    assert {index for _, index in seen} == set(data._split[1])
    assert {name for name, _ in seen} == {cell.name for cell in data.cells}


@pytest.mark.parametrize("stream", ["mixed", "sequential"])
def test_a_detector_is_tested_on_rows(stream: Any) -> None:
    data = make_data(stream=stream)
    detector = DetectorModule(rows=data.rows, image_size=32)
    results = trainer().test(detector, datamodule=data, verbose=False)
    assert detector.confusion is not None
    assert detector.confusion.sum(1).tolist() == [12, 24, 24, 24]
    assert results[0]["test/acc"] == pytest.approx(detector.confusion.trace().item() / 84)


def test_row_loaders() -> None:
    data = make_data(normalization="half", row_per="cell")
    assert data.rows[:3] == ("clean", "gaussian_noise/1", "gaussian_noise/5")
    loaders = data.row_loaders(images_per_row=20, batch_size=16)
    assert tuple(loaders) == data.rows
    assert [len(batch) for batch in loaders["contrast/5"]] == [10, 10], "spread evenly, no small rest"
    assert len(loaders["contrast/5"]) == 2
    first, second = (torch.cat(list(loaders["gaussian_noise/5"])) for _ in range(2))
    assert torch.equal(first, second), "every pass gives the same images"
    small = torch.cat(list(data.row_loaders(images_per_row=20, batch_size=3)["gaussian_noise/5"]))
    assert torch.equal(first, small), "whatever the batch size"
    assert first.min() < -0.5
    assert first.max() > 0.5, "normalised"
    clean = torch.cat(list(loaders["clean"]))
    expected = torch.stack([random_images(40, 0)[index][0] for index in data._split[0][:20]])
    assert torch.equal(((clean * 0.5 + 0.5) * 255).round().to(torch.uint8), expected)
    assert loaders.provenance["preset"] == "cifar"
    assert loaders.provenance["normalization"] == {"mean": [0.5] * 3, "std": [0.5] * 3}
    assert data.batch_info is None
    by_corruption = make_data().row_loaders(images_per_row=36, batch_size=36)
    spread = torch.cat(list(by_corruption["contrast"])).flatten(1).std(1)
    assert spread.max() > 3 * spread.min(), "a row of a corruption holds all its severities"


class WithHook(Recorder):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        x, y = batch
        return x + 10, y


def test_the_users_own_transfer_hook_still_runs() -> None:
    module = WithHook()
    warning_cache.clear()  # Lightning says it once in a process, and another test may have heard it
    with pytest.warns(UserWarning, match="on_after_batch_transfer"):
        trainer().test(module, datamodule=make_data(), verbose=False)
    assert all(batch[0].min() >= 10 for batch, *_ in module.batches)


@pytest.mark.parametrize(("precision", "dtype"), [("bf16-true", torch.bfloat16), ("64-true", torch.float64)])
def test_precision(precision: Any, dtype: torch.dtype) -> None:
    module = run_test(make_data(), precision=precision)
    reference = run_test(make_data()).images("test")
    for key, image in module.images("test").items():
        assert image.dtype == dtype
        assert torch.equal(image, reference[key].to(dtype))


@pytest.mark.parametrize("stream", ["mixed", "sequential"])
def test_a_classifier_is_tested_cell_by_cell(stream: Any) -> None:
    data = make_data(normalization="imagenet", stream=stream)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 4)).eval()
    module = ClassifierModule(model)
    logged = trainer().test(module, datamodule=data, verbose=False)[0]
    seen = run_test(make_data(normalization="imagenet")).images("test")
    for cell in data.cells:
        images = torch.stack([seen[cell.name, index] for index in range(12)])
        expected = (model(images).argmax(1) == torch.arange(12) % 4).float().mean().item()
        assert logged[f"{cell.name}/acc"] == pytest.approx(expected, abs=1e-6)
    recorder = Recorder()
    trainer().validate(recorder, datamodule=data, verbose=False)
    with torch.no_grad():
        logits = torch.cat([model(x) for (x, _), *_ in recorder.batches])
    labels = torch.cat([y for (_, y), *_ in recorder.batches])
    validated = trainer().validate(module, datamodule=data, verbose=False)[0]
    assert validated["val/acc"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    assert validated["val/loss"] == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-4)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"corruptions": ("gausian_noise",)}, CorruptionError, "did you mean 'gaussian_noise'"),
        ({"severities": (0,)}, CorruptionError, "severity 0"),
        ({"severities": (6,)}, CorruptionError, "severity 6"),
        ({"preset": "cifar100"}, CorruptionError, "did you mean 'cifar'"),
        ({"normalization": "image_net"}, DataError, "did you mean 'imagenet'"),
        ({"stream": "mixd"}, DataError, "did you mean 'mixed'"),
        ({"task": "detect"}, DataError, "did you mean 'detector'"),
        ({"row_per": "cells"}, DataError, "did you mean 'cell'"),
        ({"batch_size": 0}, DataError, "batch_size=0"),
        ({"num_workers": -1}, DataError, "num_workers=-1"),
        ({"image_size": 0}, DataError, "image_size=0"),
        ({"severities": (5, 5)}, DataError, "different"),
        ({"severities": ()}, DataError, "one or more"),
        ({"corruptions": ("fog", "fog")}, DataError, "different"),
        ({"corruptions": "fog"}, DataError, "one or more different ones"),
        ({"validation_fraction": 1.0}, DataError, "validation_fraction"),
    ],
)
def test_bad_options_are_refused_at_once(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make_data(**options)


def test_what_is_known_of_images_is_forgotten_when_a_run_fails_or_another_begins() -> None:
    class Fails(Recorder):
        def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            raise RuntimeError("broken step")

    data, again = make_data(), trainer()
    with pytest.raises(RuntimeError, match="broken step"):
        again.test(Fails(), datamodule=data, verbose=False)
    assert data.batch_info is None
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 4))
    images = torch.utils.data.DataLoader(TensorDataset(torch.rand(8, 3, 32, 32), torch.zeros(8).long()), batch_size=8)
    logged = again.test(ClassifierModule(model), dataloaders=images, verbose=False)[0]
    assert set(logged) == {"test/acc"}, "nothing is known of these images' cells"


def test_worker_processes_end_with_their_cell() -> None:
    import multiprocessing

    alive: list[int] = []

    class Counts(Recorder):
        def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            alive.append(len(multiprocessing.active_children()))

    trainer().test(Counts(), datamodule=make_data(stream="sequential", num_workers=1), verbose=False)
    assert max(alive) <= 2


def test_row_loaders_refuse_numbers_that_are_not_positive() -> None:
    for options in ({"images_per_row": 0}, {"images_per_row": -5}, {"batch_size": 0}):
        with pytest.raises(DataError, match="at least 1"):
            make_data().row_loaders(**options)
