"""Execute the notebooks from a clean kernel: `python notebooks/run.py` writes their outputs back into the files.

`--short --output DIR` runs small sizes and leaves the files alone: that is what the tests do. A notebook has one cell
that is tagged `parameters`, which assigns every size; the notebook's metadata `dynbn.short` says what they are in the
short form. Needs nbclient, nbformat and ipykernel.
"""

from __future__ import annotations

import argparse
import ast
import base64
import hashlib
import io
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from PIL import Image, ImageChops
from traitlets.config import Config

FOLDER = Path(__file__).resolve().parent
CELL_LIMIT = 900
"""Seconds that a cell may take."""

UNSEEN = 12
"""A change of a colour, of 255, that doesn't show in a figure."""

KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
ADDRESS = re.compile(r" at 0x[0-9a-f]+")


class Took(NamedTuple):
    """Seconds of a run: from the kernel's start to its end, and of CPU time, which other programs don't prolong."""

    wall: float
    cpu: float


def notebooks() -> list[Path]:
    """The notebooks of this folder, in order."""
    return sorted(FOLDER.glob("[0-9]*.ipynb"))


def code_hash(notebook: NotebookNode) -> str:
    """A hash of the code cells, by which the outputs of a file are known to be of the code in it."""
    code = "\0".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return hashlib.sha256(code.encode()).hexdigest()


def shortened(notebook: NotebookNode) -> NotebookNode:
    """The notebook with the sizes of its short form, assigned at the end of its cell `parameters`.

    Raises:
        ValueError: if there is not one such cell, or it doesn't assign one of the names itself.
    """
    cells = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    if len(cells) != 1:
        raise ValueError(f"expected one cell tagged 'parameters', found {len(cells)}")
    statements = [line for line in ast.parse(cells[0].source).body if isinstance(line, ast.Assign)]
    assigned = {target.id for line in statements for target in line.targets if isinstance(target, ast.Name)}
    short = notebook.metadata.get("dynbn", {}).get("short", {})
    if not short or not short.keys() <= assigned:
        raise ValueError(f"metadata.dynbn.short must assign some of {sorted(assigned)}, and has {sorted(short)}")
    lines = [f"{name} = {tuple(value) if isinstance(value, list) else value!r}" for name, value in short.items()]
    cells[0].source += "\n\n# The short form:\n" + "\n".join(lines)
    return notebook


def run_notebook(path: Path, *, short: bool = False) -> tuple[NotebookNode, Took]:
    """Execute a notebook from a clean kernel, in an empty folder that is gone afterwards.

    Returns:
        The notebook with its outputs, without what differs from run to run and from machine to machine; and how long
        it took.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell raises.
        ValueError: if the whole form's outputs tell of this machine: its name, or a path.
    """
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    if short:
        notebook = shortened(notebook)
    notebook.cells.append(nbformat.v4.new_code_cell("import time\n\nprint(time.process_time())"))
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="dynbn-notebook-", ignore_cleanup_errors=True) as folder:
        work = Path(folder, "work")
        work.mkdir()
        # The user's start-up files have no say, and sockets in a folder of one's own need no encryption.
        environment = {**os.environ, "IPYTHONDIR": folder, "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
        kernel = {"transport": "ipc" if os.name == "posix" else "tcp", "connection_file": str(Path(folder, "kernel"))}
        client = NotebookClient(
            notebook,
            config=Config(KernelManager=kernel),
            kernel_name=KERNEL["name"],
            timeout=CELL_LIMIT,
            record_timing=False,
            resources={"metadata": {"path": str(work)}},
        )
        client.execute(env=environment)
    took = Took(time.perf_counter() - began, float(notebook.cells.pop().outputs[0].text))
    if not short:  # which warn of too few images, with the path of the cell
        _check_outputs(notebook, folder)
    return cleaned(notebook), took


def texts_of(notebook: NotebookNode) -> list[str]:
    """All that the outputs say in words."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    said = [output.text for output in outputs if output.output_type == "stream"]
    shown = [output.data for output in outputs if output.output_type in ("display_data", "execute_result")]
    return said + [str(data[kind]) for data in shown for kind in data if kind != "image/png"]


def _check_outputs(notebook: NotebookNode, folder: str) -> None:
    paths = [
        re.escape(text) for text in (folder, os.path.realpath(folder), str(Path.home()), "ipykernel_") if text > "/"
    ]
    host = [rf"\b{re.escape(platform.node())}\b"] if len(platform.node()) > 4 else []  # none that is a common word
    for private in (*paths, *host):
        found = [text for text in texts_of(notebook) if re.search(private, text)]
        if found:
            raise ValueError(f"an output holds {private!r}, which is of this machine alone: {found[0][:500]}")


def cleaned(notebook: NotebookNode) -> NotebookNode:
    """The notebook without times, versions, addresses and overwritten lines, its pictures of fewer bytes."""
    marks = notebook.metadata.get("dynbn", {})
    notebook.metadata = NotebookNode(
        kernelspec=KERNEL, language_info={"name": "python"}, dynbn={**marks, "code": code_hash(notebook)}
    )
    for cell in notebook.cells:
        cell.metadata = NotebookNode({"tags": cell.metadata.tags} if cell.metadata.get("tags") else {})
        if cell.cell_type == "code":
            cell.outputs = _joined(cell.outputs)
            for output in cell.outputs:
                _clean_output(output)
    nbformat.validate(notebook)
    return notebook


def _joined(outputs: Sequence[NotebookNode]) -> list[NotebookNode]:
    """Outputs in which what was written to one stream in pieces, which depends on timing, is one."""
    joined: list[NotebookNode] = []
    for output in outputs:
        if joined and output.output_type == "stream" == joined[-1].output_type and output.name == joined[-1].name:
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


def _clean_output(output: NotebookNode) -> None:
    if output.output_type == "stream":
        lines = [line.rsplit("\r", 1)[-1] for line in output.text.replace("\r\n", "\n").split("\n")]
        output.text = ADDRESS.sub("", "\n".join(lines))
    if output.output_type not in ("display_data", "execute_result"):
        return
    output.metadata = NotebookNode()
    for kind, data in output.data.items():
        if kind.startswith("text/"):
            output.data[kind] = ADDRESS.sub("", data)
        elif kind == "image/png":
            output.data[kind] = _smaller_png(data)


def _smaller_png(data: str) -> str:
    """A PNG, in base64, of 256 colours where nobody sees that, and without remarks."""
    with Image.open(io.BytesIO(base64.b64decode(data))) as opened:
        image = opened.convert("RGB")
    few = image.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    changes = ImageChops.difference(image, few.convert("RGB")).getextrema()
    file = io.BytesIO()
    (few if max(most for _, most in changes) <= UNSEEN else image).save(file, format="PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def _chosen(names: Sequence[str]) -> list[Path]:
    paths = notebooks()
    unknown = [name for name in names if not any(path.name.startswith(Path(name).name) for path in paths)]
    if unknown:
        raise SystemExit(f"no notebook begins with {unknown[0]!r}: there are {', '.join(path.name for path in paths)}")
    wanted = tuple(Path(name).name for name in names)
    return [path for path in paths if not wanted or path.name.startswith(wanted)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the chosen notebooks one after another; 1 if one of them failed, whose file is then as it was."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("names", nargs="*", help="files or beginnings of their names, such as 02; by default all")
    parser.add_argument("--short", action="store_true", help="with small sizes, to see that everything runs")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where to write the executed copies")
    options = parser.parse_args(arguments)
    if options.short and options.output is None:
        parser.error("--short needs --output: the files here hold the outputs of the whole form")
    failed = []
    for path in _chosen(options.names):
        try:
            notebook, took = run_notebook(path, short=options.short)
        except (CellExecutionError, CellTimeoutError, DeadKernelError, ValueError) as error:
            print(f"{path.name}: failed\n{error}", file=sys.stderr)
            failed.append(path.name)
            continue
        folder = options.output or FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        written = folder / path.name
        temporary = written.with_suffix(".tmp")
        nbformat.write(notebook, temporary)
        temporary.replace(written)
        size = written.stat().st_size / 1000
        print(f"{path.name}: {took.wall:.0f} s, {took.cpu:.0f} s of CPU time, {size:.0f} kB", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
