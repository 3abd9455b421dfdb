"""Recipes: what is read and what is refused."""

from pathlib import Path

import pytest

import skyvec_training
from skyvec_schemas.errors import ConfigurationError
from skyvec_training.recipe.reading import digest_of_run
from skyvec_training.recipe.recipe import load_recipe

RECIPE = Path(skyvec_training.__file__).parent / "recipes" / "skyvec_tiny.toml"


def changed(tmp_path, old, new):
    text = RECIPE.read_text()
    assert old in text
    path = tmp_path / "recipe.toml"
    path.write_text(text.replace(old, new, 1))
    return path


def test_the_shipped_recipe_is_read():
    recipe = load_recipe(RECIPE)
    assert recipe.name == "skyvec-tiny"
    assert "tok_z" in recipe.transformer.model.domains


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("crop = 48", "corp = 48", "unknown key image_codec.corp"),
        ("dim = 128", "dim = '128'", "transformer.model.dim: '128' is not int"),
        ("dim = 128\n", "", "missing 1 required keyword-only argument: 'dim'"),
        ("warmup_steps = 100", "warmup_steps = 99999", "warmup_steps .99999. must lie"),
        ('precision = "bfloat16"', 'precision = "float8"', "image_codec.precision: 'float8'"),
        ("[scalars]", "[sclars]", "unknown key sclars"),
        ("image = 0.2", "imago = 0.2", "transformer.masking: unknown groups .* imago"),
        ("tok_z = 8.0", "tok_y = 3.0", "domain_weights of tok_y, which the model lacks"),
        ("[scalars]", "scalars]", "at line"),
    ],
)
def test_a_wrong_key_is_refused_and_named(tmp_path, old, new, message):
    with pytest.raises(ConfigurationError, match=message):
        load_recipe(changed(tmp_path, old, new))


def test_all_wrong_keys_are_named_at_once(tmp_path):
    path = changed(tmp_path, "crop = 48", "corp = 48\ncrip = 1")
    with pytest.raises(ConfigurationError, match=r"image_codec.corp.*|image_codec.crip"):
        load_recipe(path)


def test_a_recipe_that_is_not_there_is_an_error_with_a_remedy(tmp_path):
    with pytest.raises(ConfigurationError, match=r"No such file.*Give a recipe"):
        load_recipe(tmp_path / "none.toml")


def test_the_digest_of_a_run_follows_its_settings(tmp_path):
    before = digest_of_run(load_recipe(RECIPE).image_codec)
    assert before == digest_of_run(load_recipe(RECIPE).image_codec)
    other = load_recipe(changed(tmp_path, "crop = 48", "crop = 44"))
    assert before != digest_of_run(other.image_codec)
