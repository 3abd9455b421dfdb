"""The log of a run: one JSON line per record, and a picture of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from skyvec_schemas.errors import ConfigurationError

Record = Mapping[str, float | str]
LOG_FILE = "log.jsonl"


class LossLog:
    """Append-only log in a run folder; a resumed run first drops the steps that it will redo."""

    def __init__(self, folder: Path, *, from_step: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / LOG_FILE
        kept = [r for r in read_log(folder) if float(r["step"]) <= from_step]
        aside = self.path.with_suffix(".tmp")
        aside.write_text("".join(json.dumps(r) + "\n" for r in kept))
        aside.rename(self.path)  # a kill here leaves one log or the other

    def append(self, record: Record) -> None:
        """Write one record; ``kind`` is ``train`` or ``held_out``."""
        with self.path.open("a") as file:
            file.write(json.dumps(dict(record)) + "\n")


def read_log(folder: Path) -> list[dict[str, float | str]]:
    """Records of a run so far; a line cut short by a crash is left out."""
    path = folder / LOG_FILE
    if not path.is_file():
        return []
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def curve(
    records: Sequence[Record], *, kind: str, key: str = "loss", points: int = 200
) -> dict[str, list[float]]:
    """``step`` and ``key`` of the records of one kind, averaged down to at most ``points``."""
    chosen = [r for r in records if r["kind"] == kind and key in r]
    if not chosen:
        return {"step": [], key: []}
    width = -(-len(chosen) // points)
    groups = [chosen[start : start + width] for start in range(0, len(chosen), width)]
    return {
        "step": [float(group[-1]["step"]) for group in groups],
        key: [sum(float(r[key]) for r in group) / len(group) for group in groups],
    }


def draw_curve(folder: Path, picture: Path) -> None:
    """Draw training and held-out loss of a run as PNG; needs matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigurationError(
            "matplotlib is not installed", where="loss curve", remedy="pip install matplotlib"
        ) from error
    records = read_log(folder)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for kind, style in (("train", "-"), ("held_out", "o-")):
        points = curve(records, kind=kind)
        axes.plot(points["step"], points["loss"], style, label=kind.replace("_", " "), ms=3)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(picture, dpi=120)
