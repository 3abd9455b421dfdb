"""Which runs of skyvec a folder holds, and which of them is meant where none is named."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from skyvec.releases.hats.remote import is_remote, located
from skyvec.stage.output import RUN_FILE, Output
from skyvec_schemas.errors import ConfigurationError


def found_runs(catalog: str | Path) -> dict[str, Output]:
    """Runs by name that wrote to a folder or under a prefix, or that are this very folder.

    Raises
    ------
    ConfigurationError
        If there is no such folder, or it cannot be listed.
    """
    home = Output(located(catalog)).root
    try:
        if (home / RUN_FILE).is_file():
            return {home.name: Output(home)}
        if not home.is_dir():
            raise FileNotFoundError
        return {each.name: Output(each) for each in home.iterdir() if (each / RUN_FILE).is_file()}
    except OSError as problem:
        raise ConfigurationError(
            "there is no such folder" if not is_remote(home) else f"cannot be listed ({problem})",
            where=str(catalog),
            remedy="Name a HATS collection, or what was given as --out",
        ) from problem


def meant(found: Mapping[str, Output]) -> str | None:
    """The one to take where none is named: the only one, else the only one of vectors."""
    if len(found) == 1:
        return next(iter(found))
    vectors = [name for name, output in found.items() if _product(output) == "embedding"]
    return vectors[0] if len(vectors) == 1 else None


def _product(output: Output) -> str:
    with suppress(OSError, ValueError, TypeError, KeyError):
        made = output.earlier()
        return made.product if made else ""
    return ""
