"""A probe on disk: ``probe.json`` says what it is, ``probe.safetensors`` holds its numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from safetensors.numpy import load_file, save_file

from skyvec.probes.attentive import Attentive
from skyvec.probes.conformal import Intervals
from skyvec.probes.neighbours import Neighbours
from skyvec_schemas.errors import WeightsError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from skyvec.probes.probe import Probe

FACTS_FILE, TENSORS_FILE = "probe.json", "probe.safetensors"
FORMAT = 2
"""Counts changes of these files."""

_POOL = "pool."
"""Before the names of an attentive probe's tensors."""

AnyProbe = TypeVar("AnyProbe", bound="Probe")


def save_probe(probe: Probe, folder: Path) -> Path:
    """Write both files."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(_tensors(probe), folder / TENSORS_FILE)
    (folder / TENSORS_FILE).chmod(0o644)  # safetensors writes 0600
    facts = _facts(probe)
    facts["tensors"] = hashlib.sha256((folder / TENSORS_FILE).read_bytes()).hexdigest()
    facts["digest"] = _digest(facts)
    (folder / FACTS_FILE).write_text(json.dumps(facts, indent=2, sort_keys=True))
    return folder


def load_probe(kind: type[AnyProbe], folder: Path) -> AnyProbe:
    """Read both files; see `Probe.load`."""
    try:
        facts = json.loads((folder / FACTS_FILE).read_text())
        if "format" not in facts and "fingerprint" in facts:
            raise WeightsError(
                "was written by an older skyvec, without intervals and folds",
                where=str(folder),
                remedy="Fit it again, which takes one pass over the vectors",
            )
        digest = facts.pop("digest")
        written = hashlib.sha256((folder / TENSORS_FILE).read_bytes()).hexdigest()
        same = {FACTS_FILE: digest == _digest(facts), TENSORS_FILE: facts["tensors"] == written}
        if all(same.values()):
            return _rebuilt(kind, facts, load_file(folder / TENSORS_FILE))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        if isinstance(problem, WeightsError):
            raise
        raise WeightsError(
            f"not a probe ({type(problem).__name__})",
            where=str(folder),
            remedy="Give the folder that Probe.save or `skyvec probe fit --out` wrote",
        ) from problem
    raise WeightsError(
        f"{' and '.join(name for name, whole in same.items() if not whole)} changed after it was "
        "written",
        where=str(folder),
        remedy="Get the folder again, or fit the probe again",
    )


def digest_of(probe: Probe) -> str:
    """Identity of everything that changes a prediction."""
    tensors = {name: hashlib.sha256(np.ascontiguousarray(a).tobytes()).hexdigest()
               for name, a in _tensors(probe).items()}  # fmt: skip
    facts = {key: value for key, value in _facts(probe).items() if key != "record"}
    return _digest({**facts, "tensors": tensors})


def facts_of(probe: Probe) -> dict[str, Any]:
    """What is known of a probe, for JSON."""
    return _facts(probe)


def _facts(probe: Probe) -> dict[str, Any]:
    parameters = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in probe.get_params(deep=False).items()
    }
    pool = {"pool": probe.attentive.facts()} if probe.attentive else {}
    return {
        "format": FORMAT, "parameters": parameters, "extension": probe.extension,
        "fingerprint": probe.fingerprint, "temperature": probe.temperature,
        "classes": [getattr(c, "item", lambda c=c: c)() for c in probe.classes],
        "k": probe.neighbours.k if probe.neighbours else None,
        "intervals": {t: found.facts() for t, found in probe.intervals.items()},
        "record": _finite(probe.record), **pool,
    }  # fmt: skip


def _tensors(probe: Probe) -> dict[str, NDArray[Any]]:
    tensors = {f"scaler_{name}": np.asarray(a) for name, a in probe.scaler.items()}
    if probe.attentive is not None:
        tensors |= {f"{_POOL}{name}": a for name, a in probe.attentive.tensors().items()}
    elif probe.neighbours is not None:
        tensors |= {"vectors": probe.neighbours.vectors, "answers": probe.neighbours.answers}
    else:
        tensors |= {"weights": np.asarray(probe.weights, np.float64),
                    "intercept": np.atleast_1d(np.asarray(probe.intercept, np.float64))}  # fmt: skip
    return {name: np.ascontiguousarray(a) for name, a in tensors.items()}


def _rebuilt(
    kind: type[AnyProbe], facts: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]
) -> AnyProbe:
    parameters = dict(facts["parameters"])
    for name in ("target", "alphas"):
        if isinstance(parameters[name], list):
            parameters[name] = tuple(parameters[name])
    probe = kind(**parameters)
    probe.extension, probe.fingerprint = facts["extension"], facts["fingerprint"]
    probe.temperature, probe.classes = facts["temperature"], tuple(facts["classes"])
    probe.record = dict(facts["record"])
    probe.intervals = {t: Intervals.from_facts(found) for t, found in facts["intervals"].items()}
    probe.scaler = {n.removeprefix("scaler_"): a for n, a in tensors.items() if "scaler_" in n}
    if "vectors" in tensors:
        probe.neighbours = Neighbours(
            vectors=tensors["vectors"], answers=tensors["answers"], k=int(facts["k"]),
            mean=tensors["scaler_mean"], scale=tensors["scaler_scale"],
        )  # fmt: skip
        return probe
    if "pool" in facts:
        probe.attentive = Attentive.rebuilt(
            facts["pool"],
            {n.removeprefix(_POOL): a for n, a in tensors.items() if n.startswith(_POOL)},
            names=[str(name) for name in probe.classes] or probe.targets,
            classes=bool(probe.classes), temperature=probe.temperature,
        )  # fmt: skip
        return probe
    one = tensors["weights"].ndim == 1
    probe.weights = tensors["weights"]
    probe.intercept = float(tensors["intercept"][0]) if one else tensors["intercept"]
    return probe


def _finite(value: Any) -> Any:  # noqa: ANN401
    """JSON has no NaN: what could not be measured is null."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _digest(facts: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
