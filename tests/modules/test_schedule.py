import pytest
import torch
from torch import nn

from dynbn_lightning.modules.schedule import decay_groups, warmup_cosine


def test_rises_to_the_peak_and_falls_to_nothing():
    factors = [warmup_cosine(step, 100, warmup=0.2) for step in range(101)]
    assert factors[:21] == sorted(factors[:21])
    assert factors[20:] == sorted(factors[20:], reverse=True)
    assert factors[0] == pytest.approx(1 / 21)
    assert factors[20] == 1.0
    assert factors[60] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0.0, abs=1e-12)
    assert warmup_cosine(150, 100, warmup=0.2) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("total", [1, 2, 3, 4, 5, 10])
@pytest.mark.parametrize("warmup", [0.0, 0.25, 0.5, 1.0])
def test_short_trainings_learn_at_every_step(total, warmup):
    assert all(0 < warmup_cosine(step, total, warmup) <= 1 for step in range(total))


def test_only_weights_decay_and_frozen_parameters_are_left_out():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2), nn.Linear(2, 2))
    model[4].requires_grad_(False)
    decaying, others = decay_groups(model, 0.1)
    assert decaying["weight_decay"] == 0.1
    assert others["weight_decay"] == 0.0
    assert {id(p) for p in decaying["params"]} == {id(model[0].weight), id(model[3].weight)}
    assert {id(p) for p in others["params"]} == {
        id(model[0].bias), id(model[1].weight), id(model[1].bias), id(model[3].bias)
    }  # fmt: skip
    torch.optim.SGD(decay_groups(nn.Linear(2, 2, bias=False), 0.1), lr=0.1)
