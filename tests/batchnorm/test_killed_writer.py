"""A writer that is killed leaves one whole bank; a bank that is read is the file itself, not a copy of it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dynbn_lightning.batchnorm import BNStatsBank
from dynbn_lightning.files import unfinished_file

RESNET50 = {f"layer{number}.bn": width for number, width in enumerate([64] + [256] * 20 + [2048] * 10 + [448] * 2)}
ENDLESS_WRITER = """
import sys
from dynbn_lightning.batchnorm import BNStatsBank
path, *others = sys.argv[1:]
banks = [BNStatsBank.load(other) for other in others]
banks[0].save(path)
print("begun", flush=True)
while True:
    for bank in banks:
        bank.save(path)
"""


def made_up_bank(rows, layers, seed):
    generator = torch.Generator().manual_seed(seed)
    mean, var = torch.rand(2, rows, sum(layers.values()), generator=generator)
    names = ("clean", *(f"row {number}" for number in range(1, rows)))
    return BNStatsBank(names, layers, mean, var, provenance={"seed": seed})


@pytest.fixture
def start():
    """Start a process that is killed at the end of the test, if it has not been before."""
    started = []

    def start(*command):
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.skipif(os.name != "posix", reason="needs the signals STOP, CONT and KILL")
def test_whenever_the_writer_is_killed_there_is_one_whole_bank(start, tmp_path):
    banks = [made_up_bank(4, {"1": 100_000}, seed) for seed in range(2)]
    sources = [tmp_path / f"source{number}" for number in range(2)]
    for bank, source in zip(banks, sources, strict=True):
        bank.save(source)
    path = tmp_path / "out" / "model.bank.safetensors"
    writer = start(sys.executable, "-c", ENDLESS_WRITER, str(path), *map(str, sources))

    def read():
        """Which bank is at `path`, and whether the writer was in the middle of another."""
        loaded = BNStatsBank.load(path)
        found = loaded.provenance["seed"]
        assert torch.equal(loaded.mean, banks[found].mean)
        assert torch.equal(loaded.var, banks[found].var)
        others = {name: unfinished_file(name) for name in os.listdir(path.parent) if name != path.name}
        assert set(others.values()) <= {path.name}, others
        return found, len(others)

    assert writer.stdout.readline() == "begun\n"
    stops, seen = 0, set()
    while stops < 30 or not {(0, 1), (1, 1)} <= seen:  # stopped in the middle of either bank, and elsewhere
        time.sleep(0.001 * (stops % 17))
        # What lies there while the writer is stopped is what would lie there if it had been killed.
        writer.send_signal(signal.SIGSTOP)
        assert os.WIFSTOPPED(os.waitpid(writer.pid, os.WUNTRACED)[1])
        seen.add(read())
        writer.send_signal(signal.SIGCONT)
        stops += 1
        assert stops < 1000, f"never stopped in the middle of either bank: {seen}"
    writer.kill()
    writer.wait()
    read()
    banks[1].save(path)
    assert read()[0] == 1


def test_a_bank_that_is_read_keeps_its_rows_when_its_file_is_replaced(tmp_path):
    path = tmp_path / "bank.safetensors"
    first, second = (made_up_bank(3, {"1": 5}, seed) for seed in range(2))
    first.save(path)
    read = BNStatsBank.load(path)
    second.save(path)
    assert torch.equal(read.mean, first.mean)
    assert torch.equal(BNStatsBank.load(path).mean, second.mean)
    read.mean.zero_()
    assert torch.equal(BNStatsBank.load(path).mean, second.mean)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the kernel lists what is mapped on Linux alone")
def test_the_tables_of_a_resnet50_bank_are_mapped_from_its_file(tmp_path):
    path = tmp_path / "resnet50.bank.safetensors"
    made_up_bank(76, RESNET50, 0).save(path)

    def mapped():
        lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(path.name)]
        return [range(*(int(address, 16) for address in line.split()[0].split("-"))) for line in lines]

    assert mapped() == []
    bank = BNStatsBank.load(path)
    for table in (bank.mean, bank.var):
        assert table.shape == (76, 26_560)
        assert any(table.data_ptr() in pages and table.data_ptr() + table.nbytes <= pages.stop for pages in mapped())
    del table, bank
    assert mapped() == []
