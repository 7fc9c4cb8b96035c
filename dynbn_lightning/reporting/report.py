"""The report of one or more results folders: every number, the tables for a text, and a page to read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dynbn_lightning.errors import DataError
from dynbn_lightning.files import check_output_folder, whole_file
from dynbn_lightning.reporting.comparison import Comparison, folder_of, forget
from dynbn_lightning.reporting.latex import latex_document
from dynbn_lightning.reporting.markdown import markdown_document
from dynbn_lightning.reporting.tidy import csv_table


def write_report(
    folders: Sequence[str | Path], output: str | Path, *, baseline: str | Path | None = None
) -> list[Path]:
    """Write what there is to say about some results, each file as a whole or not at all.

    - `results.csv`: every number, a row for each method and cell;
    - `results.md`: the table of methods of each folder, and the errors by corruption;
    - `results.tex`: the errors by corruption, for a paper;
    - `report.html`: all of it with figures, in one file.

    Args:
        folders: each with a `results.json`; an interrupted run is reported as far as it went.
        output: folder to write to, made if missing; one folder's report may stand in that folder.
        baseline: of corruption errors, a name in `metrics.BASELINES` or results whose source is the baseline; by
            default the one that the literature has for the data, if there is one.

    Returns:
        The paths, in the order of the list above.

    Raises:
        DataError: if a folder holds no results or damaged ones, if there is no such baseline, or if several folders'
            report would overwrite that of one of them.
        OutputError: if the folder cannot be written to.
    """
    from dynbn_lightning.reporting.html import write_html

    paths, output = [Path(folder) for folder in folders], Path(output)
    check_output_folder(output)
    if len(paths) > 1 and output.resolve() in {folder_of(path).resolve() for path in paths}:
        raise DataError(
            f"{output} is one of the results that are compared, and their report would overwrite its own: "
            "write to another folder"
        )
    try:
        comparison = Comparison.read(paths, baseline)
        written = []
        for name, document in (("csv", csv_table), ("md", markdown_document), ("tex", latex_document)):
            text = document(comparison)
            with whole_file(output / f"results.{name}") as temporary:
                temporary.write_bytes(text.encode())
            written.append(output / f"results.{name}")
        return [*written, write_html(comparison, output / "report.html")]
    finally:
        forget()
