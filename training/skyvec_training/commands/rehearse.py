"""``rehearse``: one step of a large run on paper: memory, messages, work, time, GPU hours."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from skyvec_training.commands.command import CONSOLE
from skyvec_training.recipe.parallel import ParallelRun
from skyvec_training.rehearsal.network import GPUS
from skyvec_training.rehearsal.page import show
from skyvec_training.rehearsal.plan import NAMES, Plan
from skyvec_training.rehearsal.report import report_of
from skyvec_training.rehearsal.world import rehearse

NAME = "rehearse"
HELP = "one step on hundreds of GPUs, on paper: memory, messages, time, GPU hours"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--ranks", type=int, required=True, help="GPUs of the run")
    parser.add_argument("--size", choices=tuple(NAMES), required=True)
    parser.add_argument("--rank", type=int, default=0, help="which of them to look at")
    parser.add_argument("--strategy", choices=("zero2", "zero3", "hybrid"), default="zero2")
    parser.add_argument("--shard-degree", type=int, default=0, metavar="N",
                        help="ranks that share a copy of the state under hybrid (8)")  # fmt: skip
    parser.add_argument("--batch", type=int, default=8192, help="objects of a step")
    parser.add_argument("--microbatch", type=int, default=0, metavar="M",
                        help="objects of a rank in one forward pass (its whole share)")  # fmt: skip
    parser.add_argument("--accumulate", type=int, default=0, metavar="K",
                        help="microbatches of a rank; with --microbatch it sets the batch")  # fmt: skip
    parser.add_argument("--checkpointing", action="store_true",
                        help="recompute the activations of each block")  # fmt: skip
    parser.add_argument("--bfloat16-reduce", action="store_true",
                        help="add up gradients in bfloat16")  # fmt: skip
    parser.add_argument("--gpu", choices=tuple(GPUS), default="h100")
    parser.add_argument("--mfu", type=float, default=0.4,
                        help="share of the peak that is assumed (0.4)")  # fmt: skip
    parser.add_argument("--out", type=Path, help="also write the numbers here (JSON)")
    parser.add_argument("--threads", type=int, default=1)


def run(arguments: argparse.Namespace) -> None:
    """Rehearse and print."""
    plan = _plan(arguments)
    report = report_of(plan, rehearse(plan), gpu=arguments.gpu, mfu=arguments.mfu)
    show(report, CONSOLE)
    if arguments.out:
        arguments.out.write_text(json.dumps(report.as_json(), indent=1))


def _plan(given: argparse.Namespace) -> Plan:
    batch, microbatch = given.batch, given.microbatch
    if given.accumulate and microbatch:
        batch = given.ranks * microbatch * given.accumulate
    elif given.accumulate:
        microbatch = -(-batch // (given.ranks * given.accumulate))
    return Plan(
        size=given.size,
        ranks=given.ranks,
        rank=given.rank,
        batch=batch,
        parallel=ParallelRun(
            strategy=given.strategy,
            shard=given.shard_degree,
            microbatch=microbatch,
            reduce="bfloat16" if given.bfloat16_reduce else "float32",
            activation_checkpointing=given.checkpointing,
        ),
    )
