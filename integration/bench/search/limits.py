"""What the machine gives: the same bytes read, and read and multiplied, with nothing around it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from search import catalogs

from skyvec.search.products import products_of
from skyvec.vector_pages.pages import VectorPages
from skyvec.vector_pages.reading import Memory

ROWS = 4096
"""Multiplied at a time."""


def read_all(files: list[Path], threads: int) -> int:
    """Every byte of the files into memory that each thread uses again."""
    largest = max(path.stat().st_size for path in files)

    def read(some: list[Path]) -> int:
        memory, count = np.ones(largest, np.uint8), 0
        for path in some:
            with path.open("rb", buffering=0) as file:
                count += file.readinto(memory)
        return count

    return sum(_on_threads(read, files, threads))


def read_and_multiply(files: list[Path], query: np.ndarray, threads: int) -> Callable[[], int]:
    """A function that takes two products of each vector and forgets them.

    The files are open and their pages found before; there are no best rows, no ids and no checks.
    """
    pages = [VectorPages.open(path, catalogs.NAME) for path in files]
    wanted = (query / np.linalg.norm(query)).astype(np.float32)

    def run(some: list[VectorPages]) -> int:
        count, memory = 0, Memory()
        for file in some:
            for block in file.blocks(rows=ROWS, memory=memory):
                products_of(block.values, None, wanted)
                count += len(block.values)
        return count

    return lambda: sum(_on_threads(run, pages, threads))


def _on_threads(run: Callable[[list], int], all_: list, threads: int) -> list[int]:
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(run, [all_[start::threads] for start in range(threads)]))
