"""A collection with a path keeps its finished rows, goes on after an interruption, and refuses another's rows."""

from collections.abc import Mapping

import pytest
import torch
from batchnorm_reference import assert_same, give_nontrivial_statistics, snapshot
from torch import nn

from dynbn_lightning.batchnorm import PROPAGATIONS, BNStatsBank
from dynbn_lightning.datamodules import CorruptionDataModule
from dynbn_lightning.errors import BankError

ROWS = ("fog", "snow", "frost", "blur")
PROVENANCE = {"source": "drawn", "severities": [1, 3], "seed": 7, "normalization": {"mean": [0.5], "std": [0.25]}}


class Rows(Mapping):
    """Batches for every row, noting whose were begun; raises at a row after its first batch if told to."""

    def __init__(self, rows=ROWS, provenance=PROVENANCE, stop_at=None, error=KeyboardInterrupt):
        self.rows, self.provenance = rows, provenance
        self._stop_at, self._error = stop_at, error
        self.begun = []

    def __iter__(self):
        return iter(self.rows)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, row):
        self.begun.append(row)
        return self._batches(row)

    def _batches(self, row):
        generator = torch.Generator().manual_seed(ROWS.index(row))
        yield torch.randn(5, 3, 6, 6, generator=generator) + ROWS.index(row)
        if row == self._stop_at:
            raise self._error("stop")
        yield torch.randn(3, 3, 6, 6, generator=generator) * 2


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.BatchNorm2d(5)
    )
    give_nontrivial_statistics(model, torch.Generator().manual_seed(0))
    return model.eval()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cifar.bank.safetensors"


def collect(model, rows, path=None, **options):
    return BNStatsBank.collect(model, rows, path=path, progress=False, **options)


def interrupt(model, path, row="frost", **options):
    with pytest.raises(KeyboardInterrupt):
        collect(model, Rows(stop_at=row), path, **options)


def files(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def assert_equal_banks(first, second):
    assert first.rows == second.rows
    assert dict(first.layers) == dict(second.layers)
    assert torch.equal(first.mean, second.mean)
    assert torch.equal(first.var, second.var)
    assert first.fingerprints == second.fingerprints
    assert first.provenance == second.provenance
    assert first.skip == second.skip


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("is_old_there", [True, False], ids=["an old bank there", "none there"])
def test_an_interruption_keeps_the_finished_rows_beside_what_was_there(model, path, error, is_old_there):
    if is_old_there:
        collect(model, Rows(rows=["blur"]), path)
    old = files(path.parent)
    with pytest.raises(error, match="stop"):
        collect(model, Rows(stop_at="frost", error=error), path)
    left = files(path.parent)
    assert left.keys() - old.keys() == {"cifar.bank.unfinished.safetensors"}
    assert old.items() <= left.items()
    kept = BNStatsBank.load(path.with_name("cifar.bank.unfinished.safetensors"), model)
    assert kept.rows == ("clean", "fog", "snow")
    assert torch.equal(kept.mean, collect(model, Rows()).mean[:3])


@pytest.mark.parametrize("options", [*({"propagate": how} for how in PROPAGATIONS), {"skip": ["4"]}], ids=str)
def test_the_same_call_goes_on_to_the_bank_of_an_uninterrupted_one(model, path, options):
    whole = collect(model, Rows(), **options)
    path.write_bytes(b"an older bank")
    interrupt(model, path, **options)
    assert path.read_bytes() == b"an older bank"
    interrupt(model, path, row="blur", **options)
    rows = Rows()
    bank = collect(model, rows, str(path), **options)
    assert rows.begun == ["blur"]
    assert_equal_banks(bank, whole)
    assert list(files(path.parent)) == [path.name]
    assert_equal_banks(BNStatsBank.load(path, model), whole)


def test_an_uninterrupted_collection_writes_its_bank_and_begins_anew_the_next_time(model, path):
    for rows in (Rows(), Rows(rows=["snow", "fog"])):
        bank = collect(model, rows, path)
        assert rows.begun == list(rows.rows)
        assert list(files(path.parent)) == [path.name]
        assert_equal_banks(BNStatsBank.load(path, model), bank)


def test_an_interruption_after_the_last_row_loses_nothing(model, path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(type(path), "replace", stop_at(path, type(path).replace))
        with pytest.raises(KeyboardInterrupt):
            collect(model, Rows(), path)
    rows = Rows()
    assert_equal_banks(collect(model, rows, path), collect(model, Rows()))
    assert rows.begun == []
    assert list(files(path.parent)) == [path.name]


def stop_at(target, replace):
    def stop_or_replace(self, destination):
        if destination == target:
            raise KeyboardInterrupt
        return replace(self, destination)

    return stop_or_replace


def test_tuples_in_provenance_are_no_difference(model, path):
    with_tuples = {**PROVENANCE, "severities": (1, 3), "normalization": {"mean": (0.5,), "std": (0.25,)}}
    with pytest.raises(KeyboardInterrupt):
        collect(model, Rows(provenance=with_tuples, stop_at="frost"), path)
    rows = Rows(provenance=with_tuples, stop_at="blur")
    with pytest.raises(KeyboardInterrupt):
        collect(model, rows, path)
    assert rows.begun == ["frost", "blur"]
    collect(model, Rows(), path)  # as lists, which is how files have them
    assert BNStatsBank.load(path).provenance["severities"] == [1, 3]


def with_other_weights(model):
    with torch.no_grad():
        model[0].weight[0] += 0.01
    return model


def with_other_statistics(model):
    model[5].running_var[0] *= 1.01
    return model


def without_the_seed():
    return {key: value for key, value in PROVENANCE.items() if key != "seed"}


ANOTHER_COLLECTION = {
    "weights": ("the model", lambda model: (with_other_weights(model), Rows(), {})),
    "precision": ("the model", lambda model: (model.half(), Rows(), {})),
    "statistics": ("the model", lambda model: (with_other_statistics(model), Rows(), {})),
    "propagate": ("propagate: 'batch' there, 'source' here", lambda model: (model, Rows(), {"propagate": "source"})),
    "skip": (r"skip: \[\] there, \['4'\] here", lambda model: (model, Rows(), {"skip": ["4"]})),
    "a seed": ("seed: 7 there, 8 here", lambda model: (model, Rows(provenance={**PROVENANCE, "seed": 8}), {})),
    "a key more": ("epoch: None there, 1 here", lambda model: (model, Rows(provenance={**PROVENANCE, "epoch": 1}), {})),
    "a key less": ("seed: 7 there, None here", lambda model: (model, Rows(provenance=without_the_seed()), {})),
    "no provenance": ("seed: 7 there, None here", lambda model: (model, {row: [] for row in ROWS}, {})),
    "order": (
        "rows: fog, snow there, snow, fog, frost, blur here",
        lambda model: (model, Rows(rows=["snow", "fog", "frost", "blur"]), {}),
    ),
    "fewer rows": ("rows: fog, snow there, fog here", lambda model: (model, Rows(rows=["fog"]), {})),
}


@pytest.mark.parametrize("what", ANOTHER_COLLECTION)
def test_rows_of_another_collection_are_refused_and_left_alone(model, path, what):
    path.write_bytes(b"an older bank")
    interrupt(model, path)
    left = files(path.parent)
    difference, change = ANOTHER_COLLECTION[what]
    other, rows, options = change(model)
    before = snapshot(other)
    with pytest.raises(BankError, match=rf"unfinished.* of another collection \(.*{difference}.*remove it to begin"):
        collect(other, rows, path, **options)
    assert files(path.parent) == left
    assert_same(before, other)
    assert getattr(rows, "begun", []) == []


@pytest.mark.parametrize("options", [{"images_per_row": 12}, {"batch_size": 4}], ids=str)
def test_rows_of_other_images_or_batches_of_the_same_data_are_refused(model, path, options):
    data = CorruptionDataModule("shapes", corruptions=["brightness", "contrast"], severities=[1])
    data.prepare_data()
    batches = []

    def stop_at_the_second(module, inputs):
        batches.append(inputs)
        if len(batches) == 2:
            raise KeyboardInterrupt

    model.register_forward_pre_hook(stop_at_the_second)
    first = {"images_per_row": 8, "batch_size": 8}
    with pytest.raises(KeyboardInterrupt):
        collect(model, data.row_loaders(**first), path)
    with pytest.raises(BankError, match="of another collection"):
        collect(model, data.row_loaders(**{**first, **options}), path)


@pytest.mark.parametrize("damage", [lambda whole: whole[:-7], lambda whole: b"", lambda whole: b"?" + whole[1:]])
def test_damaged_rows_are_refused_and_left_alone(model, path, damage):
    interrupt(model, path)
    unfinished = path.with_name("cifar.bank.unfinished.safetensors")
    unfinished.write_bytes(damage(unfinished.read_bytes()))
    left = files(path.parent)
    rows = Rows()
    with pytest.raises(BankError, match=r"cifar\.bank\.unfinished\.safetensors is no bank, or damaged"):
        collect(model, rows, path)
    assert files(path.parent) == left
    assert rows.begun == []
