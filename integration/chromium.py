"""A real Chromium without a screen, driven by Playwright; Debian's, since nothing is downloaded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

_QUIET = (
    "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--disable-quic",
)  # fmt: skip
"""Of its own accord it looks for its maker's machines."""


def chromium_path() -> str | None:
    """Where it is, if it is installed."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


def missing() -> str:
    """Why no browser can be driven here; empty if one can."""
    if find_spec("playwright") is None:
        return "playwright is not installed (pip install playwright)"
    return "" if chromium_path() else "no chromium on this machine (apt-get install chromium)"


@contextmanager
def opened_page(url: str, *, width: int, height: int) -> Iterator[Any]:
    """A page (`playwright.sync_api.Page`) that has begun to load.

    ``page.asked`` lists the addresses that it asks for, ``page.errors`` what goes wrong in it.
    """
    from playwright.sync_api import sync_playwright

    root = ("--no-sandbox",) if os.geteuid() == 0 else ()
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium_path(), args=[*_QUIET, *root])
        try:
            page: Any = browser.new_page(viewport={"width": width, "height": height})
            page.asked, page.errors = [], []
            page.on("request", lambda request: page.asked.append(request.url))
            page.on("pageerror", lambda error: page.errors.append(str(error)))
            page.on(
                "console",
                lambda line: page.errors.append(line.text) if line.type == "error" else None,
            )
            page.goto(url)
            yield page
        finally:
            browser.close()
