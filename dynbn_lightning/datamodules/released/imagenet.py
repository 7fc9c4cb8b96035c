"""ImageNet-C and the sets in its layout: Tiny-ImageNet-C, ImageNet-3DCC and ImageNet-C-bar."""

from __future__ import annotations

from ...corruptions import COMMON_CORRUPTIONS, EXTRA_CORRUPTIONS
from ...corruptions.cells import IMAGENET_BAR_CORRUPTIONS, THREE_D_CORRUPTIONS
from .archive import Archive
from .folder_layout import FolderLayout
from .imagenet_layout import ImageNetLayout
from .released_set import ReleasedSet


class ImageNetC(ReleasedSet):
    """ImageNet-C (Hendrycks and Dietterich 2019): `ImageNet-C/fog/3/CLASS/NAME.JPEG`, 224 px.

    Its images are cropped already: a model's usual resize and crop would change the benchmark. `download=True` fetches
    only those of the five archives (noise, blur, weather, digital, extra) that the corruptions need.
    The clean images are the 50,000 of ImageNet's validation set, `clean=` a folder `CLASS/NAME.JPEG` of them. Labels
    are those of the 1,000 classes even where only some of their folders are there. For arguments and errors see
    `ReleasedSet`.
    """

    layout_type = ImageNetLayout
    title = "ImageNet-C"
    folders = ("ImageNet-C",)
    nominal_size = 224
    own_corruptions = COMMON_CORRUPTIONS
    more_corruptions = EXTRA_CORRUPTIONS
    archives = tuple(
        Archive(f"https://zenodo.org/records/2235448/files/{part}.tar", md5, names, f"ImageNet-C.{part}.tar")
        for part, md5, names in (
            ("noise", "e80562d7f6c3f8834afb1ecf27252745", COMMON_CORRUPTIONS[:3]),
            ("blur", "2d8e81fdd8e07fef67b9334fa635e45c", COMMON_CORRUPTIONS[3:7]),
            ("weather", "33ffea4db4d93fe4a428c40a6ce0c25d", COMMON_CORRUPTIONS[7:11]),
            ("digital", "89157860d7b10d5797849337ca2e5c03", COMMON_CORRUPTIONS[11:]),
            ("extra", "d492dfba5fc162d8ec2c3cd8ee672984", EXTRA_CORRUPTIONS),
        )
    )


class TinyImageNetC(ReleasedSet):
    """Tiny-ImageNet-C (Hendrycks and Dietterich 2019): `Tiny-ImageNet-C/fog/3/CLASS/NAME.JPEG`, 64 px.

    The clean images are those of Tiny ImageNet's validation set, in class folders. See `ReleasedSet`.
    """

    layout_type = FolderLayout
    title = "Tiny-ImageNet-C"
    folders = ("Tiny-ImageNet-C",)
    nominal_size = 64
    own_corruptions = COMMON_CORRUPTIONS
    more_corruptions = EXTRA_CORRUPTIONS
    archives = (
        Archive(
            "https://zenodo.org/records/8206060/files/Tiny-ImageNet-C.tar",
            "f9c9a9dbdc11469f0b850190f7ad8be1",
            COMMON_CORRUPTIONS,
            "Tiny-ImageNet-C.tar",
        ),
        Archive(
            "https://zenodo.org/records/8206060/files/Tiny-ImageNet-C-extra.tar",
            "0db0588d243cf403ef93449ec52b70eb",
            EXTRA_CORRUPTIONS,
            "Tiny-ImageNet-C-extra.tar",
        ),
    )


class ImageNet3DCC(ReleasedSet):
    """ImageNet-3DCC (Kar et al. 2022): corruptions that know the scene's depth, `ImageNet-3DCC/fog_3d/3/CLASS/NAME`.

    No checksum is published: a download is taken for whole if it unpacks whole, and has five severities with classes.
    See `ReleasedSet` and `ImageNetC`.
    """

    layout_type = ImageNetLayout
    title = "ImageNet-3DCC"
    folders = ("ImageNet-3DCC", "imagenet_3dcc")
    nominal_size = 224
    own_corruptions = THREE_D_CORRUPTIONS
    archives = tuple(
        Archive(
            f"https://datasets.epfl.ch/3dcc/imagenet_3dcc/{name}.tar.gz", None, (name,), f"ImageNet-3DCC.{name}.tar.gz"
        )
        for name in THREE_D_CORRUPTIONS
    )


class ImageNetCBar(ReleasedSet):
    """ImageNet-C-bar (Mintun et al. 2021): corruptions unlike ImageNet-C's, `ImageNet-C-bar/sparkles/3/CLASS/NAME`.

    Also in `cbar_download`, which the archive unpacks to. No checksum is published, as for `ImageNet3DCC`.
    """

    layout_type = ImageNetLayout
    title = "ImageNet-C-bar"
    folders = ("ImageNet-C-bar", "cbar_download")
    nominal_size = 224
    own_corruptions = IMAGENET_BAR_CORRUPTIONS
    archives = (
        Archive(
            "https://dl.fbaipublicfiles.com/inc_bar/imagenet_c_bar.tar.gz",
            None,
            IMAGENET_BAR_CORRUPTIONS,
            "imagenet_c_bar.tar.gz",
        ),
    )
