"""The packages that the benchmarks of the corruptions compare ours with, each in a virtual environment of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

ENVIRONMENTS = Path("~/.cache/dynbn-lightning/benchmark-environments")
STAMP = "whole.txt"
# OpenCV without windows is the same code, and needs no libGL. Without --no-deps pip would add the other one.
INSTALL = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:")


@dataclass(frozen=True)
class Peer:
    """A package to compare with, the Pythons that it can run on and everything that its environment holds."""

    name: str
    module: str
    pythons: tuple[str, ...]
    packages: str


CORRUPT_TTA = Peer(
    "corrupt-tta",
    "corrupt_tta",
    ("3.11", "3.12", "3.13"),
    "corrupt-tta==0.1.7 numpy==2.4.6 opencv-python-headless==5.0.0.93 scikit-image==0.26.0 scipy==1.17.1 "
    "pillow==13.0.0 imageio==2.38.1 lazy-loader==0.6 networkx==3.6.1 packaging==26.3 tifffile==2026.3.3",
)
IMAGECORRUPTIONS = Peer(
    "imagecorruptions",
    "imagecorruptions",
    ("3.10",),
    "imagecorruptions==1.1.2 numpy==1.26.4 opencv-python-headless==4.10.0.84 scikit-image==0.19.3 scipy==1.15.3 "
    "pillow==12.3.0 imageio==2.38.0 networkx==3.4.2 packaging==26.3 PyWavelets==1.8.0 tifffile==2025.5.10 "
    "setuptools==80.9.0",
)
PEERS = {
    "both": (CORRUPT_TTA, IMAGECORRUPTIONS),
    "corrupt-tta": (CORRUPT_TTA,),
    "imagecorruptions": (IMAGECORRUPTIONS,),
    "none": (),
}


class BenchmarkError(Exception):
    """Something that the benchmark needs is missing or broken."""


def find_python(peer: Peer) -> str:
    """A Python that the peer can run on: on the PATH or among pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions"
    for version in peer.pythons:
        installed = sorted(pyenv.glob(f"{version}.*/bin/python"), reverse=True)
        for python in (f"python{version}", *map(str, installed)):
            command = [python, "-c", "import sys, ensurepip; print('%d.%d' % sys.version_info[:2])"]
            if shutil.which(python) is None:
                continue
            if subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() == version:
                return python
    wanted = " or ".join(peer.pythons)
    raise BenchmarkError(f"{peer.name} needs Python {wanted}, with venv, on the PATH or in {pyenv}; or leave it out")


def environment(peer: Peer, folder: Path) -> Path:
    """The Python of the peer's environment, which is made unless it is there and whole."""
    home = folder.expanduser() / peer.name
    python, stamp = home / "bin" / "python", home / STAMP
    if stamp.exists() and stamp.read_text() == peer.packages:
        return python
    print(f"making the environment of {peer.name} in {home}", flush=True)
    shutil.rmtree(home, ignore_errors=True)
    commands = [
        [find_python(peer), "-m", "venv", str(home)],
        [str(python), *INSTALL, *peer.packages.split()],
        [str(python), "-I", "-c", f"import {peer.module}"],
    ]
    for command in commands:
        finished = subprocess.run(command, capture_output=True, text=True, check=False)
        if finished.returncode:
            raise BenchmarkError(f"no environment for {peer.name}: {' '.join(command)}\n{finished.stderr[-2000:]}")
    stamp.write_text(peer.packages)
    return python
