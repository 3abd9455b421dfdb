"""How the weights of skyvec come about; ``python -m skyvec_training <command> --help`` says more."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from typing import cast

import torch

from skyvec_schemas.errors import SkyvecError
from skyvec_training.commands.command import CONSOLE, Command

COMMANDS = (
    "train",
    "rehearse",
    "compile_tokens",
    "transformer",
    "image_codec",
    "spectrum_codec",
    "map_codec",
    "scalars",
    "export",
    "evaluate",
    "promote",
    "align",
    "text",
    "pool",
    "lora",
)


def main(argv: list[str] | None = None) -> int:
    """Run one command; its exit code is that of `skyvec_schemas.errors`."""
    arguments = _parser(sys.argv[1:] if argv is None else argv).parse_args(argv)
    torch.set_num_threads(getattr(arguments, "threads", torch.get_num_threads()))
    try:
        outcome = arguments.run(arguments)
    except SkyvecError as error:
        CONSOLE.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        return error.exit_code
    return 0 if outcome is None or outcome.finished else 20


def _parser(words: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m skyvec_training", description=__doc__)
    chosen = parser.add_subparsers(dest="command", required=True)
    asked = words[0].replace("-", "_") if words else ""
    # The others would only be imported to be left alone.
    for name in (asked,) if asked in COMMANDS else COMMANDS:
        command = cast("Command", import_module(f"skyvec_training.commands.{name}"))
        options = chosen.add_parser(command.NAME, help=command.HELP, description=command.__doc__)
        command.add_arguments(options)
        options.set_defaults(run=command.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
