"""Results on disk and the tables made of them; figures are in `reporting.figures`, which needs matplotlib."""

from dynbn_lightning.reporting.results import (
    SCHEMA_VERSION,
    calibration_table,
    method_blocks,
    pack_correct,
    read_results,
    results_table,
    unpack_correct,
    write_results,
)

__all__ = [
    "SCHEMA_VERSION",
    "calibration_table",
    "method_blocks",
    "pack_correct",
    "read_results",
    "results_table",
    "unpack_correct",
    "write_results",
]
