"""The streams: which batches come in which order, and that each serves an ordinary LightningModule."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
import torch
from datamodule_helpers import Recorder, make_data, random_images, run_test, trainer
from torch import Tensor, nn
from torch.utils.data import Dataset

from dynbn_lightning import ClassifierModule, CorruptionDataModule, DetectorModule
from dynbn_lightning.datamodules.images import PixelDataset
from dynbn_lightning.datamodules.streams import STREAMS
from dynbn_lightning.errors import DataError

CELLS = ["clean"] + [f"{name}/{severity}" for name in ("gaussian_noise", "contrast") for severity in (1, 5)]


def small(stream: str, **options) -> CorruptionDataModule:
    options = {"corruptions": ("gaussian_noise", "contrast"), "batch_size": 5, **options}
    return make_data(stream=stream, **options)


def seen_by(data: CorruptionDataModule, entry: str) -> list[tuple[Tensor, list[int], tuple[int, ...], tuple[str, ...]]]:
    """(images, labels, numbers, cells) of each batch."""
    module = Recorder()
    getattr(trainer(), entry)(module, datamodule=data, **({} if entry == "predict" else {"verbose": False}))
    return [
        (batch, [], indices, names) if entry == "predict" else (batch[0], batch[1].tolist(), indices, names)
        for batch, indices, names, _ in module.batches
    ]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("entry", ["test", "validate", "predict"])
def test_continual_gives_exactly_the_batches_of_sequential_in_one_loader(entry: str, workers: int) -> None:
    sequential = seen_by(small("sequential"), entry)
    data = small("continual", num_workers=workers)
    continual = seen_by(data, entry)
    assert len(continual) == len(sequential)
    for (images, *about), (expected, *about_expected) in zip(continual, sequential, strict=True):
        assert about == about_expected
        assert torch.equal(images, expected)
    if entry != "validate":  # 12 test images in batches of 5, which no cell shares
        assert [len(images) for images, *_ in continual] == [5, 5, 2] * 5
        assert [set(names) for *_, names in continual] == [{cell} for cell in CELLS for _ in range(3)]


def test_continual_is_one_loader_and_so_tells_no_module_where_a_cell_ends() -> None:
    module = run_test(small("continual"))
    assert {stage for *_, stage in module.batches} == {"test0"}
    assert {stage for *_, stage in run_test(small("sequential")).batches} == {f"test{number}" for number in range(5)}


class Labelled(Dataset):
    """Class by class, as folders come; 20 images of each of 8 classes, 8 x 8 pixels."""

    def __init__(self, targets: object = None) -> None:
        self.asked: list[int] = []
        if targets is not None:
            self.targets = targets

    def __len__(self) -> int:
        return 160

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.asked.append(index)
        return torch.full((3, 8, 8), index, dtype=torch.uint8), index // 20


def labels_in_order(stream: str, **options) -> dict[str, list[tuple[int, int]]]:
    """Cell -> (number, label) of its images, in the order in which they came."""
    settings = {"corruptions": ("contrast",), "severities": (1, 5), "batch_size": 32, **options}
    module = Recorder()
    data = CorruptionDataModule(None, test=settings.pop("test", Labelled()), stream=stream, **settings)
    trainer().test(module, datamodule=data, verbose=False)
    order: dict[str, list[tuple[int, int]]] = {}
    for (_, labels), indices, names, _ in module.batches:
        for name, index, label in zip(names, indices, labels.tolist(), strict=True):
            order.setdefault(name, []).append((index, label))
    return order


def runs(labels: list[int]) -> int:
    return 1 + sum(one != other for one, other in pairwise(labels))


@pytest.mark.parametrize("concentration", [0.01, 0.1, 1, 1000])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_correlated_shows_every_image_once_in_every_cell(concentration: float, seed: int) -> None:
    order = labels_in_order("correlated", concentration=concentration, seed=seed)
    assert list(order) == ["clean", "contrast/1", "contrast/5"]
    for images in order.values():
        assert sorted(images) == [(index, index // 20) for index in range(160)]


def test_correlated_is_a_loader_a_cell_in_the_same_order_of_images() -> None:
    module = run_test(small("correlated"))
    for (*_, names, stage), number in zip(module.batches, [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3 + [4] * 3, strict=True):
        assert stage == f"test{number}"
        assert set(names) == {CELLS[number]}
    first, *others = labels_in_order("correlated").values()
    assert all(other == first for other in others)


def test_correlated_is_decided_by_its_seed_and_concentration() -> None:
    order = labels_in_order("correlated", seed=3)
    assert labels_in_order("correlated", seed=3) == order
    assert labels_in_order("correlated", seed=3, batch_size=7) == order
    assert labels_in_order("correlated", seed=4) != order
    assert labels_in_order("correlated", seed=3, concentration=0.2) != order


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_labels_come_in_long_runs_for_a_small_concentration_alone(seed: int) -> None:
    counted = {}
    for name, stream, concentration in (
        ("shuffled", "sequential", 0.1),
        ("long", "correlated", 0.1),
        ("even", "correlated", 1000),
    ):
        images = labels_in_order(stream, concentration=concentration, seed=seed)["clean"]
        counted[name] = runs([label for _, label in images])
    assert counted["shuffled"] > 120  # 160 images, one in eight like the last one
    assert counted["long"] <= 8 * 8
    assert counted["long"] < counted["shuffled"] / 3
    # Dealt evenly, each slot still has its classes one after the other: 8 of them in each of 8 slots.
    assert counted["long"] < counted["even"] <= 8 * 8


def test_an_even_deal_is_about_as_short_in_runs_as_a_shuffle_where_a_slot_has_an_image_of_each_class() -> None:
    """12 images of 4 classes: slots of about three images, none alike."""
    images = labels_in_order("correlated", test=random_images(12, 1), concentration=1000)["clean"]
    shuffled = labels_in_order("sequential", test=random_images(12, 1))["clean"]
    assert sorted(images) == sorted(shuffled)
    assert runs([label for _, label in images]) >= runs([label for _, label in shuffled]) - 2


@pytest.mark.parametrize("split", ["test", "validate"])
def test_validation_is_correlated_too(split: str) -> None:
    module = Recorder()
    data = CorruptionDataModule(
        Labelled(),
        test=Labelled(),
        stream="correlated",
        corruptions=("contrast",),
        severities=(5,),
        validation_fraction=0.5,
    )
    getattr(trainer(), split)(module, datamodule=data, verbose=False)
    clean = [(batch, indices) for batch, indices, names, _ in module.batches if names[0] == "clean"]
    labels = [label for (_, labels), _ in clean for label in labels.tolist()]
    numbers = [index for _, indices in clean for index in indices]
    assert labels == [number // 20 for number in numbers]
    assert sorted(numbers) == (list(range(160)) if split == "test" else sorted(data._split[1]))
    assert runs(labels) <= len(labels) / 2.5


@pytest.mark.parametrize("targets", [None, list, torch.tensor], ids=["items", "list", "tensor"])
def test_labels_come_from_targets_where_there_are_some_else_from_items(targets) -> None:
    dataset = Labelled(None if targets is None else targets([index // 20 for index in range(160)]))
    labels = PixelDataset(dataset).labels
    assert labels == [index // 20 for index in range(160)]
    assert all(type(label) is int for label in labels)
    assert dataset.asked == (list(range(160)) if targets is None else [])


def test_targets_of_another_length_are_not_believed() -> None:
    dataset = Labelled([5] * 159)
    assert PixelDataset(dataset).labels == [index // 20 for index in range(160)]


def test_the_order_by_targets_is_that_by_items() -> None:
    expected = labels_in_order("correlated")
    assert labels_in_order("correlated", test=Labelled([index // 20 for index in range(160)])) == expected


@pytest.mark.parametrize("concentration", [0, -0.1, float("nan"), float("inf"), -float("inf")])
def test_a_concentration_that_is_none_is_refused(concentration: float) -> None:
    with pytest.raises(DataError, match=f"concentration={concentration}: expected"):
        small("correlated", concentration=concentration)


def test_an_unknown_stream_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(DataError, match=r"stream='continuous': did you mean 'continual'\?"):
        small("continuous")


def test_stream_names_name_the_loaders_of_every_stream() -> None:
    assert set(STREAMS) == {"mixed", "sequential", "continual", "correlated"}
    for stream in STREAMS:
        data = small(stream)
        names = data.stream_names
        assert names == ([stream] if stream in ("mixed", "continual") else CELLS)
        loaders = data.test_dataloader()
        assert len(names) == (len(loaders) if isinstance(loaders, list) else 1)


@pytest.mark.parametrize("stream", STREAMS)
def test_a_lightning_module_is_tested_on_every_stream_with_the_same_result(stream: str) -> None:
    """The same images in another order: the same accuracy in every cell."""
    torch.manual_seed(0)
    module = ClassifierModule(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4)))
    found = {}
    for name in (stream, "mixed"):
        testing = trainer()
        testing.test(module, datamodule=small(name), verbose=False)
        metrics = {key: value.item() for key, value in testing.callback_metrics.items() if key.endswith("acc")}
        assert {"test/acc", "mean/acc", *(f"{cell}/acc" for cell in CELLS)} <= set(metrics)
        found[name] = metrics
    assert found[stream] == pytest.approx(found["mixed"])
    assert len(set(found[stream].values())) > 1


@pytest.mark.parametrize("stream", STREAMS)
def test_a_detector_gets_pixels_and_rows_on_every_stream(stream: str) -> None:
    rows: Counter[int] = Counter()

    class Watching(DetectorModule):
        def test_step(self, batch, batch_idx, dataloader_idx=0):
            images, true_rows = batch
            assert 0 <= images.min() <= images.max() <= 1
            rows.update(true_rows.tolist())

    data = small(stream, normalization="imagenet")
    trainer().test(Watching(rows=data.rows, image_size=32, hidden=4), datamodule=data, verbose=False)
    assert rows == {0: 12, 1: 24, 2: 24}
