"""Quantile banks: what is measured on which activations, and files that come back whole or not at all."""

import copy
import json
import math
import struct

import numpy as np
import pytest
import torch
from batchnorm_reference import assert_same, batchnorm_modules, float64, give_nontrivial_statistics, make_bank, snapshot
from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d

from dynbn_lightning.batchnorm import BNStatsBank, DistributionMatchingPolicy, Patch, QuantileBank
from dynbn_lightning.batchnorm.bank_file import _checksum
from dynbn_lightning.batchnorm.quantile_bank import QUANTILE_FILE
from dynbn_lightning.errors import BankError, DataError, UnsupportedModelError

Q = 8
PROVENANCE = {"source": "cifar10", "severities": [1, 3, 5], "note": "naïve ☂"}


class Loaders(dict):
    provenance = PROVENANCE


class Head(nn.Module):
    """With a layer that the forward of evaluation leaves out."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(4, 5, 3), FrozenBatchNorm2d(5), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Sequential(nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 2))
        self.auxiliary = nn.BatchNorm1d(5)

    def forward(self, x):
        x = self.body(self.stem(x))
        return self.head(x) + (self.auxiliary(x).sum() if self.training else 0)


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = Head().eval()
    give_nontrivial_statistics(model, torch.Generator().manual_seed(0))
    return model


def batches(seed=0, sizes=(6, 3)):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, 3, 9, 8, generator=generator) for size in sizes]


@pytest.fixture
def loaders():
    clean = batches()
    return Loaders(clean=clean, fog=[batch * 0.3 + 1 for batch in clean], snow=[batch.exp() for batch in clean])


@pytest.fixture
def bank(model, loaders):
    return QuantileBank.collect(model, loaders, count=Q, progress=False)


@pytest.fixture
def path(bank, tmp_path):
    path = tmp_path / "model.quantiles.safetensors"
    bank.save(path)
    return path


def inputs_of_layers(model, images):
    """Layer name -> what reaches it, by hooks."""
    seen, handles = {}, []
    for name, layer in batchnorm_modules(model).items():
        handles.append(layer.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0].clone()})))
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return seen


def averaged_by_images(parts, sizes):
    """Quantiles of batches, (C, Q), by NumPy; averaged with the number of images."""
    places = (np.arange(Q) + 0.5) / Q
    tables = []
    for part in parts:
        channels = np.moveaxis(float64(part), 1, 0).reshape(part.shape[1], -1)
        tables.append(np.quantile(channels, places, axis=1).T)
    return sum(size * table for size, table in zip(sizes, tables, strict=True)) / sum(sizes)


def assert_equal_banks(first, second):
    assert first.rows == second.rows
    assert list(first.layers.items()) == list(second.layers.items())
    assert torch.equal(first.quantiles, second.quantiles)
    assert first.fingerprints == second.fingerprints
    assert first.provenance == second.provenance
    assert first.skip == second.skip


def test_the_clean_row_is_what_reaches_each_layer_of_the_model_itself(model, loaders, bank):
    assert bank.rows == ("clean", "fog", "snow")
    assert bank.layers == {"stem.1": 4, "body.1": 5, "head.0": 5, "auxiliary": 5}
    assert bank.provenance == PROVENANCE
    seen = [inputs_of_layers(model, batch) for batch in loaders["clean"]]
    for name in ("stem.1", "body.1", "head.0"):
        expected = averaged_by_images([part[name] for part in seen], (6, 3))
        np.testing.assert_allclose(float64(bank.of_layer(name)[0]), expected, 1e-5, 1e-5)


def test_another_row_is_what_reaches_a_layer_after_those_before_it_are_matched(model, loaders, bank):
    # By hand: each layer's input is matched onto the clean row as a whole, with the method's own map.
    matching = copy.deepcopy(model)
    policies = {
        name: DistributionMatchingPolicy(bank.of_layer(name)[0], samples=16_384) for name in batchnorm_modules(matching)
    }
    sizes, seen = (6, 3), []
    for batch in loaders["snow"]:
        inputs = {}

        def make_policy(name, layer, inputs=inputs):
            def note(layer, x):
                inputs[name] = x
                return policies[name](layer, x)

            return note

        with torch.no_grad(), Patch(matching, make_policy):
            matching(batch)
        seen.append(inputs)
    first = averaged_by_images([inputs_of_layers(model, batch)["stem.1"] for batch in loaders["snow"]], sizes)
    np.testing.assert_allclose(float64(bank.of_layer("stem.1")[2]), first, 1e-5, 1e-5)
    for name in ("body.1", "head.0"):
        expected = averaged_by_images([part[name] for part in seen], sizes)
        np.testing.assert_allclose(float64(bank.of_layer(name)[2]), expected, 1e-5, 1e-5)
        unmatched = averaged_by_images([inputs_of_layers(model, batch)[name] for batch in loaders["snow"]], sizes)
        assert np.abs(unmatched - expected).max() > 0.05


def test_a_layer_that_nothing_reaches_is_at_its_own_mean(model, bank):
    expected = model.auxiliary.running_mean.view(1, 5, 1).expand(3, 5, Q)
    assert torch.equal(bank.of_layer("auxiliary"), expected)


def test_more_activations_than_are_sampled_give_about_the_same_quantiles():
    model = nn.Sequential(nn.BatchNorm2d(2)).eval()
    images = torch.rand(3, 2, 100, 100, generator=torch.Generator().manual_seed(0))
    bank = QuantileBank.collect(model, {"clean": [images]}, count=Q, progress=False)
    expected = averaged_by_images([images], [3])
    # Standard error sqrt(p (1 - p) / 16,384) < 0.004.
    np.testing.assert_allclose(float64(bank.quantiles[0]), expected, atol=0.024)


@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_bit_for_bit_as_before(model, loaders, training):
    model.train(training)
    model.body[1].eval()
    before = snapshot(model)
    QuantileBank.collect(model, loaders, count=Q, progress=False)
    assert_same(before, model)


@pytest.mark.parametrize("row", ["clean", "fog"])
def test_the_model_is_as_before_when_a_batch_raises(model, loaders, row):
    def failing():
        yield loaders[row][0]
        raise OSError("the disk is gone")

    model.train()
    before = snapshot(model)
    with pytest.raises(OSError, match="the disk is gone"):
        QuantileBank.collect(model, {**loaders, row: failing()}, count=Q, progress=False)
    assert_same(before, model)


def test_batches_may_be_tuples_and_the_first_row_is_clean_whatever_the_order(model, loaders, bank):
    labelled = {row: [(batch, torch.zeros(len(batch))) for batch in loaders[row]] for row in ("snow", "clean", "fog")}
    other = QuantileBank.collect(model, labelled, count=Q, progress=False)
    assert other.rows == ("clean", "snow", "fog")
    assert torch.equal(other.of_rows(["clean", "fog", "snow"]), bank.quantiles)
    assert other.provenance == {}


def test_only_some_rows_are_measured_when_asked_for(model, loaders, bank):
    for rows, expected in ((["snow"], ("clean", "snow")), ([], ("clean",)), (["snow", "clean"], ("clean", "snow"))):
        some = QuantileBank.collect(model, loaders, count=Q, rows=rows, progress=False)
        assert some.rows == expected
        assert torch.equal(some.quantiles, bank.of_rows(expected))
    with pytest.raises(BankError, match=r"'fogg'.*'fog'"):
        QuantileBank.collect(model, loaders, rows=["fogg"], progress=False)


def test_skipped_layers_are_left_out_and_left_as_they_are(model, loaders, bank):
    some = QuantileBank.collect(model, loaders, count=Q, skip=["body", "auxiliary"], progress=False)
    assert some.layers == {"stem.1": 4, "head.0": 5}
    assert some.skip == ("body", "auxiliary")
    assert torch.equal(some.of_layer("stem.1"), bank.of_layer("stem.1"))
    assert torch.equal(some.of_layer("head.0")[0], bank.of_layer("head.0")[0])
    assert not torch.equal(some.of_layer("head.0")[2], bank.of_layer("head.0")[2])  # the layer before isn't matched
    assert some.mismatch(model) is None
    with pytest.raises(UnsupportedModelError, match="skip="):
        QuantileBank.collect(model, loaders, skip=["bodi"], progress=False)


def test_clean_images_and_two_quantiles_are_needed(model, loaders):
    with pytest.raises(BankError, match="clean"):
        QuantileBank.collect(model, {"fog": loaders["fog"]}, progress=False)
    with pytest.raises(BankError, match="count=1"):
        QuantileBank.collect(model, loaders, count=1, progress=False)


@pytest.mark.parametrize("row", ["clean", "snow"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("spoiled", ["image", "value"])
def test_images_with_nan_name_their_row(model, loaders, row, value, spoiled):
    images = loaders[row][0].clone()
    images[(2,) if spoiled == "image" else (2, 1, 4, 4)] = value
    before = snapshot(model)
    with pytest.raises(DataError, match=rf"'{row}'.*NaN"):
        QuantileBank.collect(model, {**loaders, row: [images]}, count=Q, progress=False)
    assert_same(before, model)


def test_nan_is_found_where_no_quantile_sees_it():
    model, images = nn.Sequential(nn.BatchNorm2d(3)).eval(), torch.rand(40, 3, 5, 5)
    images[7] = math.nan  # a fortieth of the activations, where the last of 8 quantiles leaves out a sixteenth
    with pytest.raises(DataError, match=r"row 'clean'.*NaN"):
        QuantileBank.collect(model, {"clean": [images]}, count=Q, progress=False)


@pytest.mark.parametrize(
    "given", [[], [torch.zeros(2, 3, 9, 8, dtype=torch.uint8)], ["images"], [torch.zeros(0, 3, 9, 8)]]
)
@pytest.mark.parametrize("row", ["clean", "snow"])
def test_loaders_without_images_name_their_row(model, loaders, row, given):
    with pytest.raises(DataError, match=f"row '{row}'"):
        QuantileBank.collect(model, {**loaders, row: given}, count=Q, progress=False)


def test_layers_and_rows_are_found_by_name_and_suggested_when_misspelt(bank):
    assert torch.equal(bank.of_layer("body.1"), bank.quantiles[:, 4:9])
    assert torch.equal(bank.of_rows(("snow", "clean")), bank.quantiles[[2, 0]])
    with pytest.raises(BankError, match=r"'body\.2'.*did you mean 'body\.1'"):
        bank.of_layer("body.2")
    with pytest.raises(BankError, match=r"'snoww'.*did you mean 'snow'"):
        bank.of_rows(["clean", "snoww"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": ("fog", "clean", "snow")}, "begin with 'clean'"),
        ({"rows": ("clean", "fog", "fog")}, "distinct"),
        ({"rows": ("clean", "fog")}, "2 rows"),
        ({"layers": {"stem.1": 4}}, "4 channels"),
        ({"quantiles": torch.zeros(3, 19, 1)}, "2 or more"),
        ({"quantiles": torch.zeros(3, 19)}, r"got \(3, 19\)"),
        ({"quantiles": torch.linspace(1, 0, Q).expand(3, 19, Q)}, "ascending"),
        ({"quantiles": torch.full((3, 19, Q), math.nan)}, "finite"),
    ],
    ids=str,
)
def test_tables_that_are_no_quantiles_are_refused(bank, changes, message):
    parts = {"rows": bank.rows, "layers": bank.layers, "quantiles": bank.quantiles, **changes}
    with pytest.raises(BankError, match=message):
        QuantileBank(**parts)


def test_a_bank_belongs_to_the_model_it_was_measured_on_in_any_precision(model, bank):
    assert bank.mismatch(model) is None
    assert bank.mismatch(copy.deepcopy(model).bfloat16()) is None
    trained = copy.deepcopy(model)
    with torch.no_grad():
        trained.head[2].weight[0, 0] += 1
    assert "the weights are others" in bank.mismatch(trained)
    assert "stem.1" in bank.mismatch(nn.Sequential(nn.BatchNorm2d(4)))
    wider = copy.deepcopy(model)
    wider.auxiliary = nn.BatchNorm1d(6)
    assert "auxiliary (5 channels in the bank, 6 in the model)" in bank.mismatch(wider)


def test_every_bit_comes_back_from_a_file(bank, path, model):
    loaded = QuantileBank.load(str(path))
    assert_equal_banks(loaded, bank)
    assert loaded.mismatch(model) is None
    loaded.save(path)
    assert_equal_banks(QuantileBank.load(path), bank)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_no_bank(path, part):
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(BankError, match="damaged"):
        QuantileBank.load(path)


def test_any_changed_byte_of_the_table_is_found(path):
    content = path.read_bytes()
    begin = 8 + struct.unpack("<Q", content[:8])[0]
    for place in (begin, (begin + len(content)) // 2, len(content) - 1):
        damaged = bytearray(content)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(BankError, match="checksum"):
            QuantileBank.load(path)


def test_other_files_are_told_apart(path, model, tmp_path):
    missing, statistics = tmp_path / "missing.safetensors", tmp_path / "model.bank.safetensors"
    with pytest.raises(BankError, match=r"no quantile bank at .*QuantileBank\.save"):
        QuantileBank.load(missing)
    make_bank(model, ("clean", "fog"), torch.Generator()).save(statistics)
    with pytest.raises(BankError, match="safetensors file but no quantile bank"):
        QuantileBank.load(statistics)
    (tmp_path / "notes.txt").write_text("quantiles")
    with pytest.raises(BankError, match="no quantile bank, or damaged"):
        QuantileBank.load(tmp_path / "notes.txt")
    with pytest.raises(BankError, match="safetensors file but no bank"):
        BNStatsBank.load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "format 2.*update the package"),
        ({"rows": None}, "damaged"),
        ({"rows": ["fog", "clean", "snow"]}, "begin with 'clean'"),
        ({"layers": [["stem.1", "many"]]}, "damaged"),
        ({"skip": None}, "damaged"),
    ],
    ids=str,
)
def test_metadata_that_is_not_ours_is_refused(path, changes, message):
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    described = json.dumps({**json.loads(header["__metadata__"]["dynbn_quantiles"]), **changes}, sort_keys=True)
    checksum = _checksum({"quantiles": QuantileBank.load(path).quantiles}, described, QUANTILE_FILE)
    header["__metadata__"] |= {"dynbn_quantiles": described, "sha256": checksum}
    described = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(described)) + described + content[8 + length :])
    with pytest.raises(BankError, match=message):
        QuantileBank.load(path)
