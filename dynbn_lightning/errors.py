"""The errors this package raises: each names what was wrong, what was expected and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class DynBNError(Exception):
    """Base of every error that this package raises on purpose."""


class CorruptionError(DynBNError, ValueError):
    """An unknown corruption, severity, cell or preset."""


class ImageError(DynBNError, ValueError):
    """Images of a wrong rank, range, dtype or size, or with NaN."""


class DataError(DynBNError, ValueError):
    """A data source that is missing, empty or not what it was said to be."""


class UnreadableImageError(DataError):
    """An image whose file is broken or missing; what may be left out with `on_error="skip"`."""


class CheckpointError(DynBNError, ValueError):
    """A checkpoint that is missing, unreadable or of another model."""


class UnsupportedModelError(DynBNError, TypeError):
    """A model without BatchNorm layers, or with layers that cannot be routed."""


class BankError(DynBNError, ValueError):
    """A bank that is damaged, incomplete or of another model."""


class DetectorError(DynBNError, ValueError):
    """A detector that does not fit the bank or the images."""


class RoutingError(DynBNError, RuntimeError):
    """Routing asked for where it cannot be done: no assignment, a wrong batch size, a patched model."""


class MethodError(DynBNError, ValueError):
    """A test-time method whose settings contradict each other, or that lacks what it needs to run."""


class ReportError(DynBNError, RuntimeError):
    """A report that cannot be made of what there is to see."""


class RankError(DynBNError, RuntimeError):
    """Another process of the run has failed, so that this one cannot go on."""


class ConfigError(DynBNError, ValueError):
    """A YAML file or command line that does not say what to run, or says it wrongly."""


class OutputError(DynBNError, OSError):
    """A folder or file that cannot be written."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A phrase that suggests the nearest of the known names, or lists them all when none is near."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"


def first_few(names: Sequence[str], count: int = 5) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
