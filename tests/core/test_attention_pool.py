"""The learned pool: what it learns, what it is saved with, what it refuses."""

import pytest
import torch
from safetensors.torch import save_file

from skyvec_core.embedder import Model
from skyvec_core.model.attention_pool import AttentionPool, fit_attention_pool
from skyvec_core.model.config import TransformerConfig
from skyvec_core.model.encoder_decoder import EncoderDecoder
from skyvec_core.observations import Tokens

DIM = 16
DOMAINS = ("tok_image", "tok_z")


def needles(count, seed=0):
    """Contexts in which one marked token carries the label, and a mean over tokens hides it."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randn(count, generator=generator)
    contexts = []
    for label in labels:
        length = int(torch.randint(20, 40, (), generator=generator))
        context = torch.randn(length, DIM, generator=generator)
        context[:, 0] = 0
        place = int(torch.randint(0, length, (), generator=generator))
        context[place, 0], context[place, 1] = 6, 2 * label
        contexts.append(context)
    return contexts, labels[:, None]


def pool_of(targets=("label",), digest="d", **more):
    return AttentionPool(DIM, num_heads=2, targets=targets, model_digest=digest, **more)


def pooled(pool, contexts):
    valid = torch.ones(1, 1, dtype=torch.bool)
    return torch.cat(
        [pool(c[None].float(), valid.expand(1, len(c))) for c in contexts]
    ).detach()  # fmt: skip


def test_it_finds_what_a_mean_cannot():
    contexts, labels = needles(600)
    unseen, truth = needles(200, seed=1)
    pool = pool_of()
    errors = fit_attention_pool(pool, contexts, labels, epochs=30, learning_rate=5e-3)
    assert errors[-1] < 0.3 * errors[0]
    left = (pool.predict(pooled(pool, unseen)) - truth).square().mean() / truth.var()
    assert left < 0.2
    means = torch.stack([c.mean(0) for c in contexts])
    weights = torch.linalg.lstsq(means, labels).solution
    left_by_mean = (torch.stack([c.mean(0) for c in unseen]) @ weights - truth).square().mean()
    assert left_by_mean / truth.var() > 0.5


def test_the_seed_fixes_the_fit():
    contexts, labels = needles(50)
    pools = [pool_of(), pool_of()]
    for pool in pools:
        fit_attention_pool(pool, contexts, labels, epochs=2, seed=3)
    assert torch.equal(pooled(pools[0], contexts), pooled(pools[1], contexts))


def test_padding_does_not_count():
    contexts, labels = needles(50)
    pool = pool_of(num_queries=3)
    fit_attention_pool(pool, contexts, labels, epochs=1)
    context = contexts[0][None]
    padded = torch.cat([context, torch.full((1, 9, DIM), 5.0)], 1)
    valid = torch.arange(padded.shape[1])[None] < context.shape[1]
    alone = pool(context, torch.ones(1, context.shape[1], dtype=torch.bool))
    assert torch.allclose(pool(padded, valid), alone, atol=1e-6)
    assert alone.shape == (1, pool.dim) == (1, 3 * DIM)


def test_unknown_labels_are_left_out_target_by_target():
    contexts, labels = needles(60)
    both = torch.cat([labels, 10 + 100 * labels], 1)
    both[:30, 1] = torch.nan
    pool = pool_of(("a", "b"))
    fit_attention_pool(pool, contexts, both, epochs=1)
    assert pool.predict(pooled(pool, contexts)).isfinite().all()
    assert pool.target_scale[1] > 50 * pool.target_scale[0] / 2


def test_classes_are_learnt_by_their_odds():
    contexts, labels = needles(600)
    unseen, truth = needles(200, seed=1)
    shares = torch.nn.functional.one_hot((labels[:, 0] > 0).long()).double()
    pool = pool_of(("low", "high"))
    losses = fit_attention_pool(
        pool, contexts, shares, loss="cross_entropy", epochs=20, learning_rate=5e-3
    )
    assert losses[0] == pytest.approx(0.69, abs=0.15)
    called = pool.predict_contexts(unseen).argmax(1)
    assert (called == (truth[:, 0] > 0)).float().mean() > 0.9
    shares[3] = torch.nan
    with pytest.raises(ValueError, match="an object has no known class"):
        fit_attention_pool(pool, contexts, shares, loss="cross_entropy")


def test_what_an_object_is_told_does_not_depend_on_its_company():
    contexts, labels = needles(50)
    pool = pool_of()
    fit_attention_pool(pool, contexts, labels, epochs=1)
    together = pool.predict_contexts(contexts)
    assert torch.equal(pool.predict_contexts(contexts[7:9]), together[7:9])
    assert torch.allclose(together, pool.predict(pooled(pool, contexts)), atol=1e-6)
    assert pool.predict_contexts([]).shape == (0, 1)


def test_it_is_saved_with_its_head_and_its_model(tmp_path):
    contexts, labels = needles(50)
    pool = pool_of(num_queries=2)
    fit_attention_pool(pool, contexts, labels, epochs=1)
    pool.save(tmp_path / "pools" / "label.safetensors")
    loaded = AttentionPool.load(tmp_path / "pools" / "label.safetensors")
    assert loaded.targets == ("label",)
    assert loaded.model_digest == "d"
    assert torch.equal(pooled(loaded, contexts), pooled(pool, contexts))
    expected = pool.predict(pooled(pool, contexts))
    assert torch.equal(loaded.predict(pooled(loaded, contexts)), expected)


def test_bad_files_and_labels_are_refused(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="is not an attention pool"):
        AttentionPool.load(tmp_path / "other.safetensors")
    contexts, labels = needles(10)
    with pytest.raises(ValueError, match="target label has no two labels that differ"):
        fit_attention_pool(pool_of(), contexts, torch.ones_like(labels))
    with pytest.raises(ValueError, match="10 objects with labels"):
        fit_attention_pool(pool_of(("a", "b")), contexts, labels)


def small_model(seed):
    transformer = EncoderDecoder(
        TransformerConfig(dim=DIM, num_heads=2, encoder_depth=1, decoder_depth=1,
                          domains_in=DOMAINS, domains_out=DOMAINS)
    )  # fmt: skip
    transformer.initialize(torch.Generator().manual_seed(seed))
    return Model(transformer, {}, name="small")


def test_a_model_pools_with_its_own_pool_only():
    model, other = small_model(0), small_model(1)
    generator = torch.Generator().manual_seed(0)
    tokens = {
        "tok_image": Tokens(
            ids_BN=torch.randint(0, 4375, (5, 576), generator=generator),
            valid_BN=torch.rand((5, 576), generator=generator) < 0.3,
        )
    }
    tokens["tok_image"].valid_BN[2] = False
    contexts = model.contexts_of_objects(tokens)
    assert [len(c) for c in contexts] == tokens["tok_image"].valid_BN.sum(1).tolist()
    pool = pool_of(digest=model.digest)
    fit_attention_pool(
        pool, [c for c in contexts if len(c)], torch.arange(4.0)[:, None], epochs=1
    )  # fmt: skip
    vectors = model.embed(tokens, pooling=pool)
    assert vectors.isnan().all(1).tolist() == [False, False, True, False, False]
    assert torch.allclose(vectors[0], pooled(pool, contexts[:1])[0], atol=1e-2)
    with pytest.raises(ValueError, match="the attention pool was fitted on model"):
        other.embed(tokens, pooling=pool)
