"""The `dynbn` command."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from rich.console import Console

from dynbn_lightning.cli.parser import TRAINER_COMMANDS, build_parser
from dynbn_lightning.errors import DynBNError
from dynbn_lightning.files import check_output_folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `dynbn` with command-line arguments; returns its status: 2 for input of no use, 130 when interrupted."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments and arguments[0] in TRAINER_COMMANDS:
        return _run_by_lightning(arguments)
    options = build_parser().parse_args(arguments)

    def work() -> None:
        if options.output is not None:
            check_output_folder(options.output)
        options.run(options, Console())

    kept = getattr(options, "interrupted", f"what was not finished is not in {options.output}")
    return _status_of(work, options.command, kept)


def _run_by_lightning(arguments: list[str]) -> int:
    def work() -> None:
        # Imported when a command runs: Lightning takes seconds, and --help should answer at once.
        from dynbn_lightning.cli.lightning import run

        run(arguments)

    return _status_of(work, arguments[0], "what loggers and callbacks had written is kept")


def _status_of(work: Callable[[], None], command: str, kept: str) -> int:
    errors = Console(stderr=True, style="red", markup=False, soft_wrap=True)
    try:
        work()
    except DynBNError as error:
        errors.print(f"dynbn {command}: {error}")
        return 2
    except KeyboardInterrupt:
        errors.print(f"dynbn {command}: interrupted; {kept}")
        return 130
    return 0
