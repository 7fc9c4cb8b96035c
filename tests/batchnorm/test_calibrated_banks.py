"""Calibration and refined rows in banks and their files: every bit comes back, and nothing that is not whole."""

import hashlib
import json
import struct
from dataclasses import replace

import pytest
import torch
from batchnorm_reference import give_nontrivial_statistics, make_bank
from safetensors.torch import save_file
from test_bank_files import assert_equal_banks, rewrite
from torch import nn

from dynbn_lightning.batchnorm import BNStatsBank, Calibration, bank_file
from dynbn_lightning.errors import BankError

ROWS, LAYERS = ("clean", "fog", "frost"), 2
TABLES = ("weight", "bias", "calibration.source_share", "calibration.image_share")
NAN, INF = float("nan"), float("inf")


@pytest.fixture
def plain():
    model = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(3)).eval()
    give_nontrivial_statistics(model, torch.Generator().manual_seed(0))
    bank = make_bank(model, ROWS, torch.Generator().manual_seed(1))
    return replace(bank, fingerprints={"float32": "abc"}, provenance={"seed": 7, "refined": {"images": 5}})


@pytest.fixture
def bank(plain):
    generator = torch.Generator().manual_seed(2)
    shares = torch.rand(2, len(ROWS), LAYERS, generator=generator)
    shares[:, 0] = 0
    shares[:, 2, 0] = torch.tensor([1e-45, 1 - 2**-24])
    weight, bias = torch.randn(2, *plain.mean.shape, generator=generator)  # which share memory
    weight[1] = torch.tensor([0.0, -0.0, 1e-45, -3.4e38, 1 + 2**-23, -1e-38, 7.0])
    calibration = Calibration(*shares, 1 / 3, -0.1, "détecteur", {"images": 12_800, "check": {"gain": 0.1}})
    return replace(plain, weight=weight, bias=bias, calibration=calibration)


@pytest.fixture
def path(bank, tmp_path):
    bank.save(tmp_path / "bank")
    return tmp_path / "bank"


def same_bits(first, second):
    if first is None or second is None:
        return first is second
    return first.dtype == second.dtype and torch.equal(first.view(torch.int32), second.view(torch.int32))


def assert_same_calibration(first, second):
    assert same_bits(first.source_share, second.source_share)
    assert same_bits(first.image_share, second.image_share)
    for name in ("temperature", "novelty_limit", "detector", "provenance"):
        assert getattr(first, name) == getattr(second, name), name


def test_everything_comes_back_bit_for_bit(bank, path):
    loaded = BNStatsBank.load(path)
    assert_equal_banks(loaded, bank)
    assert same_bits(loaded.weight, bank.weight)
    assert same_bits(loaded.bias, bank.bias)
    assert_same_calibration(loaded.calibration, bank.calibration)


@pytest.mark.parametrize("has_weight", [False, True])
@pytest.mark.parametrize("calibration", [None, "bare", "without image_share"])
def test_what_a_bank_lacks_it_lacks_after_loading(bank, tmp_path, calibration, has_weight):
    bare = Calibration(bank.calibration.source_share)
    given = {None: None, "bare": bare, "without image_share": replace(bank.calibration, image_share=None)}[calibration]
    bank = replace(bank if has_weight else bank.unrefined(), calibration=given)
    bank.save(tmp_path / "bank")
    loaded = BNStatsBank.load(tmp_path / "bank")
    assert_equal_banks(loaded, bank)
    assert loaded.refined == has_weight
    assert (loaded.bias is None) == (not has_weight)
    if given is None:
        assert loaded.calibration is None
    else:
        assert_same_calibration(loaded.calibration, given)
        assert loaded.calibration.image_share is None


def test_uncalibrated_and_unrefined_take_away_one_thing_each(bank, plain):
    uncalibrated, unrefined = bank.uncalibrated(), bank.unrefined()
    assert (bank.refined, uncalibrated.refined, unrefined.refined, plain.refined) == (True, True, False, False)
    assert uncalibrated.calibration is None
    assert uncalibrated.weight is bank.weight
    assert uncalibrated.bias is bank.bias
    assert_equal_banks(uncalibrated, bank)
    assert unrefined.weight is unrefined.bias is None
    assert unrefined.calibration is bank.calibration
    assert unrefined.provenance == {"seed": 7}
    assert_equal_banks(replace(unrefined, provenance=bank.provenance), bank)
    assert [table is None for table in bank.statistics] == [False, False, False, False, True]


def changed(table, index, value):
    table = table.clone()
    table[index] = value
    return table


@pytest.mark.parametrize("name", ["source_share", "image_share"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda share: share[:2], r"a table of 3 rows and 2 layers, got \(2, 2\)"),
        (lambda share: share[:, :1], r"got \(3, 1\)"),
        (lambda share: share[1], r"got \(2,\)"),
        (lambda share: share.repeat(1, 4)[:, :7], r"got \(3, 7\)"),
        (lambda share: changed(share, (1, 1), 1.001), r"in \[0, 1\] and 0 in row 0"),
        (lambda share: changed(share, (2, 0), -1e-6), r"in \[0, 1\] and 0 in row 0"),
        (lambda share: changed(share, (0, 1), 1e-6), r"in \[0, 1\] and 0 in row 0"),
        (lambda share: changed(share, (1, 0), NAN), r"in \[0, 1\] and 0 in row 0"),
        (lambda share: changed(share, (0, 0), NAN), r"in \[0, 1\] and 0 in row 0"),
    ],
)
def test_shares_that_are_none_are_refused_by_name(bank, name, change, message):
    calibration = replace(bank.calibration, **{name: change(getattr(bank.calibration, name))})
    with pytest.raises(BankError, match=f"the {name} of a calibration is .*{message}"):
        replace(bank, calibration=calibration)


@pytest.mark.parametrize("temperature", [0.0, -1.0, NAN, INF])
def test_temperatures_that_are_none_are_refused(bank, temperature):
    with pytest.raises(BankError, match=f"temperature of a calibration is above 0 and finite, got {temperature}"):
        replace(bank, calibration=replace(bank.calibration, temperature=temperature))


def test_a_novelty_limit_that_compares_with_nothing_is_refused(bank):
    with pytest.raises(BankError, match="novelty limit of a calibration is a number, or None; got nan"):
        replace(bank, calibration=replace(bank.calibration, novelty_limit=NAN))


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_scales_and_shifts_that_are_none_are_refused_by_name(bank, name):
    table = getattr(bank, name)
    with pytest.raises(BankError, match="scales and shifts; here is one of them alone"):
        replace(bank, **{name: None})
    for wrong in (table[:2], table[:, :-1], table[0], changed(table, (1, 2), NAN), changed(table, (2, 6), -INF)):
        with pytest.raises(BankError, match=rf"the {name} of refined rows is a finite table of shape \(3, 7\)"):
            replace(bank, **{name: wrong})


# Files


@pytest.mark.parametrize("table", ["mean", "var", *TABLES])
def test_a_flipped_byte_in_any_table_is_noticed(path, table):
    whole = path.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    begin, end = json.loads(whole[8 : 8 + length])[table]["data_offsets"]
    for position in (begin, (begin + end) // 2, end - 1):
        damaged = bytearray(whole)
        damaged[8 + length + position] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(BankError, match="its checksum does not match"):
            BNStatsBank.load(path)


@pytest.mark.parametrize("change", ["missing", "renamed", "swapped", "added"])
@pytest.mark.parametrize("table", TABLES)
def test_tables_that_are_not_those_of_the_checksum_are_noticed(path, table, change):
    tables, _ = bank_file.read_bank_file(path)
    values = tables.pop(table)
    if change == "renamed":
        tables[f"{table}s"] = values
    if change == "swapped":
        other = TABLES[TABLES.index(table) ^ 1]
        tables |= {table: tables[other], other: values}
    if change == "added":
        tables |= {table: values, "another": values.clone()}
    rewrite(path, lambda metadata: None, honest_checksum=False, tables=tables)
    with pytest.raises(BankError, match="its checksum does not match"):
        BNStatsBank.load(path)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("calibration.source_share", "damaged: 'calibration.source_share'"),
        ("weight", "one of them alone"),
        ("bias", "one of them alone"),
    ],
)
def test_missing_tables_are_refused_even_with_a_right_checksum(path, table, message):
    tables, _ = bank_file.read_bank_file(path)
    del tables[table]
    rewrite(path, lambda metadata: None, tables=tables)
    with pytest.raises(BankError, match=message):
        BNStatsBank.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(calibration=5), "damaged"),
        (lambda m: m.update(calibration=[1]), "damaged"),
        (lambda m: m.update(calibration={}), "damaged: 'temperature'"),
        (lambda m: m["calibration"].pop("provenance"), "damaged: 'provenance'"),
        (lambda m: m["calibration"].update(provenance=5), "damaged"),
        (lambda m: m["calibration"].update(temperature="hot"), "damaged"),
        (lambda m: m["calibration"].update(temperature=None), "damaged"),
        (lambda m: m["calibration"].update(temperature=0), "temperature of a calibration is above 0"),
        (lambda m: m["calibration"].update(novelty_limit="low"), "damaged"),
        (lambda m: m["rows"].reverse(), "begin with 'clean'"),
        (lambda m: m.update(layers=[["0", 7]]), "a table of 3 rows and 1 layers"),
    ],
)
def test_metadata_that_makes_no_calibration_is_refused(path, change, message):
    rewrite(path, change)
    with pytest.raises(BankError, match=message):
        BNStatsBank.load(path)


def save_as_format_1_did(bank, path):
    metadata = {
        "rows": list(bank.rows),
        "layers": [[name, width] for name, width in bank.layers.items()],
        "fingerprints": dict(bank.fingerprints),
        "provenance": dict(bank.provenance),
        "skip": list(bank.skip),
    }
    described = json.dumps({"format_version": 1, **metadata}, sort_keys=True)
    digest = hashlib.sha256(described.encode())
    for table in (bank.mean, bank.var):
        digest.update(str(tuple(table.shape)).encode())
        digest.update(table.numpy().data)
    header = {"dynbn_bank": described, "sha256": digest.hexdigest()}
    save_file({"mean": bank.mean, "var": bank.var}, path, metadata=header)


def test_files_of_format_1_are_read(plain, tmp_path):
    save_as_format_1_did(plain, tmp_path / "old")
    loaded = BNStatsBank.load(tmp_path / "old")
    assert_equal_banks(loaded, plain)
    assert loaded.weight is loaded.bias is loaded.calibration is None
    loaded.save(tmp_path / "new")
    assert bank_file.read_bank_file(tmp_path / "new")[1]["format_version"] == 2
    assert_equal_banks(BNStatsBank.load(tmp_path / "new"), plain)
    content = bytearray((tmp_path / "old").read_bytes())
    content[-1] ^= 1
    (tmp_path / "old").write_bytes(content)
    with pytest.raises(BankError, match="checksum"):
        BNStatsBank.load(tmp_path / "old")
