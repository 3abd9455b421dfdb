"""Start the processes of a run, restart them when one dies, and say how the run ended.

``python -m skyvec_training.parallel.launch --nproc-per-node 8 --max-restarts 3 -- transformer ...``
is ``torchrun`` with three things added: its signals reach the workers and wait for their save, the
attempts of an elastic run do not read each other's addresses, and the exit code is that of the
run (``torchrun`` ends with 1 whatever its workers say, and would start a run again that was asked
to stop). Exit codes: 0 done, 20 stopped by the clock, 75 asked to stop (start it again), 30 and 40
as `skyvec_schemas.errors` has them, 50 workers died more often than ``--max-restarts``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

EXIT_FILE = "exit.json"
LOST = 50
"""Exit code of workers that died; the only one after which an elastic run starts again."""
SAVE_SECONDS = 300
"""Workers have so long to save after a signal."""
_WORKER = "skyvec_training.parallel.launch"


def main(words: list[str] | None = None) -> int:
    """Launch on this node; the options before ``--`` are those of ``torchrun``."""
    words = sys.argv[1:] if words is None else words
    if "RANK" in os.environ:
        return work(words)
    if "--" not in words:
        sys.stderr.write("usage: launch [options of torchrun] -- <command> ... --out FOLDER\n")
        return 40
    at = words.index("--")
    options, command = words[:at], words[at + 1 :]
    ended = _folder(command) / EXIT_FILE
    ended.unlink(missing_ok=True)
    _torchrun([*_options(options), "-m", _WORKER, *command])
    return int(json.loads(ended.read_text())["exit_code"]) if ended.is_file() else LOST


def work(command: list[str]) -> int:
    """One worker: run the command; only what another attempt may mend ends as a failure."""
    from skyvec_training.__main__ import main as run

    code = run(command)
    if code == LOST:
        return code
    if os.environ["RANK"] == "0":
        path = _folder(command) / EXIT_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"exit_code": code}))
    return 0


def _torchrun(words: list[str]) -> None:
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    try:
        run(parse_args(words))  # type: ignore[no-untyped-call]
    except (ChildFailedError, SignalException) as error:
        sys.stderr.write(f"{type(error).__name__}: {str(error).splitlines()[0]}\n")


def _options(given: list[str]) -> list[str]:
    return [
        "--signals-to-handle", "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
        "--shutdown-timeout", str(SAVE_SECONDS),
        *given,
    ]  # fmt: skip


def _folder(command: list[str]) -> Path:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_known_args(command)[0].out


if __name__ == "__main__":
    sys.exit(main())
