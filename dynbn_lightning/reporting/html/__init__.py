"""The report as one HTML file."""

from dynbn_lightning.reporting.html.page import write_html

__all__ = ["write_html"]
