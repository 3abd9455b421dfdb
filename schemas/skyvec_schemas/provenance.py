"""What made a product, in one record: Parquet footer, HATS properties and manifest carry the same.

Two runs with equal fingerprints write equal bytes' worth of numbers; anything that changes a number
is in the fingerprint, and nothing else is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache

LAYOUT = 2
"""Counts changes of the columns that an extension has; two layouts never share an extension."""
FOOTER_KEY = "skyvec"
"""Key of the provenance record in Parquet schema metadata."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """Model, code and choices behind the columns of one extension."""

    product: str
    """``embedding`` or ``tokens``."""
    model: str
    """Name of the model, for people."""
    model_digest: str
    """SHA-256 of the model's tensors and sizes: its identity."""
    precision: str
    """Arithmetic of the encoder, e.g. ``float32``."""
    device: str
    """Kind of device, e.g. ``cpu``; bits are promised per kind."""
    numerics_version: int
    """Counts changes of our code that change numbers."""
    vector_type: str
    """Type of the stored values."""
    survey: str
    inputs: tuple[str, ...]
    """Columns read, as ``column=token_key``."""
    sources: tuple[str, ...] = ()
    """What was joined to the catalog, and how; one line for each source."""
    labels: tuple[str, ...] = ()
    """Token keys that are stored for training to predict, never model inputs."""
    codecs: tuple[str, ...] = ()
    """Codecs of the inputs and labels, as ``token_key=digest``."""
    layout: int = 1
    """Which columns there are; see `LAYOUT`."""
    skyvec_version: str
    """For people; not part of the fingerprint."""

    def fingerprint(self) -> str:
        """SHA-256 over everything that changes a number or a column."""
        return _fingerprint(self)

    def same_numbers(self, other: Provenance) -> bool:
        """Whether equal tokens give equal vectors, bit for bit, in both."""
        names = (
            "product", "model_digest", "precision", "device", "numerics_version", "vector_type",
            "layout",
        )  # fmt: skip
        return all(getattr(self, name) == getattr(other, name) for name in names)

    def differences(self, other: Provenance) -> list[str]:
        """What the other record has that this one has not, of all that moves a number."""
        ours, theirs = asdict(self), asdict(other)
        names = [
            n for n in ours if ours[n] != theirs[n] and n in _decisive(self) | _decisive(other)
        ]
        return [f"{name.replace('_', ' ')} ({_change(ours[name], theirs[name])})" for name in names]

    def to_json(self) -> str:
        """One line of JSON with the fingerprint."""
        return _json(self)

    @classmethod
    def from_json(cls, text: str | bytes) -> Provenance:
        """Read `to_json`."""
        facts = json.loads(text)
        facts.pop("fingerprint", None)
        facts["inputs"] = tuple(facts["inputs"])
        for name in ("sources", "codecs", "labels"):
            facts[name] = tuple(facts.get(name, ()))
        return cls(**facts)

    def properties(self) -> dict[str, str]:
        """Extra keys for ``hats.properties``."""
        return {
            "skyvec_fingerprint": self.fingerprint(),
            "skyvec_model": self.model,
            "skyvec_model_digest": self.model_digest,
            "skyvec_precision": self.precision,
            "skyvec_version": self.skyvec_version,
        }


@lru_cache(maxsize=16)
def _fingerprint(made: Provenance) -> str:
    # Asked for with every pixel.
    decisive = _decisive(made)
    return _digest({name: fact for name, fact in asdict(made).items() if name in decisive})


@lru_cache(maxsize=16)
def _json(made: Provenance) -> str:
    # Written with every pixel.
    return json.dumps({**asdict(made), "fingerprint": made.fingerprint()}, sort_keys=True)


def _decisive(made: Provenance) -> set[str]:
    """Facts of the fingerprint; those that came later only where they say something."""
    names = set(asdict(made)) - {"skyvec_version", "model", "codecs"}
    if made.product == "tokens" and made.codecs:
        # Tokens are the same under another transformer: what it is does not matter to them.
        names = names - {"model_digest"} | {"codecs"}
    return names - {name for name in ("sources", "labels") if not getattr(made, name)}


def pixel_fingerprint(run: str, source: Mapping[str, object]) -> str:
    """Fingerprint of one pixel's output: that of the run, and the identity of its input."""
    return _digest({"run": run, "source": dict(source)})


def _change(ours: object, theirs: object) -> str:
    """What another run has instead, of a list only what differs."""
    if not isinstance(ours, tuple) or not isinstance(theirs, tuple):
        return f"{_brief(ours, theirs)}, this run has {_brief(theirs, ours)}"
    parts = (("lacks", set(ours) - set(theirs)), ("adds", set(theirs) - set(ours)))
    said = [f"{what} {_listed(sorted(map(str, several)))}" for what, several in parts if several]
    return f"this run {' and '.join(said) or 'has another order'}"


def _listed(several: list[str], most: int = 3) -> str:
    rest = len(several) - most
    return ", ".join([*several[:most], *([f"{rest} more"] if rest > 0 else [])])


def _brief(value: object, other: object) -> str:
    """The value, if long from the word on in which it differs from the other."""
    text, theirs = str(value), str(other)
    if len(text) <= 40:
        return text or "none"
    pairs = enumerate(zip(text, theirs, strict=False))
    same = next((place for place, (a, b) in pairs if a != b), min(len(text), len(theirs)))
    start = text.rfind(" ", 0, same) + 1
    shown = text[start : start + 40]
    return f"{'...' if start else ''}{shown}{'...' if start + 40 < len(text) else ''}"


def _digest(facts: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
