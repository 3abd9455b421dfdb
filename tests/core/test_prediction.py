"""One-pass prediction: which targets see each other, and what an object's logits depend on."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skyvec_core.modalities import MODALITIES
from skyvec_core.model.config import TransformerConfig
from skyvec_core.model.encoder_decoder import EncoderDecoder
from skyvec_core.observations import Tokens
from skyvec_core.prediction import encode, passes, predict_hidden, predict_logits, rows_of

INPUTS = ("tok_image", "tok_flux_g", "tok_ebv")
TARGETS = ("tok_xp_bp", "tok_z", "tok_flux_r")


@pytest.fixture(scope="module")
def transformer():
    config = TransformerConfig(
        dim=32, num_heads=2, encoder_depth=2, decoder_depth=2,
        domains_in=(*INPUTS, *TARGETS, "catalog"),
        domains_out=(*TARGETS, "tok_image", "tok_a_g", "catalog"),
    )  # fmt: skip
    model = EncoderDecoder(config)
    generator = torch.Generator().manual_seed(0)
    model.initialize(generator)
    # Far from the small initial values, so that every part of the sum shows in the logits.
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return model.eval().requires_grad_(requires_grad=False)


def token_set(rows=5, *, seed=0, keys=INPUTS, missing=0.3):
    """Tokens with holes: whole modalities and single tokens."""
    generator = torch.Generator().manual_seed(seed)
    tokens = {}
    for key in keys:
        shape = (rows, MODALITIES[key].num_tokens)
        ids = torch.randint(0, MODALITIES[key].vocabulary, shape, generator=generator)
        valid = torch.rand(shape, generator=generator) >= missing
        valid &= torch.rand((rows, 1), generator=generator) >= missing
        tokens[key] = Tokens(ids_BN=ids, valid_BN=valid)
    return tokens


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for key, logits in found.items():
        torch.testing.assert_close(logits, expected[key], rtol=1e-4, atol=1e-5)


def masked_attention(layer, q, k, v, keep):
    """Softmax over scores that are the lowest finite number where nothing may be seen."""
    scores = layer.q_norm(q) @ layer.k_norm(k).transpose(-1, -2) / q.shape[-1] ** 0.5
    scores = scores.masked_fill(~keep, torch.finfo(scores.dtype).min)
    return layer.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


def naive_hidden(model, context, valid, positions, keep_self):
    """The decoder with all scores written out."""
    x = model.mask_token + model.embedding(positions)
    for block in model.decoder:
        attention, cross = block.self_attn, block.cross_attn
        q, k, v = (
            attention.qkv(block.norm1(x)).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4).unbind()
        )
        x = x + masked_attention(attention, q, k, v, keep_self)
        q = cross.q(block.query_norm(x)).unflatten(-1, (2, -1)).transpose(1, 2)
        seen = cross.kv(block.context_norm(context)).unflatten(-1, (2, 2, -1))
        k, v = seen.permute(2, 0, 3, 1, 4).unbind()
        x = x + masked_attention(cross, q, k, v, valid[:, None, None, :])
        x = x + block.mlp(block.norm2(x))
    return model.decoder_norm(x)


@pytest.mark.parametrize("targets", [["tok_z"], ["tok_xp_bp", "tok_z"], list(TARGETS)])
def test_compat_is_attention_with_everything_masked(transformer, targets):
    tokens = token_set()
    words = transformer.vocabulary
    context, valid = encode(transformer, tokens)
    empty = ~valid.any(1)
    assert empty.any()
    context[empty] = transformer.decoder_proj_context.bias
    spans = [words.positions[key] for key in targets]
    positions = torch.cat([torch.arange(s.start, s.stop) for s in spans]).expand(5, -1)
    nothing = torch.zeros(positions.shape[1], positions.shape[1], dtype=torch.bool)
    hidden = naive_hidden(transformer, context, valid, positions, nothing)
    parts = hidden.split([s.stop - s.start for s in spans], dim=1)
    expected = {k: transformer.logits(h, k) for k, h in zip(targets, parts, strict=True)}
    assert_close(predict_logits(transformer, tokens, targets, attention="compat"), expected)


def test_full_is_what_training_sees(transformer):
    tokens = token_set()
    words = transformer.vocabulary
    context, valid = encode(transformer, tokens)
    spans = [words.positions[key] for key in TARGETS]
    positions = torch.cat([torch.arange(s.start, s.stop) for s in spans]).expand(5, -1)
    hidden = transformer.decode(context, valid, positions, torch.ones_like(positions, dtype=bool))
    parts = hidden.split([s.stop - s.start for s in spans], dim=1)
    expected = {k: transformer.logits(h, k) for k, h in zip(TARGETS, parts, strict=True)}
    assert_close(predict_logits(transformer, tokens, TARGETS), expected)


def test_full_does_not_depend_on_what_else_is_asked_for(transformer):
    tokens = token_set()
    together = predict_logits(transformer, tokens, TARGETS)
    alone = {}
    for key in TARGETS:
        alone |= predict_logits(transformer, tokens, [key])
    assert_close(together, alone)


def test_compat_depends_on_what_else_is_asked_for(transformer):
    """The reason why it is not the default."""
    tokens = token_set(missing=0.0)
    alone = predict_logits(transformer, tokens, ["tok_z"], attention="compat")
    assert_close(alone, predict_logits(transformer, tokens, ["tok_z"]))
    together = predict_logits(transformer, tokens, ["tok_z", "tok_xp_bp"], attention="compat")
    assert (together["tok_z"] - alone["tok_z"]).abs().max() > 0.1


@pytest.mark.parametrize("attention", ["full", "compat"])
def test_an_object_does_not_depend_on_its_company_or_the_order(transformer, attention, monkeypatch):
    tokens = token_set(9)
    whole = predict_logits(transformer, tokens, TARGETS, attention=attention)
    for rows in (torch.tensor([4]), torch.randperm(9, generator=torch.Generator().manual_seed(3))):
        part = predict_logits(transformer, rows_of(tokens, rows), TARGETS, attention=attention)
        assert_close(part, {key: logits[rows] for key, logits in whole.items()})
    turned = dict(reversed(tokens.items()))
    assert_close(predict_logits(transformer, turned, TARGETS[::-1], attention=attention), whole)
    monkeypatch.setattr("skyvec_core.prediction.TOKENS_PER_PASS", 700)
    assert_close(predict_logits(transformer, tokens, TARGETS, attention=attention), whole)


def test_only_valid_tokens_count_and_all_of_them(transformer):
    tokens = token_set(2, missing=0.0)
    tokens["tok_flux_g"].valid_BN[0] = False
    before = predict_logits(transformer, tokens, ["tok_z"])["tok_z"]
    tokens["tok_flux_g"].ids_BN[0] = 7
    tokens["tok_image"].ids_BN[1, 575] = 7
    after = predict_logits(transformer, tokens, ["tok_z"])["tok_z"]
    assert torch.equal(before[0], after[0])
    assert not torch.allclose(before[1], after[1])


def test_an_object_without_tokens_gives_the_decoder_nothing(transformer):
    tokens = token_set(3, missing=0.0)
    for coded in tokens.values():
        coded.valid_BN[1] = False
    hidden = predict_hidden(transformer, tokens, ["tok_z"])["tok_z"][1, 0]
    x = transformer.mask_token + transformer.embedding(
        torch.tensor([[transformer.vocabulary.positions["tok_z"].start]])
    )
    for block in transformer.decoder:
        x = x + block.self_attn(block.norm1(x), torch.ones(1, 1, 1, 1, dtype=torch.bool))
        x = x + block.mlp(block.norm2(x))
    torch.testing.assert_close(hidden, transformer.decoder_norm(x)[0, 0], rtol=1e-4, atol=1e-5)
    assert (
        predict_logits(transformer, tokens, ["tok_z"], attention="compat")["tok_z"].isfinite().all()
    )


def test_logits_cover_the_whole_vocabulary(transformer):
    logits = predict_logits(transformer, token_set(2), ["tok_z", "tok_image"])
    assert list(logits) == ["tok_z", "tok_image"]
    assert logits["tok_z"].shape == (2, 1, 1025)
    assert logits["tok_image"].shape == (2, 576, 4375)


def test_no_objects_give_no_logits(transformer):
    assert predict_logits(transformer, token_set(0), ["tok_z"])["tok_z"].shape == (0, 1, 1025)


@given(
    counts=st.lists(st.integers(0, 576), min_size=1, max_size=40),
    queries=st.integers(1, 600),
    limit=st.integers(1, 3000),
)
def test_passes_take_every_object_once_within_the_limit(counts, queries, limit):
    valid = torch.arange(576) < torch.tensor(counts)[:, None]
    tokens = {"tok_image": Tokens(ids_BN=torch.zeros_like(valid, dtype=torch.long), valid_BN=valid)}
    seen = []
    for rows in passes(tokens, queries=queries, limit=limit):
        length = max(counts[row] for row in rows.tolist()) + queries
        assert len(rows) == 1 or len(rows) * length <= limit
        seen += rows.tolist()
    assert sorted(seen) == list(range(len(counts)))


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([], "at least one token key"),
        ("tok_z", "must be a list"),
        (["tok_z", "tok_z"], "named twice"),
        (["tok_ebv"], "cannot predict tok_ebv; it predicts tok_xp_bp"),
        (["sparkle"], "cannot predict sparkle"),
        (["catalog"], "reads the codes before from a table that is not loaded"),
    ],
)
def test_targets_that_cannot_be_predicted_are_refused(transformer, targets, message):
    with pytest.raises(ValueError, match=message):
        predict_logits(transformer, token_set(2), targets)


def test_tokens_that_do_not_fit_are_refused(transformer):
    def refused(tokens, message):
        with pytest.raises(ValueError, match=message):
            predict_logits(transformer, tokens, ["tok_z"])

    tokens = token_set(2)
    image, flux = tokens["tok_image"], tokens["tok_flux_g"]
    refused({}, "no input tokens")
    refused({"tok_a_g": flux}, "cannot encode tok_a_g")
    refused({"tok_image": flux}, r"tok_image: ids must be \(objects, 576\), found \(2, 1\)")
    refused({"tok_flux_g": Tokens(ids_BN=flux.ids_BN[:, 0], valid_BN=flux.valid_BN[:, 0])}, "found")
    refused({"tok_flux_g": Tokens(ids_BN=flux.ids_BN, valid_BN=image.valid_BN)}, "and valid")
    refused(tokens | {"tok_flux_g": token_set(3)["tok_flux_g"]}, "different numbers of objects")
    flux.ids_BN[0], flux.valid_BN[0] = 1024, True
    refused(tokens, r"tok_flux_g: a code lies outside 0\.\.1023")


def test_an_unknown_attention_is_refused(transformer):
    with pytest.raises(ValueError, match="unknown attention 'causal'"):
        predict_logits(transformer, token_set(2), ["tok_z"], attention="causal")
