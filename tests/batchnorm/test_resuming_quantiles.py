"""Quantiles collected with a path: finished rows are kept, an interrupted call goes on, another's rows are refused."""

import pytest
import torch
from batchnorm_reference import assert_same, give_nontrivial_statistics, snapshot
from torch import nn

from dynbn_lightning.batchnorm import BNStatsBank, QuantileBank
from dynbn_lightning.errors import BankError, OutputError

ROWS = ("clean", "fog", "snow", "frost")
PROVENANCE = {"source": "drawn", "severities": (1, 3), "seed": 7}


class Rows(dict):
    """Batches for every row, noting whose were begun; raises at a row after its first batch if told to."""

    def __init__(self, rows=ROWS, provenance=PROVENANCE, stop_at=None, error=KeyboardInterrupt):
        super().__init__((row, None) for row in rows)
        self.provenance, self._stop_at, self._error = provenance, stop_at, error
        self.begun = []

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
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5))
    give_nontrivial_statistics(model, torch.Generator().manual_seed(0))
    return model.eval()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "quantiles.safetensors"


def collect(model, loaders, path=None, **options):
    return QuantileBank.collect(model, loaders, path=path, progress=False, **{"count": 8, **options})


def interrupt(model, path, row="snow", error=KeyboardInterrupt, **options):
    with pytest.raises(error, match="stop"):
        collect(model, Rows(stop_at=row, error=error), path, **options)


def files(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def assert_equal_banks(first, second):
    assert first.rows == second.rows
    assert list(first.layers.items()) == list(second.layers.items())
    assert torch.equal(first.quantiles, second.quantiles)
    assert first.fingerprints == second.fingerprints
    assert {**first.provenance, "severities": [1, 3]} == {**second.provenance, "severities": [1, 3]}
    assert first.skip == second.skip


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interruption_keeps_the_finished_rows_beside_what_was_there(model, path, error):
    path.write_bytes(b"older quantiles")
    before = snapshot(model)
    interrupt(model, path, error=error)
    assert_same(before, model)
    assert files(path.parent).keys() == {path.name, "quantiles.unfinished.safetensors"}
    assert path.read_bytes() == b"older quantiles"
    kept = QuantileBank.load(path.with_name("quantiles.unfinished.safetensors"))
    assert kept.rows == ("clean", "fog")
    assert torch.equal(kept.quantiles, collect(model, Rows()).quantiles[:2])


def test_an_interruption_in_the_first_row_leaves_nothing(model, path):
    interrupt(model, path, row="clean")
    assert files(path.parent) == {}


@pytest.mark.parametrize("options", [{}, {"skip": ["1"]}, {"count": 5}, {"rows": ["frost", "snow", "fog"]}], ids=str)
def test_the_same_call_goes_on_to_the_bank_of_an_uninterrupted_one(model, path, options):
    whole = collect(model, Rows(), **options)
    first, second, last = whole.rows[1:]
    for row in (first, second, last, last):
        interrupt(model, path, row=row, **options)
    rows = Rows()
    bank = collect(model, rows, str(path), **options)
    assert rows.begun == [last]
    assert_equal_banks(bank, whole)
    assert list(files(path.parent)) == [path.name]
    assert_equal_banks(QuantileBank.load(path), whole)


def test_an_uninterrupted_collection_begins_anew_the_next_time(model, path):
    for options in ({}, {"count": 4}):
        rows = Rows()
        bank = collect(model, rows, path, **options)
        assert rows.begun == list(ROWS)
        assert list(files(path.parent)) == [path.name]
        assert_equal_banks(QuantileBank.load(path), bank)


def test_an_interruption_after_the_last_row_loses_nothing(model, path, monkeypatch):
    replace = type(path).replace

    def stop_or_replace(self, destination):
        if destination == path:
            raise KeyboardInterrupt
        return replace(self, destination)

    with monkeypatch.context() as patched:
        patched.setattr(type(path), "replace", stop_or_replace)
        with pytest.raises(KeyboardInterrupt):
            collect(model, Rows(), path)
    rows = Rows()
    assert_equal_banks(collect(model, rows, path), collect(model, Rows()))
    assert rows.begun == []
    assert list(files(path.parent)) == [path.name]


def with_other_weights(model):
    with torch.no_grad():
        model[0].weight[0] += 0.01
    return model


ANOTHER_COLLECTION = {
    "weights": ("the model", lambda model: (with_other_weights(model), Rows(), {})),
    "precision": ("the model", lambda model: (model.half(), Rows(), {})),
    "count": ("count: 8 there, 9 here", lambda model: (model, Rows(), {"count": 9})),
    "skip": (r"skip: \[\] there, \['1'\] here", lambda model: (model, Rows(), {"skip": ["1"]})),
    "a seed": ("seed: 7 there, 8 here", lambda model: (model, Rows(provenance={**PROVENANCE, "seed": 8}), {})),
    "no provenance": ("seed: 7 there, None here", lambda model: (model, {row: [] for row in ROWS}, {})),
    "order": (
        "rows: fog there, snow, fog, frost here",
        lambda model: (model, Rows(rows=["snow", "clean", "fog", "frost"]), {}),
    ),
    "chosen rows": ("rows: fog there, frost here", lambda model: (model, Rows(), {"rows": ["frost"]})),
    "no rows": ("rows: fog there,  here", lambda model: (model, Rows(), {"rows": []})),
}


@pytest.mark.parametrize("what", ANOTHER_COLLECTION)
def test_rows_of_another_collection_are_refused_and_left_alone(model, path, what):
    path.write_bytes(b"older quantiles")
    interrupt(model, path)
    left = files(path.parent)
    difference, change = ANOTHER_COLLECTION[what]
    other, rows, options = change(model)
    with pytest.raises(BankError, match=rf"unfinished.* of another collection \(.*{difference}.*remove it to begin"):
        collect(other, rows, path, **options)
    assert files(path.parent) == left
    assert getattr(rows, "begun", []) == []


@pytest.mark.parametrize("damage", [lambda whole: whole[:-7], lambda whole: b"", lambda whole: b"?" + whole[1:]])
def test_damaged_rows_are_refused_and_left_alone(model, path, damage):
    interrupt(model, path)
    unfinished = path.with_name("quantiles.unfinished.safetensors")
    unfinished.write_bytes(damage(unfinished.read_bytes()))
    left = files(path.parent)
    with pytest.raises(BankError, match=r"quantiles\.unfinished\.safetensors is no quantile bank, or damaged"):
        collect(model, Rows(), path)
    assert files(path.parent) == left


def test_the_rows_of_a_bank_of_statistics_are_no_quantiles(model, path):
    with pytest.raises(KeyboardInterrupt):
        BNStatsBank.collect(model, Rows(stop_at="snow"), path=path, progress=False)
    with pytest.raises(BankError, match="is a safetensors file but no quantile bank"):
        collect(model, Rows(), path)


def test_what_cannot_be_written_is_refused_before_any_row(model, path):
    path.write_bytes(b"a file")
    rows = Rows(provenance={"seed": object()})
    with pytest.raises(OutputError, match="is a file, and a folder is needed there"):
        collect(model, Rows(), path / "quantiles.safetensors")
    with pytest.raises(BankError, match="cannot be written as JSON"):
        collect(model, rows, path)
    assert rows.begun == []
    assert collect(model, rows).provenance == rows.provenance
