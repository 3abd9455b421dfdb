"""How the weights of skyvec come about; ``python -m skyvec_training <command> --help`` says more."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from typing import cast

import torch

from skyvec_schemas.errors import SkyvecError
from skyvec_training.commands.command import CONSOLE, Command

COMMANDS = ("image_codec", "scalars", "transformer", "export")


def main(argv: list[str] | None = None) -> int:
    """Run one command; its exit code is that of `skyvec_schemas.errors`."""
    arguments = _parser().parse_args(argv)
    torch.set_num_threads(getattr(arguments, "threads", torch.get_num_threads()))
    try:
        outcome = arguments.run(arguments)
    except SkyvecError as error:
        CONSOLE.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        return error.exit_code
    return 0 if outcome is None or outcome.finished else 20


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m skyvec_training", description=__doc__)
    chosen = parser.add_subparsers(dest="command", required=True)
    for name in COMMANDS:
        command = cast("Command", import_module(f"skyvec_training.commands.{name}"))
        words = chosen.add_parser(command.NAME, help=command.HELP, description=command.__doc__)
        command.add_arguments(words)
        words.set_defaults(run=command.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
