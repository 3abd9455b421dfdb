"""The device that is used, its memory and threads, the disk here, and the models' numbers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from skyvec.doctor.findings import Finding
from skyvec_schemas.errors import SkyvecError

LITTLE_DISK = 1e9
"""Bytes below which the demo may not fit."""


def device() -> Iterator[Finding]:
    """The processor, which the default path uses, and the GPUs that torch sees."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding(
        topic="device",
        text=f"cpu (the default of --device): {cores} cores for workers, {torch.get_num_threads()} "
        f"threads of torch in this process, {_gigabytes(_memory())} of memory",
    )
    if not torch.cuda.is_available():
        yield Finding(topic="gpu", text="none that torch sees")
        return
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        yield Finding(
            topic=f"gpu {index}",
            text=f"{facts.name}, {_gigabytes(facts.total_memory)}; use it with --device "
            f"cuda:{index}",
        )


def disk(folder: Path) -> Finding:
    """Free space of a folder that extensions may be written to."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError as problem:
        return Finding(
            topic="disk", text=f"{folder}: {problem.strerror}", verdict="wrong",
            remedy="Change into a folder that exists", exit_code=40,
        )  # fmt: skip
    if not os.access(folder, os.W_OK):
        return Finding(
            topic="disk", text=f"{folder} is not writable", verdict="note",
            remedy="Give --out with a folder that is",
        )  # fmt: skip
    if free < LITTLE_DISK:
        return Finding(
            topic="disk", text=f"{_gigabytes(free)} free in {folder}", verdict="note",
            remedy="Free some, or give --out with a folder on a larger disk",
        )  # fmt: skip
    return Finding(topic="disk", text=f"{_gigabytes(free)} free in {folder}")


def models(named: str) -> Iterator[Finding]:
    """Models of the package, and the golden numbers of one model as this machine computes them."""
    from skyvec.models import packaged_models

    packaged = ", ".join(packaged_models())
    yield Finding(topic="models", text=f"{packaged or 'none'} (in the package)")
    try:
        yield _golden(named)
    except SkyvecError as problem:
        yield Finding(
            topic=f"model {named}", text=f"{problem.where}: {problem.what}", verdict="wrong",
            remedy=problem.remedy, exit_code=40,
        )  # fmt: skip


def _golden(named: str) -> Finding:
    from skyvec.commands.models import verdict_on
    from skyvec.models import load_model, model_folder
    from skyvec.stage.worker import kept_golden

    folder = model_folder(named)
    kept = kept_golden(folder)
    text = verdict_on(folder, load_model(named), kept, named)
    proven = kept is not None and kept.current
    return Finding(
        topic=f"model {named}",
        text=f"golden vectors: {text}" if proven else text.partition(";")[0],
        verdict="ok" if proven else "note",
        remedy="" if proven else f"Run `skyvec models verify {named} --write`",
    )


def _memory() -> float:
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:,.1f} GB"
