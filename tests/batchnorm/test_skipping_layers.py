"""Layers that are left as they are: those that cannot be routed by following the error's advice, others on request."""

import copy
import dataclasses
import re
from functools import partial

import pytest
import torch
import torch.ao.nn.intrinsic.qat
import torch.fx.experimental.optimization
import torch.nn.functional as F
from batchnorm_reference import assert_same, give_nontrivial_statistics, snapshot
from lightning.pytorch import LightningModule
from timm.layers.split_batchnorm import SplitBatchNorm2d
from torch import nn
from torch.ao.quantization import fuse_modules, get_default_qat_qconfig

from dynbn_lightning.batchnorm import (
    BatchStatisticsPolicy,
    BNStatsBank,
    Patch,
    PatchedLayer,
    find_batchnorm_layers,
    patch_with_bank,
    routed,
)
from dynbn_lightning.callbacks import DynamicBNCallback
from dynbn_lightning.errors import BankError, UnsupportedModelError


class OwnBatchNorm(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x) * 2


UNSUPPORTED = {
    "own subclass": lambda: OwnBatchNorm(4),
    "timm SplitBatchNorm2d": lambda: SplitBatchNorm2d(4),
    "no running statistics": lambda: nn.BatchNorm2d(4, track_running_stats=False),
}


def model_with(layer):
    torch.manual_seed(0)
    model = nn.Sequential()  # runs these in order
    model.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    model.branch = layer
    model.body = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4)))
    give_nontrivial_statistics(model, torch.Generator().manual_seed(0))
    return model.eval()


def images(count=6):
    return torch.randn(count, 3, 10, 10, generator=torch.Generator().manual_seed(1)) + 1


def collect(model, **options):
    return BNStatsBank.collect(model, {"fog": [images()]}, progress=False, **options)


def patched_layers(model):
    return [name for name, module in model.named_modules() if isinstance(module, PatchedLayer)]


def advised_skip(model):
    with pytest.raises(UnsupportedModelError) as caught:
        collect(model)
    advice = re.search(r"leave them as they are with skip=\[(.*?)\]", str(caught.value))
    return [name.strip("'") for name in advice[1].split(", ")]


# Following the error's advice


@pytest.mark.parametrize("unsupported", UNSUPPORTED)
def test_the_error_names_what_to_skip_and_the_skipped_layer_does_what_it_does_unpatched(unsupported):
    model = model_with(UNSUPPORTED[unsupported]())
    before = snapshot(model)
    assert advised_skip(model) == ["branch"]
    bank = collect(model, skip=["branch"])
    assert_same(before, model)
    assert list(bank.layers) == ["stem.1", "body.1", "body.2.1"]
    seen = []
    model.branch.register_forward_hook(lambda layer, inputs, output: seen.append((*inputs, output)))
    with torch.no_grad(), routed(model, bank) as routing:
        routing.set("fog")
        out = model(images())
        ((x, output),) = seen
    assert torch.equal(model.branch(x), output)
    normalized = F.batch_norm(model.stem[0](images()), *bank["fog"]["stem.1"], model.stem[1].weight, model.stem[1].bias)
    torch.testing.assert_close(normalized.relu(), x, rtol=1e-5, atol=1e-5)
    assert not torch.equal(out, model(images()))


def test_the_advice_names_all_of_many_but_is_not_given_where_no_layer_would_be_left():
    model = nn.Sequential(nn.BatchNorm2d(3), *(OwnBatchNorm(3) for _ in range(12))).eval()
    assert list(collect(model, skip=advised_skip(model)).layers) == ["0"]
    with pytest.raises(UnsupportedModelError, match=r"batchnorm\.register\.$"):  # skipping would leave no layer
        collect(model[1:])


# What may be skipped


@pytest.mark.parametrize(
    ("skip", "left"),
    [
        (["stem"], ["body.1", "body.2.1"]),
        (["body"], ["stem.1"]),
        (["body.2"], ["stem.1", "body.1"]),
        (["body.1"], ["stem.1", "body.2.1"]),
        (("stem.1", "body.2.1"), ["body.1"]),
        (["stem.0"], ["stem.1", "body.1", "body.2.1"]),
    ],
    ids=str,
)
def test_layers_and_the_modules_that_hold_them(skip, left):
    model = model_with(nn.Identity())
    assert list(find_batchnorm_layers(model, skip)) == left
    with Patch(model, lambda name, layer: BatchStatisticsPolicy(), skip=skip):
        assert patched_layers(model) == left


def test_a_name_is_not_the_beginning_of_another():
    model = nn.ModuleDict({"bn": nn.BatchNorm2d(3), "bn2": nn.BatchNorm2d(3)})
    assert list(find_batchnorm_layers(model, ["bn"])) == ["bn2"]


def test_a_layer_may_be_skipped_by_any_of_its_names():
    model = nn.ModuleDict({"first": nn.BatchNorm2d(3), "other": nn.BatchNorm2d(3)})
    model["again"] = model["first"]
    for name in ("first", "again"):
        assert list(find_batchnorm_layers(model, [name])) == ["other"], name


@pytest.mark.parametrize("propagate", ["batch", "sequential"])
def test_a_skipped_layer_has_its_own_statistics_while_others_are_measured(propagate):
    model = model_with(nn.Identity())
    skipped, all_measured = (collect(model, skip=skip, propagate=propagate) for skip in (["stem"], []))
    with torch.no_grad():
        inner = model.body[0](model.stem(images()))
    for bank, is_same in ((skipped, True), (all_measured, False)):
        assert torch.allclose(bank["fog"]["body.1"][0], inner.mean((0, 2, 3)), atol=1e-5) == is_same


@pytest.mark.parametrize(
    ("skip", "message"),
    [
        ("stem", r"skip='stem' is a string: expected a list of names, skip=\['stem'\]"),
        ("", "is a string"),
        (["stemm"], r"skip=\['stemm'\]: Sequential has no module 'stemm', did you mean 'stem'\?"),
        (["stem", "body.3"], r"no module 'body.3', did you mean 'body.\d'\?"),
        ([""], "no module ''"),
        (["stem", "body"], "no BatchNorm layers"),
    ],
)
def test_a_skip_that_means_nothing_or_everything_is_refused(skip, message):
    model = model_with(nn.Identity())
    before = snapshot(model)
    for use in (
        lambda: collect(model, skip=skip),
        lambda: Patch(model, lambda name, layer: BatchStatisticsPolicy(), skip=skip),
        lambda: find_batchnorm_layers(model, skip),
    ):
        with pytest.raises(UnsupportedModelError, match=message):
            use()
    assert_same(before, model)


# The bank remembers


@pytest.fixture
def model():
    return model_with(OwnBatchNorm(4))


@pytest.fixture
def bank(model):
    return collect(model, skip=["branch", "body.2"])


def lightning_module(**models):
    pl_module = LightningModule()
    for name, model in models.items():
        pl_module.add_module(name, model)
    return pl_module


def test_the_bank_knows_what_to_skip_also_from_its_file(model, bank, tmp_path):
    bank.save(tmp_path / "bank.safetensors")
    loaded = BNStatsBank.load(tmp_path / "bank.safetensors", model)
    assert loaded.skip == bank.skip == ("branch", "body.2")
    assert loaded.mismatch(model) is None
    outputs = []
    for known in (bank, loaded):
        with torch.no_grad(), routed(model, known) as routing:
            routing.set(torch.tensor([0, 1, 1, 0, 1, 0]))
            assert patched_layers(model) == ["stem.1", "body.1"]
            outputs.append(model(images()))
    assert torch.equal(*outputs)
    with torch.no_grad():
        assert torch.equal(outputs[0][[0, 3, 5]], model(images())[[0, 3, 5]])


def test_the_callback_finds_the_model_without_being_told(model, bank, tmp_path):
    bank.save(tmp_path / "bank.safetensors")
    pl_module = lightning_module(teacher=model_with(nn.Identity()), model=model)
    for known in (bank, tmp_path / "bank.safetensors"):
        assert DynamicBNCallback(known, routing="oracle").find_model(pl_module) is model


@pytest.mark.parametrize("first", ["student", "other"])
def test_the_callback_passes_over_a_module_that_lacks_what_the_bank_skips(model, bank, first):
    other = nn.ModuleDict({"stem": copy.deepcopy(model.stem), "body": copy.deepcopy(model.body)[:2]})
    models = sorted({"student": model, "other": other}.items(), reverse=first == "student")
    pl_module = lightning_module(**dict(models))
    assert DynamicBNCallback(bank, routing="oracle").find_model(pl_module) is model


def test_a_model_without_what_the_bank_skips_is_another_model(model, bank, tmp_path):
    bank.save(tmp_path / "bank.safetensors")
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    for use in (
        lambda: patch_with_bank(other, bank),
        lambda: BNStatsBank.load(tmp_path / "bank.safetensors", other),
        lambda: DynamicBNCallback(bank, routing="oracle").find_model(lightning_module(model=other)),
    ):
        with pytest.raises(BankError):
            use()


def test_a_bank_that_skips_other_layers_than_were_collected_does_not_fit():
    model = model_with(nn.Identity())
    bank = collect(model)
    with pytest.raises(BankError, match=r"layers of the bank that the model lacks: body\.2\.1"):
        dataclasses.replace(bank, skip=("body.2",)).check_model(model)


# Models that had BatchNorm layers once


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn1, self.relu = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()

    def forward(self, x):
        return self.relu(self.bn1(self.conv(x)))


ConvBn2d = partial(torch.ao.nn.intrinsic.qat.ConvBn2d, 3, 4, 3, qconfig=get_default_qat_qconfig("fbgemm"))
LOST = {
    "fused": ("fus", lambda: fuse_modules(Named().eval(), [["conv", "bn1"]])),
    "fused, numbered": ("fus", lambda: fuse_modules(nn.Sequential(*Named().children()).eval(), [["0", "1", "2"]])),
    "fused by torch.fx": ("traced or exported", lambda: torch.fx.experimental.optimization.fuse(Named().eval())),
    "exported": ("exported", lambda: torch.export.export(Named().eval(), (images(),)).module()),
    "frozen": ("frozen", lambda: torch.jit.freeze(torch.jit.script(Named().eval()))),
    "quantisation-aware": (r"0 \(ConvBn2d: fused with its conv", lambda: nn.Sequential(ConvBn2d()).eval()),
    "quantisation-aware layer": (r"\(the model itself\) \(ConvBn2d: fused", lambda: ConvBn2d().eval()),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("how", LOST)
def test_a_model_without_its_layers_is_told_to_be_used_as_it_was_before(how):
    message, make = LOST[how]
    with pytest.raises(UnsupportedModelError, match=f"{message}.*use the model") as caught:
        find_batchnorm_layers(make())
    assert "skip=" not in str(caught.value)  # there is nothing else to route


def test_quantisation_aware_layers_beside_others_can_be_skipped():
    model = nn.Sequential(ConvBn2d(), nn.BatchNorm2d(4)).eval()
    model(images())  # observed once
    assert advised_skip(model) == ["0"]
    assert list(collect(model, skip=["0"]).layers) == ["1"]


def test_collecting_leaves_observers_free_to_grow():
    model = model_with(nn.Identity())
    model.register_buffer("observed", torch.zeros(0))
    collect(model)
    for name, value in model.state_dict().items():
        assert value.untyped_storage().resizable(), name


def test_a_traced_model_that_kept_its_layers_is_routed_as_the_original():
    model = model_with(nn.Identity())
    bank, outputs = collect(model), []
    for each in (model, torch.fx.symbolic_trace(model)):
        with torch.no_grad(), routed(each, bank) as routing:
            routing.set("fog")
            outputs.append(each(images()))
    assert torch.equal(*outputs)
