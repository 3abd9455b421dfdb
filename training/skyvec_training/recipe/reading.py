"""Dataclasses from TOML, and digests of them."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from skyvec_schemas.errors import ConfigurationError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Run = TypeVar("Run")


def read(kind: type[Run], path: Path) -> Run:
    """Read a dataclass from a TOML file; every unknown, missing or mistyped key is in one error."""
    try:
        raw = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(
            str(error),
            where=str(path),
            remedy=f"Give a recipe such as {Path(__file__).parents[1] / 'recipes/skyvec_tiny.toml'}",
        ) from error
    problems: list[str] = []
    run = _build(kind, raw, "", problems)
    if problems:
        raise ConfigurationError(
            "; ".join(problems), where=str(path), remedy="Correct these keys of the recipe"
        )
    return cast("Run", run)


def rows_to_train(rows: int, held_out: int, *, where: str) -> int:
    """Rows that are not held out; none at all is an error."""
    if rows <= held_out:
        raise ConfigurationError(
            f"held_out ({held_out}) leaves none of {rows} objects",
            where=where,
            remedy="Lower held_out in the recipe, or train on more objects",
        )
    return rows - held_out


def digest_of_run(run: DataclassInstance) -> str:
    """SHA-256 of a run's settings; equal digests make checkpoints interchangeable."""
    return hashlib.sha256(json.dumps(asdict(run), sort_keys=True).encode()).hexdigest()


def _build(kind: type[Any], raw: Mapping[str, Any], at: str, problems: list[str]) -> object:
    hints = get_type_hints(kind)
    known = {f.name for f in fields(kind)}
    problems += [f"unknown key {at}{key}" for key in sorted(raw.keys() - known)]
    before = len(problems)
    chosen = {
        key: _convert(hints[key], raw[key], f"{at}{key}", problems) for key in known & raw.keys()
    }
    if len(problems) > before:
        return None
    try:
        return kind(**chosen)
    except (TypeError, ValueError) as error:
        problems.append(f"{at.rstrip('.') or 'recipe'}: {error}")
        return None


def _convert(  # a type hint has no type of its own
    hint: Any,  # noqa: ANN401
    value: object,
    at: str,
    problems: list[str],
) -> object:
    if is_dataclass(hint) and isinstance(hint, type) and isinstance(value, Mapping):
        return _build(hint, value, f"{at}.", problems)
    origin, parts = get_origin(hint), get_args(hint)
    if origin is tuple and isinstance(value, list):
        return tuple(_convert(parts[0], item, at, problems) for item in value)
    if origin is Mapping and isinstance(value, Mapping):
        return {k: _convert(parts[1], v, f"{at}.{k}", problems) for k, v in value.items()}
    if hint is float and type(value) is int:
        return float(value)
    if (origin is Literal and value in parts) or type(value) is hint:
        return value
    problems.append(f"{at}: {value!r} is not {getattr(hint, '__name__', hint)}")
    return None
