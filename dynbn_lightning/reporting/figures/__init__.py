"""Figures as matplotlib objects, made from plain data; `dynbn_lightning.figures` gathers that data and writes files."""

from dynbn_lightning.reporting.figures.confusion import confusion_figure
from dynbn_lightning.reporting.figures.cost import cost_figure
from dynbn_lightning.reporting.figures.reliability import reliability_figure
from dynbn_lightning.reporting.figures.severity import severity_figure
from dynbn_lightning.reporting.figures.spectra import spectra_figure

__all__ = ["confusion_figure", "cost_figure", "reliability_figure", "severity_figure", "spectra_figure"]
