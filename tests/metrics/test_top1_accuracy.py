import pytest
import torch

from dynbn_lightning.metrics import Top1Accuracy


def test_counts_images_and_not_batches():
    metric = Top1Accuracy()
    metric.update(torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]]), torch.tensor([1, 0, 0]))
    metric.update(torch.tensor([1]), torch.tensor([0]))
    assert float(metric.compute()) == 0.5
    metric.reset()
    metric.update(torch.tensor([1]), torch.tensor([1]))
    assert float(metric.compute()) == 1.0


def test_exact_where_the_default_dtype_has_16_bits():
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.bfloat16)
        metric = Top1Accuracy()
        for label in [1] * 501 + [0] * 250:
            metric.update(torch.tensor([[0.0, 1.0]]), torch.tensor([label]))
        assert float(metric.compute()) == pytest.approx(501 / 751, abs=1e-7)
    finally:
        torch.set_default_dtype(default)


def test_two_states_merge():
    first, second = Top1Accuracy(), Top1Accuracy()
    first.update(torch.tensor([1, 2]), torch.tensor([1, 2]))
    second.update(torch.tensor([1]), torch.tensor([2]))
    first.merge_state(second)
    assert float(first.compute()) == pytest.approx(2 / 3)
