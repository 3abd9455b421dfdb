"""Pictures of what codecs give back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from skyvec_schemas.errors import ConfigurationError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches; without matplotlib an error that says so."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigurationError(
            "matplotlib is not installed", where="picture", remedy="pip install matplotlib"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")
