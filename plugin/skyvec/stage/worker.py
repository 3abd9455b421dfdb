"""What lives on a worker: one model per process, loaded once, checked by digest and golden vectors.

The digest shows that the weights are the run's; the golden vectors (`skyvec_core.golden`) show that
this processor, torch and GPU compute with them what the driver does.
"""

from __future__ import annotations

import socket
import threading
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from skyvec_core.embedder import Model, Precision
from skyvec_core.golden import GOLDEN_FILE, Deviation, GoldenVectors
from skyvec_schemas.errors import InfrastructureError, WeightsError, WrongNumbersError

_LOCK = threading.Lock()


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelReference:
    """Travels to the workers in place of the weights."""

    folder: str
    name: str
    digest: str
    precision: Precision = "float32"
    device: str = "cpu"
    threads: int = 1
    """Torch threads per worker; the count is fixed because it can move the last bit."""
    golden: str = ""
    """`GoldenVectors.bits` as the driver computes them; empty asks no worker for a proof."""
    expected: bytes = field(default=b"", repr=False)
    """The driver's golden vectors (`GoldenVectors.to_bytes`), 5 to 20 kB; empty if the folder has
    its own, which the driver has found right."""


def model_reference(model: Model, folder: str | Path, *, threads: int = 1) -> ModelReference:
    """What workers need to load this model and to prove that they compute what this process does.

    Computes the golden vectors: 0.1 s for skyvec-tiny, 2 s at AION-1's base size.

    Parameters
    ----------
    model
        As loaded here.
    folder
        Where it was loaded from, as the workers see it.
    threads
        Torch threads of each worker.

    Raises
    ------
    WeightsError
        If the model gives no usable vectors, or its folder's golden vectors belong to other weights
        or cannot be read.
    InfrastructureError
        If this process computes other numbers than the golden vectors of the folder.
    """
    computed = GoldenVectors.of(model, threads=threads)
    if not computed.sound:
        raise WeightsError(
            "gives vectors that are not finite, or all the same",
            where=str(folder),
            remedy="Restore the weights, or take another model",
        )
    kept = kept_golden(folder)
    if kept is not None and kept.current:
        if kept.model_digest != model.digest:
            raise WeightsError(
                f"its golden vectors belong to model {kept.model_digest[:12]}, its weights are "
                f"{model.digest[:12]}",
                where=str(folder),
                remedy=f"`skyvec models verify {folder}` names what differs",
            )
        _refuse(computed.compare(kept), "the model's golden vectors", model.device.type)
    else:
        kept = None
    return ModelReference(
        folder=str(folder),
        name=model.name,
        digest=model.digest,
        precision=model.precision,
        device=str(model.device),
        threads=threads,
        golden=computed.bits,
        expected=b"" if kept else computed.to_bytes(),
    )


def kept_golden(folder: str | Path) -> GoldenVectors | None:
    """The golden vectors that a model folder holds, if any; a file of anything else is an error."""
    try:
        return GoldenVectors.load(Path(folder) / GOLDEN_FILE)
    except FileNotFoundError:
        return None
    except ValueError as problem:
        raise WeightsError(
            str(problem),
            where=str(folder),
            remedy=f"Delete this file, then `skyvec models verify {folder} --write`",
        ) from problem


def model_on_worker(reference: ModelReference) -> Model:
    """The model of this process; the first call loads and proves it, later ones share it.

    Raises
    ------
    WeightsError
        If the folder holds other weights than the run was planned with.
    InfrastructureError
        If this worker computes other numbers than the driver.
    """
    with _LOCK:
        model = _load(_bare(reference))
        _prove(reference)
        return model


def golden_on_worker(reference: ModelReference) -> str:
    """`GoldenVectors.bits` of this process, cached; empty if the reference asks for no proof.

    Bits that are not the driver's are no error within tolerance: processors differ in rounding.

    Raises
    ------
    WeightsError, InfrastructureError
        As `model_on_worker`.
    """
    with _LOCK:
        return _prove(reference)


@lru_cache(maxsize=1)
def _load(reference: ModelReference) -> Model:
    import torch

    torch.set_num_threads(reference.threads)
    model = Model.load(
        reference.folder,
        name=reference.name,
        device=reference.device,
        precision=reference.precision,
    )
    if model.digest != reference.digest:
        raise WeightsError(
            f"digest is {model.digest[:12]}, the run was planned with {reference.digest[:12]}",
            where=reference.folder,
            remedy="Somebody changed the weights during the run; restore them and run again",
        )
    return model


@lru_cache(maxsize=1)
def _computed(reference: ModelReference) -> GoldenVectors:
    # Kept even where it is wrong: a bad worker then refuses its next pixels at once.
    return GoldenVectors.of(_load(reference), threads=reference.threads)


def _prove(reference: ModelReference) -> str:
    if not reference.golden:
        return ""
    computed = _computed(_bare(reference))
    if (bits := computed.bits) != reference.golden:
        _refuse(computed.compare(_expected(reference)), "the driver", reference.device)
    return bits


@lru_cache(maxsize=1)
def _expected(reference: ModelReference) -> GoldenVectors:
    if reference.expected:
        return GoldenVectors.from_bytes(reference.expected)
    kept = kept_golden(reference.folder)
    if kept is None:
        raise InfrastructureError(
            f"{GOLDEN_FILE} was there when the run was planned, and is gone",
            where=reference.folder,
            remedy="Restore it and run again",
        )
    return kept


def _bare(reference: ModelReference) -> ModelReference:
    """Without golden vectors, so that a run and a later proof of it share one model."""
    return replace(reference, golden="", expected=b"")


def _refuse(deviation: Deviation, expected: str, device: str) -> None:
    if not deviation.ok:
        raise WrongNumbersError(
            f"this worker computes other numbers than {expected}: {deviation}",
            where=f"host {socket.gethostname()}, device {device}",
            remedy="Leave this machine out, or mend its torch or hardware",
        )
