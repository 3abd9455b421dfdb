"""Models by name: what is refused, and how; `models verify` against every way of being wrong."""

import json
import shutil
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import skyvec
from skyvec import cli
from skyvec.commands import terminal
from skyvec.models import packaged_models
from skyvec_core.golden import GOLDEN_FILE, GoldenVectors, write_golden
from skyvec_schemas.errors import ConfigurationError

FLIPPED = 3
"""Of a tensor of the weights, one value."""


@pytest.fixture
def verify(capsys, monkeypatch):
    """Call ``skyvec models verify`` in this process; exit code, output and errors."""
    monkeypatch.setattr(terminal.out, "_width", 300)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["skyvec", "models", "verify", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return call


@pytest.fixture
def folder(model_folder, tmp_path):
    """A copy of the small model with golden vectors."""
    copy = shutil.copytree(model_folder, tmp_path / "model")
    write_golden(copy)
    return copy


def tamper(place):
    """Change one value of a safetensors file."""
    tensors = load_file(place)
    learnt = [n for n in sorted(tensors) if n.endswith(("qkv.weight", "in.weight", "buckets"))]
    name = learnt[0]
    tensors[name].view(-1)[FLIPPED] += 0.5
    save_file(tensors, place)


def test_an_unknown_precision_is_not_blamed_on_the_folder():
    with pytest.raises(ConfigurationError, match=r"fp16: is not a precision\. Use float32 or bfl"):
        skyvec.load_model(precision="fp16")


def test_options_reach_the_model(model_folder):
    model = skyvec.load_model(model_folder, precision="bfloat16", compat=True)
    assert model.precision == "bfloat16"
    assert model.compat


def test_the_packaged_model_is_proved(verify):
    code, printed, _ = verify("skyvec-tiny")
    assert code == 0
    assert skyvec.load_model().digest in printed
    assert "16 .safetensors; nothing else" in printed
    assert "golden" in printed
    assert "bit for bit" in printed or "within rounding" in printed


def test_files_that_are_no_safetensors_are_listed_as_never_read(verify, folder):
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n")
    (folder / "README.md").write_text("prose")
    code, printed, _ = verify(folder)
    assert code == 0
    assert "never read: pytorch_model.bin" in printed
    assert "README" not in printed


@pytest.mark.parametrize(
    "part", ["model.safetensors", "codecs/image/model.safetensors", "codecs/Z/model.safetensors"]
)
def test_a_tampered_tensor_fails_and_its_file_is_named(verify, folder, part):
    tamper(folder / part)
    code, _, problem = verify(folder)
    assert code == 40
    assert f"{folder}: {part} changed since the golden vectors were made" in problem
    assert problem.count("\n") == 1


def test_a_codec_that_vanished_is_named(verify, folder):
    shutil.rmtree(folder / "codecs" / "Z")
    code, _, problem = verify(folder)
    assert code == 40
    assert "codecs/Z/model.safetensors changed" in problem


def test_a_machine_that_computes_wrong_is_told_from_broken_weights(verify, folder, monkeypatch):
    of = GoldenVectors.of

    def wrong(*arguments, **options):
        golden = of(*arguments, **options)
        golden.vectors.mul_(1.01)
        return golden

    monkeypatch.setattr(GoldenVectors, "of", wrong)
    code, _, problem = verify(folder)
    assert code == 40
    assert "the weights are whole, but this machine computes other numbers" in problem
    assert verify(folder, "--write")[0] == 40, "wrong numbers never become the expected ones"


def test_a_model_of_a_user_gets_golden_vectors_on_demand(verify, model_folder, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "mine")
    code, printed, _ = verify(folder)
    assert code == 0
    assert f"has no golden vectors; `skyvec models verify {folder} --write`" in printed
    code, printed, _ = verify(folder, "--write")
    assert code == 0
    assert f"wrote {folder / GOLDEN_FILE}" in printed
    assert "bit for bit" in printed
    written = (folder / GOLDEN_FILE).read_bytes()
    code, printed, _ = verify(folder, "--write")
    assert code == 0
    assert "wrote" not in printed
    assert (folder / GOLDEN_FILE).read_bytes() == written


def test_weights_that_were_changed_on_purpose_can_be_kept(verify, folder):
    tamper(folder / "model.safetensors")
    assert verify(folder, "--write")[0] == 0
    assert verify(folder)[0] == 0


def test_a_card_of_another_model_is_refused(verify, folder):
    (folder / "card.json").write_text(json.dumps({"digest": "0" * 64}))
    code, _, problem = verify(folder)
    assert code == 40
    assert "card.json says digest 000000000000" in problem


def test_golden_vectors_that_cannot_be_read_are_one_line(verify, folder):
    (folder / GOLDEN_FILE).write_bytes(b"torn")
    code, _, problem = verify(folder)
    assert code == 40
    assert "no golden vectors" in problem
    assert problem.count("\n") == 1


def test_a_model_that_gives_nan_gets_none(verify, model_folder, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "nan")
    tensors = load_file(folder / "model.safetensors")
    tensors["encoder_norm.weight"].fill_(torch.nan)
    save_file(tensors, folder / "model.safetensors")
    code, _, problem = verify(folder, "--write")
    assert code == 40
    assert "not finite" in problem
    assert not (folder / GOLDEN_FILE).exists()


def test_golden_vectors_of_an_older_skyvec_are_renewed_on_demand(verify, folder):
    place = folder / GOLDEN_FILE
    replace(GoldenVectors.load(place), numerics_version=-1).save(place)
    code, printed, _ = verify(folder)
    assert code == 0
    assert "another version of skyvec" in printed
    assert "bit for bit" in verify(folder, "--write")[1]
    assert GoldenVectors.load(place).current


def test_coarse_arithmetic_is_compared_with_its_own_tolerance(verify, folder):
    code, printed, _ = verify(folder, "--precision", "bfloat16")
    assert code == 0
    assert "within rounding" in printed


def test_every_packaged_model_carries_golden_vectors():
    assert all((folder / GOLDEN_FILE).is_file() for folder in packaged_models().values())
