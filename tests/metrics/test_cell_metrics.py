"""Scores per cell: against plain loops and torchmetrics' functions, whatever the batches and their order."""

import math
import pickle

import pytest
import torch
from metric_data import no_values_known, random_stream
from torchmetrics.functional.classification import multiclass_calibration_error

from dynbn_lightning.corruptions.cells import ALL_CORRUPTIONS, SEVERITIES, Cell, cells_of
from dynbn_lightning.errors import CorruptionError
from dynbn_lightning.metrics import (
    NUM_CELLS,
    CellMetrics,
    CellScores,
    count_outcomes,
    mean_over_corruptions,
    outcomes_of,
    scores_of,
)
from dynbn_lightning.metrics.cell_metrics import MAX_NLL

ALL_CELLS = [Cell.clean(), *cells_of(ALL_CORRUPTIONS, SEVERITIES)]
FOG, SNOW = Cell("fog", 3).code, Cell("snow", 5).code


def scored(*batches):
    metric = CellMetrics()
    for batch in batches:
        metric.update(*batch)
    return metric.compute()


def parts(stream, order, sizes):
    return [tuple(values[part] for values in stream) for part in order.split(sizes)]


def by_loop(logits, labels, cells):
    """Images, accuracy, top-5 accuracy and NLL of each cell, in plain float64."""
    tallies = {}
    for row, label, code in zip(logits.double().tolist(), labels.tolist(), cells.tolist(), strict=True):
        tally = tallies.setdefault(Cell.from_code(code).name, [0, 0, 0, 0.0])
        tally[0] += 1
        tally[1] += row.index(max(row)) == label
        tally[2] += sum(logit > row[label] for logit in row) < 5
        tally[3] += math.log(sum(math.exp(logit) for logit in row)) - row[label]
    return {name: [tally[0], *(its / tally[0] for its in tally[1:])] for name, tally in tallies.items()}


def assert_agrees(scores, logits, labels, cells):
    """With the loop, and on calibration with torchmetrics."""
    expected = by_loop(logits, labels, cells)
    assert set(scores) == set(expected)
    for name, its in scores.items():
        assert list(its[:4]) == pytest.approx(expected[name], abs=1e-6)
        mine = cells == Cell.parse(name).code
        # Probabilities, as it takes logits that happen to lie between 0 and 1 for probabilities.
        error = multiclass_calibration_error(logits[mine].softmax(1), labels[mine], num_classes=logits.shape[1])
        assert its.calibration_error == pytest.approx(float(error), abs=1e-5)


def test_the_codes_fill_the_counts():
    assert [cell.code for cell in ALL_CELLS] == list(range(NUM_CELLS))


def test_hand_computed():
    ln = math.log
    logits = torch.tensor([[ln(3), 0, -50, -50, -50, -50], [0, ln(3), -50, -50, -50, -50], [ln(9), 0, 1, 1, 1, 1]])
    logits[2, 2:] = torch.tensor([-60.0, -50, -50, -50])
    scores = scored((logits, torch.tensor([0, 0, 2]), torch.tensor([FOG, FOG, 0])))
    assert list(scores) == ["clean", "fog/3"]
    fog, clean = scores["fog/3"], scores["clean"]
    assert fog[:3] == (2, 0.5, 1.0)
    assert fog.nll == pytest.approx((ln(4 / 3) + ln(4)) / 2, abs=1e-6)
    assert fog.calibration_error == pytest.approx(0.25, abs=1e-6)  # half right at a confidence of 3/4
    assert fog.error == 0.5
    assert clean[:3] == (1, 0.0, 0.0)
    assert clean.nll == pytest.approx(ln(10) + 60, abs=1e-5)
    assert clean.calibration_error == pytest.approx(0.9, abs=1e-6)


@pytest.mark.parametrize("classes", [2, 7, 40])
def test_equals_plain_loops_and_torchmetrics(classes):
    stream = random_stream(4000, classes)
    few = torch.randint(0, 12, stream[2].shape, generator=torch.Generator().manual_seed(1)) * 8
    for cells in (stream[2], few):
        scores = scored((*stream[:2], cells))
        assert_agrees(scores, *stream[:2], cells)
        assert list(scores) == [cell.name for cell in ALL_CELLS if cell.name in scores]


def test_sums_are_rounded_and_not_cut():
    """Each image's NLL is off by half a millionth at most, either way, so that the mean over many is off by less."""
    logits, labels, cells = random_stream(4000)
    (its,) = scored((logits, labels, torch.zeros_like(cells))).values()
    assert its.nll == pytest.approx(float(outcomes_of(logits, labels).nll.double().mean()), abs=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    logits, labels, cells = random_stream(1000)
    logits = logits.to(dtype)
    assert_agrees(scored((logits, labels, cells)), logits.float(), labels, cells)


@pytest.mark.parametrize("classes", [3, 5, 15])
def test_confidences_on_the_edges_of_bins(classes):
    """Equal logits give confidences of 1/3, 1/5 and 1/15, edges all; beside them confidences just above."""
    logits = torch.zeros(60, classes)
    logits[::3, -1] = -1e-4  # the others a little surer
    labels = torch.arange(60) % classes
    cells = torch.full((60,), SNOW)
    assert_agrees(scored((logits, labels, cells)), logits, labels, cells)


def test_one_class_only():
    logits, labels = torch.tensor([[3.0], [-3.0]]), torch.tensor([0, 0])
    assert scored((logits, labels, torch.tensor([FOG, FOG]))) == {"fog/3": CellScores(2, 1.0, 1.0, 0.0, 0.0)}


def test_confidences_of_exactly_one_have_their_own_bin():
    """As in torchmetrics: one wrong image at 1.0 and one right image at 0.95 do not make up for each other."""
    logits = torch.tensor([[200.0, 0.0], [math.log(19), 0.0]])
    labels, cells = torch.tensor([1, 0]), torch.tensor([FOG, FOG])
    error = scored((logits, labels, cells))["fog/3"].calibration_error
    assert error == pytest.approx((1 + 0.05) / 2, abs=1e-6)
    assert error == pytest.approx(float(multiclass_calibration_error(logits, labels, num_classes=2)), abs=1e-5)


def test_the_same_to_the_last_bit_whatever_the_batches_and_their_order():
    stream = random_stream(3000)
    expected = scored(stream)
    for seed, sizes in enumerate(([1, 130, 869, 2000], 7, 1000)):
        order = torch.randperm(3000, generator=torch.Generator().manual_seed(seed))
        assert scored(*parts(stream, order, sizes)) == expected
    counts = [count_outcomes(outcomes_of(*batch[:2]), batch[2]) for batch in parts(stream, torch.arange(3000), 999)]
    assert {part.dtype for part in counts} == {torch.int64}
    assert scores_of(sum(counts)) == expected


def test_merging_two_states_equals_one_stream():
    stream = random_stream()
    first, second = CellMetrics(), CellMetrics()
    for metric, batch in zip((first, second), parts(stream, torch.arange(2000), [700, 1300]), strict=True):
        metric.update(*batch)
    first.merge_state(second)
    assert first.compute() == scored(stream)


def test_one_state_and_a_sync_function_of_ones_own():
    calls = []

    def twice(state, group):
        calls.append(state.shape)
        return [state, state]

    metric = CellMetrics(distributed_available_fn=lambda: True, dist_sync_fn=twice)
    stream = random_stream()
    metric.update(*stream)
    (scores, alone), (shape,) = (metric.compute(), scored(stream)), calls
    assert shape[0] == NUM_CELLS
    assert list(metric._defaults) == ["counts"]
    assert scores == {name: its._replace(images=2 * its.images) for name, its in alone.items()}


def test_a_nan_reaches_its_own_cell_only():
    logits, labels, cells = random_stream(500)
    cells = cells % 3
    expected = scored((logits, labels, cells))
    broken = logits.clone()
    broken[0, 4] = math.nan
    cells[0] = 1
    expected = scored((logits, labels, cells))
    scores = scored((broken, labels, cells))
    hurt, before = scores.pop("gaussian_noise/1"), expected.pop("gaussian_noise/1")
    assert scores == expected
    assert math.isnan(hurt.nll)
    assert math.isnan(hurt.calibration_error)
    assert hurt.images == before.images
    assert hurt.accuracy == pytest.approx(before.accuracy, abs=1.01 / before.images)
    mean = mean_over_corruptions({"gaussian_noise/1": hurt, **scores})
    assert math.isnan(mean.nll)
    assert not math.isnan(mean.accuracy)


def test_a_label_of_no_likelihood_counts_with_the_maximum():
    logits = torch.tensor([[0.0, -math.inf], [0.0, 0.0], [-1e30, 1e30]])
    scores = scored((logits, torch.tensor([1, 0, 0]), torch.tensor([FOG, FOG, SNOW])))
    assert scores["fog/3"].nll == pytest.approx((MAX_NLL + math.log(2)) / 2, abs=1e-6)
    assert scores["snow/5"].nll == MAX_NLL


def test_mean_over_corruptions_is_of_cells_and_not_of_images():
    scores = {
        "clean": CellScores(1000, 1.0, 1.0, 0.0, 0.0),
        "fog/1": CellScores(30, 0.5, 0.75, 1.0, 0.25),
        "snow/5": CellScores(10, 0.25, 0.5, 4.0, 0.5),
    }
    assert mean_over_corruptions(scores) == CellScores(40, 0.375, 0.625, 2.5, 0.375)
    assert mean_over_corruptions({"clean": scores["clean"]}) is None
    assert mean_over_corruptions({}) is None
    with pytest.raises(CorruptionError, match="did you mean 'fog'"):
        mean_over_corruptions({"fogg/1": scores["fog/1"]})


def test_empty_reset_and_pickle():
    logits, labels = torch.tensor([[0.0, 1.0]]), torch.tensor([1])
    metric = CellMetrics()
    metric.update(logits, labels, torch.tensor([4]))
    metric.update(torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    again = pickle.loads(pickle.dumps(metric)).compute()
    assert again == metric.compute() == {Cell.from_code(4).name: metric.compute()[Cell.from_code(4).name]}
    metric.reset()
    metric.update(logits, labels - 1, torch.tensor([0]))
    scores = metric.compute()
    assert list(scores) == ["clean"]
    assert scores["clean"].accuracy == 0.0
    assert metric(logits, labels, torch.tensor([0]))["clean"].accuracy == 1.0
    assert metric.compute()["clean"].accuracy == 0.5


def test_the_default_dtype_changes_nothing():
    stream = random_stream()
    expected, default = scored(stream), torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.bfloat16)
        assert scored(stream) == expected
    finally:
        torch.set_default_dtype(default)


@pytest.mark.skipif(torch.__version__.startswith("2.6."), reason="torch 2.6 pretends no CUDA without a driver")
def test_nothing_waits_for_the_device():
    metric = CellMetrics()
    with no_values_known():
        metric.counts = torch.empty(metric.counts.shape, device="cuda", dtype=torch.int64)
        labels = torch.empty(8, device="cuda", dtype=torch.int64)
        metric.update(torch.empty(8, 10, device="cuda"), labels, labels)
        assert metric.counts.device.type == "cuda"


@pytest.mark.parametrize("code", [-1, NUM_CELLS])
def test_refuses_codes_of_no_cell(code):
    with pytest.raises(CorruptionError, match=f"from 0 to {NUM_CELLS - 1}"):
        CellMetrics().update(torch.zeros(2, 3), torch.tensor([1, 1]), torch.tensor([0, code]))


@pytest.mark.parametrize("cells", [torch.zeros(3).long(), torch.zeros(2), torch.zeros(2, 1).long()])
def test_refuses_cells_that_do_not_fit(cells):
    with pytest.raises(ValueError, match=r"int64 codes \(Cell.code\) of the labels' shape \(2,\)"):
        CellMetrics().update(torch.zeros(2, 4), torch.zeros(2).long(), cells)


@pytest.mark.parametrize("counts", [torch.zeros(3, 4).long(), torch.zeros_like(CellMetrics().counts).float()])
def test_refuses_counts_of_something_else(counts):
    with pytest.raises(ValueError, match="expected counts from count_outcomes"):
        scores_of(counts)
