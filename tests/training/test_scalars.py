"""Scalar codecs fitted to a survey."""

import numpy as np
import pytest
import torch

from skyvec_schemas.errors import ConfigurationError
from skyvec_schemas.survey_columns import LEGACY_SURVEY
from skyvec_training.codecs.scalars import columns_of, fit_scalars
from skyvec_training.recipe.codecs import ScalarRun


@pytest.fixture
def values():
    rng = np.random.default_rng(0)
    return {name: np.exp(rng.normal(size=5000)) for name in columns_of(LEGACY_SURVEY)}


def test_every_scalar_and_label_gets_a_codec(values):
    codecs = fit_scalars(values, LEGACY_SURVEY, ScalarRun(held_out=100))
    assert set(codecs) == {s.token_key for s in LEGACY_SURVEY.scalars} | {"tok_z"}


def test_a_fitted_codec_gives_values_back_to_three_percent(values):
    codec = fit_scalars(values, LEGACY_SURVEY, ScalarRun(held_out=100))["tok_flux_r"]
    sample = torch.from_numpy(values["FLUX_R"][:1000]).float()
    again = codec.decode(codec.encode(sample).ids_BN)
    inner = (sample > 0.2) & (sample < 5)
    torch.testing.assert_close(again[inner], sample[inner], rtol=0.03, atol=0)


def test_held_out_rows_are_not_fitted(values):
    before = fit_scalars(values, LEGACY_SURVEY, ScalarRun(held_out=100))["tok_ebv"].quantizer.values
    values["EBV"][-100:] = 1e9
    after = fit_scalars(values, LEGACY_SURVEY, ScalarRun(held_out=100))["tok_ebv"].quantizer.values
    assert torch.equal(before, after)


def test_the_redshift_grid_is_that_of_the_recipe(values):
    codec = fit_scalars(values, LEGACY_SURVEY, ScalarRun(held_out=0))["tok_z"]
    torch.testing.assert_close(codec.quantizer.values, torch.linspace(0, 6, 1024))


def test_holding_out_everything_is_refused(values):
    with pytest.raises(ConfigurationError, match="leaves none of 5000 objects"):
        fit_scalars(values, LEGACY_SURVEY, ScalarRun(held_out=5000))
