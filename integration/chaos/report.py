"""What came of chaos runs, as JSON and as the table of docs/chaos.md."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

BATCH_ROWS = 128
"""Of `skyvec embed`."""


def heard(events: Path) -> dict[str, int]:
    """What the drivers were told of it: reasons of further attempts, and halved batches."""
    found: Counter[str] = Counter()
    for line in events.read_text().splitlines():
        event = json.loads(line)
        if event["event"] == "retry":
            found[f"tried again: {_in_short(event['why'])}"] += 1
        elif event["event"] == "pixel" and event["outcome"] != "done":
            found[f"{event['outcome']}: {_in_short(event['error'])}"] += 1
        elif event["event"] == "pixel" and event["batch_rows"] < BATCH_ROWS:
            found["done with fewer rows at a time"] += 1
    return dict(sorted(found.items()))


def _in_short(why: str) -> str:
    """Without the names of files and tasks."""
    parts = re.sub(r"'[^']*'|skyvec-\S+|/\S+", "...", why).split()
    return " ".join(parts)[:90]


def table(results: list[dict]) -> str:
    """The results as docs/chaos.md has them."""
    heads = [f"{r['path']}, seed {r['seed']}" for r in results]
    lines = [["", *heads], ["---"] * (len(heads) + 1)]
    kinds = dict.fromkeys(kind for result in results for kind in result["by_kind"])
    lines += [[kind, *(str(r["by_kind"].get(kind, 0)) for r in results)] for kind in sorted(kinds)]
    for name, key in (
        ("**faults**", "faults"), ("**of these kills of a process**", "kills"),
        ("starts of the driver", "driver_starts"), ("starts of a worker", "worker_starts"),
        ("starts of the scheduler", "scheduler_starts"), ("leaves compared", "leaves"),
        ("**leaves that differ**", "differing"), ("rows", "rows"), ("**rows lost**", "lost"),
        ("**rows doubled**", "doubled"), ("seconds", "seconds"),
    ):  # fmt: skip
        lines.append([name, *(str(r[key]) for r in results)])
    lines.append(["other findings", *("; ".join(r["problems"]) or "none" for r in results)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
