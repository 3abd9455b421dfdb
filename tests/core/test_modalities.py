"""The registry of token domains."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyvec_core.modalities import MODALITIES, modalities_of, modality_bits


def test_there_are_the_forty_domains_of_aion():
    assert len(MODALITIES) == 40
    assert {m.vocabulary for m in MODALITIES.values()} == {1000, 1024, 1025, 3468, 4375}


def test_token_keys_hash_to_distinct_ids_as_published():
    ids = {int(hashlib.sha256(k.encode()).hexdigest(), 16) % 2**15 for k in MODALITIES}
    assert len(ids) == 40
    assert 18665 in ids  # tok_image, from the published table


@pytest.mark.parametrize(
    ("key", "tokens", "codec"),
    [
        ("tok_image", 576, "image"),
        ("tok_image_hsc", 576, "image"),
        ("tok_spectrum_desi", 273, "spectrum"),
        ("tok_segmap", 144, "segmentation_map"),
        ("tok_xp_bp", 55, "bp_coefficients"),
        ("tok_z", 1, "Z"),
        ("tok_ebv", 1, "EBV"),
    ],
)
def test_domains_have_the_published_grid_and_folder(key, tokens, codec):
    assert (MODALITIES[key].num_tokens, MODALITIES[key].codec) == (tokens, codec)


@given(st.sets(st.sampled_from(sorted(MODALITIES))))
def test_a_bit_mask_returns_the_modalities_that_made_it(keys):
    assert set(modalities_of(modality_bits(tuple(keys)))) == keys
