"""Training and plugin meet in the token catalog: tokenize, train a little, export, embed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import skyvec
import skyvec_training

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("default"),
]

RECIPE = Path(skyvec_training.__file__).parent / "recipes/skyvec_tiny_start.toml"


def short_recipe(folder):
    """The shipped recipe, cut to a few steps and a few held-out objects."""
    text = RECIPE.read_text().replace("held_out = 2000", "held_out = 10")  # of the codecs
    for key, value in {"steps": 4, "batch": 8, "warmup_steps": 1,
                       "evaluate_every": 4, "checkpoint_every": 2, "log_every": 1}.items():  # fmt: skip
        text = re.sub(rf"^{key} = .*$", f"{key} = {value}", text, flags=re.MULTILINE)
    path = folder / "short.toml"
    path.write_text(text)
    return path


def test_a_model_trained_on_our_tokens_embeds_and_knows_its_own_vectors(tmp_path):
    recipe = short_recipe(tmp_path)

    def train(command, source, out, *more):
        words = [command, source, "--out", out, "--recipe", recipe, "--threads", 1, *more]
        subprocess.run(
            [sys.executable, "-m", "skyvec_training", *map(str, words)], check=True, cwd=tmp_path
        )

    sky, codec, scalars = tmp_path / "sky", tmp_path / "codec", tmp_path / "scalars"
    subprocess.run(
        [sys.executable, "-m", "skyvec", "mock-survey", "--rows", "60", "--out", str(sky)],
        check=True,
    )
    train("image-codec", sky, codec)
    train("scalars", sky, scalars)
    train("export", codec, tmp_path / "codecs-only", "--scalars", scalars)
    skyvec.run(sky, model=tmp_path / "codecs-only", product="tokens", name="tokens", workers=0)
    train("transformer", sky / "tokens", tmp_path / "transformer")
    train("export", codec, tmp_path / "model", "--scalars", scalars,
          "--transformer", tmp_path / "transformer")  # fmt: skip
    record = skyvec.run(sky, model=tmp_path / "model", workers=0)
    assert (record.exit_code, record.rows, record.failed_rows) == (0, 60, 0)
    assert record.provenance.model_digest == skyvec.load_model(tmp_path / "model").digest
    assert record.provenance.model_digest != skyvec.load_model(tmp_path / "codecs-only").digest
