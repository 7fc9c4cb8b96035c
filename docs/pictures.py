"""The pictures of the README and of the concept pages, drawn from what `dynbn demo` leaves.

    pip install -e ".[docs]"
    dynbn demo && python docs/pictures.py --demo dynbn-demo

Everything in them is computed: by the demo's classifier, detector and bank on its test images, and read from its
results. Which images, cells, layers and channels are shown is said by the constants and rules here, none of which
looks at a result.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from drawn.bank import bank
from drawn.demo_folder import Demo
from drawn.detection import detection
from drawn.overview import overview
from drawn.routing import routing
from drawn.streams import streams

from dynbn_lightning.errors import DynBNError
from dynbn_lightning.files import check_output_folder, whole_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 140
PICTURES: dict[str, Callable[[Demo], Figure]] = {
    "overview.png": overview,
    "concept_routing.png": routing,
    "concept_bank.png": bank,
    "concept_detection.png": detection,
    "concept_streams.png": streams,
}


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """What the command line says, or `given` in its place."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("dynbn-demo"), help="the folder that `dynbn demo` wrote")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "images", help="folder of the pictures")
    parser.add_argument("--only", nargs="+", choices=list(PICTURES), default=list(PICTURES), help="which of them")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    """Draw the pictures."""
    options = arguments(given)
    try:
        demo = Demo.read(options.demo)
        check_output_folder(options.output)
    except DynBNError as error:
        print(error, file=sys.stderr)
        return 2
    for name in options.only:
        with torch.inference_mode():
            figure = PICTURES[name](demo)
        with whole_file(file := options.output / name) as temporary:
            figure.savefig(temporary, dpi=DPI, format="png", pil_kwargs={"optimize": True})
        print(f"{file}: {file.stat().st_size / 1024:.0f} KiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
