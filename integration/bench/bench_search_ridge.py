"""A ridge over vectors in HATS files beside the machine's matrix products and scikit-learn.

    python integration/bench/bench_search_ridge.py [--rows 1000000] [--dim 768] [--rounds 3]

The limit of ``X'X`` is arithmetic, so the pass over the files stands beside float32 products of the
same shapes in memory, by the fastest of numpy (syrk), scipy (syrk) and torch (gemm), on as many
threads. All are measured in turn in each round; ratios are medians of the rounds with their range.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.linalg.blas import ssyrk
from threadpoolctl import threadpool_limits

from skyvec.extensions.vector_catalog import VectorCatalog
from skyvec.probes.folds import Folds
from skyvec.probes.labels import ColumnLabels
from skyvec.probes.probe import Probe
from skyvec.probes.products import ROWS, Centre
from skyvec.probes.rows import CatalogRows, first_vectors
from skyvec.probes.scan import Census, Count, Gather, Gathered, no_sample, over

TARGET = "Z"
PRODUCTS = 24
"""Blocks of `ROWS` rows a thread multiplies to find the peak."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One line of the table."""

    name: str
    measured: str
    asked: str
    note: str


def peaks(dim: int, workers: int) -> dict[str, tuple[float, float]]:
    """Rows a second, and a second of one processor, of ``X'X`` in float32 on rows in memory."""
    rng = np.random.default_rng(0)
    blocks = [rng.standard_normal((ROWS, dim), dtype=np.float32) for _ in range(workers)]

    def by_numpy(block: np.ndarray) -> None:
        out = np.empty((dim, dim), np.float32)
        for _ in range(PRODUCTS):
            np.matmul(block.T, block, out=out)

    def by_scipy(block: np.ndarray) -> None:
        out = np.zeros((dim, dim), np.float32, order="F")
        for _ in range(PRODUCTS):
            out = ssyrk(1.0, block.T, c=out, overwrite_c=1, beta=1.0)

    def by_torch(block: np.ndarray) -> None:
        rows, out = torch.from_numpy(block), torch.empty(dim, dim)
        for _ in range(PRODUCTS):
            torch.mm(rows.T, rows, out=out)

    rows, found = workers * PRODUCTS * ROWS, {}
    for name, run in (("numpy", by_numpy), ("scipy", by_scipy), ("torch", by_torch)):
        spent = time.process_time()
        took = _seconds(lambda run=run: _on_threads(run, blocks))
        found[name] = rows / took, rows / (time.process_time() - spent)
    return found


def pass_seconds(collection: Path, workers: int) -> tuple[float, float, float]:
    """Of counting the labels, of the one pass over the vectors as `Probe.fit` runs it, and of
    processors in that pass.
    """
    vectors = VectorCatalog.open(collection)
    rows = CatalogRows(catalog=vectors, source=ColumnLabels(vectors, [TARGET]), block_order=4)
    start = time.perf_counter()
    census = over(Count(rows=rows), rows.pieces(), Census(), workers=workers, client=None)
    counted = time.perf_counter() - start
    gather = Gather(
        rows=rows, folds=Folds(census.blocks, 5, where="bench"), classes=(), seed=0, products=True,
        centre=Centre(vectors=first_vectors(rows).mean(0), labels=census.means,
                      scale=census.deviations),
        share=min(1.0, 20_000 / census.labelled),
    )  # fmt: skip
    nothing = Gathered(moments={}, parts=[no_sample(rows.dim, 1, rows.dtype)])
    start, spent = time.perf_counter(), time.process_time()
    over(gather, rows.pieces(), nothing, workers=workers, client=None)
    return counted, time.perf_counter() - start, time.process_time() - spent


def fit_seconds(collection: Path, workers: int) -> tuple[float, Probe]:
    """Of the whole of `Probe.fit`: both passes, five folds, ten penalties, intervals, chance."""
    probe = Probe(TARGET)
    return _seconds(lambda: probe.fit(collection, workers=workers)), probe


def sklearn_seconds(collection: Path, workers: int) -> tuple[float, float]:
    """Of scikit-learn's Ridge at one penalty on rows in memory, reading not counted; and its R2."""
    from sklearn.linear_model import Ridge

    vectors = VectorCatalog.open(collection)
    source = ColumnLabels(vectors, [TARGET])
    rows = CatalogRows(catalog=vectors, source=source, block_order=4)
    features = np.empty((vectors.rows, vectors.dim), np.float32)
    labels, done = np.empty(vectors.rows, np.float32), 0
    for piece in rows.pieces():
        _, known = rows.labels(piece)
        for found, block in rows.vectors(piece, np.ones(len(known), np.bool_)):
            features[done : done + len(block)] = block
            labels[done : done + len(block)] = known[found, 0]
            done += len(block)
    model = Ridge(alpha=1.0, solver="cholesky", copy_X=False)
    with threadpool_limits(workers):
        took = _seconds(lambda: model.fit(features, labels))
    left = labels - labels.mean()
    # copy_X=False has centred the features.
    missed = left - features @ model.coef_
    return took, float(1 - np.sum(missed**2) / np.sum(left**2))


def measure(collection: Path, *, rounds: int, workers: int, beside: bool = True) -> list[Figure]:
    """Figures of one collection; ``beside`` asks for scikit-learn, which holds all rows."""
    dim, count = VectorCatalog.open(collection).dim, VectorCatalog.open(collection).rows
    best: dict[str, list[float]] = {}
    ratios, of_processor, passes, counts = [], [], [], []
    for _ in range(rounds):
        found = peaks(dim, workers)
        for name, rate in found.items():
            best.setdefault(name, []).append(rate[0])
        counted, passed, spent = pass_seconds(collection, workers)
        counts.append(counted)
        passes.append(passed)
        ratios.append(count / passed / max(wall for wall, _ in found.values()))
        of_processor.append(count / spent / max(busy for _, busy in found.values()))
    peak = {name: float(np.median(rates)) for name, rates in best.items()}
    figures = [
        Figure(
            name=f"peak of X'X, float32, {dim} wide",
            measured=", ".join(f"{name} {rate:,.0f} rows/s" for name, rate in peak.items()),
            asked="", note=f"{max(peak.values()) * dim * (dim + 1) / 1e9:.0f} GFLOP/s as syrk",
        ),
        Figure(
            name=f"one pass over {count:,} float16 vectors in HATS files",
            measured=f"{count / np.median(passes):,.0f} rows/s ({np.median(passes):.1f} s)",
            asked="", note=f"counting labels before took {np.median(counts):.1f} s",
        ),
        Figure(
            name="... of the peak", measured=_range(ratios), asked=">= 80%",
            note=f"five folds, their sums and the sample included; of processor time "
            f"{_range(of_processor)}",
        ),
    ]  # fmt: skip
    whole, probe = fit_seconds(collection, workers)
    figures.append(
        Figure(
            name="Probe.fit, whole", measured=f"{whole:.1f} s", asked="",
            note=f"R2 {probe.metrics[TARGET]['r2']:.4f} on sky left out; peak memory "
            f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GB",
        )
    )  # fmt: skip
    if beside:
        took, r2 = sklearn_seconds(collection, workers)
        figures.append(
            Figure(
                name="scikit-learn Ridge(solver='cholesky') in memory", asked="",
                measured=f"{took:.1f} s, {took / whole:.2f} of Probe.fit, "
                f"{took / np.median(passes):.2f} of the pass",
                note=f"one penalty, no folds, reading not counted; R2 {r2:.4f} on its own rows",
            )
        )  # fmt: skip
    return figures


def _on_threads(run: Callable[[np.ndarray], None], blocks: list[np.ndarray]) -> None:
    with threadpool_limits(1), ThreadPoolExecutor(len(blocks)) as threads:
        list(threads.map(run, blocks))


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _range(ratios: list[float]) -> str:
    return f"{np.median(ratios):.0%} ({min(ratios):.0%} to {max(ratios):.0%})"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--scratch", type=Path, default=Path(tempfile.gettempdir()) / "skyvec-bench"
    )
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", module="lsdb|hats")
    sys.path.insert(0, str(Path(__file__).parent))
    from search.catalogs import make

    collection = make(arguments.scratch, arguments.rows, dim=arguments.dim)
    print(f"{platform.machine()}, {arguments.workers} threads, medians of {arguments.rounds}\n")
    print("| figure | measured | asked | |\n|---|---|---|---|")
    for each in measure(collection, rounds=arguments.rounds, workers=arguments.workers):
        print(f"| {each.name} | {each.measured} | {each.asked} | {each.note} |")


if __name__ == "__main__":
    main()
