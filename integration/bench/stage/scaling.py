"""One worker and two, with skyvec-tiny; wall time, so the machine must be quiet."""

from __future__ import annotations

from pathlib import Path

from stage.catalogs import write_catalog
from stage.figure import Case, Figure, ratio, rounds_in_turn, wall

from skyvec.stage.cluster import dask_client
from skyvec.stage.run import run

PIXELS = 16
"""Of equal size, so that no worker waits long for the other's last one."""
SIDE = 96


def measure(scratch: Path, *, rounds: int, objects: int) -> list[Figure]:
    """Clusters are up and workers have the model before the clock starts."""
    rows = max(8, objects // PIXELS)
    sky = write_catalog(scratch / "sky", pixels=PIXELS, rows=rows, side=SIDE)
    warm = write_catalog(scratch / "warm", pixels=8, rows=8, side=SIDE)
    with dask_client(None, 1) as one, dask_client(None, 2) as two:
        for count, client in ((1, one), (2, two)):
            run(warm, name=f"warm{count}", out=scratch / "out", client=client)
        cases: dict[str, Case] = {
            "one": lambda i: run(sky, name=f"one{i}", out=scratch / "out", client=one),
            "two": lambda i: run(sky, name=f"two{i}", out=scratch / "out", client=two),
        }
        spent = rounds_in_turn(cases, rounds)
    return [
        Figure(
            name=f"skyvec-tiny, {PIXELS} pixels of {rows} objects: one worker over two, wall",
            measured=ratio(spent["one"], spent["two"], "wall"),
            asked="at least 1.8",
            note=f"{wall(spent['one']):.1f} and {wall(spent['two']):.1f} s, planning and publishing "
            "included",
        )
    ]
