"""What a bank holds, finds and refuses."""

import copy

import pytest
import torch
from batchnorm_reference import batchnorm_modules, give_nontrivial_statistics, make_bank
from torch import nn

from dynbn_lightning.batchnorm import BNStatsBank, find_batchnorm_layers
from dynbn_lightning.batchnorm.fingerprint import fingerprints
from dynbn_lightning.errors import BankError

ROWS = ("clean", "fog", "frost/3")


def network(width=5):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Sequential(nn.Conv2d(width, 4, 1), nn.BatchNorm2d(4))
    )
    give_nontrivial_statistics(model, torch.Generator().manual_seed(0))
    return model.eval()


@pytest.fixture
def model():
    return network()


@pytest.fixture
def bank(model):
    batch = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return BNStatsBank.collect(model, {"fog": [batch + 1], "frost/3": [batch * 2]}, progress=False)


def test_rows_hold_each_layers_own_slice(bank):
    assert len(bank) == 3
    assert bank.layers == {"1": 5, "2.1": 4}
    assert bank.mean.shape == bank.var.shape == (3, 9)
    for index, row in enumerate(bank.rows):
        assert bank.index(row) == index
        assert list(bank[row]) == ["1", "2.1"]
        assert torch.equal(bank[row]["1"][0], bank.mean[index, :5])
        assert torch.equal(bank[row]["2.1"][0], bank.mean[index, 5:])
        assert torch.equal(bank[row]["1"][1], bank.var[index, :5])
        assert torch.equal(bank[row]["2.1"][1], bank.var[index, 5:])


def test_an_unknown_row_is_refused_with_the_nearest(bank):
    with pytest.raises(BankError, match="no row 'frog': did you mean 'fog'"):
        bank["frog"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": ("fog", "clean", "frost/3")}, "begin with 'clean'"),
        ({"rows": ("clean", "fog", "fog")}, "distinct"),
        ({"rows": ("clean", "fog")}, r"shape \(2, 9\)"),
        ({"layers": {"1": 5, "2.1": 5}}, r"shape \(3, 10\)"),
        ({"layers": {"1": 9, "2.1": 0}}, "one or more channels"),
        ({"layers": {}, "mean": torch.zeros(3, 0), "var": torch.zeros(3, 0)}, "one or more channels"),
        ({"var": torch.full((3, 9), -1e-9)}, "at least 0"),
        ({"var": torch.full((3, 9), float("nan"))}, "finite"),
        ({"mean": torch.full((3, 9), float("inf"))}, "finite"),
    ],
)
def test_inconsistent_contents_are_refused(bank, change, message):
    contents = {"rows": bank.rows, "layers": bank.layers, "mean": bank.mean, "var": bank.var}
    with pytest.raises(BankError, match=message):
        BNStatsBank(**{**contents, **change})


def test_its_own_model_matches(bank, model):
    assert bank.mismatch(model) is None
    assert bank.mismatch(copy.deepcopy(model)) is None
    bank.check_model(model)


def replace_batchnorm(model, path, layer):
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, layer)
    return model


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda model: network(width=6), r"layers of another width: 1 \(5 channels in the bank, 6 in the model\)"),
        (lambda model: replace_batchnorm(model, "2.1", nn.Identity()), "that the model lacks: 2.1"),
        (lambda model: model.append(nn.BatchNorm2d(4)), "that the bank lacks: 3"),
    ],
    ids=["width", "missing", "extra"],
)
def test_other_architectures_are_refused_saying_what_differs(bank, model, other, message):
    with pytest.raises(BankError, match=f"another model than Sequential: .*{message}"):
        bank.check_model(other(model))


@pytest.mark.parametrize("name", ["0.weight", "0.bias", "1.weight", "1.running_mean", "1.running_var", "2.1.bias"])
def test_further_trained_weights_are_refused(bank, model, name):
    model.state_dict()[name].flatten()[-1:].mul_(1.001)
    with pytest.raises(BankError, match="weights are others"):
        bank.check_model(model)


def test_one_training_step_is_noticed(bank, model):
    model.train()(torch.randn(2, 3, 8, 8))  # moves the running statistics alone
    with pytest.raises(BankError, match="weights are others"):
        bank.check_model(model.eval())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_a_cast_model_is_still_the_same_model(bank, model, dtype):
    other = network()
    other[0].weight.data.mul_(1.05)
    bank.check_model(model.to(dtype))
    with pytest.raises(BankError, match="weights are others"):
        bank.check_model(other.to(dtype))


def test_a_half_model_with_float32_batchnorm_is_still_the_same_model(bank, model):
    model.half()
    for name, layer in batchnorm_modules(network()).items():
        replace_batchnorm(model, name, layer)
    bank.check_model(model)


def test_a_bank_of_a_half_model_fits_that_model(model):
    half = model.bfloat16()
    bank = BNStatsBank.collect(half, {"fog": [torch.randn(4, 3, 8, 8)]}, progress=False)
    assert bank.mismatch(half) is None


def test_compiled_models_keep_their_layers_names(bank, model):
    bank.check_model(torch.compile(model))
    partly = network()
    partly[2] = torch.compile(partly[2])
    bank.check_model(partly)
    assert list(find_batchnorm_layers(partly)) == list(find_batchnorm_layers(torch.compile(model))) == ["1", "2.1"]
    assert fingerprints(partly) == fingerprints(torch.compile(model)) == bank.fingerprints


def test_what_changes_no_output_is_the_same_model(bank, model):
    model[1].num_batches_tracked += 5
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model).to(memory_format=torch.channels_last)
    assert type(model[1]) is nn.SyncBatchNorm
    bank.check_model(model)


def test_extra_state_that_is_no_tensor_is_passed_over():
    class WithExtraState(nn.Sequential):
        def get_extra_state(self):
            return {"note": "anything"}

    model = WithExtraState(nn.BatchNorm2d(3))
    bank = BNStatsBank.collect(model, {"fog": [torch.randn(4, 3, 8, 8)]}, progress=False)
    assert bank.mismatch(model) is None


def test_a_bank_without_fingerprints_asks_for_the_layers_alone(model):
    bank = make_bank(model, ROWS, torch.Generator().manual_seed(0))
    model[0].weight.data.mul_(2)
    assert bank.mismatch(model) is None
