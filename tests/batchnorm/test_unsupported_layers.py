"""Layers that normalise with running statistics in a way that cannot be routed are refused, each by its path."""

import pytest
import timm
import torch
from batchnorm_reference import assert_same, snapshot
from timm.layers import InplaceAbn
from timm.layers.evo_norm import EvoNorm2dB0
from timm.layers.split_batchnorm import SplitBatchNorm2d
from torch import nn

from dynbn_lightning.batchnorm import BatchStatisticsPolicy, BNStatsBank, Patch, find_batchnorm_layers
from dynbn_lightning.errors import UnsupportedModelError


class OwnBatchNorm(nn.BatchNorm2d):
    pass


class OwnRunningStatistics(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(4))


UNSUPPORTED = {
    "InstanceNorm2d: keeps running statistics": lambda: nn.InstanceNorm2d(4, track_running_stats=True),
    "SplitBatchNorm2d: a subclass of BatchNorm": lambda: SplitBatchNorm2d(4),
    "OwnBatchNorm: a subclass of BatchNorm": lambda: OwnBatchNorm(4),
    "LazyBatchNorm2d: not materialised": lambda: nn.LazyBatchNorm2d(),
    "BatchNorm2d: track_running_stats=False": lambda: nn.BatchNorm2d(4, track_running_stats=False),
    "EvoNorm2dB0: keeps running statistics": lambda: EvoNorm2dB0(4),
    "InplaceAbn: keeps running statistics": lambda: InplaceAbn(4),
    "OwnRunningStatistics: keeps running statistics": OwnRunningStatistics,
    "RecursiveScriptModule: a scripted layer": lambda: torch.jit.script(nn.BatchNorm2d(4)),
}


@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore:.*script.*:DeprecationWarning")
@pytest.mark.parametrize("description", UNSUPPORTED)
def test_refused_by_name_with_its_path(description):
    model = nn.Sequential(nn.BatchNorm2d(4), nn.ModuleDict({"inner": UNSUPPORTED[description]()})).eval()
    before = {type(module) for module in model.modules()}
    with pytest.raises(UnsupportedModelError, match=rf"1\.inner \({description}.*batchnorm.register"):
        Patch(model, lambda name, layer: BatchStatisticsPolicy())
    assert {type(module) for module in model.modules()} == before


def test_the_model_itself_may_be_the_layer():
    with pytest.raises(UnsupportedModelError, match=r"\(the model itself\) \(OwnBatchNorm"):
        find_batchnorm_layers(OwnBatchNorm(4))
    assert list(find_batchnorm_layers(nn.BatchNorm2d(4))) == [""]


def test_a_bank_of_a_lone_layer():
    layer = nn.BatchNorm1d(3).eval()
    bank = BNStatsBank.collect(layer, {"fog": [torch.randn(8, 3)]}, progress=False)
    assert bank.layers == {"": 3}
    assert bank.mismatch(layer) is None


def test_many_are_counted():
    model = nn.Sequential(*(OwnBatchNorm(4) for _ in range(8)))
    with pytest.raises(UnsupportedModelError, match=r"0 \(.*, 4 \(.* and 3 more"):
        find_batchnorm_layers(model)


@pytest.mark.parametrize(
    "model",
    [
        nn.Linear(3, 3),
        nn.Sequential(),
        nn.Sequential(nn.InstanceNorm2d(3), nn.LayerNorm(3), nn.GroupNorm(1, 3)),
        timm.create_model("convnext_atto"),
    ],
    ids=lambda model: type(model).__name__,
)
def test_models_without_batchnorm_are_refused(model):
    with pytest.raises(UnsupportedModelError, match=f"{type(model).__name__} has no BatchNorm layers"):
        find_batchnorm_layers(model)


@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore:.*script.*:DeprecationWarning")
def test_scripted_models_are_refused():
    model = torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval())
    with pytest.raises(UnsupportedModelError, match=r"1 \(RecursiveScriptModule: a scripted layer"):
        find_batchnorm_layers(model)
    traced = torch.jit.trace(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval(), torch.zeros(1, 3, 4, 4))
    with pytest.raises(UnsupportedModelError, match="scripted"):
        find_batchnorm_layers(traced)


def test_a_materialised_lazy_layer_is_a_plain_one():
    model = nn.Sequential(nn.LazyBatchNorm2d())
    model(torch.randn(2, 4, 3, 3))
    assert list(find_batchnorm_layers(model)) == ["0"]


def test_unsupported_layers_leave_the_model_untouched():
    model = nn.Sequential(nn.BatchNorm2d(4), OwnBatchNorm(4))
    before = snapshot(model)
    for use in (
        lambda: Patch(model, lambda name, layer: BatchStatisticsPolicy()),
        lambda: BNStatsBank.collect(model, {"fog": [torch.randn(2, 4, 3, 3)]}, progress=False),
    ):
        with pytest.raises(UnsupportedModelError):
            use()
        assert_same(before, model)
