"""Results on disk and the tables made of them; figures are in `reporting.figures`, which needs matplotlib."""

from dynbn_lightning.reporting.results import (
    SCHEMA_VERSION,
    method_blocks,
    methods_of,
    pack_correct,
    read_results,
    unpack_correct,
    write_results,
)
from dynbn_lightning.reporting.tables import calibration_table, markdown_table, results_table, severity_means

__all__ = [
    "SCHEMA_VERSION",
    "calibration_table",
    "markdown_table",
    "method_blocks",
    "methods_of",
    "pack_correct",
    "read_results",
    "results_table",
    "severity_means",
    "unpack_correct",
    "write_results",
]
