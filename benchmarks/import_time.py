"""How long importing takes, beside Lightning and torchvision, which everything here stands on.

    python benchmarks/import_time.py

Each statement is run in processes of its own, in turn, so that what else runs on the machine slows all of them alike;
the first round, which fills the disk's cache, doesn't count. Prints the medians and their ratio to the peer's.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

PEER = "import lightning, torchvision"
STATEMENTS = {
    "the package alone": "import dynbn_lightning",
    "a callback and the datamodule": "from dynbn_lightning import CorruptionDataModule, DynamicBNCallback",
    "every public name": "from dynbn_lightning import *",
}


def seconds(statement: str) -> float:
    """The time of a process that imports and ends."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="how often each is measured (default: %(default)s)")
    rounds = parser.parse_args().rounds
    statements = [PEER, *STATEMENTS.values()]
    measured = [[seconds(statement) for statement in statements] for _ in range(rounds + 1)][1:]
    medians = dict(zip(statements, map(statistics.median, zip(*measured, strict=True)), strict=True))
    print(f"`{PEER}`: {medians[PEER]:.2f} s")
    for name, statement in STATEMENTS.items():
        print(f"{name}, `{statement}`: {medians[statement]:.2f} s, {medians[statement] / medians[PEER]:.2f} times that")
    return 0


if __name__ == "__main__":
    sys.exit(main())
