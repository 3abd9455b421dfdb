"""The transformer, its batches and its folder."""

import dataclasses
import json
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from skyvec_core.batches import GPU, PROCESSOR, batches
from skyvec_core.embedder import Model
from skyvec_core.modalities import MODALITIES
from skyvec_core.model.blocks import SelfAttention
from skyvec_core.model.config import SIZES, TransformerConfig
from skyvec_core.model.encoder_decoder import EncoderDecoder
from skyvec_core.model.pooling import masked_mean
from skyvec_core.model.vocabulary import Vocabulary, position_encoding
from skyvec_core.observations import Tokens
from skyvec_core.weights import load_transformer, published_tensors, save_transformer

DOMAINS = ("tok_image", "tok_flux_g", "tok_ebv", "tok_z")
SMALL = TransformerConfig(
    dim=32, num_heads=2, encoder_depth=2, decoder_depth=2, domains_in=DOMAINS, domains_out=DOMAINS
)


@pytest.fixture(scope="module")
def transformer():
    model = EncoderDecoder(SMALL)
    model.initialize(torch.Generator().manual_seed(0))
    return model.eval().requires_grad_(requires_grad=False)


@pytest.fixture(scope="module")
def model(transformer):
    return Model(transformer, {}, name="test")


def token_set(rows=6, *, seed=0, keys=DOMAINS[:3], missing=0.3):
    """Tokens with holes: whole modalities and single image tokens."""
    generator = torch.Generator().manual_seed(seed)
    tokens = {}
    for key in keys:
        modality = MODALITIES[key]
        shape = (rows, modality.num_tokens)
        ids = torch.randint(0, modality.vocabulary, shape, generator=generator)
        valid = torch.rand(shape, generator=generator) > missing
        valid &= torch.rand((rows, 1), generator=generator) > missing
        tokens[key] = Tokens(ids_BN=ids, valid_BN=valid)
    tokens[keys[-1]].valid_BN[:] = True
    return tokens


def rows_of(tokens, rows):
    return {k: Tokens(ids_BN=t.ids_BN[rows], valid_BN=t.valid_BN[rows]) for k, t in tokens.items()}


@pytest.mark.parametrize(("size", "parameters"), [("base", 275_791_872), ("large", 808_365_056)])
def test_published_sizes_have_the_published_parameters(size, parameters):
    """314,255,616 and 859,650,048 less the decoder token tables, which no forward reads."""
    with torch.device("meta"):
        model = EncoderDecoder(SIZES[size])
    dead = sum(m.vocabulary for m in MODALITIES.values()) * SIZES[size].dim
    official = {"base": 314_255_616, "large": 859_650_048}[size]
    assert sum(p.numel() for p in model.parameters()) == parameters == official - dead


def test_two_dimensional_encodings_vary_as_published():
    """Quarters 3-4 follow the token column, 1-2 the row; a scalar is 0..., 1..., 0..., 1..."""
    image = position_encoding(MODALITIES["tok_image"], 16).view(24, 24, 16)
    assert torch.equal(image[3, 5, 8:], image[7, 5, 8:])
    assert torch.equal(image[3, 5, :8], image[3, 9, :8])
    assert not torch.equal(image[3, 5, :8], image[7, 5, :8])
    scalar = position_encoding(MODALITIES["tok_z"], 16)
    assert scalar.view(4, 4)[:, 0].tolist() == [0, 1, 0, 1]


def test_a_vector_has_the_same_bits_in_any_company_and_order(model):
    tokens = token_set(40)
    whole = model.embed(tokens)
    for rows in (torch.tensor([7]), torch.tensor([3, 31, 7]), torch.randperm(40)):
        assert torch.equal(model.embed(rows_of(tokens, rows)), whole[rows])


def test_the_order_of_the_dictionary_does_not_matter(model):
    tokens = token_set()
    assert torch.equal(model.embed(tokens), model.embed(dict(reversed(tokens.items()))))


def test_padding_and_missing_tokens_never_count(model):
    tokens = token_set(4)
    scrambled = {
        k: Tokens(ids_BN=torch.where(t.valid_BN, t.ids_BN, 0), valid_BN=t.valid_BN)
        for k, t in tokens.items()
    }
    assert torch.equal(model.embed(tokens), model.embed(scrambled))


def test_every_token_matters(model):
    tokens = token_set(1, missing=0.0)
    before = model.embed(tokens)
    tokens["tok_image"].ids_BN[0, 575] = (tokens["tok_image"].ids_BN[0, 575] + 1) % 4375
    assert not torch.equal(before, model.embed(tokens))


def test_an_object_without_tokens_has_no_vector(model):
    tokens = token_set(3)
    for coded in tokens.values():
        coded.valid_BN[1] = False
    vectors = model.embed(tokens)
    assert vectors.isnan().all(1).tolist() == [False, True, False]


def test_a_code_outside_the_vocabulary_is_refused(model):
    tokens = {"tok_ebv": Tokens(ids_BN=torch.tensor([[1024]]), valid_BN=torch.tensor([[True]]))}
    with pytest.raises(ValueError, match=r"tok_ebv: a code lies outside 0\.\.1023"):
        model.embed(tokens)


@pytest.mark.parametrize("layout", [GPU, PROCESSOR], ids=["gpu", "processor"])
@given(counts=st.lists(st.integers(0, 576), min_size=1, max_size=30))
def test_packing_loses_and_invents_no_token(layout, counts):
    rows = len(counts)
    valid = torch.arange(576) < torch.tensor(counts)[:, None]
    ids = torch.arange(576).expand(rows, -1) + torch.arange(rows)[:, None]
    tokens = {"tok_image": Tokens(ids_BN=ids, valid_BN=valid)}
    seen = {}
    for batch in batches(tokens, Vocabulary(DOMAINS), layout=layout):
        shape = batch.codes_BT.shape
        assert shape[1] in layout.buckets or (layout.alone and shape[1] > layout.longest)
        assert batch.full == (shape[1] not in layout.buckets)
        assert shape[0] == (1 if batch.full else layout.tokens_per_batch // shape[1])
        for place, row in enumerate(batch.rows.tolist()):
            codes = batch.codes_BT[place][batch.valid_BT[place]]
            seen[row] = codes - Vocabulary(DOMAINS).codes["tok_image"].start
        assert not batch.valid_BT[len(batch.rows) :].any()
    assert set(seen) == {row for row, count in enumerate(counts) if count}
    for row, codes in seen.items():
        assert torch.equal(codes, ids[row, : counts[row]])


def test_a_gpu_has_no_shape_for_more_than_its_longest_bucket():
    keys = ("tok_image", "tok_image_hsc", "tok_spectrum_desi", "tok_spectrum_sdss", "catalog",
            "tok_segmap", "tok_xp_bp", "tok_xp_rp", "tok_z")  # fmt: skip
    tokens = token_set(2, keys=keys, missing=-1.0)
    assert sum(coded.ids_BN.shape[1] for coded in tokens.values()) < GPU.longest
    short = dataclasses.replace(GPU, buckets=(16, 64))
    with pytest.raises(ValueError, match="an object has 2465 tokens; the most is 64"):
        list(batches(tokens, Vocabulary(keys), layout=short))


def test_the_mean_is_over_valid_tokens_only():
    hidden = torch.tensor([[[1.0], [3.0], [100.0]]])
    assert masked_mean(hidden, torch.tensor([[True, True, False]])).item() == 2.0


def test_targets_see_their_own_domain_and_no_other(transformer):
    """Logits of one domain do not move when another domain is asked for too."""
    words = transformer.vocabulary
    image = torch.arange(words.positions["tok_image"].start, words.positions["tok_image"].start + 8)
    redshift = torch.tensor([words.positions["tok_z"].start])
    codes, positions = torch.zeros(1, 1, dtype=torch.long), torch.tensor([[576]])
    valid = torch.ones(1, 1, dtype=torch.bool)
    context = transformer.encode(codes, positions, valid)

    def hidden(targets):
        asked = torch.ones(1, len(targets), dtype=torch.bool)
        return transformer.decode(context, valid, targets[None], asked)

    alone, together = hidden(redshift), hidden(torch.cat([image, redshift]))
    assert torch.allclose(alone[:, -1], together[:, -1], atol=1e-6)


def test_a_folder_comes_back_bit_for_bit(transformer, tmp_path):
    save_transformer(transformer, tmp_path)
    loaded = load_transformer(tmp_path)
    expected = published_tensors(transformer)
    assert all(torch.equal(t, expected[k]) for k, t in published_tensors(loaded).items())
    assert not loaded.training
    assert Model(loaded, {}, name="a").digest == Model(transformer, {}, name="b").digest


def test_the_digest_follows_every_weight(transformer, tmp_path):
    save_transformer(transformer, tmp_path)
    loaded = load_transformer(tmp_path)
    before = Model(loaded, {}, name="a").digest
    loaded.mask_token[0] += 1e-6
    assert Model(loaded, {}, name="a").digest != before


def test_tables_are_stored_one_by_one_under_published_names(transformer, tmp_path):
    save_transformer(transformer, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert stored["encoder_embeddings.tok_image.token_emb.weight"].shape == (4375, 32)
    assert stored["decoder_embeddings.tok_z.to_logits.weight"].shape == (1025, 32)
    assert stored["decoder_embeddings.tok_z.mod_emb"].shape == (1, 1, 32)
    assert "encoder_embeddings.tok_z.mod_emb" not in stored
    assert stored["encoder.1.attn.qkv.weight"].shape == (96, 32)


def test_constants_of_a_published_file_are_checked_and_dropped(transformer, tmp_path):
    save_transformer(transformer, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["encoder.0.norm1.bias"] = torch.zeros(32)
    tensors["encoder_embeddings.tok_z.pos_emb"] = position_encoding(MODALITIES["tok_z"], 32)[None]
    tensors["decoder_embeddings.tok_z.token_emb.weight"] = torch.randn(1025, 32)
    save_file(tensors, tmp_path / "model.safetensors")
    load_transformer(tmp_path)
    tensors["encoder.0.norm1.bias"] = torch.ones(32)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"encoder\.0\.norm1\.bias is not the fixed encoding"):
        load_transformer(tmp_path)


def test_published_position_encodings_are_used_as_they_are(transformer, tmp_path):
    save_transformer(transformer, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    published = position_encoding(MODALITIES["tok_image"], 32)[None] + 3e-5
    tensors["encoder_embeddings.tok_image.pos_emb"] = published
    save_file(tensors, tmp_path / "model.safetensors")
    loaded = load_transformer(tmp_path)
    rows = loaded.vocabulary.positions["tok_image"].rows
    assert torch.equal(loaded.position_encoding[rows], published[0])


def test_a_file_cast_to_half_precision_loads_with_exact_encodings(transformer, tmp_path):
    save_transformer(transformer, tmp_path, dtype=torch.bfloat16)
    stored = load_file(tmp_path / "model.safetensors")
    assert {t.dtype for t in stored.values()} == {torch.bfloat16}
    loaded = load_transformer(tmp_path)
    assert torch.equal(loaded.position_encoding, transformer.position_encoding)
    weight = transformer.encoder_norm.weight
    assert torch.allclose(loaded.encoder_norm.weight, weight, rtol=1e-2)


def test_only_what_encoding_needs_is_read(transformer, tmp_path):
    save_transformer(transformer, tmp_path)
    loaded = load_transformer(tmp_path, part="encoder")
    on_meta = {n.split(".")[0] for n, p in loaded.named_parameters() if p.is_meta}
    assert on_meta == {"decoder", "decoder_norm", "head_table", "mask_token"}
    tokens = token_set(4)
    expected = Model(transformer, {}, name="a")
    found = Model(tmp_path, {}, name="b")
    assert torch.equal(found.embed(tokens), expected.embed(tokens))
    assert found.digest == expected.digest
    assert found.num_parameters == expected.num_parameters


def test_the_decoder_is_read_when_it_is_asked_for(transformer, tmp_path):
    save_transformer(transformer, tmp_path)
    tokens = {"tok_ebv": token_set(3)["tok_ebv"]}
    found = Model(tmp_path, {}, name="a").predict(tokens, ["tok_z"])["tok_z"]
    assert torch.equal(found, Model(transformer, {}, name="b").predict(tokens, ["tok_z"])["tok_z"])


def test_what_the_decoder_lacks_is_noticed_even_if_it_is_not_read(transformer, tmp_path):
    save_transformer(transformer, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["decoder.0.cross_attn.q.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"lacks decoder\.0\.cross_attn\.q\.weight"):
        load_transformer(tmp_path, part="encoder")


def test_a_folder_without_constants_is_smaller_and_the_same(transformer, tmp_path):
    save_transformer(transformer, tmp_path / "full")
    save_transformer(transformer, tmp_path / "bare", constants=False)
    sizes = [(tmp_path / n / "model.safetensors").stat().st_size for n in ("full", "bare")]
    assert sizes[1] < 0.8 * sizes[0]
    digests = {Model(tmp_path / n, {}, name=n).digest for n in ("full", "bare")}
    assert len(digests) == 1


@pytest.mark.parametrize("pooling", ["mean", "mean_of_modalities"])
def test_a_mean_of_modalities_weighs_each_the_same(model, pooling):
    tokens = token_set(8, seed=3)
    by_modality = model.embed_by_modality(tokens)
    assert set(by_modality) == set(tokens)
    for key, coded in tokens.items():
        assert torch.equal(by_modality[key].isnan().any(1), ~coded.valid_BN.any(1))
    stacked = torch.stack([by_modality[key] for key in tokens])
    counts = torch.stack([coded.valid_BN.sum(1) for coded in tokens.values()])[..., None]
    weights = counts if pooling == "mean" else (counts > 0)
    expected = (stacked.nan_to_num() * weights).sum(0) / weights.sum(0)
    assert torch.allclose(model.embed(tokens, pooling=pooling), expected, atol=1e-5)


def test_a_model_pools_as_its_config_says_and_says_so_when_saved(transformer, tmp_path):
    tokens = token_set(4, seed=5)
    as_published = Model(transformer, {}, name="m")
    equal_weights = EncoderDecoder(
        dataclasses.replace(transformer.config, pooling="mean_of_modalities")
    )
    equal_weights.load_state_dict(transformer.state_dict())
    save_transformer(equal_weights, tmp_path)
    model = Model.load(tmp_path)
    vectors = model.embed(tokens)
    assert torch.equal(vectors, as_published.embed(tokens, pooling="mean_of_modalities"))
    assert not torch.allclose(vectors, as_published.embed(tokens))
    assert torch.equal(model.embed(tokens, pooling="mean"), as_published.embed(tokens))
    assert model.digest != as_published.digest
    assert "pooling" not in transformer.config.to_json()


def test_a_config_with_an_unknown_pooling_is_refused(transformer):
    with pytest.raises(ValueError, match="unknown pooling 'max'"):
        TransformerConfig.from_json(transformer.config.to_json() | {"pooling": "max"})


def test_an_unknown_pooling_is_refused(model):
    with pytest.raises(ValueError, match="unknown pooling 'max'; known are 'mean'"):
        model.embed(token_set(2), pooling="max")


def test_missing_and_unknown_tensors_are_all_named(transformer, tmp_path):
    save_transformer(transformer, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["surprise"] = tensors.pop("mask_token")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="lacks mask_token; has unknown surprise"):
        load_transformer(tmp_path)


def test_an_architecture_that_is_not_ours_is_refused():
    published = SMALL.to_json() | {"act_layer": "GELU"}
    with pytest.raises(ValueError, match="act_layer is 'GELU', supported is 'SiLU'"):
        TransformerConfig.from_json(json.loads(json.dumps(published)))


def test_a_config_survives_its_json():
    assert TransformerConfig.from_json(SMALL.to_json()) == SMALL


def attention_gradients(*, fused, autocast):
    """Gradients of self-attention over padded rows, as one vector."""
    layer = SelfAttention(SMALL)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) / weight.shape[-1] ** 0.5)
    x = torch.randn(4, 7, SMALL.dim, generator=generator).requires_grad_()
    keep = torch.arange(7) < torch.tensor([7, 5, 2, 1])[:, None, None, None]
    kernel = sdpa_kernel(SDPBackend.FLASH_ATTENTION) if fused else nullcontext()
    with kernel, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        (layer(x, keep).float() ** 2).sum().backward()
    return torch.cat([t.grad.flatten() for t in (x, *layer.parameters())])


def test_plain_products_have_the_gradients_of_fused_attention(monkeypatch):
    exact = attention_gradients(fused=False, autocast=False)
    fused = attention_gradients(fused=True, autocast=True)
    monkeypatch.setattr(functional, "scaled_dot_product_attention", None)  # may not be called
    plain = attention_gradients(fused=False, autocast=True)
    assert plain.isfinite().all()
    error, theirs = ((found - exact).norm() / exact.norm() for found in (plain, fused))
    assert error < 0.02
    assert error < 2 * theirs
