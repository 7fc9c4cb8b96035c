"""`drawn_batches`, what a bank is calibrated and refined on: which images and cells, and that pixels are right."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import pytest
import torch
from datamodule_helpers import CORRUPTIONS, make_data, random_images
from torch.utils.data import TensorDataset

from dynbn_lightning import CorruptionDataModule, corrupt
from dynbn_lightning.corruptions import Cell
from dynbn_lightning.datamodules.batches import DrawnBatch
from dynbn_lightning.datamodules.drawn_cells import drawn_cell
from dynbn_lightning.datamodules.seeds import hashed_seed
from dynbn_lightning.errors import DataError
from dynbn_lightning.models import Normalization


def drawn(data: CorruptionDataModule, images: int, part: Any, **options: Any) -> list[DrawnBatch]:
    return list(data.drawn_batches(images, part, **options))


def joined(batches: list[DrawnBatch]) -> DrawnBatch:
    images, clean, labels, rows = (torch.cat(tables) for tables in list(zip(*batches, strict=True))[:4])
    return DrawnBatch(images, clean, labels, rows, tuple(index for batch in batches for index in batch.indices))


def stored(images: torch.Tensor, normalization: str) -> torch.Tensor:
    """The 8-bit pixels of normalised images, which must be whole numbers when the normalisation is undone."""
    known = Normalization.of(normalization)
    mean, std = (torch.tensor(values, dtype=torch.float64).view(-1, 1, 1) for values in (known.mean, known.std))
    pixels = (images.double() * std + mean) * 255
    assert (pixels - pixels.round()).abs().max() < 1e-3, "not rounded to 8 bits"
    return pixels.round().to(torch.uint8)


# Which images


def test_parts_are_disjoint_and_of_the_right_split() -> None:
    data = make_data(validation_fraction=0.4)
    fit, held_out = data._split
    assert (len(fit), len(held_out)) == (24, 16)
    seen = {part: set(joined(drawn(data, 400, part)).indices) for part in ("fit", "choose", "check")}
    assert seen["fit"] == set(fit)
    assert seen["choose"] | seen["check"] == set(held_out)
    assert not seen["choose"] & seen["check"]
    assert (len(seen["choose"]), len(seen["check"])) == (12, 4), "three quarters to choose by, one to check on"


def test_the_split_and_the_draws_follow_the_seed() -> None:
    first, second = (joined(drawn(make_data(seed=seed), 64, "fit")) for seed in (0, 1))
    assert set(first.indices) <= set(make_data(seed=0)._split[0])
    assert set(second.indices) <= set(make_data(seed=1)._split[0])
    assert first.indices != second.indices
    assert first.rows.tolist() != second.rows.tolist()


def test_parts_draw_on_their_own() -> None:
    data = make_data(validation_fraction=0.5)
    rows = [joined(drawn(data, 64, part)).rows.tolist() for part in ("fit", "choose", "check")]
    assert rows[0] != rows[1] != rows[2]


def test_every_iteration_gives_the_same() -> None:
    batches = make_data().drawn_batches(20, "fit", batch_size=8)
    assert len(batches) == 3
    torch.manual_seed(0)
    first = list(batches)
    torch.manual_seed(1)
    second = list(batches)
    assert [len(batch.images) for batch in first] == [8, 8, 8], "rounded up to whole batches"
    for one, other in zip(first, second, strict=True):
        assert one.indices == other.indices
        assert all(torch.equal(a, b) for a, b in zip(one[:4], other[:4], strict=True))
    again = drawn(make_data(), 20, "fit", batch_size=8)
    assert torch.equal(joined(again).images, joined(first).images), "in another run too"


def test_workers_change_nothing() -> None:
    alone, with_workers = (drawn(make_data(num_workers=workers), 16, "fit", batch_size=8) for workers in (0, 1))
    assert torch.equal(joined(alone).images, joined(with_workers).images)


# What they look like


@pytest.mark.parametrize("normalization", ["none", "imagenet"])
def test_pixels_are_what_corrupt_gives_to_training_images(normalization: str) -> None:
    data = make_data(row_per="cell", normalization=normalization, seed=3, validation_fraction=0.5)
    training, kinds = random_images(40, 0), Counter[str]()
    for part in ("fit", "choose", "check"):
        for number, batch in enumerate(drawn(data, 60, part, batch_size=20)):
            corrupted, clean = (stored(images, normalization) for images in (batch.images, batch.clean))
            for position, index in enumerate(batch.indices):
                pixels, label = training[index]
                assert torch.equal(clean[position], pixels)
                assert batch.labels[position] == label
                cell = Cell.parse(data.rows[batch.rows[position]])
                kinds[cell.name] += 1
                if not cell.is_clean:
                    seed = hashed_seed(3, "train", number, index, cell.code)
                    pixels = corrupt(pixels[None], cell.corruption, cell.severity, "cifar", seeds=[seed])[0]
                assert torch.equal(corrupted[position], pixels), (index, cell)
    assert len(kinds) == 1 + 2 * len(CORRUPTIONS), "all cells were drawn"
    assert data.batch_info is None, "forgotten afterwards"


def test_rows_of_corruptions_hold_all_severities() -> None:
    data = make_data(corruptions=("contrast",), severities=(1, 5))
    batch = joined(drawn(data, 128, "fit", clean=False))
    assert batch.rows.tolist() == [1] * 128
    spread, own = (images.flatten(1).std(1) for images in (batch.images, batch.clean))
    ratios = (spread / own).tolist()
    mild, strong = sum(ratio > 0.5 for ratio in ratios), sum(ratio < 0.3 for ratio in ratios)
    assert mild + strong == 128
    assert 40 < mild < 88


def test_the_same_image_is_corrupted_anew_each_time() -> None:
    data = make_data(corruptions=("gaussian_noise",), severities=(5,))
    seen: dict[int, list[torch.Tensor]] = {}
    for batch in drawn(data, 80, "fit", clean=False, batch_size=8):
        for index, image in zip(batch.indices, batch.images, strict=True):
            seen.setdefault(index, []).append(image)
    pairs = [images for images in seen.values() if len(images) > 1]
    assert len(pairs) > 10
    assert any(not torch.equal(images[0], images[1]) for images in pairs)


# How often which cell


@pytest.mark.parametrize("row_per", ["corruption", "cell"])
def test_clean_is_drawn_as_often_as_each_corruption(row_per: Any) -> None:
    data = make_data(corruptions=("brightness", "contrast"), severities=(1, 2, 3, 4, 5), row_per=row_per)
    batch = joined(drawn(data, 1200, "fit"))
    counts = Counter(data.rows[row].partition("/")[0] for row in batch.rows.tolist())
    assert set(counts) == {"clean", "brightness", "contrast"}
    assert all(abs(count / len(batch.rows) - 1 / 3) < 0.05 for count in counts.values()), counts
    assert set(batch.rows.tolist()) == set(range(len(data.rows)))
    on_clean = batch.rows == 0
    assert torch.equal(batch.images[on_clean], batch.clean[on_clean])
    assert not torch.equal(batch.images[~on_clean], batch.clean[~on_clean])


@pytest.mark.parametrize("row_per", ["corruption", "cell"])
def test_without_clean(row_per: Any) -> None:
    data = make_data(corruptions=("brightness", "contrast"), row_per=row_per)
    rows = joined(drawn(data, 200, "fit", clean=False)).rows
    assert set(rows.tolist()) == set(range(1, len(data.rows)))


@pytest.mark.parametrize("row_per", ["corruption", "cell"])
def test_a_detector_is_fitted_on_clean_as_often_as_on_each_corruption(row_per: Any) -> None:
    data = make_data(severities=(1, 2, 3, 4, 5), row_per=row_per)
    draw = partial(drawn_cell, data.corruptions, data.severities, seed=data.seed)
    cells = [draw(index=index, epoch=epoch) for index in range(400) for epoch in range(10)]
    corruptions = Counter(cell.corruption for cell in cells)
    assert set(corruptions) == {"clean", *CORRUPTIONS}
    assert all(abs(count / len(cells) - 1 / 4) < 0.03 for count in corruptions.values()), corruptions
    severities = Counter(cell.severity for cell in cells if not cell.is_clean)
    assert all(abs(count / sum(severities.values()) - 1 / 5) < 0.03 for count in severities.values()), severities
    assert len({draw(index=7, epoch=epoch) for epoch in range(20)}) > 3, "anew each epoch"


# What a bank is collected from


@pytest.mark.parametrize(
    ("row_per", "row", "expected"), [("corruption", "contrast", 2000), ("cell", "contrast/5", 500)]
)
def test_so_many_images_are_measured_for_each_row(row_per: Any, row: str, expected: int) -> None:
    images = TensorDataset(torch.zeros(2400, 3, 8, 8, dtype=torch.uint8), torch.zeros(2400).long())
    data = CorruptionDataModule(
        images, test=images, corruptions=("contrast",), severities=(5,), row_per=row_per, preset="cifar"
    )
    loaders = data.row_loaders()
    assert sum(len(batch) for batch in loaders[row]) == expected
    assert loaders.provenance["images_per_row"] == expected
    assert data.row_loaders(images_per_row=7).provenance["images_per_row"] == 7


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, "fit"), "images=0"),
        ((-3, "fit"), "images=-3"),
        ((5, "choos"), "did you mean 'choose'"),
    ],
)
def test_what_cannot_be_drawn_is_refused_at_once(arguments: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        make_data().drawn_batches(*arguments)


def test_other_refusals() -> None:
    with pytest.raises(DataError, match="batch_size=0"):
        make_data().drawn_batches(5, "fit", batch_size=0)
    with pytest.raises(DataError, match="no training images"):
        CorruptionDataModule(None, test=random_images(8, 0)).drawn_batches(5, "check")
    few = make_data(validation_fraction=0.03)  # one image held out
    assert set(joined(drawn(few, 5, "check", batch_size=5)).indices) == set(few._split[1])
    with pytest.raises(DataError, match="1 held-out training images are too few: raise validation_fraction"):
        few.drawn_batches(5, "choose")
