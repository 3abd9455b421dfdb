"""What a person sees while a run goes on: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from skyvec_training.loop.curves import Record


class RunProgress:
    """Observer of a run; use as a context manager and pass ``show`` to `trainer.train`."""

    def __init__(self, title: str, *, steps: int, console: Console | None = None) -> None:
        self.console = console or Console()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._title = title
        self._task = self._bar.add_task(title, total=steps)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def show(self, record: Record) -> None:
        """Move the bar, or write a line where there is no terminal to draw on."""
        text = f"{self._title} {record['kind']} loss {float(record['loss']):.4f}"
        self._bar.update(self._task, completed=float(record["step"]), description=text)
        if not self.console.is_terminal or record["kind"] == "held_out":
            # Losses of single domains are too many for a line of training.
            shown = [f"{k} {v:.4g}" for k, v in record.items()
                     if isinstance(v, float) and k not in {"step", "loss"}
                     and not (record["kind"] == "train" and k.startswith("tok_"))]  # fmt: skip
            step = int(float(record["step"]))
            self.console.print(f"{step:6d} {text}  " + " ".join(shown), soft_wrap=True)
