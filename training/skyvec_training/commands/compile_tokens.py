"""``compile-tokens NAME=TOKENS ...``: compile token extensions into shards to train on."""

from __future__ import annotations

import argparse
from pathlib import Path

from skyvec_schemas.errors import ConfigurationError
from skyvec_training.commands.command import CONSOLE
from skyvec_training.data.compiling import ROWS_PER_SHARD, compile_shards
from skyvec_training.data.shard_files import ShardRecord
from skyvec_training.data.shards import Shards

NAME = "compile-tokens"
HELP = "compile token extensions into memory-mapped shards"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "sources", nargs="+",
        help="HATS catalogs of tokens, as `skyvec tokenize` writes them; NAME=FOLDER names the "
        "data set in mixture weights (else the folder's name)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="folder of the shards")
    parser.add_argument("--rows-per-shard", type=int, default=ROWS_PER_SHARD)
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--verify", action="store_true", help="compare all digests afterwards")


def run(arguments: argparse.Namespace) -> None:
    """Compile, or go on with a compilation that was stopped."""
    manifest = compile_shards(
        _sources(arguments.sources), arguments.out, observe=_tell,
        rows_per_shard=arguments.rows_per_shard, workers=arguments.workers,
    )  # fmt: skip
    if arguments.verify:
        Shards.open(arguments.out).verify()
    for dataset in manifest.datasets:
        CONSOLE.print(
            f"{dataset.name}: {dataset.rows} objects, {dataset.tokens} tokens; "
            f"{dataset.too_few} objects with fewer than two tokens were left out"
        )


def _tell(record: ShardRecord) -> None:
    CONSOLE.print(f"{record.folder}: {record.rows} objects", highlight=False)


def _sources(words: list[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for word in words:
        name, _, folder = word.rpartition("=")
        name = name or Path(folder).resolve().name
        if name in found:
            raise ConfigurationError(
                f"two data sets are called {name}",
                where=word,
                remedy="Name them: NAME=FOLDER",
            )
        found[name] = Path(folder)
    return found
