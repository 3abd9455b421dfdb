"""Golden vectors: what a model makes of a few made-up objects, as a proof that a machine computes right.

Two things are kept apart. Observations become tokens, of which a few may lie on the edge between
two codes and fall to the other side on another processor: a share of equal tokens is asked for.
Drawn tokens, the same everywhere, become vectors: their distance is asked for. `TOLERANCES` has
what was measured.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor

from skyvec_core import NUMERICS_VERSION
from skyvec_core.embedder import Model, Precision
from skyvec_core.golden_objects import INPUTS_VERSION, golden_observations, golden_tokens
from skyvec_core.modalities import MODALITIES
from skyvec_core.observations import CutoutCatalogs, Images, Observed, Spectra, pieces, to_device
from skyvec_core.weights import CONFIG_FILE, WEIGHTS_FILE, digest_of, folder_digest

# Shape letters: P observed object, N tokens of one modality, n object, D width of a vector.

__all__ = [
    "GOLDEN_FILE", "TOLERANCES", "Deviation", "GoldenVectors", "Tolerance", "golden_observations",
    "golden_tokens", "part_digests", "write_golden",
]  # fmt: skip

GOLDEN_FILE = "golden.safetensors"
"""Of a model folder; its tensors are not part of the model's digest."""
_FACTS, _VECTORS, _TOKENS = "golden", "vectors", "tokens."
_NOT_VALID = -1


@dataclass(frozen=True, kw_only=True, slots=True)
class Tolerance:
    """How far the numbers of two right machines may lie apart."""

    vectors: float
    """Largest distance of an object's two vectors, over the norm of the expected one."""
    tokens: float
    """Least share of equal tokens of each modality."""


TOLERANCES: Mapping[Precision, Tolerance] = MappingProxyType(
    {
        "float32": Tolerance(vectors=2e-5, tokens=0.98),
        "bfloat16": Tolerance(vectors=2e-2, tokens=0.5),
    }
)
"""Measured with torch 2.13 on an AMD EPYC (Zen 4) held to older instructions by
``ATEN_CPU_CAPABILITY`` and ``ONEDNN_MAX_CPU_ISA``, one thread and two, for skyvec-tiny and for random
weights of the base size: float32 differs by at most 3e-7 and in no token; rounding the linear
layers to TF32 alone makes 1.4e-4. bfloat16 lies 5.5e-3 from float32 and 3.2e-3 from itself; it keeps
97% of the image tokens of skyvec-tiny, 71% under random weights of the base size."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Deviation:
    """How far computed golden vectors lie from the expected ones."""

    vectors: float
    """Largest distance over the norm of the expected vector; infinite if one is not finite."""
    tokens: Mapping[str, float]
    """Share of equal tokens of each modality; 0 for one that only one side has."""
    tolerance: Tolerance
    reasons: tuple[str, ...]
    """What is out of tolerance, in words."""

    @property
    def ok(self) -> bool:
        """Whether both are numbers of one model, computed right."""
        return not self.reasons

    def __str__(self) -> str:
        """One line."""
        if self.reasons:
            return "; ".join(self.reasons)
        lowest = min(self.tokens.values(), default=1.0)
        return f"vectors within {self.vectors:.1e} of their norm, {lowest:.1%} of tokens equal"


@dataclass(frozen=True, kw_only=True)
class GoldenVectors:
    """Tokens and vectors of the golden objects, as one model on one machine makes them."""

    model_digest: str
    precision: Precision
    tokens: Mapping[str, Tensor]
    """Token key -> codes (P, N), int16, of the observed objects; -1 where not valid."""
    vectors: Tensor
    """(n, D) float32, of the drawn tokens."""
    parts: Mapping[str, str] = field(default_factory=dict)
    """File of the model's folder -> digest of what it holds; only kept in a `GOLDEN_FILE`."""
    numerics_version: int = NUMERICS_VERSION
    inputs_version: int = INPUTS_VERSION

    @classmethod
    def of(cls, model: Model, *, threads: int | None = None) -> GoldenVectors:
        """Compute them.

        Parameters
        ----------
        model
            Loaded without ``compat``.
        threads
            Torch threads meanwhile, since their number can move the last bit; as they are by
            default.

        Raises
        ------
        ValueError
            If the model is loaded with ``compat``, which computes other numbers on purpose.
        """
        if model.compat:
            raise ValueError(f"model {model.name} is loaded with compat=True; load it without")
        with _threads(threads):
            return cls(
                model_digest=model.digest,
                precision=model.precision,
                tokens=_tokens(model),
                vectors=model.embed(golden_tokens(model.config)),
            )

    @property
    def bits(self) -> str:
        """SHA-256 of vectors and tokens: equal where two processes compute the same bits."""
        digest = hashlib.sha256(_bytes(self.vectors))
        for key in sorted(self.tokens):
            digest.update(f"{key}|{self.token_digests[key]}|".encode())
        return digest.hexdigest()

    @property
    def token_digests(self) -> dict[str, str]:
        """Token key -> SHA-256 of its codes."""
        return {key: hashlib.sha256(_bytes(ids)).hexdigest() for key, ids in self.tokens.items()}

    @property
    def current(self) -> bool:
        """Whether this version of skyvec computes these numbers of these inputs."""
        return (self.numerics_version, self.inputs_version) == (NUMERICS_VERSION, INPUTS_VERSION)

    @property
    def sound(self) -> bool:
        """Whether the vectors are finite and differ from object to object."""
        return bool(torch.isfinite(self.vectors).all()) and bool(self.vectors.std(0).amax() > 0)

    def compare(self, expected: GoldenVectors, *, tolerance: Tolerance | None = None) -> Deviation:
        """How far these lie from the expected ones.

        Parameters
        ----------
        tolerance
            That of the coarser of the two precisions by default.
        """
        if tolerance is None:
            both = {self.precision, expected.precision}
            tolerance = TOLERANCES["bfloat16" if "bfloat16" in both else "float32"]
        vectors = _distance(self.vectors, expected.vectors)
        tokens = {
            key: _equal_share(self.tokens.get(key), expected.tokens.get(key))
            for key in sorted(self.tokens.keys() | expected.tokens.keys())
        }
        reasons = []
        if self.model_digest != expected.model_digest:
            reasons.append(
                f"the model is {self.model_digest[:12]}, expected is {expected.model_digest[:12]}"
            )
        if not vectors <= tolerance.vectors:
            reasons.append(
                f"vectors differ by {vectors:.1e} of their norm, at most {tolerance.vectors:.0e} "
                "is rounding"
            )
        reasons += [
            f"{share:.1%} of the tokens of {key} are equal, at least {tolerance.tokens:.0%} must be"
            for key, share in tokens.items()
            if share < tolerance.tokens
        ]
        return Deviation(
            vectors=vectors, tokens=tokens, tolerance=tolerance, reasons=tuple(reasons)
        )

    def to_bytes(self) -> bytes:
        """As the content of a safetensors file."""
        facts = {
            "model_digest": self.model_digest,
            "precision": self.precision,
            "numerics_version": self.numerics_version,
            "inputs_version": self.inputs_version,
            "parts": dict(self.parts),
        }
        tensors = {_TOKENS + key: ids.contiguous() for key, ids in self.tokens.items()}
        tensors[_VECTORS] = self.vectors.contiguous()
        # One key, since the format does not promise the order of several.
        return safetensors.save(tensors, metadata={_FACTS: json.dumps(facts, sort_keys=True)})

    @classmethod
    def from_bytes(cls, content: bytes) -> GoldenVectors:
        """Inverse of `to_bytes`.

        Raises
        ------
        ValueError
            If the content is anything else.
        """
        try:
            tensors = safetensors.load(content)
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
            facts = json.loads(header["__metadata__"][_FACTS])
            return cls(
                vectors=tensors.pop(_VECTORS).float(),
                tokens={key.removeprefix(_TOKENS): ids for key, ids in tensors.items()},
                **facts,
            )
        except (SafetensorError, KeyError, TypeError, ValueError) as problem:
            raise ValueError(f"these are no golden vectors ({problem})") from problem

    def save(self, path: Path) -> None:
        """Write one safetensors file, in one step."""
        aside = path.with_name(path.name + ".tmp")
        aside.write_bytes(self.to_bytes())
        aside.replace(path)

    @classmethod
    def load(cls, path: Path) -> GoldenVectors:
        """Read `save`.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If it holds anything else.
        """
        try:
            return cls.from_bytes(path.read_bytes())
        except ValueError as problem:
            raise ValueError(f"{path}: {problem}") from problem


def write_golden(folder: Path) -> GoldenVectors:
    """Compute the golden vectors of a model folder in float32 on the CPU and write `GOLDEN_FILE`.

    Raises
    ------
    ValueError
        If the model gives vectors that are not finite or all the same; nothing is written then.
    """
    model = Model.load(folder)
    golden = GoldenVectors.of(model, threads=1)
    if not golden.sound:
        raise ValueError(f"{folder}: its vectors are not finite, or all the same")
    golden = replace(golden, parts=part_digests(folder, model))
    golden.save(folder / GOLDEN_FILE)
    return golden


def part_digests(folder: Path, model: Model) -> dict[str, str]:
    """File of a model's folder -> digest of its sizes or tensors, by which a changed one is named."""
    sizes = json.dumps(model.config.to_json(), sort_keys=True)
    codecs = {MODALITIES[key].codec: codec for key, codec in model.codecs.items()}
    return {
        CONFIG_FILE: hashlib.sha256(sizes.encode()).hexdigest(),
        WEIGHTS_FILE: folder_digest(folder),
    } | {
        f"codecs/{name}/{WEIGHTS_FILE}": digest_of(codec.state_dict())
        for name, codec in sorted(codecs.items())
    }


@torch.inference_mode()
def _tokens(model: Model) -> dict[str, Tensor]:
    """Codes (P, N) of each modality, of the objects that have it."""
    tokens = {}
    for key, observed in golden_observations(model).items():
        # One object at a time, and only those that have something: an image of the base size
        # takes a third of a second, and `Model.tokenize` would fill its batch up to eight.
        small = MODALITIES[key].kind in {"scalar", "coefficients"}
        parts = [observed] if small else [p for p, _ in pieces(observed, 1) if _is_there(p)]
        coded = [model.codecs[key].encode(to_device(part, model.device)) for part in parts]
        ids_PN = torch.cat([each.ids_BN for each in coded])
        valid_PN = torch.cat([each.valid_BN for each in coded])
        tokens[key] = torch.where(valid_PN, ids_PN, _NOT_VALID).to("cpu", torch.int16)
    return tokens


def _is_there(observed: Observed) -> bool:
    match observed:
        case Images():
            return bool(observed.good_BCHW.any())
        case Spectra():
            return bool(observed.good_BL.any())
        case CutoutCatalogs():
            return bool(observed.present_BO.any())
    return bool(torch.isfinite(observed).any())


def _distance(computed: Tensor, expected: Tensor) -> float:
    if computed.shape != expected.shape or not bool(torch.isfinite(computed).all()):
        return float("inf")
    distance_n = (computed.double() - expected.double()).norm(dim=1)
    return float((distance_n / expected.double().norm(dim=1)).amax())


def _equal_share(computed: Tensor | None, expected: Tensor | None) -> float:
    if computed is None or expected is None or computed.shape != expected.shape:
        return 0.0
    either = (computed != _NOT_VALID) | (expected != _NOT_VALID)
    return float((computed == expected)[either].double().mean()) if bool(either.any()) else 1.0


def _bytes(tensor: Tensor) -> bytes:
    return bytes(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
