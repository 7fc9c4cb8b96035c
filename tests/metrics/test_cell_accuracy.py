import pickle

import pytest
import torch

from dynbn_lightning.corruptions.cells import CORRUPTIONS, SEVERITIES, Cell, cells_of
from dynbn_lightning.errors import CorruptionError
from dynbn_lightning.metrics import NUM_CELLS, CellAccuracy, count_by_cell, mean_over_corruptions

ALL_CELLS = [Cell.clean(), *cells_of(CORRUPTIONS, SEVERITIES)]


def random_stream(count=2000, classes=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count,), generator=generator)
    logits = torch.randn(count, classes, generator=generator)
    logits[torch.arange(count), labels] += 1
    return logits, labels, torch.randint(0, NUM_CELLS, (count,), generator=generator)


def by_loop(logits, labels, cells):
    tallies = {}
    for scores, label, code in zip(logits.tolist(), labels.tolist(), cells.tolist(), strict=True):
        tally = tallies.setdefault(Cell.from_code(code).name, [0, 0])
        tally[0] += max(range(len(scores)), key=scores.__getitem__) == label
        tally[1] += 1
    return {name: correct / total for name, (correct, total) in tallies.items()}


def as_floats(accuracies):
    return {name: float(value) for name, value in accuracies.items()}


def test_the_codes_fill_the_counts():
    assert [cell.code for cell in ALL_CELLS] == list(range(NUM_CELLS))


def test_hand_computed():
    fog, snow = Cell("fog", 3).code, Cell("snow", 5).code
    metric = CellAccuracy()
    metric.update(torch.tensor([2, 0, 1]), torch.tensor([2, 1, 1]), torch.tensor([fog, fog, 0]))
    metric.update(torch.tensor([[0.1, 0.9], [0.8, 0.2]]).bfloat16(), torch.tensor([0, 0]), torch.tensor([snow, fog]))
    accuracies = metric.compute()
    assert list(accuracies) == ["clean", "snow/5", "fog/3"]
    assert as_floats(accuracies) == pytest.approx({"clean": 1.0, "snow/5": 0.0, "fog/3": 2 / 3})
    assert float(mean_over_corruptions(accuracies)) == pytest.approx(1 / 3)


def test_equals_a_plain_loop_whatever_the_batches():
    logits, labels, cells = random_stream()
    metric = CellAccuracy()
    for part in torch.arange(len(labels)).split([1, 130, 869, 1000]):
        metric.update(logits[part], labels[part], cells[part])
    accuracies = metric.compute()
    assert as_floats(accuracies) == pytest.approx(by_loop(logits, labels, cells))
    assert list(accuracies) == [cell.name for cell in ALL_CELLS if cell.name in accuracies]
    predicted = CellAccuracy()
    predicted.update(logits.argmax(1), labels, cells)
    assert as_floats(predicted.compute()) == as_floats(accuracies)


def test_merging_two_states_equals_one_stream():
    logits, labels, cells = random_stream()
    first, second = CellAccuracy(), CellAccuracy()
    first.update(logits[:700], labels[:700], cells[:700])
    second.update(logits[700:], labels[700:], cells[700:])
    first.merge_state(second)
    assert as_floats(first.compute()) == pytest.approx(by_loop(logits, labels, cells))


def test_summed_over_processes():
    logits, labels, cells = random_stream()
    metric = CellAccuracy(
        distributed_available_fn=lambda: True, dist_sync_fn=lambda state, group: [state, state.flip(0)]
    )
    metric.update(logits, labels, cells)
    correct, total = count_by_cell(logits, labels, cells)
    expected = (correct + correct.flip(0)) / (total + total.flip(0))
    torch.testing.assert_close(torch.stack(list(metric.compute().values())), expected)


def test_empty_reset_and_pickle():
    metric = CellAccuracy()
    metric.update(torch.tensor([1]), torch.tensor([1]), torch.tensor([4]))
    metric.update(torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    assert as_floats(pickle.loads(pickle.dumps(metric)).compute()) == {Cell.from_code(4).name: 1.0}
    metric.reset()
    metric.update(torch.tensor([1]), torch.tensor([0]), torch.tensor([0]))
    assert as_floats(metric.compute()) == {"clean": 0.0}
    assert mean_over_corruptions(metric.compute()) is None


@pytest.mark.parametrize("code", [-1, NUM_CELLS])
def test_refuses_codes_of_no_cell(code):
    with pytest.raises(CorruptionError, match=f"from 0 to {NUM_CELLS - 1}"):
        count_by_cell(torch.tensor([1, 1]), torch.tensor([1, 1]), torch.tensor([0, code]))


@pytest.mark.parametrize(
    ("predictions", "labels", "cells", "message"),
    [
        (torch.zeros(3, 4), torch.zeros(2).long(), torch.zeros(2).long(), "shapes"),
        (torch.zeros(2, 4), torch.zeros(2).long(), torch.zeros(3).long(), "int64 codes"),
        (torch.zeros(2, 4), torch.zeros(2).long(), torch.zeros(2), "int64"),
        (torch.zeros(2), torch.zeros(2).long(), torch.zeros(2).long(), "scores of shape"),
        (torch.zeros(2, 4, 5), torch.zeros(2).long(), torch.zeros(2).long(), "scores of shape"),
    ],
)
def test_refuses_what_does_not_fit(predictions, labels, cells, message):
    with pytest.raises(ValueError, match=message):
        count_by_cell(predictions, labels, cells)
