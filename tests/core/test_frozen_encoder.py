"""The encoder for inference gives the numbers of the trainable one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skyvec_core.batches import GPU, batches
from skyvec_core.embedder import Model
from skyvec_core.modalities import MODALITIES
from skyvec_core.model.config import TransformerConfig
from skyvec_core.model.encoder_decoder import EncoderDecoder
from skyvec_core.model.frozen_encoder import FrozenEncoder
from skyvec_core.observations import Tokens
from skyvec_core.packed import PackedLinear, can_pack

DOMAINS = ("tok_image", "tok_flux_g", "tok_z")


@pytest.fixture(scope="module")
def transformer():
    # Two heads of 32 and weights large enough that attention is far from even.
    model = EncoderDecoder(
        TransformerConfig(dim=64, num_heads=2, encoder_depth=3, decoder_depth=1,
                          domains_in=DOMAINS, domains_out=DOMAINS)
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    model.initialize(generator)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            torch.nn.init.uniform_(parameter, 0.5, 1.5, generator=generator)
        elif "table" in name:
            torch.nn.init.normal_(parameter, std=0.5, generator=generator)
    return model.eval().requires_grad_(requires_grad=False)


def token_set(counts, *, seed=0):
    """Objects with so many image tokens, at random places, and sometimes a scalar."""
    generator = torch.Generator().manual_seed(seed)
    tokens = {}
    for key in DOMAINS:
        modality = MODALITIES[key]
        shape = (len(counts), modality.num_tokens)
        tokens[key] = Tokens(
            ids_BN=torch.randint(0, modality.vocabulary, shape, generator=generator),
            valid_BN=torch.rand(shape, generator=generator) < 0.5,
        )
    order = torch.rand((len(counts), 576), generator=generator).argsort(1)
    tokens["tok_image"].valid_BN[:] = order < torch.tensor(counts)[:, None]
    return tokens


def contexts_of_the_plain_form(transformer, tokens):
    """Row -> context vectors of its valid tokens."""
    found = {}
    for batch in batches(tokens, transformer.vocabulary, layout=GPU):
        context = transformer.encode(batch.codes_BT, batch.positions_BT, batch.valid_BT)
        for place, row in enumerate(batch.rows.tolist()):
            found[row] = context[place, batch.valid_BT[place]]
    return found


@given(st.lists(st.integers(0, 576), min_size=1, max_size=6), st.integers(0, 99))
def test_every_context_vector_is_that_of_the_trainable_encoder(transformer, counts, seed):
    tokens = token_set(counts, seed=seed)
    expected = contexts_of_the_plain_form(transformer, tokens)
    model = Model(transformer, {}, name="test")
    found = model.contexts_of_objects(tokens, dtype=torch.float32)
    for row, context in enumerate(found):
        assert len(context) == len(expected.get(row, ()))
        if row in expected:
            assert torch.allclose(context, expected[row], atol=1e-5, rtol=1e-5)


def test_bfloat16_points_the_same_way(transformer):
    tokens = token_set([576, 300, 65, 64, 3])
    full = Model(transformer, {}, name="a").embed(tokens)
    half = Model(transformer, {}, name="b", precision="bfloat16").embed(tokens)
    assert not torch.equal(full, half)
    assert torch.nn.functional.cosine_similarity(full, half).amin() > 0.999


def test_logits_that_could_overflow_take_the_softmax(transformer):
    """Query and key norms of 40 would overflow exp2; vectors stay finite and right."""
    state = {k: v.clone() for k, v in transformer.state_dict().items()}
    large = EncoderDecoder(transformer.config).eval().requires_grad_(requires_grad=False)
    for name, weight in state.items():
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            weight.mul_(6)
    large.load_state_dict(state)
    encoder = FrozenEncoder(large, precision="bfloat16")
    assert not any(layer.bounded for layer in encoder.layers)
    assert all(layer.bounded for layer in FrozenEncoder(transformer).layers)
    tokens = token_set([576, 200])
    full = Model(large, {}, name="a").embed(tokens)
    half = Model(large, {}, name="b", precision="bfloat16").embed(tokens)
    assert torch.nn.functional.cosine_similarity(full, half).amin() > 0.99


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_object_has_the_same_bits_alone_and_in_any_company(transformer, precision):
    model = Model(transformer, {}, name="test", precision=precision)
    tokens = token_set([576, 0, 3, 70, 64, 65, 576, 200, 1, 63] * 3)
    whole = model.embed(tokens)
    for rows in (torch.tensor([4]), torch.tensor([6, 2]), torch.randperm(30)):
        part = {
            k: Tokens(ids_BN=t.ids_BN[rows], valid_BN=t.valid_BN[rows]) for k, t in tokens.items()
        }
        assert torch.equal(model.embed(part), whole[rows])


def test_long_objects_are_batches_of_their_own_without_padding(transformer):
    tokens = token_set([576, 80, 20])
    found = list(batches(tokens, transformer.vocabulary))
    assert [batch.full for batch in found] == [True, True, False]
    for batch in found[:2]:
        assert batch.valid_BT.all()
        assert len(batch.rows) == len(batch.codes_BT) == 1


def test_a_packed_layer_is_a_linear_layer():
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(33, 20, generator=generator), torch.randn(33, generator=generator)
    x = torch.randn(7, 3, 20, generator=generator)
    expected = torch.nn.functional.linear(x, weight, bias)
    assert torch.allclose(PackedLinear(weight, bias)(x), expected, atol=1e-5)
    plain = PackedLinear(weight, bias, pack=False)
    assert not plain.packed
    assert torch.equal(plain(x), expected)
    assert not can_pack(weight.double())
    assert not can_pack(weight.to("meta"))
