"""The commands, as a person gives them."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skyvec_schemas.survey_columns import LEGACY_SURVEY
from skyvec_training.__main__ import main
from skyvec_training.codecs.scalars import columns_of
from skyvec_training.commands.command import RECIPE

SMALL = {
    "held_out = 2000": "held_out = 4",
    "steps = 3000": "steps = 2",
    "warmup_steps = 200": "warmup_steps = 1",
    "dim = 128": "dim = 16",
    "batch = 64": "batch = 4",
}


@pytest.fixture
def recipe(tmp_path):
    text = RECIPE.with_name("skyvec_tiny_start.toml").read_text()
    for old, new in SMALL.items():
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "small.toml"
    path.write_text(text)
    return path


@pytest.fixture
def catalog(tmp_path):
    rng = np.random.default_rng(0)
    columns = {name: pa.array(np.exp(rng.normal(size=40))) for name in columns_of(LEGACY_SURVEY)}
    leaf = tmp_path / "catalog" / "dataset" / "Norder=0" / "Dir=0" / "Npix=0.parquet"
    leaf.parent.mkdir(parents=True)
    pq.write_table(pa.table(columns), leaf)
    return tmp_path / "catalog"


def test_scalars_are_fitted_from_the_command_line(tmp_path, catalog, recipe):
    assert main(["scalars", str(catalog), "--out", str(tmp_path / "out"), "--recipe", str(recipe),
                 "--threads", "1"]) == 0  # fmt: skip
    fitted = tmp_path / "out" / "codecs" / "Z" / "config.json"
    assert json.loads(fitted.read_text())["codebook_size"] == 1024


def test_a_wrong_recipe_exits_with_40(tmp_path, catalog, capsys):
    wrong = tmp_path / "wrong.toml"
    wrong.write_text("nmae = 'x'")
    code = main(["scalars", str(catalog), "--out", str(tmp_path), "--recipe", str(wrong),
                 "--threads", "1"])  # fmt: skip
    assert code == 40
    assert "unknown key nmae" in capsys.readouterr().out


def test_a_catalog_without_a_column_exits_with_30(tmp_path, catalog, recipe, capsys):
    leaf = next(catalog.rglob("*.parquet"))
    pq.write_table(pq.read_table(leaf, partitioning=None).drop_columns(["EBV"]), leaf)
    code = main(["scalars", str(catalog), "--out", str(tmp_path), "--recipe", str(recipe),
                 "--threads", "1"])  # fmt: skip
    assert code == 30
    assert "column EBV is missing" in capsys.readouterr().out
