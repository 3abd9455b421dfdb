"""Models by name: what is refused, and how."""

import pytest

import skyvec
from skyvec_schemas.errors import ConfigurationError


def test_an_unknown_precision_is_not_blamed_on_the_folder():
    with pytest.raises(ConfigurationError, match=r"fp16: is not a precision\. Use float32 or bfl"):
        skyvec.load_model(precision="fp16")


def test_options_reach_the_model(model_folder):
    model = skyvec.load_model(model_folder, precision="bfloat16", compat=True)
    assert model.precision == "bfloat16"
    assert model.compat
