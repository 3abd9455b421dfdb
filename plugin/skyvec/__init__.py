"""skyvec: foundation-model embedding columns for astronomical catalogs.

The names below load on first use, so that ``import skyvec`` costs neither torch nor Dask.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from skyvec.version import __version__

if TYPE_CHECKING:
    from skyvec.explorer import explore
    from skyvec.models import load_model
    from skyvec.probes.probe import Probe
    from skyvec.search import search
    from skyvec.sources import declared_sources
    from skyvec.stage.lazy import embed
    from skyvec.stage.run import run
    from skyvec.stage.run_record import RunRecord

__all__ = [
    "Probe",
    "RunRecord",
    "__version__",
    "declared_sources",
    "embed",
    "explore",
    "load_model",
    "run",
    "search",
]

_HOMES = {
    "Probe": "skyvec.probes.probe",
    "RunRecord": "skyvec.stage.run_record",
    "declared_sources": "skyvec.sources",
    "embed": "skyvec.stage.lazy",
    "explore": "skyvec.explorer",
    "load_model": "skyvec.models",
    "run": "skyvec.stage.run",
    "search": "skyvec.search",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'skyvec' has no attribute {name!r}")
