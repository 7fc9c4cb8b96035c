"""Results on disk and the tables made of them."""

from dynbn_lightning.reporting.results import SCHEMA_VERSION, method_blocks, read_results, results_table, write_results

__all__ = ["SCHEMA_VERSION", "method_blocks", "read_results", "results_table", "write_results"]
