"""The stage beside its model, plain pyarrow and LSDB: prints the table of docs/benchmarks.md.

    python integration/bench/bench_stage.py [--only overhead memory] [--rounds 5] [--objects 1600]

One torch thread in each process, page cache warm. Each figure stands beside its peer in the same
rounds: the median of the rounds' ratios, with their range.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import sys
import tempfile
import warnings
from pathlib import Path

PARTS = ("model", "overhead", "memory", "scaling", "incremental")


def main() -> None:
    """Measure everything, or what ``--only`` names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--objects", type=int, default=1600, help="of the mock survey")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--scratch", type=Path, help="folder on the disk to measure (6 GB)")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", module="lsdb|hats")
    sys.path.insert(0, str(Path(__file__).parent))
    print(f"{platform.machine()}, {os.cpu_count()} cores, medians of {arguments.rounds} rounds\n")
    print("| figure | measured | asked | load | |\n|---|---|---|---|---|")
    for part in arguments.only:
        with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
            module = importlib.import_module(f"stage.{part}")
            figures = module.measure(
                Path(scratch), rounds=arguments.rounds, objects=arguments.objects
            )
            load = f"{os.getloadavg()[1]:.1f}"
            for each in figures:
                print(f"| {each.name} | {each.measured} | {each.asked} | {load} | {each.note} |")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
