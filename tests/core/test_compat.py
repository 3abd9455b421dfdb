"""Official numbers on demand: what is dropped, hidden and averaged."""

import pytest
import torch

from skyvec_core.compat import official_context
from skyvec_core.embedder import Model
from skyvec_core.model.config import TransformerConfig
from skyvec_core.model.encoder_decoder import EncoderDecoder
from skyvec_core.observations import Tokens

DOMAINS = ("tok_image", "tok_flux_g", "tok_z", "catalog")


@pytest.fixture(scope="module")
def transformer():
    model = EncoderDecoder(
        TransformerConfig(dim=32, num_heads=2, encoder_depth=2, decoder_depth=1,
                          domains_in=DOMAINS, domains_out=DOMAINS)
    )  # fmt: skip
    model.initialize(torch.Generator().manual_seed(0))
    return model.eval().requires_grad_(requires_grad=False)


def tokens_of(rows=3, *, hidden=0):
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 4375, (rows, 576), generator=generator)
    valid = torch.ones_like(image, dtype=torch.bool)
    valid[:, :hidden] = False
    scalar = torch.randint(0, 1024, (rows, 1), generator=generator)
    return {
        "tok_image": Tokens(ids_BN=image, valid_BN=valid),
        "tok_z": Tokens(ids_BN=scalar, valid_BN=torch.ones_like(scalar, dtype=torch.bool)),
    }


def test_by_default_the_official_encode_drops_all_after_256(transformer):
    tokens = tokens_of()
    context, valid = official_context(transformer, tokens)
    assert context.shape == (3, 256, 32)
    assert valid.all()
    other = {"tok_image": tokens["tok_image"], "tok_z": tokens_of(3)["tok_z"]}
    other["tok_z"].ids_BN[:] = 5
    assert torch.equal(official_context(transformer, other)[0], context)
    # The same tokens with the scalar first: now it is among the 256.
    first = official_context(transformer, dict(reversed(tokens.items())))[0]
    assert not torch.allclose(first[:, 1:], context[:, :-1], atol=1e-3)


def test_with_room_for_all_it_is_our_context(transformer):
    tokens = tokens_of(hidden=100)
    context, valid = official_context(transformer, tokens, num_encoder_tokens=577)
    ours = Model(transformer, {}, name="a").contexts_of_objects(tokens, dtype=torch.float32)
    for row in range(3):
        assert torch.allclose(context[row, valid[row]], ours[row], atol=1e-5)


def test_compat_averages_hidden_tokens_in_and_the_default_does_not(transformer):
    tokens = tokens_of(hidden=100)
    official = Model(transformer, {}, name="a", compat=True)
    context, _ = official_context(transformer, tokens, num_encoder_tokens=577)
    vectors = official.embed(tokens, num_encoder_tokens=577)
    assert torch.allclose(vectors, context.mean(1))
    ours = Model(transformer, {}, name="a").embed(tokens)
    assert (vectors - ours).abs().max() > 1e-3


def test_an_object_without_tokens_is_the_bias_of_the_projection(transformer):
    tokens = tokens_of(hidden=576)
    tokens["tok_z"].valid_BN[:] = False
    vectors = Model(transformer, {}, name="a", compat=True).embed(tokens)
    bias = transformer.decoder_proj_context.bias
    assert torch.allclose(vectors, bias.expand(3, -1))
    assert Model(transformer, {}, name="a").embed(tokens).isnan().all()


def test_compat_knows_no_other_pooling(transformer):
    official = Model(transformer, {}, name="a", compat=True)
    with pytest.raises(ValueError, match="pools by the official mean over all tokens"):
        official.embed(tokens_of(), pooling="mean_of_modalities")


def test_dropping_tokens_is_for_compat_only(transformer):
    with pytest.raises(ValueError, match="needs a model with compat=True"):
        Model(transformer, {}, name="a").embed(tokens_of(), num_encoder_tokens=256)


def test_positions_in_a_catalog_count_the_objects_that_are_there(transformer):
    """A gap moves what follows it; elsewhere a token keeps its place."""
    codes = torch.tensor([[300, 0, 400, 500]])
    gap = Tokens(ids_BN=codes, valid_BN=torch.tensor([[True, False, True, True]]))
    dense = Tokens(ids_BN=codes[:, [0, 2, 3]], valid_BN=torch.ones(1, 3, dtype=torch.bool))
    model = Model(transformer, {}, name="a")
    assert torch.equal(model.embed({"catalog": gap}), model.embed({"catalog": dense}))
