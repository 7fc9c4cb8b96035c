"""BatchNorm classes of a user's own: registered ones are routed, others refused."""

import pickle

import pytest
import torch
from batchnorm_reference import make_bank, with_row_loaded
from torch import nn

from dynbn_lightning.batchnorm import BatchStatisticsPolicy, Patch, PatchedLayer, register, routed
from dynbn_lightning.batchnorm.layers import _PATCHED_CLASSES
from dynbn_lightning.errors import UnsupportedModelError

ROWS = ("clean", "fog", "frost", "snow")


class DoublingBatchNorm(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x) * 2


class PatchedDoublingBatchNorm(PatchedLayer, DoublingBatchNorm):
    def finish(self, x):
        return x * 2


@pytest.fixture
def registered():
    register(DoublingBatchNorm, PatchedDoublingBatchNorm)
    yield
    del _PATCHED_CLASSES[DoublingBatchNorm]


@torch.no_grad()
def test_a_registered_class_is_routed_and_pickled(registered):
    model = nn.Sequential(DoublingBatchNorm(3)).eval()
    bank = make_bank(model, ROWS, torch.Generator().manual_seed(0))
    rows = [2, 0, 1]
    images = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    own = model(images)
    alone = [with_row_loaded(model, bank, ROWS[row])(image[None]) for row, image in zip(rows, images, strict=True)]
    with routed(model, bank) as routing:
        routing.set(torch.tensor(rows))
        out = model(images)
        assert torch.equal(pickle.loads(pickle.dumps(model))(images), out)
    torch.testing.assert_close(out, torch.cat(alone), rtol=1e-5, atol=1e-5)
    assert torch.equal(out[1], own[1])
    assert type(model[0]) is DoublingBatchNorm


def test_an_unregistered_subclass_is_refused():
    with pytest.raises(UnsupportedModelError, match=r"block.norm \(DoublingBatchNorm: a subclass of BatchNorm"):
        Patch(
            nn.ModuleDict({"block": nn.ModuleDict({"norm": DoublingBatchNorm(3)})}),
            lambda name, layer: BatchStatisticsPolicy(),
        )


def test_a_stand_in_that_would_not_be_called_is_refused():
    class WrongOrder(DoublingBatchNorm, PatchedLayer):
        pass

    class OfAnotherClass(PatchedLayer, nn.BatchNorm2d):
        pass

    for wrong in (WrongOrder, OfAnotherClass, DoublingBatchNorm):
        with pytest.raises(UnsupportedModelError, match=r"\(PatchedLayer, DoublingBatchNorm\)"):
            register(DoublingBatchNorm, wrong)
