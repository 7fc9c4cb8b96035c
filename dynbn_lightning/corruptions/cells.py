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
"""The 19 that can be generated."""

THREE_D_CORRUPTIONS: tuple[str, ...] = (
    "near_focus",
    "far_focus",
    "fog_3d",
    "flash",
    "color_quant",
    "low_light",
    "xy_motion_blur",
    "z_motion_blur",
    "iso_noise",
    "bit_error",
    "h265_abr",
    "h265_crf",
)
"""Those of ImageNet-3DCC (Kar et al. 2022, "3D Common Corruptions and Data Augmentation")."""

IMAGENET_BAR_CORRUPTIONS: tuple[str, ...] = (
    "blue_noise_sample",
    "brownish_noise",
    "caustic_refraction",
    "checkerboard_cutout",
    "cocentric_sine_waves",
    "inverse_sparkles",
    "perlin_noise",
    "plasma_noise",
    "single_frequency_greyscale",
    "sparkles",
)
"""Those of ImageNet-C-bar (Mintun et al. 2021, "On Interaction Between Augmentations and Corruptions")."""

CIFAR_BAR_CORRUPTIONS: tuple[str, ...] = (
    "blue_noise_sample",
    "brownish_noise",
    "checkerboard_cutout",
    "inverse_sparkles",
    "pinch_and_twirl",
    "ripple",
    "circular_motion_blur",
    "lines",
    "sparkles",
    "transverse_chromatic_abberation",
)
"""Those of CIFAR-10-C-bar, spelt as released."""

BAR_CORRUPTIONS: tuple[str, ...] = tuple(dict.fromkeys(IMAGENET_BAR_CORRUPTIONS + CIFAR_BAR_CORRUPTIONS))
RELEASED_CORRUPTIONS: tuple[str, ...] = THREE_D_CORRUPTIONS + BAR_CORRUPTIONS
"""The 27 that exist in released sets only: their images can be read, not made."""

ALL_CORRUPTIONS: tuple[str, ...] = CORRUPTIONS + RELEASED_CORRUPTIONS
"""All 46; new ones come at the end, for the number of a cell in records is its place here."""

SEVERITIES: tuple[int, ...] = (1, 2, 3, 4, 5)
CLEAN = "clean"


def check_corruption(name: str) -> str:
    """Return `name` if it is one of the 19 corruptions that can be generated, else raise `CorruptionError`."""
    if name in RELEASED_CORRUPTIONS:
        raise CorruptionError(
            f"{name!r} exists only in released sets and can't be generated: read such a set with one of the readers in "
            f"dynbn_lightning.datamodules; these can be generated: {', '.join(CORRUPTIONS)}"
        )
    if name not in CORRUPTIONS:
        raise CorruptionError(f"unknown corruption {name!r}: {did_you_mean(str(name), CORRUPTIONS)}")
    return name


def check_corruption_name(name: str) -> str:
    """Return `name` if it is one of all 46 corruptions, else raise `CorruptionError` with the nearest name."""
    if name not in ALL_CORRUPTIONS:
        raise CorruptionError(f"unknown corruption {name!r}: {did_you_mean(str(name), ALL_CORRUPTIONS)}")
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
        check_corruption_name(self.corruption)
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
        check_corruption_name(corruption)
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
        """A number that is this cell's for ever, whatever cells a run chooses: 0 for clean, else 1 to 230."""
        return 0 if self.is_clean else 1 + ALL_CORRUPTIONS.index(self.corruption) * len(SEVERITIES) + self.severity - 1

    @classmethod
    def from_code(cls, code: int) -> Cell:
        """The cell whose `code` this is."""
        if code == 0:
            return cls.clean()
        corruption, severity = divmod(code - 1, len(SEVERITIES))
        return cls(ALL_CORRUPTIONS[corruption], severity + 1)


def cells_of(corruptions: Iterable[str], severities: Sequence[int]) -> list[Cell]:
    """Every corruption at every severity, corruption by corruption; clean is not among them."""
    return [Cell(corruption, severity) for corruption in corruptions for severity in severities]
