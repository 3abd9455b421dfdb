"""Reading releases beside the limits of this machine: prints the table of docs/releases-speed.md.

    python integration/bench/bench_releases.py [--only mmu hats] [--rounds 5]

One process and one thread. Every rate stands beside a raw read of the same bytes in the same
rounds; notes say whether the page cache was warm.
"""

from __future__ import annotations

import argparse
import importlib
import platform
import sys
import tempfile
from pathlib import Path

PARTS = ("mmu", "hats", "repack", "match", "fits_files", "mock_survey")


def main() -> None:
    """Measure everything, or what ``--only`` names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--scratch", type=Path, help="folder on the disk to measure (4 GB)")
    arguments = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent))
    print(f"{platform.machine()}, one thread, medians of {arguments.rounds} rounds in turn\n")
    print("| figure | measured | at least | |\n|---|---|---|---|")
    for part in arguments.only:
        with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
            module = importlib.import_module(f"releases.{part}")
            for figure in module.measure(Path(scratch), rounds=arguments.rounds):
                print(f"| {figure.name} | {figure.measured} | {figure.at_least} | {figure.note} |")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
