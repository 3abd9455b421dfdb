"""Being asked to stop: a signal from the cluster, or a file ``STOP`` in the run folder.

Both only raise a flag; the loop saves at the next step boundary. The file has no time limit,
whereas ``torchrun`` kills its workers half a minute after a signal.
"""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from skyvec_schemas.errors import InfrastructureError

STOP_FILE = "STOP"
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequestedError(InfrastructureError):
    """A run was asked to stop, and has saved; EX_TEMPFAIL tells a cluster to start it again."""

    exit_code = 75


class StopRequests:
    """Whether somebody has asked; as a context manager it listens to signals.

    Parameters
    ----------
    folder
        Of the run. Its ``STOP`` is looked for by the first rank alone.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / STOP_FILE
        self._signalled = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def asked(self, *, look_for_file: bool) -> bool:
        """Whether to stop at this step boundary; looking for a file costs a call to the disk."""
        return self._signalled or (look_for_file and self.path.exists())

    def obey(self) -> None:
        """The run has stopped: a request holds once."""
        self.path.unlink(missing_ok=True)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self._signalled = True
