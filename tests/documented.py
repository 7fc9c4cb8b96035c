"""Runs what stands in a page of documentation: its Python and its commands, in order, in a folder of tiny data.

A block with a title is a file, which later blocks may import, run or name. Everything runs as it stands but for sizes:
commands get a few settings more at their end (`SMALL`), which decide as the last of their kind. Commands of
LightningCLI, of `benchmarks/` and of launchers only have their options read, for a run takes pretrained weights, hours
or several machines; `tests/test_examples.py` runs what `examples/` has. Programs that aren't ours aren't run.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from contextlib import redirect_stderr
from functools import partial
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

import dynbn_lightning
from dynbn_lightning import calibrate
from dynbn_lightning.cli import main
from dynbn_lightning.cli.parser import build_parser
from dynbn_lightning.corrupted_set import write_corrupted_set
from dynbn_lightning.methods import METHODS
from dynbn_lightning.models import cifar_resnet8, cifar_resnet20

ROOT = Path(__file__).parent.parent
CELLS = ["--corruptions", "fog,contrast", "--severities", "3"]
CPU = ["--accelerator", "cpu"]
SMALL: dict[tuple[str, ...], list[str]] = {
    ("detector", "fit"): [*CPU, *CELLS, "--epochs", "1", "--devices", "1", "--num-nodes", "1"],
    ("bank", "build"): [*CPU, *CELLS, "--images-per-row", "20", "--devices", "1", "--num-nodes", "1"],
    ("calibrate",): [*CPU, *CELLS, "--images", "128"],
    ("refine",): [*CPU, *CELLS, "--images", "128"],
    ("evaluate",): [*CPU, *CELLS, "--devices", "1", "--num-nodes", "1"],
    ("figures",): [*CPU, *CELLS, "--images", "8"],
    ("corrupt",): [*CPU, *CELLS],
    ("report",): [],
}
LIGHTNING = ("fit", "validate", "test", "predict")
LAUNCHERS = ("torchrun", "srun")
NOT_OURS = ("pip", "git", "mkdocs", "pre-commit", "sbatch", "cd", "pytest", "twine", "ruff", "mypy", ".")
FENCE = re.compile(r"^( *)```(\w+)([^\n]*)\n(.*?)^\1```$", flags=re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A fenced block of a page; `file` is its title, the file that it is to be written to."""

    language: str
    file: str | None
    text: str
    line: int


def blocks_of(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text()
    blocks = []
    for one in FENCE.finditer(text):
        indent, language, info, content = one.groups()
        content = re.sub(rf"^{indent}", "", content, flags=re.MULTILINE)
        titled = re.search(r'title="([^"]+)"', info)
        blocks.append(Block(language, titled and titled[1], content, text[: one.start()].count("\n") + 2))
    return blocks


def write_tiny_data(folder: Path) -> None:
    """What pages name: a user's photos, public weights, what the demo leaves, CIFAR-10-C in `data/`, and `examples/`.

    CIFAR-10 itself is that of the fixture `cifar10_archive`, which must be in use.
    """
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 8)):
        for name in ("cat", "dog"):
            (folder / "photos" / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (12, 12, 3)).repeat(4, 0).repeat(4, 1).astype(np.uint8)
                Image.fromarray(pixels).save(folder / "photos" / split / name / f"{number:02}.png")
    torch.manual_seed(0)
    weights = {f"module.{name}": value for name, value in cifar_resnet20().state_dict().items()}
    torch.save({"state_dict": weights}, folder / "resnet20-12fca82f.th")
    (folder / "dynbn-demo").mkdir()
    save_file(cifar_resnet8(num_classes=10, width=8).state_dict(), folder / "dynbn-demo" / "classifier.safetensors")
    write_corrupted_set(
        "cifar10",
        folder / "data" / "CIFAR-10-C",
        root=folder / "data",
        corruptions=("fog", "contrast"),
        severities=(3,),
        progress=False,
    )
    shutil.copytree(ROOT / "examples", folder / "examples")


def run_page(page: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run a page's blocks in the current folder; the names that its Python leaves.

    Raises:
        AssertionError: if a command of the page fails, or is none that can be checked.
    """
    # As they stand but for the number of images: the default takes minutes.
    monkeypatch.setattr(dynbn_lightning, "calibrate", partial(calibrate, images=128))
    monkeypatch.syspath_prepend(Path.cwd())
    blocks, known = blocks_of(page), dict(METHODS)
    names: dict[str, Any] = {"__name__": "__main__"}
    variables: dict[str, str] = {}
    try:
        for block in blocks:
            if block.language == "yaml":
                yaml.safe_load(block.text)
            if block.language == "python":
                # Numbers of lines in tracebacks are those of the page.
                code = compile("\n" * (block.line - 1) + block.text, str(page), "exec", dont_inherit=True)
            if block.file is not None:
                Path(block.file).write_text(block.text)
            elif block.language == "python":
                exec(code, names)
            elif block.language in ("sh", "bash"):
                for command in re.sub(r"\\\n\s*", " ", block.text).splitlines():
                    run_command(command, variables, monkeypatch, only_read=block.language == "bash")
    finally:
        METHODS.clear()
        METHODS.update(known)
        for block in blocks:  # another page may have a file of the same name
            sys.modules.pop(Path(block.file or "").stem, None)
    return names


def run_command(
    command: str, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch, *, only_read: bool = False
) -> None:
    """Run one line of a block of commands, or only read its options."""
    words = shlex.split(Template(command).safe_substitute(variables), comments=True)
    if re.match(r'\w+="', command):  # data="--source photos"
        name, _, value = words[0].partition("=")
        variables[name] = value
        return
    while words and re.fullmatch(r"\w+=.*", words[0]):  # settings of the environment
        name, _, value = words.pop(0).partition("=")
        if not words:
            variables[name] = value
    for part in _parts(words):
        _run(part, command, monkeypatch, only_read=only_read)


def _parts(words: list[str]) -> list[list[str]]:
    """`a && b` as two commands, and nothing of what follows `>`."""
    parts: list[list[str]] = [[]]
    for word in words:
        if word == "&&":
            parts.append([])
        else:
            parts[-1].append(word)
    return [part[: part.index(">")] if ">" in part else part for part in parts if part]


def _run(words: list[str], command: str, monkeypatch: pytest.MonkeyPatch, *, only_read: bool) -> None:
    program, *arguments = words
    program = program.rpartition("/")[2] or program
    if program in LAUNCHERS:  # what they launch begins with ours
        ours = next((at for at, word in enumerate(words) if word in ("dynbn", "dynbn_lightning.cli")), None)
        if ours is not None:
            _run(["dynbn", *words[ours + 1 :]], command, monkeypatch, only_read=True)
    elif program in ("python", "python3"):
        if arguments[:2] == ["-m", "dynbn_lightning.cli"]:
            _run(["dynbn", *arguments[2:]], command, monkeypatch, only_read=only_read)
        elif Path(arguments[0]).is_file():  # a block of the page
            _run_script(arguments)
        elif arguments[0] not in ("-m", "-c"):
            _read_options(ROOT / arguments[0], arguments[1:], monkeypatch)
    elif program == "dynbn":
        if arguments[0] in LIGHTNING:
            _read_config([*arguments, "--print_config"], command)
        elif only_read or arguments[0] == "demo":  # CI runs the demo from the wheel
            build_parser().parse_args(arguments)
        else:
            small = SMALL[tuple(arguments[:2])] if tuple(arguments[:2]) in SMALL else SMALL[(arguments[0],)]
            assert main([*arguments, *small]) == 0, command
    else:
        assert only_read or program in NOT_OURS, f"{command!r} can't be checked"


def _run_script(arguments: list[str]) -> None:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def _read_config(arguments: list[str], command: str) -> None:
    said = io.StringIO()
    with redirect_stderr(said):
        try:
            status: Any = main(arguments)
        except SystemExit as left:
            status = left.code
    assert status == 0, f"{command}: {said.getvalue()}"


class _Read(Exception):
    """The options of a script were read."""


def _read_options(script: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert script.is_file(), f"{script} is not there"
    parse = argparse.ArgumentParser.parse_args

    def read(self: argparse.ArgumentParser, *args: Any, **options: Any) -> Any:
        parse(self, *args, **options)
        raise _Read

    before = list(sys.path)
    with monkeypatch.context() as patched:
        patched.setattr(argparse.ArgumentParser, "parse_args", read)
        patched.setattr(sys, "argv", [str(script), *arguments])
        sys.path.insert(0, str(script.parent))
        try:
            with pytest.raises(_Read):
                runpy.run_path(str(script), run_name="__main__")
        finally:
            sys.path[:] = before
