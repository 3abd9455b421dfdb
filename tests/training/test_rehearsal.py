import argparse
import json
import math

import pytest
import torch
import torch.distributed as dist
from rich.console import Console

from skyvec_core.model.config import TransformerConfig
from skyvec_core.model.encoder_decoder import EncoderDecoder
from skyvec_core.model.vocabulary import Vocabulary
from skyvec_schemas.errors import ConfigurationError
from skyvec_training.commands import rehearse as command
from skyvec_training.recipe.parallel import ParallelRun
from skyvec_training.rehearsal.collectives import Message
from skyvec_training.rehearsal.network import GPUS, Gpu, delay_of
from skyvec_training.rehearsal.objects import TYPICAL, TypicalObjects, fills
from skyvec_training.rehearsal.page import show
from skyvec_training.rehearsal.plan import AION_MASKING, Plan
from skyvec_training.rehearsal.published import PUBLISHED
from skyvec_training.rehearsal.report import report_of
from skyvec_training.rehearsal.work import flop_counter, step_flops
from skyvec_training.rehearsal.world import rehearse

RANKS = 16


def plan(**changed):
    return Plan(**{"size": "tiny", "ranks": RANKS, "layers": 1, "batch": 2 * RANKS, **changed})


@pytest.fixture(scope="module")
def first():
    return rehearse(plan())


def counts(seen, kind):
    return sum(times for message, times in seen.messages.items() if message.kind == kind)


def test_the_first_and_the_last_of_512_ranks_hold_what_fsdp_gives_them():
    seen = {rank: rehearse(plan(ranks=512, batch=512, rank=rank)) for rank in (0, 511)}
    for name, whole in seen[0].whole.items():
        rows = math.ceil(whole[0] / 512)
        for rank in seen:
            own = max(0, min(whole[0], (rank + 1) * rows) - rank * rows)
            assert seen[rank].shards[name] == (own, *whole[1:])
    assert seen[0].shards["encoder.0.attn.qkv.weight"] == (1, 128)
    assert seen[511].shards["encoder.0.attn.qkv.weight"] == (0, 128)  # of 384 rows
    assert seen[0].messages == seen[511].messages


def test_zero2_gathers_and_reduces_each_unit_once(first):
    units = 3  # a block of each stack, and the root
    weights = sum(math.prod(shape) for shape in first.whole.values())
    gathered = [m for m in first.messages if m.kind == "all-gather"]
    reduced = [m for m in first.messages if m.kind == "reduce-scatter"]
    assert counts(first, "all-gather") == counts(first, "reduce-scatter") == units
    assert {(m.dtype, m.ranks) for m in gathered} == {("bfloat16", RANKS)}
    assert {(m.dtype, m.ranks) for m in reduced} == {("float32", RANKS)}
    padded = sum(math.ceil(s[0] / RANKS) * RANKS * math.prod(s[1:]) for s in first.whole.values())
    assert sum(m.size * first.messages[m] for m in gathered) == 2 * padded > 2 * weights
    assert counts(first, "all-reduce") == 1  # the norm of the gradient


def test_zero3_gathers_blocks_again_and_hybrid_adds_copies(first):
    zero3 = rehearse(plan(parallel=ParallelRun(strategy="zero3")))
    assert counts(zero3, "all-gather") == 2 * (counts(first, "all-gather") - 1) + 1
    hybrid = rehearse(plan(parallel=ParallelRun(strategy="hybrid", shard=8)))
    assert {m.ranks for m in hybrid.messages if m.kind == "all-gather"} == {8}
    assert {m.ranks for m in hybrid.messages if m.kind == "all-reduce"} == {8, RANKS // 8}


def test_microbatches_reduce_each_and_gather_once(first):
    seen = rehearse(plan(parallel=ParallelRun(microbatch=1)))
    assert len(seen.batches) == 2
    assert counts(seen, "all-gather") == counts(first, "all-gather")
    assert counts(seen, "reduce-scatter") == 2 * counts(first, "reduce-scatter")


def test_checkpointing_computes_more_and_keeps_less():
    kept = rehearse(plan(ranks=8, layers=2, batch=64))
    again = rehearse(
        plan(ranks=8, layers=2, batch=64, parallel=ParallelRun(activation_checkpointing=True))
    )
    assert again.flops > 1.1 * kept.flops
    assert again.peak["Activation"] < 0.6 * kept.peak["Activation"]
    assert not dist.is_initialized()


def test_the_formula_is_what_torch_counts():
    domains = ("tok_xp_bp", "tok_xp_rp")
    config = TransformerConfig(
        dim=64, num_heads=2, encoder_depth=2, decoder_depth=3,
        domains_in=domains, domains_out=domains,
    )  # fmt: skip
    model = EncoderDecoder(config)
    model.initialize(torch.Generator().manual_seed(0))
    inputs_BT, targets_BQ = torch.arange(50).expand(3, -1), 55 + torch.arange(40).expand(3, -1)
    every_BT, every_BQ = torch.ones_like(inputs_BT) > 0, torch.ones_like(targets_BQ) > 0
    with flop_counter() as counted:
        context = model.encode(inputs_BT, inputs_BT, every_BT)
        model.decode(context, every_BT, targets_BQ, every_BQ).sum().backward()
    inputs_B, targets_B = every_BT.sum(1), every_BQ.sum(1)
    formula = step_flops(config, inputs_B, targets_B)
    pairs = float((2 * inputs_B**2 + 3 * (targets_B**2 + inputs_B * targets_B)).sum())
    # Attention computes its scores a second time in the backward pass; the formula does not.
    # The first products have no gradient of their input, which is an embedding: none is missing.
    assert counted.get_total_flops() == formula + 2 * 64 * pairs


def test_published_runs_reached_5_to_7_percent():
    assert {size: round(run.mfu, 3) for size, run in PUBLISHED.items()} == pytest.approx(
        {"b": 0.050, "l": 0.067, "xl": 0.065}, abs=1e-3
    )


def test_delays_add_hops_and_bytes():
    gpu = Gpu(tera_flops=1, memory_gib=1, node_gb=100, network_gb=80, hop_us=10)
    far = Message(kind="all-gather", dtype="bfloat16", ranks=16, size=16_000_000)
    delay = delay_of({far: 2}, gpu, shard=16)
    assert delay.latency == pytest.approx(2 * 15 * 10e-6)
    assert delay.bandwidth == pytest.approx(2 * 15 / 16 * 16e6 / 80e9)
    near = Message(kind="reduce-scatter", dtype="float32", ranks=8, size=8_000_000)
    assert delay_of({near: 1}, gpu, shard=8).bandwidth == pytest.approx(7e6 / 100e9)
    copies = Message(kind="all-reduce", dtype="float32", ranks=4, size=4_000_000)
    # Eight rings share the cards of a node, and each passes everything twice.
    assert delay_of({copies: 1}, gpu, shard=8).bandwidth == pytest.approx(6e6 / 10e9)


def test_typical_objects_keep_inputs_and_targets_apart():
    words = Vocabulary(plan().config.domains)
    masked = TypicalObjects(words, AION_MASKING).at(3, range(40))
    assert (masked.valid_BT.sum(1) >= 1).all()
    assert (masked.target_valid_BQ.sum(1) >= 1).all()
    again = TypicalObjects(words, AION_MASKING).at(3, range(40))
    assert torch.equal(masked.codes_BT, again.codes_BT)
    filled = fills(words, AION_MASKING, objects=64)
    assert filled.keys() == TYPICAL.keys()
    assert filled["Legacy Survey image"]["input_fill"] > 0.8
    assert filled["Gaia star"]["input_fill"] < 116 / 256


def test_the_command_prints_and_writes_what_it_found(tmp_path, monkeypatch):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    console = Console(record=True, width=160)
    monkeypatch.setattr(command, "CONSOLE", console)
    out = tmp_path / "report.json"
    command.run(parser.parse_args([
        "--ranks", "8", "--size", "tiny", "--accumulate", "2", "--batch", "32", "--mfu", "0.3",
        "--out", str(out),
    ]))  # fmt: skip
    said, found = console.export_text(), json.loads(out.read_text())
    assert "A rehearsal cannot tell" in said
    assert "hangs" in said
    assert (found["microbatches"], found["microbatch"]) == (2, 2)
    assert found["checkpoint_bytes"] == 12 * found["model_parameters"]
    assert found["flops_useful"] < found["flops_of_budgets"]
    peak = GPUS["h100"].tera_flops * 1e12
    assert found["time"]["multiply_seconds"] == found["flops_of_budgets"] / (0.3 * peak)


def test_report_counts_the_optimizer_and_the_gradients(first):
    report = report_of(plan(), first, gpu="h100", mfu=0.4)
    own = sum(math.prod(shape) for shape in first.shards.values())
    assert report.memory.optimizer == 2 * report.memory.gradients == 8 * own
    assert report.memory.peak >= first.peak["Total"] + 8 * own
    assert report.published is None
    show(report, Console(file=None, record=True, quiet=True))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"size": "huge"}, "unknown size"),
        ({"rank": RANKS}, "rank 16 does not exist"),
        ({"batch": 10}, "cannot be shared"),
        ({"parallel": ParallelRun(strategy="hybrid", shard=7)}, "do not divide"),
    ],
)
def test_plans_that_cannot_be(changed, words):
    with pytest.raises(ConfigurationError, match=words):
        plan(**changed)


def test_a_process_of_a_run_does_not_rehearse(monkeypatch):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    with pytest.raises(ConfigurationError, match="process of its own"):
        rehearse(plan())
