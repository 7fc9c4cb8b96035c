"""CIFAR-10-C, CIFAR-100-C and CIFAR-10-C-bar."""

from __future__ import annotations

from typing import Any, ClassVar

from torch.utils.data import Dataset
from torchvision.datasets import CIFAR10, CIFAR100

from ...corruptions import COMMON_CORRUPTIONS, CORRUPTIONS, EXTRA_CORRUPTIONS
from ...corruptions.cells import CIFAR_BAR_CORRUPTIONS
from ...errors import DataError
from .archive import Archive
from .array_layout import ArrayLayout
from .released_set import ReleasedSet

_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class _CIFARSet(ReleasedSet):
    layout_type = ArrayLayout
    nominal_size = 32
    class_count = 10
    own_corruptions = COMMON_CORRUPTIONS
    more_corruptions = EXTRA_CORRUPTIONS

    clean_type: ClassVar[type[CIFAR10]] = CIFAR10

    def _usual_clean(self) -> Dataset[Any] | None:
        """The test set of torchvision, if it lies in `root`, or beside it where `root` is the set's own folder."""
        for root in (self.root, self.root.absolute().parent):
            if (root / self.clean_type.base_folder).is_dir():
                try:
                    found: Dataset[Any] = self.clean_type(str(root), train=False)
                    return found
                except (RuntimeError, OSError) as error:
                    raise DataError(f"{root / self.clean_type.base_folder} can't be read ({error})") from error
        return None


class CIFAR10C(_CIFARSet):
    """CIFAR-10-C (Hendrycks and Dietterich 2019): `CIFAR-10-C/fog.npy` and so on, and `labels.npy`.

    Any number of images N: arrays hold 5 N, those at severity 1 first. Without `clean=` the clean images are those of
    torchvision's CIFAR-10 test set, if it lies in `root` too. For arguments and errors see `ReleasedSet`.
    """

    title = "CIFAR-10-C"
    folders = ("CIFAR-10-C",)
    known_classes = _CLASSES
    archives = (
        Archive(
            "https://zenodo.org/records/2535967/files/CIFAR-10-C.tar",
            "56bf5dcef84df0e2308c6dcbcbbd8499",
            CORRUPTIONS,
            "CIFAR-10-C.tar",
        ),
    )


class CIFAR100C(_CIFARSet):
    """CIFAR-100-C (Hendrycks and Dietterich 2019), as `CIFAR10C`, in the folder `CIFAR-100-C`."""

    title = "CIFAR-100-C"
    folders = ("CIFAR-100-C",)
    class_count = 100
    clean_type = CIFAR100
    archives = (
        Archive(
            "https://zenodo.org/records/3555552/files/CIFAR-100-C.tar",
            "11f0ed0f1191edbf9fa23466ae6021d3",
            CORRUPTIONS,
            "CIFAR-100-C.tar",
        ),
    )


class CIFAR10CBar(_CIFARSet):
    """CIFAR-10-C-bar (Mintun et al. 2021): other corruptions than CIFAR-10-C's, as `CIFAR10C`, in `CIFAR-10-C-Bar`.

    It was not released as images: `make_cifar10_c_bar.py` of github.com/facebookresearch/augmentation-corruption, in
    `imagenet_c_bar/`, makes it, and `download=True` is refused.
    """

    title = "CIFAR-10-C-bar"
    folders = ("CIFAR-10-C-Bar",)
    own_corruptions = CIFAR_BAR_CORRUPTIONS
    more_corruptions = ()
    known_classes = _CLASSES
    no_archive = (
        "has no official archive: make it with imagenet_c_bar/make_cifar10_c_bar.py of "
        "https://github.com/facebookresearch/augmentation-corruption"
    )
