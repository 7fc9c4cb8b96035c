"""What every test may use."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # a thread for each worker; before torch is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest


@pytest.fixture(scope="session")
def dynbn_data() -> Path:
    """The folder of real images and weights that the environment variable DYNBN_DATA names."""
    folder = os.environ.get("DYNBN_DATA")
    if not folder:
        pytest.skip("DYNBN_DATA is not set: it names the folder of real images and weights")
    return Path(folder)


@pytest.fixture
def cifar10_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root folder with eight images a batch file, in the layout of the published CIFAR-10 archive."""
    folder = tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        smooth = rng.integers(0, 256, (8, 3, 8, 8)).repeat(4, 2).repeat(4, 3)
        content = {"data": smooth.astype(np.uint8).reshape(8, 3072), "labels": list(range(8))}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [str(number) for number in range(10)]}))
    # torchvision compares with the checksums of the published files, which these are not.
    monkeypatch.setattr("torchvision.datasets.CIFAR10._check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)
    return folder.parent
