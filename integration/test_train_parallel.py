"""One training run on 1, 2 and 4 gloo ranks: same losses, real kills, signals and restarts."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from skyvec_training.loop import checkpoint
from skyvec_training.loop.curves import read_log
from skyvec_training.masked.transformer import build_transformer
from skyvec_training.publish.export import load_weights
from skyvec_training.recipe.recipe import load_recipe

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800)]

_spec = importlib.util.spec_from_file_location(
    "training_kills", Path(__file__).with_name("training_kills.py")
)
kills = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(kills)

STEPS = 50
TOLERANCE = 1e-5
"""Relative, of every logged loss; measured: 6e-8."""


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("parallel")


@pytest.fixture(scope="module")
def tokens(work):
    return kills.write_tokens(work / "tokens", recipe(work, "any"))


@pytest.fixture(scope="module")
def alone(work, tokens):
    """The run of one process that knows of no others."""
    return trained(work, tokens, "alone", ranks=1)


@pytest.fixture(scope="module")
def pair(work, tokens):
    return trained(work, tokens, "pair", ranks=2)


def recipe(work, name, *, steps=STEPS, **settings):
    return kills.write_recipe(work / f"{name}.toml", steps=steps, every=10, **settings)


def trained(work, tokens, name, *, ranks, grouped=False, **settings):
    out = work / name
    started = kills.start(tokens, recipe(work, name, **settings), out, ranks=ranks, grouped=grouped)
    assert kills.finish(started) == [0] * ranks, said(out)
    return out


def said(out):
    return "".join(path.read_text() for path in sorted(out.glob("rank-*.txt")))


def test_a_world_of_one_rank_is_bit_equal_to_no_world(work, tokens, alone):
    found = kills.compare(trained(work, tokens, "group-of-one", ranks=1, grouped=True), alone)
    assert found["logs_equal"]
    one, other = (weights(place) for place in (work / "group-of-one", alone))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("name", "ranks", "settings"),
    [
        ("zero2, microbatches of 3", 2, {"microbatch": 3}),
        ("zero3", 2, {"strategy": "zero3", "activation_checkpointing": True}),
        pytest.param("zero2", 4, {}, marks=pytest.mark.variant),
        ("hybrid", 4, {"strategy": "hybrid", "shard": 2, "microbatch": 1}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_ranks_and_strategies_have_the_losses_of_one_process(
    work, tokens, alone, name, ranks, settings
):
    found = kills.compare(
        trained(work, tokens, f"{name} on {ranks}", ranks=ranks, **settings), alone
    )
    print(name, ranks, found)
    assert found["steps"] == STEPS
    assert found["largest_difference"] < TOLERANCE


def test_two_ranks_have_the_losses_of_one_process(pair, alone):
    found = kills.compare(pair, alone)
    print("zero2", 2, found)
    assert found["largest_difference"] < TOLERANCE


def test_bfloat16_weights_of_two_ranks_train_as_one_process_does(work, tokens, alone):
    out = trained(work, tokens, "bfloat16", ranks=2, precision="bfloat16", reduce="float32")
    found = kills.compare(out, alone)
    print("bfloat16", found)
    assert not found["logs_equal"]
    assert found["largest_difference"] < 1e-2


def test_a_checkpoint_of_two_ranks_is_the_same_from_four_and_exports_whole(work, pair):
    again = work / "saved-by-four"
    script = Path(__file__).with_name("training_resave.py")
    words = [str(script), str(pair), str(again), str(work / "pair.toml")]
    assert kills.finish(kills.start_ranks(words, again, ranks=4)) == [0] * 4, said(again)
    assert len(checkpoint.newest(pair).digests) == 2
    assert len(checkpoint.newest(again).digests) == 4
    two, four = weights(pair), weights(again)
    assert all(torch.equal(two[name], four[name]) for name in two)


def weights(out):
    """Whole weights, as they are exported; no process group."""
    model = build_transformer(load_recipe(out.parent / "any.toml").transformer, seed=5)
    load_weights(model, checkpoint.newest(out))
    return model.state_dict()


def test_a_run_goes_on_with_other_numbers_of_processes(work, tokens, alone):
    out = work / "changing"
    settings = recipe(work, "changing")
    for ranks in (2, 4):
        processes = kills.start(tokens, settings, out, ranks=ranks)
        wait_for_step(out, processes, 11 if ranks == 2 else 31)
        (out / "STOP").touch()
        assert kills.finish(processes) == [75] * ranks, said(out)
        assert not (out / "STOP").exists()
    assert kills.finish(kills.start(tokens, settings, out, ranks=1)) == [0]
    found = kills.compare(out, alone)
    print("2, 4, 1 ranks", found)
    assert found["largest_difference"] < TOLERANCE


def wait_for_step(out, processes, step, seconds=600):
    deadline = time.monotonic() + seconds
    while not any(r["step"] >= step for r in read_log(out)):
        assert time.monotonic() < deadline, said(out)
        assert all(p.poll() is None for p in processes), said(out)
        time.sleep(0.02)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.variant)]
)
def test_a_signal_to_one_rank_stops_all_and_the_rest_is_bit_equal(work, tokens, pair, number):
    out = work / f"signal-{number}"
    settings = recipe(work, "signal")
    processes = kills.start(tokens, settings, out, ranks=2)
    wait_for_step(out, processes, 12)
    processes[1].send_signal(number)
    assert kills.finish(processes) == [75, 75], said(out)
    assert "because it was asked to. The same command goes on" in said(out)
    kept = checkpoint.newest(out).step
    assert 12 <= kept < STEPS
    assert kills.finish(kills.start(tokens, settings, out, ranks=2)) == [0, 0]
    found = kills.compare(out, pair)
    assert (found["logs_equal"], found["weights_equal"]) == (True, True)


def test_three_kills_leave_no_trace(work, tokens, pair):
    settings, out = kills.write_recipe(work / "kills.toml", steps=STEPS, every=5), work / "kills"
    done = kills.disturbed(tokens, settings, out, kills=3, seed=4, worlds=(2,))
    assert len(done) == 3
    assert any(kill["step"] for kill in done), "no attempt went on from a checkpoint"
    found = kills.compare(out, pair)
    assert (found["logs_equal"], found["weights_equal"]) == (True, True)


def test_a_rank_that_hangs_ends_the_others_within_the_timeout(work, tokens):
    out = work / "hangs"
    settings = recipe(work, "hangs", steps=5000, timeout_minutes=0.25)
    processes = kills.start(tokens, settings, out, ranks=2)
    wait_for_step(out, processes, 3)
    processes[1].send_signal(signal.SIGSTOP)
    try:
        assert processes[0].wait(timeout=400) == 50
    finally:
        processes[1].kill()
    assert "another process of this run is gone, or did not answer for 0.25 minutes" in said(out)


def launched(tokens, settings, out, *, restarts=0):
    out.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, "-m", "skyvec_training.parallel.launch", "--nproc-per-node", "2",
             "--max-restarts", str(restarts), "--", *kills.command(tokens, settings, out)]  # fmt: skip
    with (out / "rank-0.txt").open("a") as text:
        return subprocess.Popen(words, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=text,
                                stderr=subprocess.STDOUT)  # fmt: skip


def workers_of(launcher):
    found = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    return [int(pid) for pid in found
            if b"skyvec_training.parallel.launch" in Path(f"/proc/{pid}/cmdline").read_bytes()]  # fmt: skip


def test_an_elastic_run_survives_the_death_of_a_rank_and_ends_as_ever(work, tokens, pair):
    out = work / "elastic"
    launcher = launched(tokens, recipe(work, "elastic"), out, restarts=2)
    for step in (11, 31):
        wait_for_step(out, [launcher], step)
        os.kill(workers_of(launcher)[step % 2], signal.SIGKILL)
        time.sleep(1)
    assert launcher.wait(timeout=800) == 0, said(out)
    found = kills.compare(out, pair)
    assert (found["logs_equal"], found["weights_equal"]) == (True, True)


def test_the_launcher_says_75_when_it_is_asked_to_stop(work, tokens):
    out = work / "launched"
    settings = recipe(work, "launched", steps=5000)
    launcher = launched(tokens, settings, out, restarts=2)
    wait_for_step(out, [launcher], 3)
    launcher.send_signal(signal.SIGUSR1)
    assert launcher.wait(timeout=600) == 75, said(out)
    first = checkpoint.newest(out).step
    assert first >= 3
    launcher = launched(tokens, settings, out, restarts=2)
    wait_for_step(out, [launcher], first + 3)
    (out / "STOP").touch()
    assert launcher.wait(timeout=600) == 75, said(out)
    assert checkpoint.newest(out).step > first


def test_the_launcher_does_not_restart_a_run_that_cannot_succeed(work, tokens):
    out, wrong = work / "wrong", work / "wrong.toml"
    wrong.write_text("nmae = 'x'")
    launcher = launched(tokens, wrong, out, restarts=3)
    assert launcher.wait(timeout=600) == 40
    assert said(out).count("unknown key nmae") == 2
    assert json.loads((out / "exit.json").read_text()) == {"exit_code": 40}
