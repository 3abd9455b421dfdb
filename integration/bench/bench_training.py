"""A training step of skyvec beside the official AION-1 package: same weights, objects and masks.

`make bench-training` runs this (``SKYVEC_AION_PYTHON`` names the Python of the official package)
and prints the tables of docs/training/rehearsal.md. Both sides mask the same mixed objects into
budgets of 256 and 128 tokens, take the forward pass, loss, backward pass, clip and fused AdamW in
float32 on one thread, in turn, each in its own process; every figure is CPU time, and medians of
paired rounds are compared. Tokens count if they are there: padding is nobody's work. A first step,
from equal weights, must have equal losses, or the figures would not be of the same thing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from skyvec_core.model.blocks import Rows, keep_mask
from skyvec_core.model.config import TransformerConfig
from skyvec_core.model.vocabulary import Vocabulary
from skyvec_core.weights import load_transformer
from skyvec_training.loop.optimizer import build_optimizer
from skyvec_training.masked.transformer import Microbatch, TransformerTask
from skyvec_training.parallel.sharding import named_parameters
from skyvec_training.recipe.optimizer import OptimizerRun
from skyvec_training.recipe.transformer import TransformerRun, TransformerSizes
from skyvec_training.rehearsal.objects import TYPICAL, TypicalObjects
from skyvec_training.rehearsal.plan import AION_MASKING
from skyvec_training.rehearsal.work import step_flops

HERE = Path(__file__).resolve().parent / "training"
OFFICIAL = os.environ.get("SKYVEC_AION_PYTHON", "")
KINDS = ("Legacy Survey image", "DESI spectrum", "Gaia star")
SIZES = {"small": (256, 4), "base width": (768, 12)}
SETTINGS = {"inputs": 256, "targets": 128, "learning_rate": 1e-4, "clip": 1.0}


class Ours:
    """The step of the training loop on one process."""

    def __init__(self, folder: Path, objects: int) -> None:
        self.model = load_transformer(folder).train()
        config = self.model.config
        sizes = TransformerSizes(
            dim=config.dim, num_heads=config.num_heads, encoder_depth=config.encoder_depth,
            decoder_depth=config.decoder_depth, domains=config.domains,
        )  # fmt: skip
        optimizer = OptimizerRun(
            steps=1, learning_rate=SETTINGS["learning_rate"], clip=SETTINGS["clip"], warmup_steps=0
        )
        run = TransformerRun(optimizer=optimizer, model=sizes, masking=AION_MASKING, batch=objects,
                             count_power=0.0)  # fmt: skip
        source = mixed_objects(self.model.vocabulary)
        self.task = TransformerTask(self.model, source, run)
        self.batch: Microbatch = self.task.read(0, range(objects))
        self.parameters = named_parameters(self.model)
        self.adam = build_optimizer(self.parameters, optimizer)

    def step(self) -> tuple[float, dict[str, float]]:
        """CPU seconds of one step, and the mean cross-entropy of each domain."""
        start = time.process_time()
        self.adam.zero_grad(set_to_none=True)
        counts = self.task.counts(self.batch)
        sums = self.task.sums(self.batch)
        (self.task.coefficients(counts) * sums).sum().backward()
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), SETTINGS["clip"])
        self.adam.step()
        seconds = time.process_time() - start
        found = zip(self.model.vocabulary.modalities, sums.tolist(), counts.tolist()[:-1],
                    strict=True)  # fmt: skip
        return seconds, {m.token_key: total / count for m, total, count in found if count}


def mixed_objects(vocabulary: Vocabulary) -> TypicalObjects:
    """Images with scalars, spectra with redshifts, and stars, in turn."""
    return TypicalObjects(vocabulary, AION_MASKING, kinds=[TYPICAL[name] for name in KINDS])


def official_batch(vocabulary: Vocabulary, objects: int) -> dict[str, Tensor]:
    """The same objects and masks as the official package takes them, by ``field.domain``."""
    source = mixed_objects(vocabulary)
    codes = torch.from_numpy(source.codes(0, range(objects)))
    masked = source.at(0, range(objects))
    shown = scattered(masked.positions_BT, masked.valid_BT, codes)
    asked = scattered(masked.target_positions_BQ, masked.target_valid_BQ, codes)
    tensors = {}
    for modality in vocabulary.modalities:
        rows = vocabulary.positions[modality.token_key].rows
        own = codes[:, rows]
        if (own < 0).all():
            continue
        wanted = asked[:, rows]
        # 4M's convention: the first target says how many see each other.
        attention = torch.zeros_like(own)
        first = wanted.int().argmax(1, keepdim=True)
        attention.scatter_(1, first, wanted.sum(1, keepdim=True))
        fields = {"tensor": own.clamp(min=0), "input_mask": ~shown[:, rows],
                  "target_mask": ~wanted, "decoder_attention_mask": attention}  # fmt: skip
        tensors |= {f"{name}.{modality.token_key}": value for name, value in fields.items()}
    return {name: value.contiguous() for name, value in tensors.items()}


def scattered(positions: Tensor, valid: Tensor, codes: Tensor) -> Tensor:
    """True (B, A) at the positions that are valid."""
    found = torch.zeros_like(codes, dtype=torch.int64)
    found.scatter_add_(1, positions, valid.long())
    return found > 0


@contextmanager
def official(folder: Path, batch: Path) -> Iterator[Callable[[], tuple[float, dict[str, float]]]]:
    """Steps of the official package, in a process of its own."""
    with subprocess.Popen(
        [OFFICIAL, "-I", str(HERE / "official.py"), str(folder), str(batch)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    ) as process:  # fmt: skip

        def step() -> tuple[float, dict[str, float]]:
            process.stdin.write("step\n")
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
            return answer["seconds"], answer["losses"]

        yield step
        process.stdin.close()


def bench_step(size: str, layers: int, objects: int, rounds: int) -> None:
    """One step of both, in turn."""
    dim, heads = SIZES[size]
    with tempfile.TemporaryDirectory() as scratch:
        folder, path = Path(scratch, "model"), Path(scratch, "batch.safetensors")
        subprocess.run(
            [OFFICIAL, str(HERE / "make_model.py"), str(folder), *map(str, (dim, heads, layers))],
            check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        ours = Ours(folder, objects)
        save_file(official_batch(ours.model.vocabulary, objects), path,
                  metadata={"settings": json.dumps(SETTINGS)})  # fmt: skip
        masked = ours.batch.masked
        tokens = int(masked.valid_BT.sum() + masked.target_valid_BQ.sum())
        with official(folder, path) as their_step:
            check_losses(ours.step()[1], their_step()[1])
            pairs = [(ours.step()[0], their_step()[0]) for _ in range(rounds)]
        ratio = statistics.median(theirs / own for own, theirs in pairs)
        own, theirs = (statistics.median(times) for times in zip(*pairs, strict=True))
        padded = objects * (SETTINGS["inputs"] + SETTINGS["targets"])
        print(
            f"| step, {size} ({dim}), {layers} + {layers} layers: tokens/s over the official "
            f"package | {ratio:.2f} | 1.50 | {tokens / own:.0f} against {tokens / theirs:.0f}; "
            f"{objects} objects, {tokens} of {padded} places of the budgets used |",
            flush=True,
        )
        share = bench_blocks(ours, rounds)
        print(
            f"| dense blocks, {size}: share of the bare matrix products | {share.of_products:.2f} "
            f"| 0.85 | {share.gigaflops:.0f} GFLOP/s; products at the same shapes "
            f"{share.products:.0f}, the best of them {share.best:.0f} |",
            flush=True,
        )


def check_losses(ours: dict[str, float], theirs: dict[str, float]) -> None:
    """Both must have computed the same thing."""
    for key, value in theirs.items():
        if abs(value - ours.get(key, 0.0)) > 1e-3 * max(1.0, abs(value)):
            raise SystemExit(f"{key}: loss {ours.get(key)} against {value} of the official package")


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """Rates in GFLOP/s."""

    gigaflops: float
    """Of the blocks, attention included."""
    products: float
    """Of the same matrix products by themselves."""
    best: float

    @property
    def of_products(self) -> float:
        """Share of the rate of bare products."""
        return self.gigaflops / self.products


def bench_blocks(ours: Ours, rounds: int) -> Share:
    """Forward and backward pass of all blocks, beside their matrix products alone, in turn."""
    config, masked = ours.model.config, ours.batch.masked
    inputs, targets = int(masked.valid_BT.sum()), int(masked.target_valid_BQ.sum())
    work = step_flops(config, masked.valid_BT.sum(1), masked.target_valid_BQ.sum(1))
    work = (work - 6 * inputs * config.dim**2) / 1e9  # the projection of the context is no block
    products = products_of(config, inputs, targets)
    seconds: dict[str, list[float]] = {"blocks": [], **{name: [] for name in products}}
    blocks = blocks_of(ours)
    for turn in range(rounds + 1):
        for name, call in (("blocks", blocks), *((n, c) for n, (_, _, c) in products.items())):
            start = time.process_time()
            call()
            if turn:
                seconds[name].append(time.process_time() - start)
    taken = {name: statistics.median(times) for name, times in seconds.items()}
    done = sum(times * flops for times, flops, _ in products.values())
    spent = sum(times * taken[name] for name, (times, _, _) in products.items())
    return Share(
        gigaflops=work / taken["blocks"],
        products=done / spent,
        best=max(flops / taken[name] for name, (_, flops, _) in products.items()),
    )


def blocks_of(ours: Ours) -> Callable[[], None]:
    """Forward and backward pass of the encoder's and decoder's blocks, without anything else."""
    model, masked = ours.model, ours.batch.masked
    rows, target_rows = Rows.of(masked.valid_BT), Rows.of(masked.target_valid_BQ)
    keep = keep_mask(masked.valid_BT, masked.valid_BT)
    keep_cross = keep_mask(masked.target_valid_BQ, masked.valid_BT)
    keep_self = keep_mask(masked.target_valid_BQ, masked.target_valid_BQ)
    x = torch.randn(len(rows.places_n), model.config.dim, requires_grad=True)
    y = torch.randn(len(target_rows.places_n), model.config.dim, requires_grad=True)

    def call() -> None:
        h, q = x, y
        for block in model.encoder:
            h = block(h, keep, rows)
        for block in model.decoder:
            q = block(q, h, keep_self, keep_cross, target_rows, rows)
        q.backward(torch.ones_like(q))
        model.zero_grad(set_to_none=True)

    return call


def products_of(
    config: TransformerConfig, inputs: int, targets: int
) -> dict[str, tuple[int, float, Callable[[], object]]]:
    """How often, GFLOP, and call of each product in a forward and backward pass of the blocks."""
    width, hidden = config.dim, config.mlp_hidden
    shapes: dict[tuple[int, int, int], int] = {}

    def add(rows: int, outputs: int, inner: int, times: int) -> None:
        shapes[rows, outputs, inner] = shapes.get((rows, outputs, inner), 0) + times

    for rows, depth in ((inputs, config.encoder_depth), (targets, config.decoder_depth)):
        add(rows, 3 * width, width, depth)
        add(rows, width, width, depth)
        add(rows, hidden, width, 2 * depth)
        add(rows, width, hidden, depth)
    add(targets, width, width, 2 * config.decoder_depth)
    add(inputs, 2 * width, width, config.decoder_depth)
    found: dict[str, tuple[int, float, Callable[[], object]]] = {}
    for (rows, outputs, inner), times in shapes.items():
        x, weight, grad = (
            torch.randn(rows, inner),
            torch.randn(outputs, inner),
            torch.randn(rows, outputs),
        )
        flops = 2 * rows * outputs * inner / 1e9
        name = f"{rows} x {outputs} x {inner}"
        found[f"{name} forward"] = (times, flops, lambda x=x, w=weight: x @ w.T)
        found[f"{name} to the input"] = (times, flops, lambda g=grad, w=weight: g @ w)
        found[f"{name} to the weight"] = (times, flops, lambda g=grad, x=x: g.T @ x)
    return found


def main() -> None:
    """Measure both sizes, or what ``--only`` names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=4, help="in each stack")
    parser.add_argument("--objects", type=int, default=18, help="fewer are not typically full")
    parser.add_argument("--only", nargs="*", choices=tuple(SIZES), default=tuple(SIZES))
    arguments = parser.parse_args()
    if not OFFICIAL:
        sys.exit(
            "SKYVEC_AION_PYTHON names no Python with polymathic-aion; run `make bench-training`"
        )
    torch.set_num_threads(1)
    print(
        f"torch {torch.__version__}, {platform.machine()}, one thread, {arguments.rounds} rounds, "
        f"load {os.getloadavg()[0]:.1f}\n\n| figure | measured | at least | |\n|---|---|---|---|"
    )
    for size in arguments.only:
        bench_step(size, arguments.layers, arguments.objects, arguments.rounds)
    print(f"\nload at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
