"""Whether the model hub and a Dask scheduler answer; without a network nothing fails or waits long."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

from skyvec.doctor.findings import Finding

PATIENCE = 3.0
"""Seconds."""
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


def hub() -> Finding:
    """Whether the host that models are fetched from takes a connection."""
    asked = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    if any(os.environ.get(name, "").lower() in {"1", "true", "yes", "on"} for name in _OFFLINE):
        return Finding(topic="hub", text="not asked: HF_HUB_OFFLINE is set; packaged models work")
    problem = _refusal(asked, 443)
    host = urlsplit(asked).hostname or asked
    if not problem:
        return Finding(topic="hub", text=f"{host} takes connections")
    return Finding(
        topic="hub",
        text=f"not reached: {host} ({problem}); packaged models and folders work without it",
        verdict="note",
        remedy="For hf:// models, download the folder elsewhere and name it with --model",
    )


def scheduler(address: str | None) -> Iterator[Finding]:
    """Whether a scheduler answers, with its workers; nothing is asked where none is named."""
    if address is None:
        yield Finding(
            topic="scheduler", text="none named: `skyvec embed` starts workers on this machine"
        )
        return
    remedy = f"Start one with `dask scheduler` and name its address instead of {address}"
    if problem := _refusal(address, 8786):
        yield _unreached(f"not reached: {address} ({problem})", remedy)
        return
    from distributed import Client

    try:
        with Client(address, timeout=PATIENCE) as client:
            info = client.scheduler_info(n_workers=-1)["workers"]
    except (OSError, ValueError, TimeoutError) as problem:
        yield _unreached(
            f"{address} takes connections, but is no Dask scheduler ({type(problem).__name__})",
            remedy,
        )
        return
    threads = sum(each["nthreads"] for each in info.values())
    memory = sum(each["memory_limit"] or 0 for each in info.values()) / 1e9
    yield Finding(
        topic="scheduler",
        text=f"{address} has {len(info)} workers, {threads} threads, {memory:,.1f} GB",
        verdict="ok" if info else "note",
        remedy="" if info else f"Start workers with `dask worker {address} --nthreads 1`",
    )


def _unreached(text: str, remedy: str) -> Finding:
    return Finding(topic="scheduler", text=text, verdict="wrong", remedy=remedy, exit_code=50)


def _refusal(address: str, usual: int) -> str:
    """Why no connection is made; empty if one is."""
    parts = urlsplit(address if "://" in address else f"tcp://{address}")
    try:
        with socket.create_connection((parts.hostname or "", parts.port or usual), PATIENCE):
            return ""
    except (OSError, ValueError, OverflowError) as problem:
        return getattr(problem, "strerror", None) or str(problem) or type(problem).__name__
