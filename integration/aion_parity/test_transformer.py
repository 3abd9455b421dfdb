"""Context vectors and logits of the transformer agree with the official package."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skyvec_core.compat import official_context
from skyvec_core.modalities import MODALITIES
from skyvec_core.prediction import predict_logits

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

TOLERANCE = 1e-5
"""Largest absolute difference in float32 of values of order 1."""
MOST_TOKENS = 900
OBJECTS_IN_A_CUTOUT = 10
BITS = settings(max_examples=25, derandomize=True, deadline=None, database=None)


def random_inputs(keys, hiding, rows, seed):
    """Ids of each domain, and what to hide: nothing, single tokens, or all of some rows."""
    generator = torch.Generator().manual_seed(seed)
    ids, hide = {}, {}
    for key in keys:
        one = MODALITIES[key]
        count = 5 * OBJECTS_IN_A_CUTOUT if key == "catalog" else one.num_tokens
        ids[key] = torch.randint(0, one.vocabulary, (rows, count), generator=generator)
        if hiding == "nothing":
            hide[key] = torch.zeros((rows, count), dtype=torch.bool)
        elif hiding == "rows":
            hide[key] = (torch.rand((rows, 1), generator=generator) < 0.4).expand(rows, count)
        else:
            hide[key] = torch.rand((rows, count), generator=generator) < 0.3
    return ids, hide


@st.composite
def domain_orders(draw):
    """A few of the 40 domains in any order, not too many tokens together."""
    keys = draw(st.lists(st.sampled_from(sorted(MODALITIES)), min_size=1, max_size=7, unique=True))
    while sum(min(MODALITIES[key].num_tokens, 576) for key in keys) > MOST_TOKENS:
        keys.remove(max(keys, key=lambda key: MODALITIES[key].num_tokens))
    return keys


def official_logits(pair, ids, hide, targets):
    return pair.official("forward", ids, hide, targets=list(targets))


def our_logits(pair, ids, hide, targets):
    tokens = pair.tokens(ids, hide)
    return predict_logits(pair.model.transformer, tokens, list(targets), attention="compat")


def worst_difference(ours, official):
    """Largest difference over tokens that are not hidden; both sides hide the same ones."""
    assert ours.keys() == official.keys()
    for key in ours:
        assert torch.equal(ours[key].isnan(), official[key].isnan()), key
    return max((ours[k] - official[k]).nan_to_num().abs().max().item() for k in ours)


@BITS
@given(
    keys=domain_orders(),
    hiding=st.sampled_from(["nothing", "tokens", "rows"]),
    rows=st.integers(1, 3),
    seed=st.integers(0, 2**32),
)
def test_context_vectors_for_any_domains_masks_and_order(shallow, keys, hiding, rows, seed):
    ids, hide = random_inputs(keys, hiding, rows, seed)
    official = shallow.official_context(ids, hide)
    assert worst_difference(shallow.our_context(ids, hide), official) <= TOLERANCE


@pytest.mark.parametrize("hiding", ["nothing", "tokens", "rows"])
@pytest.mark.parametrize("limit", [None, 100, 400])
def test_what_the_official_encode_returns_hidden_and_dropped_tokens_too(tiny, hiding, limit):
    keys = ["tok_spectrum_desi", "tok_flux_g", "catalog", "tok_xp_rp"]
    ids, hide = random_inputs(keys, hiding, 3, seed=4)
    official = tiny.official("encode", ids, hide, limit=limit or "default")["context"]
    tokens = tiny.tokens(ids, hide)
    more = {"num_encoder_tokens": limit} if limit else {}
    ours, _ = official_context(tiny.model.transformer, tokens, **more)
    assert ours.shape == official.shape
    assert (ours - official).abs().max() <= TOLERANCE


TARGETS = [
    ("tok_z",),
    ("tok_z", "tok_flux_r"),
    ("tok_spectrum_desi", "tok_z"),
    ("tok_image",),
    ("tok_segmap", "tok_xp_bp", "tok_shape_e1"),
]


@pytest.mark.parametrize("hiding", ["nothing", "tokens"])
@pytest.mark.parametrize("targets", TARGETS, ids="+".join)
def test_logits_of_the_official_forward(shallow, targets, hiding):
    keys = ["tok_spectrum_sdss", "tok_flux_g", "tok_xp_rp", "tok_ebv", "catalog"]
    ids, hide = random_inputs(keys, hiding, 2, seed=len(targets))
    official = official_logits(shallow, ids, hide, targets)
    assert worst_difference(our_logits(shallow, ids, hide, targets), official) <= TOLERANCE


def test_all_twelve_and_twelve_blocks_of_the_base_size(base):
    keys = ["tok_flux_g", "tok_image", "tok_shape_r", "tok_ebv"]
    ids, hide = random_inputs(keys, "tokens", 1, seed=3)
    official = base.official_context(ids, hide)
    assert worst_difference(base.our_context(ids, hide), official) <= TOLERANCE
    targets = ["tok_z", "tok_xp_bp"]
    official = official_logits(base, ids, hide, targets)
    assert worst_difference(our_logits(base, ids, hide, targets), official) <= TOLERANCE
