"""Contrastive alignment: losses over ranks, the cache, the task."""

import json
import multiprocessing
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
from rich.console import Console
from torch.nn import functional

from skyvec_core.embedder import Model
from skyvec_core.heads.alignment import AlignmentHead
from skyvec_core.heads.tower import TowerConfig
from skyvec_core.modalities import MODALITIES
from skyvec_core.model.config import TransformerConfig
from skyvec_core.model.encoder_decoder import EncoderDecoder
from skyvec_core.model.vocabulary import Vocabulary
from skyvec_core.weights import save_transformer
from skyvec_schemas.errors import (
    ConfigurationError,
    ContractError,
    MissingColumnError,
    WeightsError,
)
from skyvec_training.data.tokens import TokenStore
from skyvec_training.heads import contrastive, ranks, running
from skyvec_training.heads.adapters import add_shifts, merge
from skyvec_training.heads.alignment import AlignmentTask, build_head
from skyvec_training.heads.cache import CachedContexts, CacheWriter, ContextCache
from skyvec_training.heads.contrastive import recall, sigmoid_share, softmax_share
from skyvec_training.heads.domains import with_domains
from skyvec_training.heads.filling import fill
from skyvec_training.heads.tuned import TunedContexts
from skyvec_training.recipe.heads import AlignmentRun, LowRankRun, PoolRun
from skyvec_training.recipe.optimizer import OptimizerRun
from skyvec_training.recipe.reading import read

DOMAINS = ("tok_flux_g", "tok_image", "tok_spectrum_desi", "tok_z")
TOWERS = {"image": ("tok_image",), "spectrum": ("tok_spectrum_desi", "tok_z")}
OPTIMIZER = OptimizerRun(steps=60, learning_rate=1e-2, warmup_steps=2)
BATCH, WIDTH = 8, 6


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def run_of(**changes):
    sizes = {"dim": 8, "hidden": 16, "batch": 8, "chunk": 3, "held_out": 8, "evaluated": 8}
    return AlignmentRun(**{"optimizer": OPTIMIZER, "towers": TOWERS, **sizes, **changes})


# Losses.


def towers_and_data():
    """Two linear towers, a scale and a bias, and what a batch of eight shows to both."""
    left, right = (torch.nn.Linear(WIDTH, 5, bias=False) for _ in range(2))
    for seed, layer in enumerate((left, right)):
        torch.nn.init.normal_(layer.weight, generator=seeded(seed))
    # At SigLIP's own start all pairs weigh alike; here the gradient depends on who they are.
    logits = {"scale": torch.nn.Parameter(torch.tensor([5.0])),
              "bias": torch.nn.Parameter(torch.tensor([-1.0]))}  # fmt: skip
    x, y = (torch.randn(BATCH, WIDTH, generator=seeded(s)) for s in (2, 3))
    keys = torch.tensor([0, 1, 2, 3, 4, 1, 6, 7])  # object 1 is seen twice, on two ranks
    return left, right, logits, x, y, keys


def loss_and_gradients(kind, rows, *, everywhere=True):
    left, right, logits, x, y, keys = towers_and_data()
    ours, theirs = (functional.normalize(t(v[rows]), dim=1) for t, v in ((left, x), (right, y)))
    if kind == "sigmoid":
        loss = sigmoid_share(ours, theirs, keys[rows], **logits, everywhere=everywhere)
    else:
        loss = softmax_share(ours, theirs, keys[rows], scale=logits["scale"], everywhere=everywhere)
    loss.backward()
    named = {"left": left.weight.grad, "right": right.weight.grad, "scale": logits["scale"].grad}
    if kind == "sigmoid":
        named["bias"] = logits["bias"].grad
    return {"loss": loss.detach(), **named}


def no_gradient(x):
    """Vectors of all ranks as a plain gather gives them, with this rank's own slice put back."""
    rank, world = ranks.rank_and_world()
    parts = [torch.empty_like(x) for _ in range(world)]
    dist.all_gather(parts, x.detach().contiguous())
    parts[rank] = x
    return torch.cat(parts)


def on_a_rank(rank, folder, work):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(work(rank), folder / f"{rank}.pt")
    dist.destroy_process_group()


def on_two_ranks(folder, work):
    """What ``work(rank)`` returns on each of two gloo ranks."""
    folder.mkdir()
    fork = multiprocessing.get_context("fork")  # spawn would import torch twice more
    processes = [fork.Process(target=on_a_rank, args=(rank, folder, work)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def summed(found):
    return {name: found[0][name] + found[1][name] for name in found[0]}


def worst(found, expected):
    return {
        name: float((found[name] - value).abs().max() / value.abs().max().clamp(min=1e-3))
        for name, value in expected.items()
    }


@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
def test_two_ranks_have_the_gradient_of_one_process(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(contrastive, "COLUMNS", 3)
    expected = loss_and_gradients(kind, slice(None))

    def work(rank):
        rows = slice(4 * rank, 4 * rank + 4)
        found = {"right": loss_and_gradients(kind, rows)}
        found["local"] = loss_and_gradients(kind, rows, everywhere=False)
        contrastive.gathered = no_gradient
        return found | {"plain": loss_and_gradients(kind, rows)}

    first, second = on_two_ranks(tmp_path / "ranks", work)
    errors = {name: worst(summed([first[name], second[name]]), expected) for name in first}
    assert max(errors["right"].values()) < 1e-6, errors
    # What the gather without gradient gets wrong: the loss is right, so nothing would show it.
    assert errors["plain"]["loss"] < 1e-6
    assert errors["plain"]["right"] > 0.01, errors
    assert errors["local"]["loss"] > 0.01, errors


def test_the_task_adds_gradients_over_ranks(tmp_path):
    cache = random_cache(tmp_path / "cache", noise=0.5)

    def gradients(rank, world=2):
        task = AlignmentTask(
            build_head(cache, run_of(), num_heads=2, seed=0), cache, run_of(), seed=0
        )
        share = BATCH // world
        slots = range(rank * share, (rank + 1) * share)
        loss = task.sums(task.read(3, slots))
        loss.backward()
        named = {name: p.grad for name, p in task.module.named_parameters()}
        return {"loss": loss.detach(), **named}

    expected = gradients(0, world=1)
    first, second = on_two_ranks(tmp_path / "ranks", gradients)
    assert torch.allclose(first.pop("loss") + second.pop("loss"), expected.pop("loss"), atol=1e-6)
    for found in (first, second):
        assert max(worst(found, expected).values()) < 1e-5


def test_the_sigmoid_loss_is_the_formula_and_columns_do_not_move_it(monkeypatch):
    left, right, logits, x, y, keys = towers_and_data()
    ours, theirs = functional.normalize(left(x), dim=1), functional.normalize(right(y), dim=1)
    z = (logits["scale"] * ours @ theirs.T + logits["bias"]).detach()
    expected = sum(
        float(torch.log1p(torch.exp(-z[i, j] if keys[i] == keys[j] else z[i, j])))
        for i in range(BATCH) for j in range(BATCH)
    ) / BATCH  # fmt: skip
    for columns in (1, 3, 100):
        monkeypatch.setattr(contrastive, "COLUMNS", columns)
        found = sigmoid_share(ours, theirs, keys, **logits)
        assert float(found.detach()) == pytest.approx(expected, rel=1e-6)


def test_an_object_seen_twice_is_not_pushed_away_from_itself():
    left, right, logits, x, y, keys = towers_and_data()
    ours, theirs = functional.normalize(left(x), dim=1), functional.normalize(right(y), dim=1)
    ours, theirs = ours.detach(), theirs.detach()
    theirs[5] = ours[1]  # the second look at object 1 is where its first one is

    def loss(keys):
        return float(sigmoid_share(ours, theirs, keys, **logits).detach())

    # Off the diagonal the pairs (1, 5) and (5, 1) change sign: each moves the loss by its logit.
    logit = 5 * float(ours[1] @ theirs[5] + ours[5] @ theirs[1]) - 2
    assert loss(torch.arange(BATCH)) - loss(keys) == pytest.approx(logit / BATCH, rel=1e-4)
    softmax = softmax_share(ours, ours, torch.zeros(BATCH).long(), scale=torch.zeros(1))
    assert float(softmax) == pytest.approx(np.log(BATCH), abs=1e-5)


def test_recall_counts_any_match_and_knows_chance():
    vectors = torch.eye(6)
    assert recall(vectors, vectors, torch.arange(6), k=1) == (1.0, pytest.approx(1 / 6))
    shifted = vectors.roll(1, 0)
    assert recall(vectors, shifted, torch.arange(6), k=1)[0] == 0
    twice = torch.tensor([0, 0, 0, 1, 1, 1])
    found, chance = recall(vectors, shifted, twice, k=2)
    assert found > 0.6
    # Two drawn of six miss three matches with (3/6)(2/5).
    assert chance == pytest.approx(1 - 0.2)


def test_copies_of_one_text_are_one_answer():
    keys = torch.tensor([0, 0, 0, 1, 2])
    texts = torch.eye(3)[keys]
    mistaken = torch.tensor([[0.9, 1.0, 0.0]] * 3 + [[1.0, 0.9, 0.0], [1.0, 0.9, 0.8]])
    assert recall(mistaken, texts, keys, k=1, distinct=True) == (0, pytest.approx(1 / 3))
    # Two distinct answers hold the right one; two copies of a wrong text would not.
    assert recall(mistaken, texts, keys, k=2, distinct=True)[0] == pytest.approx(4 / 5)
    assert recall(mistaken, texts, keys, k=2)[0] == pytest.approx(3 / 5)


# Cache.


def random_cache(folder, rows=40, *, seed=0, noise=0.0):
    """Objects whose two towers show the same three numbers through two random lenses."""
    generator = seeded(seed)
    lenses = {n: torch.randn(3, 8, generator=generator) for n in ("image", "spectrum")}
    hidden = torch.randn(rows, 3, generator=seeded(seed + 7))
    with CacheWriter(folder, TOWERS, model_digest="model") as writer:
        parts = {
            name: [
                (hidden[row] @ lens)[None]
                + noise * torch.randn(2 + row % 3, 8, generator=generator)
                for row in range(rows)
            ]
            for name, lens in lenses.items()
        }
        writer.append(np.arange(rows), parts)
    return ContextCache(folder)


def test_a_cache_gives_back_what_was_put_in(tmp_path):
    contexts = {
        name: [torch.randn(n, 4, generator=seeded(n)) for n in (2, 5, 1)] for name in TOWERS
    }
    with CacheWriter(tmp_path / "c", TOWERS, model_digest="m") as writer:
        writer.append(np.array([7, 8]), {n: c[:2] for n, c in contexts.items()})
        writer.append(np.array([9]), {n: c[2:] for n, c in contexts.items()})
    cache = ContextCache(tmp_path / "c")
    assert (len(cache), cache.keys.tolist(), cache.model_digest) == (3, [7, 8, 9], "m")
    assert cache.domains == TOWERS
    values, valid = cache.read("image", np.array([2, 1]))
    assert valid.tolist() == [[True] + [False] * 4, [True] * 5]
    assert torch.equal(values[1], contexts["image"][1].half().float())
    assert torch.equal(CachedContexts(cache, "image", np.array([0, 2]))[1],
                       contexts["image"][2].half())  # fmt: skip


def test_a_broken_cache_is_refused_and_an_unfinished_one_is_none(tmp_path):
    random_cache(tmp_path / "c")
    with (tmp_path / "c" / "image.f16").open("ab") as file:
        file.write(bytes(16))
    with pytest.raises(ConfigurationError, match="not a cache of context vectors"):
        ContextCache(tmp_path / "c")
    with pytest.raises(ZeroDivisionError), CacheWriter(tmp_path / "d", TOWERS, model_digest="m"):
        1 / 0  # noqa: B018
    assert not list(tmp_path.glob("d*"))
    with (
        pytest.raises(ContractError, match="not finite in half precision"),
        CacheWriter(tmp_path / "e", TOWERS, model_digest="m") as writer,
    ):
        writer.append(np.array([0]), {"image": [torch.full((1, 4), 1e6)]})


# Tokens to cache.


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    config = TransformerConfig(dim=16, num_heads=2, encoder_depth=1, decoder_depth=1,
                               domains_in=DOMAINS, domains_out=DOMAINS)  # fmt: skip
    transformer = EncoderDecoder(config)
    transformer.initialize(seeded())
    folder = tmp_path_factory.mktemp("model")
    save_transformer(transformer, folder)
    return folder


@pytest.fixture(scope="module")
def catalog(tmp_path_factory, write_tokens):
    """Twenty-four objects; 3 lacks an image, 4 a spectrum and a redshift."""
    words = Vocabulary(DOMAINS)
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 1000, (24, words.num_positions)).astype(np.int16)
    codes[:, words.positions["tok_image"].rows][:, 20:] = -1
    codes[3, words.positions["tok_image"].rows] = -1
    for key in TOWERS["spectrum"]:
        codes[4, words.positions[key].rows] = -1
    store = TokenStore(codes_BA=codes, ids=np.arange(100, 124))
    return write_tokens(tmp_path_factory.mktemp("catalog") / "tokens", words, store)


@pytest.mark.parametrize("pooled", [False, True])
def test_the_cache_holds_what_the_model_says_of_each_towers_tokens(
    tmp_path, model_folder, catalog, pooled
):
    model = Model.load(model_folder)
    with CacheWriter(tmp_path / "c", TOWERS, model_digest=model.digest) as writer:
        assert fill(writer, model, catalog, TOWERS, pooled=pooled) == 22
    cache = ContextCache(tmp_path / "c")
    assert cache.keys.tolist() == [i for i in range(100, 124) if i not in {103, 104}]
    lengths = np.diff(cache.towers["spectrum"].starts)
    assert set(lengths) == ({1} if pooled else {MODALITIES["tok_spectrum_desi"].num_tokens + 1})
    encoder = with_domains(load(model_folder), DOMAINS[1:], generator=seeded()).model
    source = TunedContexts(encoder, catalog, TOWERS, key_column="object_id")
    assert source.keys.tolist() == cache.keys.tolist()
    for tower in TOWERS:
        expected, valid = source.read(tower, np.arange(4))
        if pooled:
            expected = torch.stack([e[v].mean(0, keepdim=True) for e, v in zip(expected, valid)])  # noqa: B905
        found, _ = cache.read(tower, np.arange(4))
        assert torch.allclose(found, expected, atol=5e-3)


def load(folder):
    from skyvec_core.weights import load_transformer

    return load_transformer(folder)


def test_tokens_that_are_not_there_are_named(tmp_path, model_folder, catalog):
    model = Model.load(model_folder)

    def filled(towers, **more):
        with CacheWriter(tmp_path / "c", towers, model_digest="m") as writer:
            fill(writer, model, catalog, towers, **more)

    with pytest.raises(ConfigurationError, match="the model has no domain tok_ra"):
        filled({"image": ("tok_image",), "place": ("tok_ra",)})
    with pytest.raises(MissingColumnError, match="GROUP"):
        filled(TOWERS, key_column="GROUP")
    leaf = next(catalog.rglob("*.parquet"))
    lacking = tmp_path / "lacking" / leaf.relative_to(catalog)
    lacking.parent.mkdir(parents=True)
    table = pq.read_table(leaf, partitioning=None)
    pq.write_table(table.slice(3, 1), lacking)
    with (
        pytest.raises(ContractError, match="no object has tokens for all of image, spectrum"),
        CacheWriter(tmp_path / "c", TOWERS, model_digest="m") as writer,
    ):
        fill(writer, model, tmp_path / "lacking", TOWERS)


# Learning.


def trained(task, steps=60, rate=1e-2):
    learnt = [p for p in task.module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=rate)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = task.sums(task.read(step, range(task.slots)))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("loss", ["sigmoid", "softmax"])
def test_what_two_towers_share_is_found_on_objects_that_were_not_seen(tmp_path, loss):
    cache = random_cache(tmp_path / "c", rows=500, noise=0.1)
    run = run_of(loss=loss, batch=100, held_out=100, evaluated=100, chunk=64, hidden=64)
    head = build_head(cache, run, num_heads=2, seed=0)
    task = AlignmentTask(head, cache, run, seed=0)
    before = task.evaluate()
    trained(task)
    after = task.evaluate()
    assert before["recall_10"] < 0.3
    assert after["recall_10"] > 0.8, after
    assert after["recall_10_back"] > 0.8
    assert after["recall_10_chance"] == pytest.approx(0.1)
    assert after["loss"] < before["loss"]


def test_chunks_of_the_batch_do_not_move_the_gradient(tmp_path):
    cache = random_cache(tmp_path / "c", noise=0.5)

    def gradients(chunk):
        task = AlignmentTask(
            build_head(cache, run_of(), num_heads=2, seed=0), cache, run_of(chunk=chunk), seed=0
        )
        task.sums(task.read(0, range(8))).backward()
        return {name: p.grad for name, p in task.module.named_parameters()}

    assert max(worst(gradients(3), gradients(8)).values()) < 1e-5


def test_a_tuned_encoder_moves_and_is_merged(model_folder, catalog):
    base = load(model_folder)
    encoder = with_domains(base, DOMAINS[1:], generator=seeded()).model
    plain = {name: p.detach().clone() for name, p in encoder.named_parameters()}
    add_shifts(encoder, share=0.1)
    source = TunedContexts(encoder, catalog, TOWERS, key_column="object_id")
    towers = {name: TowerConfig(width=16, dim=8, hidden=16, num_heads=2, domains=keys)
              for name, keys in TOWERS.items()}  # fmt: skip
    head = AlignmentHead(towers, model_digest="")
    head.initialize(seeded())
    run = run_of(encoder_share=0.1, held_out=4)
    task = AlignmentTask(head, source, run, seed=0, encoder=encoder)
    before = source.read("image", np.arange(2))[0].detach()
    first = source.read("image", np.arange(2))[0]
    assert torch.equal(before, first)
    losses = trained(task, steps=8)
    assert losses[-1] < losses[0]
    tuned = source.read("image", np.arange(2))[0].detach()
    assert not torch.allclose(tuned, before, atol=1e-4)
    merge(encoder)
    assert torch.allclose(source.read("image", np.arange(2))[0], tuned, atol=1e-6)
    moved = dict(encoder.named_parameters())
    assert moved.keys() == plain.keys()
    # Adam's first steps are as long as the rate: eight of 0.01 at a tenth.
    step = (moved["encoder.0.attn.qkv.weight"] - plain["encoder.0.attn.qkv.weight"]).abs().max()
    assert 0 < float(step) <= 8 * 1e-2 * 0.1 * 1.01
    assert torch.equal(moved["decoder.0.mlp.fc1.weight"], plain["decoder.0.mlp.fc1.weight"])


def test_a_batch_that_cannot_be_is_refused(tmp_path):
    cache = random_cache(tmp_path / "c")
    head = build_head(cache, run_of(), num_heads=2, seed=0)
    with pytest.raises(ConfigurationError, match="a batch of 33 from 32 objects"):
        AlignmentTask(head, cache, run_of(batch=33), seed=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"towers": {"image": ("tok_image",)}}, "give two towers, or one tower and captions"),
        ({"towers": {"a": ("tok_im",), "b": ("tok_z",)}}, "unknown token keys tok_im"),
        ({"encoder_share": 2.0}, r"must lie in 0\.\.1"),
        ({"encoder_share": 0.1, "pooled": True}, "a tuned encoder is pooled by attention"),
    ],
)
def test_recipes_that_contradict_themselves_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        run_of(**change)
    assert json.dumps(change)


# The whole way.


def aligned(out, model_folder, catalog, **changes):
    optimizer = OptimizerRun(steps=3, learning_rate=1e-2, warmup_steps=1)
    return running.align(
        run_of(optimizer=optimizer, held_out=6, evaluated=6, **changes), tokens=catalog,
        model_folder=model_folder, out=out, seed=0, console=Console(quiet=True),
    )  # fmt: skip


def test_a_head_comes_out_that_belongs_to_its_model(tmp_path, model_folder, catalog):
    assert aligned(tmp_path / "run", model_folder, catalog).finished
    head = AlignmentHead.load(tmp_path / "run" / "head.safetensors")
    model = Model.load(model_folder)
    assert head.model_digest == model.digest
    assert head.tower("image").config.domains == ("tok_image",)
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert {"loss", "recall_1", "recall_10_chance"} <= scores.keys()
    again = aligned(tmp_path / "run", model_folder, catalog)
    assert again.step == 3
    other = tmp_path / "other"
    transformer = load(model_folder)
    transformer.mask_token.data += 1
    save_transformer(transformer, other)
    with pytest.raises(ConfigurationError, match="were made by another model or text encoder"):
        aligned(tmp_path / "run", other, catalog)
    with pytest.raises(WeightsError, match="Give the folder of a trained model"):
        aligned(tmp_path / "run", tmp_path, catalog)


def test_a_tuned_model_comes_out_with_its_head(tmp_path, model_folder, catalog):
    (model_folder / "codecs").mkdir(exist_ok=True)
    assert aligned(tmp_path / "run", model_folder, catalog, encoder_share=0.1).finished
    tuned = Model.load(tmp_path / "run" / "model")
    assert tuned.config.domains == DOMAINS
    assert tuned.digest != Model.load(model_folder).digest
    assert AlignmentHead.load(tmp_path / "run" / "head.safetensors").model_digest == tuned.digest


@pytest.mark.parametrize(
    ("name", "kind"),
    [("image_spectrum", AlignmentRun), ("text", AlignmentRun), ("redshift_pool", PoolRun),
     ("new_survey", LowRankRun)],
)  # fmt: skip
def test_the_recipes_that_come_along_are_readable(name, kind):
    folder = Path(running.__file__).parents[1] / "recipes" / "heads"
    assert isinstance(read(kind, folder / f"{name}.toml"), kind)
