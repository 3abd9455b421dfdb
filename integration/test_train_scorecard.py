"""The scorecard of the shipped model on a mock survey, from the command line, and promotion by it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import skyvec
from skyvec.models import model_folder

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(1200),
    pytest.mark.filterwarnings("default"),
]

TASKS = """
name = "short"
resamples = 40
reconstructed = 16

[inputs]
photometry = ["tok_flux_*", "tok_ebv"]
"photometry+image" = ["tok_flux_*", "tok_ebv", "tok_shape_*", "tok_image"]

[[regression]]
name = "redshift"
column = "Z"
redshift = true
excluded = ["tok_z"]

[[regression]]
name = "age"
column = "AGE"

[[classification]]
name = "kind of object"
column = "kind"

[photometry]
iterations = 60

[heads]
names = ["ridge_mean", "ridge_modalities", "attentive"]
epochs = 2

[supervised]
folds = false
epochs = 1
least_steps = 10

[low_data]
labels = [30, 300, 3000]
inputs = ["photometry+image"]
supervised = [300]
"""


def run(*words, ok=True):
    done = subprocess.run([sys.executable, "-m", *map(str, words)], capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert not ok or done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scorecard")
    sky = folder / "sky"
    run("skyvec", "mock-survey", "--rows", 360, "--stars", 60, "--quasars", 0, "--surveys", "gaia",
        "--seed", 9, "--out", sky)  # fmt: skip
    skyvec.run(sky, product="tokens", name="tokens", workers=0)
    (folder / "tasks.toml").write_text(TASKS)
    run("skyvec_training", "evaluate", sky, "--model", model_folder("skyvec-tiny"), "--tokens",
        "tokens", "--labels", sky / "truth" / "objects.parquet", "--tasks", folder / "tasks.toml",
        "--out", folder / "out", "--threads", 1)  # fmt: skip
    return folder


def test_the_scorecard_of_the_shipped_model(scored):
    card = json.loads((scored / "out/scorecard.json").read_text())
    tasks = {task["name"]: task for task in card["tasks"]}
    assert card["model"]["digest"] == skyvec.load_model("skyvec-tiny").digest
    assert card["release"]["rows"] == 420
    assert len(card["release"]["token_fingerprint"]) == 64
    assert "AGE" in tasks["age"]["skipped"]
    redshift = {
        s["method"]: s["metrics"] for s in tasks["redshift"]["scores"] if s["role"] != "head"
    }
    for method in ("embeddings, photometry+image", "boosting_photometry"):
        assert redshift[method]["r2"]["low"] > 0.3
    assert redshift["shuffled labels"]["r2"]["low"] <= 0
    kind = next(s for s in tasks["kind of object"]["scores"] if s["role"] == "embeddings")
    assert kind["metrics"]["auroc"]["value"] > 0.9  # stars and galaxies
    drawn = {(p["method"], p["labels"]) for p in card["low_data"]["points"]}
    assert ("supervised_image", 300) in drawn
    assert any("3,000" in reason for reason in card["low_data"]["skipped"])
    assert card["low_data"]["comparisons"]["redshift"][0]["ours"].endswith("30 labels")
    assert card["reconstruction"]["tok_image"]["r2"]["DES-R"] > 0.2
    assert card["reconstruction"]["scalars"]["tok_flux_r"]["median"] < 0.05


def test_the_page_stands_alone(scored):
    page = (scored / "out/scorecard.html").read_text()
    assert not re.search(r"(?:src|href)=\"(?!#)", page)
    assert page.count("<svg") >= 3


def test_it_is_promoted_over_itself_and_a_worse_one_exits_with_30(scored, tmp_path):
    done = run("skyvec_training", "promote", scored / "out", scored / "out", "--out", tmp_path)
    assert "promoted" in done.stdout
    facts = json.loads((scored / "out/scorecard.json").read_text())
    for score in facts["tasks"][0]["scores"]:
        score["metrics"]["r2"]["value"] -= 0.2
    (tmp_path / "worse").mkdir()
    (tmp_path / "worse/scorecard.json").write_text(json.dumps(facts))
    worse = run("skyvec_training", "promote", tmp_path / "worse", scored / "out", "--out",
                tmp_path / "no", ok=False)  # fmt: skip
    assert worse.returncode == 30
    assert "is not promoted: redshift" in worse.stdout
    assert not Path(tmp_path / "no").exists()


def test_other_tokens_and_missing_tokens_are_refused(scored):
    words = ["skyvec_training", "evaluate", scored / "sky", "--model", model_folder("skyvec-tiny"),
             "--out", scored / "none", "--tokens"]  # fmt: skip
    done = run(*words, "nowhere", ok=False)
    assert done.returncode == 40
    assert "skyvec tokenize" in done.stdout
