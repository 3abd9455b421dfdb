"""Where core and schemas must agree: they are strangers, so the agreement is a test."""

import numpy as np

from skyvec_core.codecs.image import CHANNELS, ImageCodec
from skyvec_core.modalities import MODALITIES
from skyvec_schemas.survey_columns import SURVEYS


def test_every_survey_column_feeds_a_modality_of_its_kind():
    for survey in SURVEYS.values():
        if survey.image:
            assert MODALITIES[survey.image.token_key].kind == "image"
        for scalar in survey.scalars:
            assert MODALITIES[scalar.token_key].kind == "scalar"
        for token_key in survey.labels.values():
            assert MODALITIES[token_key].kind == "scalar"


def test_every_survey_band_is_a_channel_of_the_codec():
    for survey in SURVEYS.values():
        if survey.image:
            assert set(survey.image.bands.values()) <= set(CHANNELS)


def test_flux_columns_carry_the_unit_that_their_codec_expects():
    for survey in SURVEYS.values():
        for scalar in survey.scalars:
            if scalar.unit == "nanomaggy":
                assert "nanomaggies" in MODALITIES[scalar.token_key].quantity


def test_a_column_of_a_survey_is_stored_under_the_codec_of_its_name():
    for survey in SURVEYS.values():
        for scalar in survey.scalars:
            assert MODALITIES[scalar.token_key].codec == scalar.name


def test_codes_of_every_modality_fit_the_token_column():
    assert max(m.vocabulary for m in MODALITIES.values()) <= np.iinfo(np.int16).max


def test_the_token_grid_divides_the_codecs_window():
    rows, columns = MODALITIES["tok_image"].grid
    assert ImageCodec.size % rows == ImageCodec.size % columns == 0
