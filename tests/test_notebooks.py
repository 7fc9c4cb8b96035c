"""The notebooks: their short forms run from a clean kernel, and the files hold the outputs of the code in them."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
NAMES = (
    "01_quickstart.ipynb",
    "02_inside_the_detector.ipynb",
    "03_compare_methods_on_streams.ipynb",
    "04_your_own_model.ipynb",
)
MOST_BYTES = 400_000
PATHS = re.compile(r"(?<![\w.~])/(?:home|root|tmp|work|Users|private|var|opt|usr|mnt)/|\b[A-Z]:\\")


@pytest.fixture(scope="module")
def run() -> ModuleType:
    """`notebooks/run.py`, which is a program and in no package."""
    for needed in ("nbclient", "ipykernel"):
        pytest.importorskip(needed, reason=f"notebooks are executed by {needed}, which is not installed")
    spec = importlib.util.spec_from_file_location("run_notebooks", NOTEBOOKS / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses and pickles look for it
    spec.loader.exec_module(module)
    return module


def read(name: str) -> Any:
    nbformat = pytest.importorskip("nbformat", reason="notebooks are read by nbformat, which is not installed")
    return nbformat.read(NOTEBOOKS / name, as_version=4)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_these_are_the_notebooks(run: ModuleType) -> None:
    assert tuple(path.name for path in run.notebooks()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_short_form(run: ModuleType, name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = {path.name: path.read_bytes() for path in NOTEBOOKS.iterdir() if path.is_file()}
    failed = run.main(["--short", "--output", str(tmp_path), name])
    said = capfd.readouterr()
    assert failed == 0, said.err[-5000:]
    assert re.match(rf"{re.escape(name)}: \d+ s, \d+ s of CPU time, \d+ kB\n", said.out)
    assert {path.name: path.read_bytes() for path in NOTEBOOKS.iterdir() if path.is_file()} == before
    cells = code_cells(run.nbformat.read(tmp_path / name, as_version=4))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_of_the_code_in_the_file(run: ModuleType, name: str) -> None:
    notebook = read(name)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert notebook.metadata.dynbn.code == run.code_hash(notebook), f"python notebooks/run.py {name}"


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_clean(run: ModuleType, name: str) -> None:
    assert (NOTEBOOKS / name).stat().st_size < MOST_BYTES
    notebook = read(name)
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output.text for output in outputs if output.get("name") == "stderr"], "a warning or a log line"
    figures = [output for output in outputs if {"image/png", "image/svg+xml"} & output.get("data", {}).keys()]
    assert len(figures) >= 2
    said = run.texts_of(notebook)
    assert not [text for text in said if PATHS.search(text)]
    assert not [text for text in said if "\r" in text or "\x1b" in text]


@pytest.mark.parametrize("name", NAMES)
def test_says_what_it_is(name: str) -> None:
    prose = "\n".join(cell.source for cell in read(name).cells if cell.cell_type == "markdown")
    assert prose.startswith("# ")
    assert "They are no benchmark" in prose
    assert "\n## What next\n" in prose
    for target in re.findall(r"\]\(([^)#]+)", prose):
        assert (NOTEBOOKS / target).is_file(), target


@pytest.mark.parametrize("name", NAMES)
def test_what_differs_between_runs_is_not_kept(name: str) -> None:
    notebook = read(name)
    assert notebook.metadata.keys() == {"kernelspec", "language_info", "dynbn"}
    assert notebook.metadata.language_info == {"name": "python"}
    assert all(cell.metadata.keys() <= {"tags"} for cell in notebook.cells)
    assert all(not output.get("metadata") for cell in code_cells(notebook) for output in cell.outputs)


def test_short_form_only_changes_what_the_parameters_cell_assigns(run: ModuleType) -> None:
    cells = run.nbformat.v4
    parameters = cells.new_code_cell("EPOCHS = 12\nROWS = ('a', 'b')", metadata={"tags": ["parameters"]})
    notebook = cells.new_notebook(cells=[parameters], metadata={"dynbn": {"short": {"EPOCHS": 1, "ROWS": ["a"]}}})
    names: dict[str, Any] = {}
    exec(run.shortened(notebook).cells[0].source, names)
    assert (names["EPOCHS"], names["ROWS"]) == (1, ("a",))
    notebook.metadata.dynbn.short = {"EPOCH": 1}
    with pytest.raises(ValueError, match=r"must assign some of \['EPOCHS', 'ROWS'\]"):
        run.shortened(notebook)
    notebook.cells = []
    with pytest.raises(ValueError, match="one cell tagged 'parameters'"):
        run.shortened(notebook)


def test_a_failing_cell_is_named_and_its_file_left_alone(
    run: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = run.nbformat.v4
    path = tmp_path / "09_fails.ipynb"
    code = ["print('fine')", "raise RuntimeError('this went wrong')"]
    run.nbformat.write(cells.new_notebook(cells=[cells.new_code_cell(source) for source in code]), path)
    before = path.read_bytes()
    monkeypatch.setattr(run, "FOLDER", tmp_path)
    assert run.main([]) == 1
    said = capsys.readouterr().err
    assert said.startswith("09_fails.ipynb: failed\n")
    assert "RuntimeError" in said
    assert "this went wrong" in said
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_outputs_that_tell_of_the_machine_are_refused(
    run: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = run.nbformat.v4
    notebook = cells.new_notebook(cells=[cells.new_code_cell("from pathlib import Path\n\nprint(Path.cwd())")])
    run.nbformat.write(notebook, tmp_path / "07_tells.ipynb")
    monkeypatch.setattr(run, "FOLDER", tmp_path)
    assert run.main([]) == 1
    assert "of this machine" in capsys.readouterr().err


def test_outputs_are_cleaned(run: ModuleType, tmp_path: Path) -> None:
    cells = run.nbformat.v4
    lines = ["for i in range(3):", "    print(f'{i}/2', end='\\r')", "print('done')", "print(object())", "object()"]
    path = tmp_path / "08_noisy.ipynb"
    run.nbformat.write(cells.new_notebook(cells=[cells.new_code_cell("\n".join(lines))]), path)
    notebook, took = run.run_notebook(path)
    (stream, result) = notebook.cells[0].outputs
    assert stream.text == "done\n<object object>\n"
    assert result.data == {"text/plain": "<object>"}  # as IPython puts it
    assert took.cpu > 0
    assert took.wall > 0
    assert list(tmp_path.iterdir()) == [path]
