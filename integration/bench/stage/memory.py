"""Peak memory of a fresh process that embeds one pixel, small and large."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from statistics import median

HERE = Path(__file__)
ROWS = (1_000, 20_000)
SIDE = 32
"""Of the cutouts, so that 20,000 of them are written in a minute."""
WAYS = {"scalars": "skyvec-tiny, scalars", "cutouts": f"null model, cutouts of {SIDE} pixels"}


def measure(scratch: Path, *, rounds: int, objects: int) -> list[Figure]:
    """VmHWM of a process each; half of the rounds, since memory is not noisy."""
    del objects
    figures = []
    for way, name in WAYS.items():
        peaks: dict[int, float] = {}
        for rows in ROWS:
            catalog = scratch / f"{way}{rows}"
            write_catalog(catalog, pixels=1, rows=rows, side=SIDE if way == "cutouts" else 0)
            peaks[rows] = median(
                _peak(catalog, scratch / "out" / f"{way}{rows}-{turn}", way)
                for turn in range(max(1, rounds // 2))
            )
        small, large = peaks.values()
        figures.append(
            Figure(
                name=f"{name}: peak memory at {ROWS[1]:,} rows a pixel over {ROWS[0]:,}",
                measured=f"{large / small:.3f}",
                asked="at most 1.1",
                note=f"{large:.0f} and {small:.0f} MB",
            )
        )
    return figures


def _peak(catalog: Path, out: Path, way: str) -> float:
    command = [sys.executable, str(HERE), str(catalog), str(out), way]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def _embed(catalog: str, out: str, way: str) -> None:
    """Runs in the fresh process; prints its largest resident size in MB."""
    survey = LEGACY_SURVEY
    if way == "scalars":
        survey = leave_out(survey, ["image"], where="bench")
    with null_model(768) if way == "cutouts" else nullcontext():
        run(catalog, name="v", out=out, survey=survey, workers=0)
    # Unlike ru_maxrss it does not begin with what the parent had.
    status = Path("/proc/self/status").read_text()
    print(int(status.split("VmHWM:")[1].split()[0]) / 1024)


sys.path.insert(0, str(HERE.parent.parent))
from contextlib import nullcontext  # noqa: E402

from stage.catalogs import write_catalog  # noqa: E402
from stage.figure import Figure  # noqa: E402
from stage.null_model import null_model  # noqa: E402

from skyvec.stage.run import run  # noqa: E402
from skyvec.surveys import leave_out  # noqa: E402
from skyvec_schemas.survey_columns import LEGACY_SURVEY  # noqa: E402

if __name__ == "__main__":
    _embed(*sys.argv[1:])
