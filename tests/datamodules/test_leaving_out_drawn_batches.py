"""`drawn_batches` from a later batch on: what is left out costs nothing, and the others are as they were."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from datamodule_helpers import make_data

from dynbn_lightning.errors import DataError


@pytest.mark.parametrize("options", [{}, {"clean": False}], ids=str)
@pytest.mark.parametrize("start", range(5))
def test_the_others_are_the_same_bit_for_bit(start: int, options: dict[str, Any]) -> None:
    options = {"part": "choose", "batch_size": 8, **options}
    data = make_data(validation_fraction=0.4, severities=(1, 3, 5))
    expected = list(data.drawn_batches(30, **options))[start:]
    batches = data.drawn_batches(30, **options, start=start)
    assert len(batches) == len(expected) == 4 - start
    for _ in range(2):
        found = list(batches)
        assert [batch.indices for batch in found] == [batch.indices for batch in expected]
        for one, other in zip(found, expected, strict=True):
            assert all(torch.equal(mine, its) for mine, its in zip(one[:4], other[:4], strict=True))
    assert data.batch_info is None, "forgotten afterwards"


def test_batches_left_out_are_neither_read_nor_corrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_data()
    read: list[int] = []
    images = type(data.train_images)
    get = images.__getitem__
    monkeypatch.setattr(images, "__getitem__", lambda self, index: read.append(index) or get(self, index))
    (batch,) = data.drawn_batches(64, "fit", batch_size=16, start=3)
    assert tuple(read) == batch.indices


@pytest.mark.parametrize("start", [-1, 5])
def test_more_than_there_are_cannot_be_left_out(start: int) -> None:
    with pytest.raises(DataError, match=rf"start={start}: expected a number of batches to leave out, from 0 to all 4"):
        make_data().drawn_batches(30, "fit", batch_size=8, start=start)
