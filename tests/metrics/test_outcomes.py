"""Outcomes of single images: against plain loops in float64, and on logits that have no probabilities."""

import math

import pytest
import torch
from metric_data import no_values_known, random_stream

from dynbn_lightning.errors import DataError
from dynbn_lightning.metrics import Outcomes, outcomes, outcomes_of, top1_hits

INF, NAN = math.inf, math.nan


def by_loop(logits, labels):
    """Per image: prediction, correct, top5, confidence, nll; Python floats throughout."""
    found = []
    for row, label in zip(logits.double().tolist(), labels.tolist(), strict=True):
        largest = max(row)
        prediction = row.index(largest)
        total = sum(math.exp(logit - largest) for logit in row)
        place = sorted(row, reverse=True).index(row[label])  # the best place that a tie leaves it
        nll = math.log(total) - (row[label] - largest)
        found.append((prediction, prediction == label, place < 5, 1 / total, nll))
    return [list(column) for column in zip(*found, strict=True)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("classes", [1, 3, 5, 6, 300])
def test_equals_a_plain_loop(dtype, classes):
    logits, labels, _ = random_stream(300, classes)
    logits = logits.to(dtype)
    predictions, correct, top5, confidences, nll = by_loop(logits, labels)
    found = outcomes_of(logits, labels)
    assert found.predictions.tolist() == predictions
    assert found.correct.tolist() == correct
    assert found.top5.tolist() == top5
    assert found.confidences.tolist() == pytest.approx(confidences, rel=1e-5)
    assert found.nll.tolist() == pytest.approx(nll, rel=1e-5, abs=1e-6)
    assert torch.equal(found.correct, top1_hits(logits, labels))
    dtypes = [torch.int64, torch.bool, torch.bool, torch.float32, torch.float32]
    assert [values.dtype for values in found] == dtypes
    assert all(values.shape == (300,) for values in found)
    if classes <= 5:
        assert found.top5.all()
    elif classes == 300:
        assert 0 < found.top5.float().mean() < 1


def test_hand_computed():
    logits = torch.tensor([[math.log(1), math.log(3)], [math.log(8), math.log(2)]])
    found = outcomes_of(logits, torch.tensor([0, 0]))
    assert found.predictions.tolist() == [1, 0]
    assert found.correct.tolist() == [False, True]
    assert found.confidences.tolist() == pytest.approx([0.75, 0.8])
    assert found.nll.tolist() == pytest.approx([math.log(4), math.log(1.25)])


def test_ties_count_for_the_label_among_five():
    logits = torch.tensor([[9.0, 8, 7, 6, 5, 5, 5, 1], [9.0, 8, 7, 6, 5, 4, 4, 1]])
    for label, among in enumerate([(1, 1), (1, 1), (1, 1), (1, 1), (1, 1), (1, 0), (1, 0), (0, 0)]):
        assert outcomes_of(logits, torch.tensor([label, label])).top5.tolist() == [bool(one) for one in among]


def test_the_prediction_is_that_of_the_logits_as_they_came():
    """In float16 the two largest are one number and in float32 they are not, nor other two in float64."""
    logits = torch.tensor([[1.0, 2.0, 2.0001]])
    assert outcomes_of(logits, torch.tensor([2])).predictions.tolist() == [2]
    double = torch.tensor([[1.0, 1 + 1e-12]], dtype=torch.float64)
    assert outcomes_of(double, torch.tensor([0])).predictions.tolist() == [1]
    half = outcomes_of(logits.half(), torch.tensor([2]))
    assert half.predictions.tolist() == logits.half().argmax(1).tolist() == [1]
    assert float(half.confidences) == pytest.approx(math.exp(-float(half.nll)))  # of 1 or of 2: they are one number


def test_logits_beyond_any_probability():
    logits = torch.tensor([[0, NAN, 0, 0, 0, 0], [0, INF, 0, 0, 0, 0], [-INF] * 6, [0, -INF, 0, 0, 0, 1]])
    found = outcomes_of(logits, torch.tensor([1, 1, 1, 1]))
    assert found.predictions.tolist() == logits.argmax(1).tolist()
    assert found.correct.tolist() == (logits.argmax(1) == 1).tolist()
    assert found.correct[1]
    assert found.top5.tolist() == [False, True, True, False]
    assert found.nll.isnan().tolist() == [True, True, True, False]
    assert found.confidences.isnan().tolist() == [True, True, True, False]
    assert found.nll[3] == INF
    assert found.confidences[3] == pytest.approx(math.e / (4 + math.e))


def test_a_likelihood_of_one_is_a_plain_zero():
    found = outcomes_of(torch.tensor([[200.0, 0.0]]), torch.tensor([0]))
    assert found.confidences.tolist() == [1.0]
    assert str(found.nll.tolist()) == "[0.0]"


def test_no_images_and_other_integers():
    assert [len(values) for values in outcomes_of(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))] == [0] * 5
    logits, labels, _ = random_stream(20)
    for dtype in (torch.uint8, torch.int32):
        found = outcomes_of(logits, labels.to(dtype))
        assert all(torch.equal(*pair) for pair in zip(found, outcomes_of(logits, labels), strict=True))


def test_carries_no_gradient():
    logits, labels, _ = random_stream(10)
    assert not any(values.requires_grad for values in outcomes_of(logits.requires_grad_(), labels))


@pytest.mark.parametrize(("label", "named"), [(-1, -1), (3, 3), (255, 255)])
def test_a_label_of_no_class_is_named(label, named):
    with pytest.raises(DataError, match=rf"label {named} is of no class: the logits have 3 classes.*from 0 to 2"):
        outcomes_of(torch.zeros(2, 3), torch.tensor([0, label]))


def test_a_label_of_no_class_that_was_not_looked_at_counts_as_wrong(monkeypatch):
    monkeypatch.setattr(outcomes, "_check_labels", lambda labels, classes: None)
    found = outcomes_of(torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]), torch.tensor([2, -1, 1]))
    assert found.correct.tolist() == found.top5.tolist() == [False, False, True]
    assert found.nll.isnan().tolist() == [True, True, False]
    assert not found.confidences.isnan().any()


def test_what_waits_for_the_device_is_noticed():
    with no_values_known():
        values = torch.empty(8, device="cuda")
        for waits in (lambda: values.sum().item(), lambda: values[values > 0], lambda: bool(values.any())):
            with pytest.raises(RuntimeError):
                waits()


@pytest.mark.skipif(torch.__version__.startswith("2.6."), reason="torch 2.6 pretends no CUDA without a driver")
def test_nothing_waits_for_the_device():
    with no_values_known():
        for dtype in (torch.float16, torch.float32):
            logits = torch.empty(8, 10, device="cuda", dtype=dtype)
            found = outcomes_of(logits, torch.empty(8, device="cuda", dtype=torch.int64))
            assert isinstance(found, Outcomes)
            assert {values.device.type for values in found} == {"cuda"}


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(3), torch.zeros(3).long(), r"logits of shape \(N, K\).*\(3,\)"),
        (torch.zeros(3, 4, 5), torch.zeros(3).long(), r"\(3, 4, 5\)"),
        (torch.zeros(3, 0), torch.zeros(3).long(), "K at least 1"),
        (torch.zeros(3, 4).long(), torch.zeros(3).long(), "floating point.*torch.int64"),
        (torch.zeros(3, 4), torch.zeros(2).long(), r"labels of shape \(3,\).*\(2,\)"),
        (torch.zeros(3, 4), torch.zeros(3, 4).long(), r"labels of shape \(3,\).*\(3, 4\)"),
        (torch.zeros(3, 4), torch.zeros(3), "integer classes, got torch.float32"),
        (torch.zeros(3, 4), torch.zeros(3).bool(), "integer classes, got torch.bool"),
    ],
)
def test_refuses_what_does_not_fit(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        outcomes_of(logits, labels)
