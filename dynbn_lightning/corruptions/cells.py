"""The names of corruptions, cells and rows: `clean`, `fog`, `fog/3`, everywhere the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dynbn_lightning.errors import CorruptionError, did_you_mean

COMMON_CORRUPTIONS: tuple[str, ...] = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
"""The 15 corruptions of the benchmark, in the literature's order."""

EXTRA_CORRUPTIONS: tuple[str, ...] = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
"""The four held-out corruptions, never used to tune what is reported on the 15."""

CORRUPTIONS: tuple[str, ...] = COMMON_CORRUPTIONS + EXTRA_CORRUPTIONS
SEVERITIES: tuple[int, ...] = (1, 2, 3, 4, 5)
CLEAN = "clean"


def check_corruption(name: str) -> str:
    """Return `name` if it is one of the 19 corruptions, else raise `CorruptionError` with the nearest name."""
    if name not in CORRUPTIONS:
        raise CorruptionError(f"unknown corruption {name!r}: {did_you_mean(str(name), CORRUPTIONS)}")
    return name


def check_severity(severity: int) -> int:
    """Return `severity` if it is a whole number from 1 to 5, else raise `CorruptionError`."""
    if isinstance(severity, bool) or not isinstance(severity, int) or severity not in SEVERITIES:
        raise CorruptionError(
            f"severity {severity!r} is not one of 1, 2, 3, 4, 5 (clean images have none: leave them as they are)"
        )
    return severity


@dataclass(frozen=True)
class Cell:
    """One corruption at one severity; `Cell("fog", 3).name` is `"fog/3"`. The clean cell is `Cell.clean()`."""

    corruption: str
    severity: int

    def __post_init__(self) -> None:
        if self.corruption == CLEAN:
            if self.severity != 0:
                raise CorruptionError(f"clean images have severity 0, not {self.severity!r}")
            return
        check_corruption(self.corruption)
        check_severity(self.severity)

    @classmethod
    def clean(cls) -> Cell:
        """The cell of images that nothing was done to."""
        return cls(CLEAN, 0)

    @classmethod
    def parse(cls, name: str) -> Cell:
        """The cell that `name` ("clean" or "fog/3") names; `CorruptionError` if there is none."""
        if name == CLEAN:
            return cls.clean()
        corruption, slash, severity = str(name).partition("/")
        check_corruption(corruption)
        if not slash or not severity.isdecimal():
            raise CorruptionError(f"{name!r} is not a cell: expected 'clean' or 'corruption/severity', as in 'fog/3'")
        return cls(corruption, int(severity))

    @property
    def is_clean(self) -> bool:
        """Whether nothing is done to the images of this cell."""
        return self.corruption == CLEAN

    @property
    def name(self) -> str:
        """`clean` or `corruption/severity`."""
        return CLEAN if self.is_clean else f"{self.corruption}/{self.severity}"

    @property
    def code(self) -> int:
        """A number that is this cell's for ever, whatever cells a run chooses: 0 for clean, else 1 to 95."""
        return 0 if self.is_clean else 1 + CORRUPTIONS.index(self.corruption) * len(SEVERITIES) + self.severity - 1

    @classmethod
    def from_code(cls, code: int) -> Cell:
        """The cell whose `code` this is."""
        if code == 0:
            return cls.clean()
        corruption, severity = divmod(code - 1, len(SEVERITIES))
        return cls(CORRUPTIONS[corruption], severity + 1)


def cells_of(corruptions: Iterable[str], severities: Sequence[int]) -> list[Cell]:
    """Every corruption at every severity, corruption by corruption; clean is not among them."""
    return [Cell(corruption, severity) for corruption in corruptions for severity in severities]
