"""The layout of ImageNet-C with ImageNet's own classes."""

from __future__ import annotations

import re
from typing import Any

from .folder_layout import FolderLayout


class ImageNetLayout(FolderLayout):
    """As `FolderLayout`; class folders that are all of ImageNet-1k are numbered among its 1,000.

    So a copy that has some of them only has the labels that a model of 1,000 classes knows. Sets that `dynbn corrupt`
    wrote have the classes of the images that it corrupted.
    """

    def usual_classes(self, there: list[str]) -> list[str]:
        """The names of the 1,000 classes; those that are there where some are no classes of ImageNet-1k."""
        if self.written is not None or not all(re.fullmatch(r"n\d{8}", name) for name in there):
            return there
        from timm.data.imagenet_info import ImageNetInfo  # which takes long to import

        info: Any = ImageNetInfo("imagenet-1k")
        known: list[str] = sorted(info.label_names())
        return known if set(there) <= set(known) else there
