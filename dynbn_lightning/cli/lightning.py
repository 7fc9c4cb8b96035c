"""`dynbn fit`, `validate`, `test` and `predict`: LightningCLI, with the errors and statuses of the other commands."""

from __future__ import annotations

import os
import sys
import textwrap
from argparse import ArgumentError
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from dynbn_lightning.cli.config_errors import in_one_line
from dynbn_lightning.cli.parser import TRAINER_COMMANDS
from dynbn_lightning.errors import CheckpointError, ConfigError, DynBNError
from dynbn_lightning.fitting import honest_interrupts


def run(arguments: Sequence[str]) -> None:
    """Run one of the four commands.

    Args:
        arguments: the command and its options, as on the command line.

    Raises:
        DynBNError: for options, files and classes that are of no use.
        KeyboardInterrupt: when interrupted.
    """
    # LightningCLI calls jsonargparse by names that it will give up in version 5; nothing that a user can mend.
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    with _importable(arguments):
        try:
            TrainerCLI(arguments)
        except ArgumentError as error:
            raise ConfigError(_said_of(error, arguments)) from error
        except MisconfigurationException as error:
            raise ConfigError(in_one_line(str(error))) from error


class SaveFitConfig(SaveConfigCallback):
    """Keeps what a fit was configured with, as `config.yaml`, in the folder of its logger; a second fit replaces it.

    Other runs keep nothing, nor do fits whose logger has no folder of its own: the current folder stays as it is.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file when a fit begins."""
        if stage == "fit" and isinstance(trainer.logger, (CSVLogger, TensorBoardLogger)):
            super().setup(trainer, pl_module, stage)


class TrainerCLI(LightningCLI):
    """LightningCLI for any LightningModule and any datamodule, by class path.

    Args:
        arguments: the command and its options, as on the command line.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self._cause: Exception | None = None
        described = {name: {"description": text, "exit_on_error": False} for name, text in TRAINER_COMMANDS.items()}
        super().__init__(
            save_config_callback=SaveFitConfig,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"prog": "dynbn", "exit_on_error": False, **described},
            args=list(arguments),
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, without LightningCLI's warning where `main` is called with a list."""
        self.config = parser.parse_args(args)

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand != "fit":
            parser.set_defaults({"trainer.logger": False})  # or it would leave lightning_logs in the current folder
        if subcommand == "predict":
            parser.set_defaults({"return_predictions": False})  # nobody would see them, and they fill the memory
        return parser

    def _parse_ckpt_path(self) -> None:
        # LightningCLI would put the checkpoint's hyperparameters in place of what YAML and command line say of the
        # model, and fails on checkpoints of modules that it hasn't built itself. A checkpoint brings the weights.
        path = self.config[self.config.subcommand].get("ckpt_path")
        if path and not _is_found_by_lightning(str(path)) and not Path(path).exists():
            raise CheckpointError(f"--ckpt_path: there is no checkpoint {str(path)!r}: check the path")

    def _add_instantiators(self) -> None:
        super()._add_instantiators()
        self.parser.add_instantiator(self._build, object, prepend=False)

    def _build(self, class_type: type, *args: Any, **kwargs: Any) -> Any:
        try:
            built = class_type(*args, **kwargs)
        except Exception as error:
            self._cause = error
            raise
        self._cause = None
        return built

    def instantiate_classes(self) -> None:
        """Build trainer, model, data and callbacks; what one of them raises comes out as it was raised."""
        try:
            super().instantiate_classes()
            return
        except (ArgumentError, TypeError, ValueError) as error:
            raised = error if isinstance(error, DynBNError) else self._cause or _cause_of(error)
        raise raised  # out here, without what jsonargparse made of it as its context

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the Trainer.

        Raises:
            ConfigError: for options that it refuses.
        """
        try:
            return super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, TypeError, ValueError) as error:
            raise ConfigError(f"trainer: {in_one_line(str(error))}") from error

    def _run_subcommand(self, subcommand: str) -> None:
        with honest_interrupts(self.trainer):
            try:
                super()._run_subcommand(subcommand)
            except RuntimeError as error:
                if not str(error).startswith("Error(s) in loading state_dict"):
                    raise
                why = textwrap.shorten(in_one_line(str(error)), 500, placeholder=" ...")
                raise CheckpointError(f"--ckpt_path: the checkpoint is not of the configured model: {why}") from error


@contextmanager
def _importable(arguments: Sequence[str]) -> Iterator[None]:
    """Let modules in the current folder be imported, as `python -m` does, and those beside the YAML files."""
    given = [
        following if argument in ("-c", "--config") else argument.removeprefix("--config=")
        for argument, following in zip(arguments, [*arguments[1:], ""], strict=True)
        if argument in ("-c", "--config") or argument.startswith("--config=")
    ]
    folders = [os.getcwd(), *(str(Path(path).absolute().parent) for path in given)]
    before = list(sys.path)
    sys.path[:0] = [folder for folder in dict.fromkeys(folders) if folder not in before]
    try:
        yield
    finally:
        sys.path[:] = before


def _is_found_by_lightning(ckpt_path: str) -> bool:
    return ckpt_path in ("best", "last", "hpc") or ckpt_path.startswith("registry") or "://" in ckpt_path


def _cause_of(error: Exception) -> Exception:
    """What was raised, where jsonargparse tried every type that a value may have and tells of all failures at once."""
    cause = error.__cause__
    if "Does not validate against any" in str(error) and isinstance(cause, Exception):
        return _cause_of(cause)
    return error


def _said_of(error: ArgumentError, arguments: Sequence[str]) -> str:
    if len(arguments) == 1:
        return (
            "nothing says what to run: pass --config FILE.yaml with model, data and trainer, for which examples/ and "
            f"docs/command_line.md have models; `dynbn {arguments[0]} --help` lists the options"
        )
    return in_one_line(str(error))
