"""Entries of extensions in ``collection.properties``, which several runs may change at a time.

On one machine, and on file systems that know ``flock``, changes wait for each other. Elsewhere, as
on object stores, each looks whether it was overwritten and repeats itself; a change that is lost
all the same is made good by the next run of the same command.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

from hats.catalog import CollectionProperties

from skyvec.extensions.properties_file import replace_properties
from skyvec.releases.hats.remote import first_line, is_remote
from skyvec.stage.output import Output
from skyvec_schemas.errors import ConfigurationError, InfrastructureError

_ATTEMPTS = 8
_PAUSE = 0.2
"""Seconds, at most, before a change is repeated."""


def register(collection: Path, name: str) -> None:
    """List an extension in its collection by ``<name>.properties``; others stay listed.

    Raises
    ------
    ConfigurationError
        If ``collection.properties`` cannot be read.
    InfrastructureError
        If somebody keeps overwriting it.
    """
    _change(collection, lambda listed: {**listed, name: f"{name}.properties"})


def is_registered(collection: Path, name: str) -> bool:
    """Whether a collection lists an extension where it should."""
    return _listed(_read(_fresh(collection))).get(name) == f"{name}.properties"


def _change(collection: Path, changed: Callable[[dict[str, str]], dict[str, str]]) -> None:
    collection = _fresh(collection)
    for _ in range(_ATTEMPTS):
        with Output(collection).alone():
            properties = _read(collection)
            before = _listed(properties)
            after = changed(before)
            if after == before:
                return
            properties.all_extensions = after or None
            replace_properties(
                properties, collection / "collection.properties", comment="HATS Collection"
            )
        # Without a lock another's change may have gone over this one, or will in a moment.
        if is_remote(collection):
            time.sleep(random.uniform(_PAUSE / 2, _PAUSE))  # noqa: S311
    if changed(found := _listed(_read(collection))) != found:
        raise InfrastructureError(
            f"was overwritten {_ATTEMPTS} times by somebody else",
            where=str(collection / "collection.properties"),
            remedy="Run the same command again when nobody else writes to this collection",
        )


def _fresh(collection: Path) -> Path:
    return Output(collection).root


def _listed(properties: CollectionProperties) -> dict[str, str]:
    return dict(properties.all_extensions or {})


def _read(collection: Path) -> CollectionProperties:
    place = collection / "collection.properties"
    try:
        return CollectionProperties.read_from_file(place)
    except (OSError, ValueError, TypeError) as problem:
        raise ConfigurationError(
            f"cannot be read ({first_line(problem)})",
            where=str(place),
            remedy="Mend this file, then run the same command again",
        ) from problem
