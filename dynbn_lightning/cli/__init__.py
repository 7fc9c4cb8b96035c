"""The `dynbn` command."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from dynbn_lightning.cli.parser import build_parser
from dynbn_lightning.errors import DynBNError
from dynbn_lightning.files import check_output_folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `dynbn` with command-line arguments; returns its status: 2 for input of no use, 130 when interrupted."""
    options = build_parser().parse_args(arguments)
    errors = Console(stderr=True, style="red", markup=False, soft_wrap=True)
    try:
        if options.output is not None:
            check_output_folder(options.output)
        options.run(options, Console())
    except DynBNError as error:
        errors.print(f"dynbn {options.command}: {error}")
        return 2
    except KeyboardInterrupt:
        kept = getattr(options, "interrupted", f"what was not finished is not in {options.output}")
        errors.print(f"dynbn {options.command}: interrupted; {kept}")
        return 130
    return 0
