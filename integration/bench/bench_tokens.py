"""Compiling, reading and masking of tokens beside their peers: prints a table.

    python integration/bench/bench_tokens.py [--objects 60000] [--rounds 5] [--scratch FOLDER]

One thread, processor time, page cache warm, medians of the rounds. Half of the objects are galaxies
(an image and 13 scalars, 589 tokens), half are stars (two sets of XP coefficients and 6 scalars,
116 tokens). A B-size model on an H100 asks for 200 objects/s on each GPU at AION-1's own speed.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from skyvec_core.modalities import MODALITIES
from skyvec_core.model.vocabulary import Vocabulary
from skyvec_schemas.token_columns import token_array
from skyvec_training.commands.command import RECIPE
from skyvec_training.data.compiling import compile_shards
from skyvec_training.data.corpus import ShardCorpus
from skyvec_training.data.draws import Stream, words
from skyvec_training.data.shard_files import open_array
from skyvec_training.data.shards import Shards
from skyvec_training.masked.batches import MaskedBatches
from skyvec_training.masked.masks.draw import draw_masks
from skyvec_training.recipe.data import DataRun
from skyvec_training.recipe.masking import MaskingRun, Policy
from skyvec_training.recipe.recipe import load_recipe

GALAXIES = load_recipe(RECIPE).transformer.model.domains
STARS = ("tok_xp_bp", "tok_xp_rp", "tok_parallax", "tok_flux_g_gaia", "tok_flux_bp_gaia",
         "tok_flux_rp_gaia", "tok_ra", "tok_dec")  # fmt: skip
MIXTURES = {"both": {}, "galaxies": {"galaxies": 1.0, "stars": 0.0}}
BATCH = 128
NEED = 200


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--objects", type=int, default=60_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scratch", type=Path, help="folder on the disk to measure")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        measure(Path(scratch), arguments.objects, arguments.rounds)


def measure(folder: Path, objects: int, rounds: int) -> None:
    """Print the table."""
    sources = {
        "galaxies": catalog(folder / "galaxies", GALAXIES, objects // 2),
        "stars": catalog(folder / "stars", STARS, objects // 2),
    }
    leaves = [leaf for source in sources.values() for leaf in source.rglob("*.parquet")]
    print(f"{objects} objects, medians of {rounds} rounds, batches of {BATCH}\n")
    print("| figure | objects/s | beside |\n|---|---|---|")

    count = iter(range(10**6))
    compiled, read = alternating(
        rounds,
        lambda: compile_shards(sources, folder / f"out-{next(count)}"),
        lambda: [pq.read_table(leaf, partitioning=None) for leaf in leaves],
    )
    tell("compile", objects / compiled, f"{read / compiled:.2f} of reading the Parquet files alone")

    shards = Shards.open(folder / "out-0")
    rows = np.random.default_rng(0).permutation(len(shards))[: 40 * BATCH].reshape(-1, BATCH)
    both = Vocabulary((*GALAXIES, *STARS))
    dense, raw = alternating(
        rounds,
        lambda: [shards.codes(some, both) for some in rows],
        raw_gather(shards, rows),
    )
    tell("random read, dense over 705 positions", rows.size / dense,
         f"{raw / dense:.2f} of a raw mmap gather of the same bytes")  # fmt: skip

    for policy in ("aion", "capped", "dirichlet"):
        for name, weights in MIXTURES.items():
            batches = masked_batches(shards, policy, DataRun(weights=weights))
            masked, whole = alternating(rounds, masking_alone(batches), lambda b=batches: steps(b))
            fill = batches.at(0, range(BATCH)).fill()
            filled = f"inputs {fill['input_fill']:.2f} full, targets {fill['output_fill']:.2f}"
            tell(f"masks, {policy}, {name}", 40 * BATCH / masked, filled)
            tell(f"order, read, mask and pack, {policy}, {name}", 40 * BATCH / whole,
                 f"{40 * BATCH / whole / NEED:.0f} GPUs at {NEED}/s each")  # fmt: skip


def masked_batches(shards: Shards, policy: Policy, data: DataRun) -> MaskedBatches:
    """Batches of AION-1's budgets over the domains of both."""
    run = load_recipe(RECIPE).transformer
    keys = tuple(key for key in MODALITIES if key in {*GALAXIES, *STARS})
    masking = MaskingRun(policy=policy, input_budget=256, output_budget=128)
    sizes = replace(run.model, domains=keys)
    run = replace(run, model=sizes, masking=masking, domain_weights={}, batch=BATCH)
    corpus = ShardCorpus(shards, Vocabulary(keys), data)
    return MaskedBatches(corpus, Vocabulary(keys), run, seed=0)


def alternating(
    rounds: int, first: Callable[[], object], second: Callable[[], object]
) -> tuple[float, float]:
    """Median processor seconds of two functions that take turns."""
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for function, seconds in zip((first, second), taken, strict=True):
            started = time.process_time()
            function()
            seconds.append(time.process_time() - started)
    return statistics.median(taken[0]), statistics.median(taken[1])


def tell(figure: str, rate: float, beside: str) -> None:
    """Print a line of the table."""
    print(f"| {figure} | {rate:,.0f} | {beside} |", flush=True)


def steps(batches: MaskedBatches) -> None:
    """Forty batches, as training sees them."""
    for step in range(40):
        batches.at(step, range(BATCH))


def masking_alone(batches: MaskedBatches) -> Callable[[], None]:
    """Masks of forty batches whose tokens are there already."""
    rows = batches.corpus.train.rows_of_slots(seed=0, step=0, slots=range(BATCH), batch=BATCH)
    valid = batches.corpus.codes(rows) >= 0

    def draw() -> None:
        for step in range(40):
            random = words(seed=0, stream=Stream.MASKING, step=step, slots=range(BATCH),
                           width=batches.layout.words)  # fmt: skip
            draw_masks(valid, random, batches.layout, batches.run.masking)

    return draw


def raw_gather(shards: Shards, rows: np.ndarray) -> Callable[[], None]:
    """The same bytes through flat arrays and offsets, with nothing made of them."""
    records = [shard for dataset in shards.manifest.datasets for shard in dataset.shards]
    codes = [open_array(shards.folder / r.folder, "codes.i16") for r in records]
    offsets = [open_array(shards.folder / r.folder, "offsets.i64") for r in records]
    starts = np.cumsum([0, *(r.rows for r in records)])
    places = np.searchsorted(starts, rows, side="right") - 1

    def gather() -> None:
        for some, shard in zip(rows - starts[places], places, strict=True):
            parts = []
            for row, which in zip(some.tolist(), shard.tolist(), strict=True):
                start, stop = offsets[which][row : row + 2]
                parts.append(codes[which][start:stop])
            np.concatenate(parts)

    return gather


def catalog(folder: Path, keys: tuple[str, ...], objects: int) -> Path:
    """A token extension of random codes, every modality there, in leaves of 10,000 objects."""
    rng = np.random.default_rng(len(keys))
    for leaf, start in enumerate(range(0, objects, 10_000)):
        rows = np.arange(start, min(start + 10_000, objects))
        table = {"object_id": pa.array(rows), "_healpix_29": pa.array(rows << 40)}
        for key in keys:
            shape = (len(rows), MODALITIES[key].num_tokens)
            codes = rng.integers(0, MODALITIES[key].vocabulary, shape)
            table[key] = token_array(codes, np.ones(shape, bool))
        place = folder / "dataset" / "Norder=5" / "Dir=0" / f"Npix={leaf}.parquet"
        place.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(table), place, compression="zstd")
    return folder


if __name__ == "__main__":
    main()
