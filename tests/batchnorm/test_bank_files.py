"""Bank files: every bit comes back, and a file that is not whole is never a bank."""

import json
import os
import random
import struct

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dynbn_lightning import files
from dynbn_lightning.batchnorm import BNStatsBank, bank_file
from dynbn_lightning.errors import BankError

PROVENANCE = {
    "source": "cifar10",
    "normalization": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
    "severities": [1, 3, 5],
    "seed": 7,
    "note": "naïve ☂",
}


class Loaders(dict):
    provenance = PROVENANCE


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4)).eval()


@pytest.fixture
def bank(model):
    batch = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return BNStatsBank.collect(model, Loaders(fog=[batch + 1], snow=[batch / 3]), progress=False)


@pytest.fixture
def path(bank, tmp_path):
    path = tmp_path / "model.bank.safetensors"
    bank.save(path)
    return path


def assert_equal_banks(first, second):
    assert first.rows == second.rows
    assert list(first.layers.items()) == list(second.layers.items())
    assert torch.equal(first.mean, second.mean)
    assert torch.equal(first.var, second.var)
    assert first.fingerprints == second.fingerprints
    assert first.provenance == second.provenance


def header_and_tables(path):
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length])["__metadata__"], content[8 + length :]


def test_round_trip_keeps_every_bit(bank, path, model):
    loaded = BNStatsBank.load(path, model)
    assert_equal_banks(loaded, bank)
    assert loaded.provenance == {**PROVENANCE, "propagate": "batch", "image_counts": {"fog": 6, "snow": 6}}
    assert_equal_banks(BNStatsBank.load(str(path)), bank)


def test_awkward_values_survive(tmp_path):
    values = torch.tensor([[0.0, -0.0, 1e-45, 3.4e38], [1.0, 1 + 2**-23, -1e-38, 7.0]])
    var = values.abs()
    bank = BNStatsBank(("clean", "fog"), {"layer.with.dots": 3, "ünïcode": 1}, values, var)
    bank.save(tmp_path / "bank")
    loaded = BNStatsBank.load(tmp_path / "bank")
    assert torch.equal(loaded.mean.view(torch.int32), values.view(torch.int32))
    assert torch.equal(loaded.var.view(torch.int32), var.view(torch.int32))
    assert list(loaded.layers) == ["layer.with.dots", "ünïcode"]


def test_tables_that_share_memory_or_are_strided_are_saved(tmp_path):
    both = torch.rand(2, 3, 8)
    bank = BNStatsBank(("clean", "fog"), {"1": 4}, both[0, :2, ::2], both[1, :2, ::2])
    bank.save(tmp_path / "bank")
    assert_equal_banks(BNStatsBank.load(tmp_path / "bank"), bank)


def test_saving_makes_folders_and_replaces_what_is_there(bank, tmp_path):
    path = tmp_path / "new" / "folder" / "bank.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"something else")
    bank.save(path)
    assert_equal_banks(BNStatsBank.load(path), bank)
    bank.save(tmp_path / "another" / "one")
    assert [entry.name for entry in path.parent.iterdir()] == ["bank.safetensors"]
    if os.name == "posix":
        assert path.stat().st_mode & 0o777 == 0o666 & ~files._umask()


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", ["write_bytes", "replace"])
def test_a_failed_save_leaves_the_old_file_and_no_other(bank, path, monkeypatch, error, step):
    old = path.read_bytes()

    def fail(temporary, content):
        if step == "write_bytes":
            with open(temporary, "wb") as file:
                file.write(content[: len(content) // 2])
        raise error

    monkeypatch.setattr(files.Path, step, fail)
    with pytest.raises(type(error)):
        BNStatsBank(bank.rows, bank.layers, bank.mean + 1, bank.var).save(path)
    assert path.read_bytes() == old
    assert list(path.parent.iterdir()) == [path]


def test_a_bank_of_another_model_is_refused_on_loading(path, model):
    model[0].weight.data.mul_(1.01)
    with pytest.raises(BankError, match="weights are others"):
        BNStatsBank.load(path, model)


def test_every_flipped_bit_is_noticed(bank, path):
    """Anywhere: length, header, tables. A flip that safetensors cannot see must still never give another row."""
    whole = path.read_bytes()
    positions = random.Random(0).sample(range(len(whole) * 8), 400) + list(range(64 * 8))
    refused = 0
    for position in positions:
        damaged = bytearray(whole)
        damaged[position // 8] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        try:
            loaded = BNStatsBank.load(path)
        except BankError:
            refused += 1
        else:
            assert_equal_banks(loaded, bank)
    assert refused > 0.95 * len(positions)  # a flip in what means nothing, such as padding, may be harmless


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 9, 100, 0.5, 0.9, -100, -4, -1])
def test_truncated_files_are_refused(path, keep):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(BankError, match="no bank, or damaged"):
        BNStatsBank.load(path)


def test_appended_bytes_and_huge_sizes_are_refused(path):
    whole = path.read_bytes()
    for content in (whole + b"\0", struct.pack("<Q", 2**63) + whole[8:], struct.pack("<Q", 2**40) + whole[8:]):
        path.write_bytes(content)
        with pytest.raises(BankError):
            BNStatsBank.load(path)


def rewrite(path, change, *, honest_checksum=True, tables=None):
    """Write the bank again with its metadata changed, the checksum right unless told otherwise."""
    header, _ = header_and_tables(path)
    metadata = json.loads(header["dynbn_bank"])
    change(metadata)
    described = json.dumps(metadata, sort_keys=True)
    if tables is None:
        tables, _ = bank_file.read_bank_file(path)
    checksum = bank_file._checksum(tables, described) if honest_checksum else header["sha256"]
    save_file(tables, path, metadata={"dynbn_bank": described, "sha256": checksum})


def swap_rows(metadata):
    metadata["rows"][1:] = metadata["rows"][:0:-1]


@pytest.mark.parametrize(
    "change", [swap_rows, lambda m: m["layers"].reverse(), lambda m: m["fingerprints"].clear(), lambda m: m.clear()]
)
def test_edited_metadata_is_refused(path, change):
    rewrite(path, change, honest_checksum=False)
    with pytest.raises(BankError):
        BNStatsBank.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format_version=3), "bank format 3, this version of dynbn-lightning reads 1 and 2"),
        (lambda m: m.pop("format_version"), "bank format None"),
        (lambda m: m.pop("rows"), "damaged: 'rows'"),
        (lambda m: m.pop("provenance"), "damaged: 'provenance'"),
        (lambda m: m["rows"].pop(), "needs tables of shape"),
        (lambda m: m.update(rows="clean"), "needs tables of shape"),
        (lambda m: m.update(rows=["clean", "fog", "fog"]), "distinct"),
        (lambda m: m.update(rows=[["clean"], ["fog"], ["snow"]]), "damaged"),
        (lambda m: m["layers"][0].append(3), "damaged"),
        (lambda m: m["layers"][0].__setitem__(1, "wide"), "damaged"),
        (lambda m: m["layers"][0].__setitem__(1, float("inf")), "damaged"),
        (lambda m: m.update(layers=5), "damaged"),
        (lambda m: m.update(layers=[["1", 9], ["3", -1]]), "damaged"),
        (lambda m: m.update(layers=[["1", 4], ["1", 8]]), "damaged"),
        (lambda m: m.update(fingerprints=[1]), "damaged"),
    ],
)
def test_metadata_that_makes_no_bank_is_refused_even_with_a_right_checksum(path, change, message):
    rewrite(path, change)
    with pytest.raises(BankError, match=message):
        BNStatsBank.load(path)


@pytest.mark.parametrize("described", ["", "[]", "null", "5", "{", '{"format_version": 1}', "[" * 100_000])
def test_metadata_that_is_no_object_is_refused(path, described):
    save_file({"mean": torch.zeros(2), "var": torch.ones(2)}, path, metadata={"dynbn_bank": described, "sha256": ""})
    with pytest.raises(BankError):
        BNStatsBank.load(path)


@pytest.mark.parametrize("tables", [{}, {"mean": torch.zeros(3, 8)}, {"a": torch.zeros(1)}], ids=["none", "one", "a"])
def test_missing_tables_are_refused(path, tables):
    header, _ = header_and_tables(path)
    save_file(tables, path, metadata=header)
    with pytest.raises(BankError, match="no bank, or damaged"):
        BNStatsBank.load(path)


def test_tables_of_another_dtype_are_refused(path):
    tables, _ = bank_file.read_bank_file(path)
    for dtype in (torch.float64, torch.bfloat16, torch.int32):
        header, _ = header_and_tables(path)
        save_file({name: table.to(dtype) for name, table in tables.items()}, path, metadata=header)
        with pytest.raises(BankError, match="not float32"):
            BNStatsBank.load(path)


def test_what_is_no_bank_is_refused_by_name(tmp_path):
    for name, content in {"empty": b"", "text": b"hello " * 100, "zeros": bytes(1000)}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BankError, match=f"{name} is no bank, or damaged"):
            BNStatsBank.load(tmp_path / name)
    save_file({"mean": torch.zeros(2), "var": torch.ones(2)}, tmp_path / "weights")
    with pytest.raises(BankError, match="a safetensors file but no bank"):
        BNStatsBank.load(tmp_path / "weights")
    torch.save({"rows": ["clean"]}, tmp_path / "pickle.pt")
    with pytest.raises(BankError, match="no bank, or damaged"):
        BNStatsBank.load(tmp_path / "pickle.pt")
    with pytest.raises(BankError, match="there is no bank at"):
        BNStatsBank.load(tmp_path / "nowhere")
    with pytest.raises(BankError, match="there is no bank at"):
        BNStatsBank.load(tmp_path)
