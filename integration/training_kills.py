"""Kill a training run at random moments, in mid-save too, and see that it ends as if undisturbed.

Two gloo ranks train a tiny transformer. Again and again one rank or both get SIGKILL, a random
number of steps after the run has taken up its work, or as soon as a checkpoint is being written
after that; what is left of the run must end by itself, and the same command goes on. At the end
every record of the log and every bit of weights and optimizer in the last checkpoint must be those
of a run that nobody disturbed. Then a run changes its number of processes at every kill: its losses
must agree within a tolerance.

    python integration/training_kills.py --work .kills --kills 30
"""

from __future__ import annotations

import argparse
import json
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

import skyvec_training
from skyvec_core.model.vocabulary import Vocabulary
from skyvec_schemas.token_columns import token_array
from skyvec_training.loop import restoring
from skyvec_training.loop.checkpoint import Checkpoint, newest
from skyvec_training.loop.curves import read_log
from skyvec_training.recipe.recipe import load_recipe

RECIPE = Path(skyvec_training.__file__).parent / "recipes" / "skyvec_tiny_start.toml"
OBJECTS = 60
TOLERANCE = 1e-4
"""Of the losses of a run that changes its number of processes, relative."""
LOST = 50


def write_recipe(
    path: Path, *, steps: int, every: int = 5, precision: str = "float32", **parallel: object
) -> Path:
    """The shipped recipe with a tiny transformer, and how it is spread."""
    head, tail = RECIPE.read_text().split("[transformer]\n")
    values = {"steps": steps, "batch": 8, "held_out": 0.2, "warmup_steps": 5, "log_every": 1,
              "dim": 16, "encoder_depth": 2, "decoder_depth": 1, "evaluate_every": steps,
              "checkpoint_every": every, "learning_rate": 1e-3,
              "precision": json.dumps(precision)}  # fmt: skip
    for key, value in values.items():
        tail = re.sub(rf"^{key} = .*$", f"{key} = {value}", tail, flags=re.MULTILINE)
    lines = [f"{key} = {json.dumps(value)}" for key, value in parallel.items()]
    path.write_text(
        f"{head}[transformer]\nevaluated = 8\n{tail}\n"
        "[transformer.parallel]\n" + "\n".join(lines) + "\n"
    )
    return path


def write_tokens(folder: Path, recipe: Path) -> Path:
    """A token catalog of made-up objects, a third of them without an image."""
    vocabulary = Vocabulary(load_recipe(recipe).transformer.model.domains)
    rng = np.random.default_rng(0)
    table = {"object_id": pa.array(np.arange(OBJECTS))}
    for modality in vocabulary.modalities:
        codes = rng.integers(0, modality.vocabulary, (OBJECTS, modality.num_tokens))
        there = rng.random(codes.shape) < 0.9
        if modality.kind == "image":
            there[::3] = False
        table[modality.token_key] = token_array(codes, there)
    leaf = folder / "dataset" / "Norder=0" / "Dir=0" / "Npix=0.parquet"
    leaf.parent.mkdir(parents=True)
    pq.write_table(pa.table(table), leaf)
    return folder


def command(tokens: Path, recipe: Path, out: Path) -> list[str]:
    """Words after the name of the program."""
    return ["transformer", str(tokens), "--out", str(out), "--recipe", str(recipe),
            "--threads", "1"]  # fmt: skip


def start(
    tokens: Path, recipe: Path, out: Path, *, ranks: int, grouped: bool = False
) -> list[Rank]:
    """The processes of a run; a single one has a process group only if that is asked for."""
    words = ["-m", "skyvec_training", *command(tokens, recipe, out)]
    return start_ranks(words, out, ranks=ranks if grouped or ranks > 1 else 0)


def start_ranks(words: list[str], out: Path, *, ranks: int) -> list[Rank]:
    """Python once for each rank, its words into ``out/rank-<n>.txt``; 0: one without a group."""
    out.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started = []
    for rank in range(max(1, ranks)):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks),
                 "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # fmt: skip
        started.append(Rank(words, place if ranks else {}, out / f"rank-{rank}.txt"))
    return started


class Rank:
    """A process of a run, with the methods of `subprocess.Popen` that are needed.

    It is forked from a server with torch in it: a rank of these short runs would spend half of its
    processor time on imports.
    """

    def __init__(self, words: list[str], place: dict[str, str], said: Path) -> None:
        given = {"WORDS": words, "PLACE": place, "SAID": str(said)}
        context = get_context("forkserver")
        context.set_forkserver_preload(_NEEDED)
        os.environ["OMP_NUM_THREADS"] = "1"
        self._process = context.Process(
            target=runpy.run_path,
            args=(str(Path(__file__).with_name("training_rank.py")), given, "__main__"),
        )
        self._process.start()

    def poll(self) -> int | None:
        """The exit code, once there is one."""
        return self._process.exitcode

    def wait(self, timeout: float) -> int:
        """The exit code."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("a rank", timeout)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Unless it has ended."""
        if self._process.is_alive():
            os.kill(self._process.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


_NEEDED = ["skyvec_training.commands.train", "torch._dynamo", "torch.distributed.fsdp",
           "matplotlib.figure", "pandas"]  # fmt: skip


def finish(processes: list[Rank], *, seconds: float = 800) -> list[int]:
    """Exit codes."""
    return [process.wait(timeout=seconds) for process in processes]


def kill_once(
    processes: list[Rank], out: Path, rng: np.random.Generator, *, before: int
) -> dict[str, object] | None:
    """One kill; None if the run was faster. The survivor must end by itself, with code 50.

    Moments are counted in steps of this attempt, so that a busy machine does not shift them all
    to the start-up; ``before`` is the `log_identity` from before the attempt.
    """
    in_save, victims = rng.random() < 0.4, rng.choice(["all", "first", "last"])
    steps, delay = int(rng.integers(1, 16)), rng.uniform(0, 0.05)

    def runs() -> bool:
        return all(process.poll() is None for process in processes)

    while runs() and log_identity(out) == before:  # a run that resumes first writes its log anew
        time.sleep(0.005)
    target = len(read_log(out)) + steps
    while runs() and len(read_log(out)) < target:
        time.sleep(0.005)
    while in_save and runs() and not list(out.glob("step-*.tmp")):
        time.sleep(0.0005)
    time.sleep(delay / 5 if in_save else delay)
    chosen = {"all": processes, "first": processes[:1], "last": processes[-1:]}[str(victims)]
    if not runs():
        return None
    mid_save = bool(list(out.glob("step-*.tmp")))
    for process in chosen:
        process.send_signal(signal.SIGKILL)
    codes = finish(processes, seconds=300)
    left = [code for process, code in zip(processes, codes, strict=True) if process not in chosen]
    if any(code != LOST for code in left):
        raise SystemExit(f"survivors ended with {left}, not {LOST}; see {out}/rank-*.txt")
    kept = newest(out)
    return {"victims": str(victims), "mid_save": mid_save, "step": kept.step if kept else 0}


def log_identity(out: Path) -> int:
    """Changes when a run takes up its log."""
    log = out / "log.jsonl"
    return log.stat().st_ino if log.is_file() else 0


def disturbed(
    tokens: Path, recipe: Path, out: Path, *, kills: int, seed: int, worlds: tuple[int, ...]
) -> list[dict[str, object]]:
    """A run that is killed so often, each attempt on the next number of processes."""
    rng, done = np.random.default_rng(seed), []
    while True:
        ranks = worlds[len(done) % len(worlds)]
        before = log_identity(out)
        processes = start(tokens, recipe, out, ranks=ranks)
        killed = kill_once(processes, out, rng, before=before) if len(done) < kills else None
        if killed is None:
            codes = finish(processes)
            if any(codes):
                raise SystemExit(f"the run ended with {codes}; see {out}/rank-*.txt")
            return done
        done.append({**killed, "ranks": ranks})
        print(json.dumps(done[-1]), flush=True)


def compare(one: Path, other: Path) -> dict[str, object]:
    """Largest relative difference of the losses, and whether log and last checkpoint are equal."""
    logs = read_log(one), read_log(other)
    pairs = zip(*logs, strict=True)
    return {
        "steps": sum(r["kind"] == "train" for r in logs[0]),
        "logs_equal": logs[0] == logs[1],
        "weights_equal": equal_tensors(whole(newest(one)), whole(newest(other))),
        "largest_difference": max(abs(a["loss"] / b["loss"] - 1) for a, b in pairs),
    }


def whole(found: Checkpoint) -> dict[str, torch.Tensor]:
    """All weights and optimizer state of a checkpoint; shards may hold them in any order."""
    stored = HuggingFaceStorageReader(str(found.folder)).read_metadata().state_dict_metadata
    tensors = {n: torch.empty(e.size, dtype=e.properties.dtype) for n, e in stored.items()}
    restoring.load(found, tensors)
    return tensors


def equal_tensors(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Bit for bit, under the same names."""
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def main(argv: list[str] | None = None) -> int:
    """Do it; exit code 1 if a disturbed run differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--other-kills", type=int, default=6, help="with changing worlds")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    work = arguments.work
    work.mkdir(parents=True)
    recipe = write_recipe(work / "recipe.toml", steps=arguments.steps)
    tokens = write_tokens(work / "tokens", recipe)
    quiet, same, other = work / "undisturbed", work / "same-world", work / "other-worlds"
    codes = finish(start(tokens, recipe, quiet, ranks=2))
    if any(codes):
        raise SystemExit(f"the undisturbed run ended with {codes}; see {quiet}/rank-*.txt")
    kills = disturbed(tokens, recipe, same, kills=arguments.kills, seed=arguments.seed, worlds=(2,))
    found = {"kills": kills, "same_world": compare(same, quiet)}
    equal = found["same_world"]["logs_equal"] and found["same_world"]["weights_equal"]
    good = equal and len(kills) == arguments.kills
    if arguments.other_kills:
        found["other_kills"] = disturbed(tokens, recipe, other, kills=arguments.other_kills,
                                         seed=arguments.seed + 1, worlds=(2, 1, 4))  # fmt: skip
        found["other_worlds"] = compare(other, quiet)
        good = good and found["other_worlds"]["largest_difference"] < TOLERANCE
    (work / "result.json").write_text(json.dumps(found, indent=1))
    in_save = sum(bool(k["mid_save"]) for k in kills)
    print(f"{len(kills)} kills, {in_save} of them in mid-save:", found["same_world"])
    print("on other numbers of processes:", found.get("other_worlds"))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
