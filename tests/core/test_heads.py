"""Alignment heads: towers, files, what they are bound to."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from skyvec_core.embedder import Model
from skyvec_core.heads.alignment import AlignmentHead
from skyvec_core.heads.minilm import SentenceEncoder
from skyvec_core.heads.tower import Tower, TowerConfig
from skyvec_core.model.config import TransformerConfig
from skyvec_core.model.encoder_decoder import EncoderDecoder
from skyvec_core.observations import Tokens

WIDTH, DIM = 16, 8
DOMAINS = ("tok_image", "tok_z")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def head_of(digest="m", text_digest=""):
    towers = {
        "image": TowerConfig(width=WIDTH, dim=DIM, hidden=12, num_heads=2, domains=("tok_image",)),
        **({"text": TowerConfig(width=6, dim=DIM, hidden=12)} if text_digest else
           {"redshift": TowerConfig(width=WIDTH, dim=DIM, hidden=12, domains=("tok_z",))}),
    }  # fmt: skip
    head = AlignmentHead(towers, model_digest=digest, text_digest=text_digest)
    head.initialize(seeded())
    return head.eval()


def model_of(seed=0):
    transformer = EncoderDecoder(
        TransformerConfig(dim=WIDTH, num_heads=2, encoder_depth=1, decoder_depth=1,
                          domains_in=DOMAINS, domains_out=DOMAINS)
    )  # fmt: skip
    transformer.initialize(seeded(seed))
    return Model(transformer, {}, name="small")


def tokens_of(count=5):
    image = Tokens(
        ids_BN=torch.randint(0, 4375, (count, 576), generator=seeded()),
        valid_BN=torch.rand((count, 576), generator=seeded(1)) < 0.1,
    )
    redshift = Tokens(ids_BN=torch.arange(count)[:, None], valid_BN=torch.ones(count, 1).bool())
    return {"tok_image": image, "tok_z": redshift}


@pytest.mark.parametrize("num_heads", [0, 2])
def test_a_tower_gives_unit_vectors_and_padding_does_not_count(num_heads):
    tower = Tower(TowerConfig(width=WIDTH, dim=DIM, hidden=12, num_heads=num_heads))
    tower.initialize(seeded())
    context = torch.randn(3, 7, WIDTH, generator=seeded())
    valid = torch.ones(3, 7, dtype=torch.bool)
    padded = torch.cat([context, torch.full((3, 4, WIDTH), 9.0)], 1)
    longer = torch.cat([valid, torch.zeros(3, 4, dtype=torch.bool)], 1)
    found = tower(context, valid)
    assert torch.allclose(found.norm(dim=1), torch.ones(3), atol=1e-6)
    assert torch.allclose(tower(padded, longer), found, atol=1e-6)


def test_objects_of_any_length_in_any_order_get_their_own_vector():
    head = head_of()
    contexts = [torch.randn(n, WIDTH, generator=seeded(n)) for n in (3, 0, 11, 1)]
    found = head.embed("image", contexts)
    assert found.isnan().all(1).tolist() == [False, True, False, False]
    for row in (0, 2, 3):
        alone = head.embed("image", [contexts[row]])
        assert torch.allclose(found[row], alone[0], atol=1e-6)
    assert torch.equal(head.embed_image(contexts[:1]), head.embed("image", contexts[:1]))


def test_tokens_become_vectors_through_the_model_it_belongs_to():
    model = model_of()
    head, tokens = head_of(model.digest), tokens_of()
    tokens["tok_image"].valid_BN[2] = False
    found = head.embed_tokens("image", model, tokens)
    own = {"tok_image": tokens["tok_image"]}
    expected = head.embed("image", model.contexts_of_objects(own, dtype=torch.float32))
    assert found.isnan().all(1).tolist() == [False, False, True, False, False]
    assert torch.allclose(found, expected, atol=1e-5, equal_nan=True)
    with pytest.raises(ValueError, match="the head was trained on model"):
        head.embed_tokens("image", model_of(1), tokens)
    with pytest.raises(ValueError, match="tower redshift reads tok_z; none is given"):
        head.embed_tokens("redshift", model, own)
    with pytest.raises(ValueError, match="no tower 'spectrum'; this head has image, redshift"):
        head.embed_tokens("spectrum", model, tokens)
    with pytest.raises(ValueError, match=r"takes \(tokens, 16\) of each object, found \(2, 5\)"):
        head.embed("image", [torch.zeros(2, 5)])


def test_it_starts_as_siglip_and_its_scale_is_bounded():
    head = head_of()
    assert head.scale.item() == pytest.approx(10)
    assert head.bias.item() == -10
    one = torch.nn.functional.normalize(torch.ones(1, DIM), dim=1)
    assert head.probability(one, one).item() == pytest.approx(0.5)
    head.log_scale.data.fill_(math.log(1e6))
    assert head.scale.item() == 100


def test_it_is_saved_with_what_it_belongs_to(tmp_path):
    head = head_of("model", text_digest="text")
    head.save(tmp_path / "heads" / "a.safetensors")
    loaded = AlignmentHead.load(tmp_path / "heads" / "a.safetensors")
    assert (loaded.model_digest, loaded.text_digest) == ("model", "text")
    assert loaded.tower("image").config == head.tower("image").config
    contexts = [torch.randn(4, WIDTH, generator=seeded())]
    assert torch.equal(loaded.embed_image(contexts), head.embed_image(contexts))


def test_other_and_changed_files_are_refused(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="is not an alignment head"):
        AlignmentHead.load(tmp_path / "other.safetensors")
    path = tmp_path / "head.safetensors"
    head_of().save(path)
    from safetensors import safe_open

    with safe_open(path, "pt") as stored:
        metadata = stored.metadata()
    tensors = load_file(path)
    save_file(tensors | {"bias": tensors["bias"] + 1}, path, metadata=metadata)
    with pytest.raises(ValueError, match="was changed since it was written"):
        AlignmentHead.load(path)


def test_towers_that_do_not_fit_together_are_refused():
    tower = TowerConfig(width=4, dim=8, hidden=8)
    with pytest.raises(ValueError, match="at least two towers of one dim"):
        AlignmentHead({"image": tower}, model_digest="m")
    with pytest.raises(ValueError, match="a tower 'text' and a text_digest come together"):
        AlignmentHead({"image": tower, "text": tower}, model_digest="m")


def test_words_need_the_text_encoder_that_was_trained_with(small_encoder):
    head = head_of(text_digest=small_encoder.digest)
    found = head.embed_text(["red galaxy", "blue"], small_encoder)
    assert found.shape == (2, DIM)
    assert torch.allclose(found.norm(dim=1), torch.ones(2), atol=1e-6)
    with pytest.raises(ValueError, match="the head was trained with text encoder other"):
        head_of(text_digest="other").embed_text(["red"], small_encoder)


@pytest.fixture
def small_encoder(tmp_path):
    """A BERT with random weights under the published names, six values wide."""
    return SentenceEncoder.load(write_bert(tmp_path / "bert"))


def write_bert(folder, *, width=6, layers=2):
    folder.mkdir()
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "red",
        "blue",
        "galaxy",
        "gal",
        "##axies",
        ",",
        "-",
    ]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    config = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 2,
              "intermediate_size": 8, "max_position_embeddings": 12, "type_vocab_size": 2,
              "vocab_size": len(words), "layer_norm_eps": 1e-12, "hidden_act": "gelu"}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {
        "embeddings.word_embeddings.weight": (len(words), width),
        "embeddings.position_embeddings.weight": (12, width),
        "embeddings.token_type_embeddings.weight": (2, width),
        "embeddings.LayerNorm.weight": (width,), "embeddings.LayerNorm.bias": (width,),
        "pooler.dense.weight": (width, width),
    }  # fmt: skip
    for index in range(layers):
        at = f"encoder.layer.{index}"
        dense = {f"attention.self.{p}": (width, width) for p in ("query", "key", "value")}
        dense |= {"attention.output.dense": (width, width), "intermediate.dense": (8, width),
                  "output.dense": (width, 8)}  # fmt: skip
        for name, shape in dense.items():
            shapes |= {f"{at}.{name}.weight": shape, f"{at}.{name}.bias": shape[:1]}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{at}.{name}.weight": (width,), f"{at}.{name}.bias": (width,)}
    generator = seeded()
    save_file(
        {n: torch.randn(s, generator=generator) for n, s in shapes.items()},
        folder / "model.safetensors",
    )
    return folder
