"""Results on disk, comparisons of them, and the tables and reports made of these; figures need matplotlib."""

from dynbn_lightning.reporting.comparison import Comparison, Entry, clean_difference, difference
from dynbn_lightning.reporting.records import ImageRecords
from dynbn_lightning.reporting.report import write_report
from dynbn_lightning.reporting.results import (
    SCHEMA_VERSION,
    accuracies,
    block_of,
    errors,
    is_complete,
    method_blocks,
    methods_of,
    read_results,
    write_results,
)
from dynbn_lightning.reporting.results_folder import Piece, ResultsFolder
from dynbn_lightning.reporting.tables import calibration_table, markdown_table, results_table, severity_means

__all__ = [
    "SCHEMA_VERSION",
    "Comparison",
    "Entry",
    "ImageRecords",
    "Piece",
    "ResultsFolder",
    "accuracies",
    "block_of",
    "calibration_table",
    "clean_difference",
    "difference",
    "errors",
    "is_complete",
    "markdown_table",
    "method_blocks",
    "methods_of",
    "read_results",
    "results_table",
    "severity_means",
    "write_report",
    "write_results",
]
