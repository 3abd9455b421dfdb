"""Retries with their reasons, from the file of events that ``--log-json`` writes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skyvec.stage.record_table import Key
from skyvec_schemas.errors import ConfigurationError

LONGEST = 240
"""Characters of a reason that are kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Retries:
    """Every retry of one extension that a file of events tells."""

    by_reason: Mapping[str, int]
    """Most frequent first."""
    by_pixel: Mapping[Key, tuple[str, ...]]
    """Reasons of each pixel, in the order of time."""


def read_retries(path: Path, extension: str) -> Retries:
    """Read a file of events; lines that a crash tore are passed over.

    Raises
    ------
    ConfigurationError
        If it cannot be read or holds no event of this extension.
    """
    reasons: Counter[str] = Counter()
    pixels: dict[Key, tuple[str, ...]] = {}
    events = 0
    try:
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                event = _event(line)
                if event is None or event.get("extension") != extension:
                    continue
                events += 1
                if event.get("event") == "retry":
                    why = str(event["why"])[:LONGEST]
                    reasons[why] += 1
                    key = (int(event["order"]), int(event["pixel"]))
                    pixels[key] = (*pixels.get(key, ()), why)
    except (OSError, KeyError, TypeError, ValueError) as problem:
        raise ConfigurationError(
            f"the events cannot be read ({problem})", where=str(path), remedy=_REMEDY
        ) from problem
    if not events:
        raise ConfigurationError(
            f"holds no event of extension {extension!r}", where=str(path), remedy=_REMEDY
        )
    return Retries(by_reason=dict(reasons.most_common()), by_pixel=pixels)


_REMEDY = "Name the file that the run was given as --log-json, or leave out --events"


def _event(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
