"""Exact search over HATS files beside DuckDB, LanceDB and the machine's own rate of reading.

    python integration/bench/bench_search.py [--work FOLDER] [--rows 1000000] [--peers FOLDER]

Everything in one run over the same files, in turn in each round, page cache warm, wall time on as
many threads; ratios are medians of the rounds with their range. The first run makes the catalog
(1.6 GB, and as much again for LanceDB's own copy) in ``--work`` and leaves it there for the next.
``--peers`` is a folder of ``pip install --target FOLDER duckdb lancedb``; it goes to the end of the
path, so that skyvec keeps its own libraries. Lines on ridge regression are those of
``bench_search_ridge.py``.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from search import catalogs, limits, peers

K = 100
QUERIES = 64


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One line of the table."""

    name: str
    measured: str
    asked: str = ""
    note: str = ""


def main() -> None:
    """Make the catalog if it is not there, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "skyvec-search")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=catalogs.DIM)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--peers", type=Path, help="packages of duckdb and lancedb")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    parser.add_argument("--no-ridge", action="store_true")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", module="lsdb|hats")
    if arguments.peak_of:
        print(peak_memory(arguments.peak_of, arguments))
        return
    if arguments.peers:
        sys.path.append(str(arguments.peers))
    collection = catalogs.make(arguments.work, arguments.rows, dim=arguments.dim)
    print(
        f"{platform.machine()}, {arguments.threads} threads, {arguments.rows:,} x {arguments.dim} "
        f"float16, {len(catalogs.leaves(collection))} files, medians of {arguments.rounds} rounds, "
        f"load {os.getloadavg()[0]:.1f}\n\n| figure | measured | asked | |\n|---|---|---|---|"
    )
    found = []
    for part in (timings, memory, *(() if arguments.no_ridge else (ridge,))):
        for figure in part(collection, arguments):
            found.append(figure)
            print(f"| {figure.name} | {figure.measured} | {figure.asked} | {figure.note} |")
            sys.stdout.flush()
    if arguments.json:
        facts = {"machine": platform.machine(), "threads": arguments.threads,
                 "rows": arguments.rows, "figures": [asdict(figure) for figure in found]}  # fmt: skip
        arguments.json.write_text(json.dumps(facts, indent=2))


def timings(collection: Path, arguments: argparse.Namespace) -> list[Figure]:
    """One query and many, beside reading and the peers."""
    from skyvec.search import search
    from skyvec.vector_pages import known

    rng = np.random.default_rng(7)
    queries = catalogs.vectors(rng, QUERIES, arguments.dim).astype(np.float64)
    files, threads, rows = catalogs.leaves(collection), arguments.threads, arguments.rows
    cases = {
        "read": lambda: limits.read_all(files, threads),
        "bare": limits.read_and_multiply(files, queries[0], threads),
        "one": lambda: search(collection, vector=queries[0], k=K, threads=threads),
        "first": lambda: (
            known.forget(),
            search(collection, vector=queries[0], k=K, threads=threads),
        ),
        "many": lambda: search(collection, vector=queries, k=K, threads=threads),
        **peers.cases(files, queries[0], work=arguments.work, rows=rows, k=K, threads=threads),
    }
    answers = {name: case() for name, case in cases.items()}  # warms the page cache, too
    taken: dict[str, list[float]] = {name: [] for name in cases}
    spent: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(arguments.rounds):
        for name, case in cases.items():
            start, work = perf_counter(), process_time()
            case()
            taken[name].append(perf_counter() - start)
            spent[name].append(process_time() - work)
    ours = answers["one"].table.column("object_id").to_pylist()
    speed = {name: f"{rows / median(times) / 1e6:.2f}M rows/s" for name, times in taken.items()}
    # What other processes take shows in the wall time of all, and hardly in this.
    by_work = {
        name: f"{ratio(times, spent['one'])} by processor time" for name, times in spent.items()
    }
    size = sum(path.stat().st_size for path in files)
    figures = [
        Figure(name="exact top-100, one query", measured=f"{median(taken['one']):.3f} s",
               note=speed["one"]),
        Figure(name="the same of files that no search of this process has met, over it",
               measured=ratio(taken["first"], taken["one"]), note=by_work["first"]),
        Figure(name="share of the rate of reading the same files into memory",
               measured=ratio(taken["read"], taken["one"]), asked="0.6 at least",
               note=f"read: {size / median(taken['read']) / 1e9:.1f} GB/s, {speed['read']}; {by_work['read']}"),
        Figure(name="share of the rate of reading each page and multiplying it, and nothing else",
               measured=ratio(taken["bare"], taken["one"]),
               note=f"that: {speed['bare']}; {by_work['bare']}"),
        Figure(name=f"{QUERIES} queries, over one", measured=ratio(taken["many"], taken["one"]),
               asked="below 6", note=f"{median(taken['many']):.3f} s; {by_work['many']}"),
    ]  # fmt: skip
    for name, asked in (("DuckDB", "12 at least"), ("LanceDB flat", "5 at least")):
        if name not in cases:
            figures.append(Figure(name=f"over {name}", measured="not installed", asked=asked))
            continue
        same = len({*ours} & {*answers[name]})
        figures.append(
            Figure(name=f"times as fast as {name}", measured=ratio(taken[name], taken["one"]),
                   asked=asked, note=f"{by_work[name]}; {speed[name]}; {same} of {K} objects the same")
        )  # fmt: skip
    return figures


def memory(collection: Path, arguments: argparse.Namespace) -> list[Figure]:
    """Peak memory of a process of its own, with a quarter of the rows and with all; medians of 3."""
    quarter = catalogs.make(arguments.work, arguments.rows // 4, dim=arguments.dim)
    peaks = []
    for place in (quarter, collection):
        words = [sys.executable, __file__, "--peak-of", str(place)]
        words += ["--threads", str(arguments.threads), "--dim", str(arguments.dim)]
        runs = [subprocess.run(words, capture_output=True, text=True, check=True) for _ in range(3)]
        peaks.append(median(float(done.stdout.split()[-1]) for done in runs))
    return [
        Figure(
            name="peak memory of a search, all rows over a quarter of them",
            measured=f"{peaks[1] / peaks[0]:.2f}",
            asked="flat",
            note=f"{peaks[0]:.0f} and {peaks[1]:.0f} MB beyond what importing takes",
        )
    ]


def peak_memory(collection: str, arguments: argparse.Namespace) -> float:
    """MB that a search takes beyond what its libraries do."""
    from skyvec.search import search

    query = catalogs.vectors(np.random.default_rng(7), 1, arguments.dim)[0].astype(np.float64)
    before = high_water()
    search(collection, vector=query, k=K, threads=arguments.threads)
    return high_water() - before


def high_water() -> float:
    """MB that this process has had at most, pages of mapped files included."""
    # Not by getrusage, which begins with what the parent had.
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def ridge(collection: Path, arguments: argparse.Namespace) -> list[Figure]:
    """What the other file measures on the same catalog."""
    module = importlib.import_module("bench_search_ridge")
    return list(
        module.measure(collection, rounds=min(3, arguments.rounds), workers=arguments.threads)
    )


def ratio(above: list[float], below: list[float]) -> str:
    """Median of the rounds' ratios, and their range."""
    each = [a / b for a, b in zip(above, below, strict=True)]
    return f"{median(each):.2f} ({min(each):.2f}-{max(each):.2f})"


if __name__ == "__main__":
    main()
