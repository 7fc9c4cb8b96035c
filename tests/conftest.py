"""What every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def dynbn_data() -> Path:
    """The folder of real images and weights that the environment variable DYNBN_DATA names."""
    folder = os.environ.get("DYNBN_DATA")
    if not folder:
        pytest.skip("DYNBN_DATA is not set: it names the folder of real images and weights")
    return Path(folder)
