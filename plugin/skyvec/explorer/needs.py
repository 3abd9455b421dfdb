"""The libraries that draw the explorer, which come with an extra."""

from __future__ import annotations

from importlib.util import find_spec

from skyvec_schemas.errors import ConfigurationError

_MODULES = {"bokeh": "bokeh", "datashader": "datashader", "umap": "umap-learn"}


def require_extra() -> None:
    """Refuse to begin what would fail for want of a library.

    Raises
    ------
    ConfigurationError
        If one of them is not installed.
    """
    missing = [package for module, package in _MODULES.items() if find_spec(module) is None]
    if missing:
        raise ConfigurationError(
            f"needs {', '.join(missing)}, not installed here",
            where="skyvec explore",
            remedy="pip install 'skyvec[explore]'",
        )
