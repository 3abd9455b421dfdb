"""Gradients of ranks that see different modalities; names, groups and errors of the ranks."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from skyvec_schemas.errors import ConfigurationError, InfrastructureError
from skyvec_training.masked.transformer import build_transformer
from skyvec_training.parallel import mesh
from skyvec_training.parallel.mesh import others_answer
from skyvec_training.parallel.sharding import named_parameters, prepare_blocks
from skyvec_training.recipe.parallel import ParallelRun

pytestmark = pytest.mark.timeout(300)

SCRIPT = Path(__file__).with_name("two_ranks.py")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(tmp_path_factory.getbasetemp() / "two-ranks")],
            env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank),
                 "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [rank.communicate(timeout=280) for rank in ranks]
    assert all(rank.returncode == 0 for rank in ranks), said
    return json.loads(said[0][0].splitlines()[-1])


@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_ranks_with_different_modalities_have_the_gradient_of_one(found, strategy):
    assert found[f"{strategy} True"] < 1e-5


@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_without_the_setter_the_gradient_is_wrong_and_nothing_says_so(found, strategy):
    assert found[f"{strategy} False"] > 1e-2


def test_a_full_disk_of_one_rank_is_an_error_on_all(found):
    assert len(found["disk"]) == 2
    for said in found["disk"]:
        assert "step 2 could not be written" in said
        assert "File too large" in said
        assert said.endswith("| newest 1")


def test_names_do_not_depend_on_wrappers(transformer_run):
    plain, wrapped = (build_transformer(transformer_run, seed=0) for _ in range(2))
    prepare_blocks(wrapped, ParallelRun(activation_checkpointing=True))
    assert list(named_parameters(wrapped)) == list(named_parameters(plain))


def test_groups_must_divide_the_world():
    with pytest.raises(ConfigurationError, match="groups of 3 ranks do not divide 4 processes"):
        mesh._mesh(ParallelRun(strategy="hybrid", shard=3), torch.device("cpu"), 4)


@pytest.mark.parametrize("change", [{"shard": -1}, {"microbatch": -1}, {"timeout_minutes": 0}])
def test_impossible_settings_are_refused(change):
    with pytest.raises(ValueError, match="must not be negative"):
        ParallelRun(**change)


def test_a_broken_group_says_what_to_do():
    words = r"another process of this run is gone.*0.5 minutes.*same command goes on"
    with (
        pytest.raises(InfrastructureError, match=words),
        others_answer(ParallelRun(timeout_minutes=0.5)),
    ):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer")


def test_other_errors_pass_unchanged():
    with pytest.raises(RuntimeError, match="shapes differ"), others_answer(ParallelRun()):
        raise RuntimeError("shapes differ")


def test_without_torchrun_a_process_is_alone(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with mesh.join(ParallelRun()) as world:
        assert world is mesh.ALONE
