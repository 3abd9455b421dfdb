"""What lives on a worker: one model per process, loaded once and checked against its digest."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import lru_cache

from skyvec_core.embedder import Model, Precision
from skyvec_schemas.errors import WeightsError

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


def model_on_worker(reference: ModelReference) -> Model:
    """The model of this process; the first call loads it, later ones share it."""
    with _LOCK:
        return _load(reference)


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
