"""The demo: real and mock galaxies from pixels to one page."""

from __future__ import annotations

from skyvec.demo.story import run_demo

__all__ = ["run_demo"]
