"""Small changes of a trained model: adapters, other domains, masked modelling of a new survey."""

import dataclasses

import numpy as np
import pytest
import torch

from skyvec_core.embedder import Model
from skyvec_core.model.config import TransformerConfig
from skyvec_core.model.encoder_decoder import EncoderDecoder
from skyvec_core.model.vocabulary import Vocabulary
from skyvec_core.weights import published_tensors, save_transformer, transformer_digest
from skyvec_training.data.tokens import TokenStore
from skyvec_training.heads import low_rank
from skyvec_training.heads.adapters import add_low_rank, add_rows, merge
from skyvec_training.heads.domains import with_domains
from skyvec_training.masked.batches import MaskedBatches
from skyvec_training.masked.transformer import TransformerTask
from skyvec_training.recipe.data import DataRun
from skyvec_training.recipe.heads import LowRankRun
from skyvec_training.recipe.masking import MaskingRun
from skyvec_training.recipe.optimizer import OptimizerRun

OLD = ("tok_flux_g", "tok_flux_r", "tok_image", "tok_z")
NEW = ("tok_flux_g", "tok_flux_i", "tok_z")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def model_of(domains=OLD, seed=0):
    config = TransformerConfig(dim=16, num_heads=2, encoder_depth=2, decoder_depth=1,
                               domains_in=domains, domains_out=domains)  # fmt: skip
    model = EncoderDecoder(config)
    model.initialize(seeded(seed))
    return model.eval()


def copies(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def context(model, key="tok_flux_g"):
    """Context of one object with three codes of flux and redshift."""
    words = model.vocabulary
    codes = torch.tensor([[words.codes[key].start + 7, words.codes["tok_z"].start + 9]])
    places = torch.tensor([[words.positions[key].start, words.positions["tok_z"].start]])
    return model.encode(codes, places, torch.ones(1, 2, dtype=torch.bool))


# Adapters.


@pytest.mark.parametrize("parts", [("encoder",), ("encoder", "decoder")])
def test_low_rank_changes_start_at_the_model_and_are_merged(parts):
    model, plain = model_of(), model_of()
    count = add_low_rank(model, rank=2, alpha=4, generator=seeded(), parts=parts)
    assert count == 2 * 5 + (1 * 8 if "decoder" in parts else 0)
    assert torch.equal(context(model), context(plain))
    learnt = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert all(".0.down_RI" in n or ".0.up_OR" in n for n in learnt)
    assert len(learnt) == 2 * count
    for parameter in learnt.values():
        torch.nn.init.normal_(parameter, generator=seeded(1))
    changed = context(model)
    assert not torch.allclose(changed, context(plain), atol=1e-2)
    merge(model)
    assert torch.allclose(context(model), changed, atol=1e-5)
    assert copies(model).keys() == copies(plain).keys()
    assert type(model) is EncoderDecoder
    difference = model.encoder[0].mlp.fc1.weight - plain.encoder[0].mlp.fc1.weight
    assert torch.linalg.matrix_rank(difference) == 2
    assert transformer_digest(model) != transformer_digest(plain)
    assert published_tensors(model).keys() == published_tensors(plain).keys()


def test_only_named_rows_move():
    model, plain = model_of(), copies(model_of())
    model.requires_grad_(requires_grad=False)
    add_rows(model, torch.tensor([5, 2000]), torch.tensor([1]))
    learnt = [p for p in model.parameters() if p.requires_grad]
    assert sum(p.numel() for p in learnt) == (2 + 2 + 1) * 16
    for parameter in learnt:
        torch.nn.init.ones_(parameter)
    merge(model)
    for name, value in copies(model).items():
        rows = (value != plain[name]).reshape(len(value), -1).any(1).nonzero()[:, 0].tolist()
        expected = {"token_table.weight": [5, 2000], "head_table": [5, 2000],
                    "domain_table.weight": [1]}.get(name, [])  # fmt: skip
        assert rows == expected, name


# Domains.


def test_other_domains_keep_what_is_shared_bit_for_bit():
    old = model_of()
    grown = with_domains(old, NEW, generator=seeded())
    assert grown.new == ("tok_flux_i",)
    assert torch.equal(context(grown.model), context(old))
    words = grown.model.vocabulary
    hidden = torch.randn(3, 16, generator=seeded())
    assert torch.equal(grown.model.logits(hidden, "tok_z"), old.logits(hidden, "tok_z"))
    assert grown.codes.tolist() == list(range(*words.codes["tok_flux_i"].rows.indices(10**6)))
    assert grown.domains.tolist() == [words.modalities.index(_modality("tok_flux_i"))]


def _modality(key):
    from skyvec_core.modalities import MODALITIES

    return MODALITIES[key]


def test_new_rows_start_at_the_mean_of_their_kind():
    old = model_of()
    with torch.no_grad():
        for key, value in (("tok_flux_g", 1.0), ("tok_flux_r", 3.0), ("tok_z", 2.0)):
            old.token_table.weight[old.vocabulary.codes[key].rows] = value
        old.token_table.weight[old.vocabulary.codes["tok_image"].rows] = 100.0
    grown = with_domains(old, NEW, generator=seeded(), noise=0.1)
    rows = grown.model.token_table.weight[grown.codes]
    assert rows.mean().item() == pytest.approx(2.0, abs=0.05)
    assert rows.std().item() == pytest.approx(0.1 * np.sqrt(2 / 3), rel=0.1)
    still = with_domains(old, NEW, generator=seeded(), noise=0.0)
    assert torch.equal(still.model.token_table.weight[still.codes],
                       torch.full((1024, 16), 2.0))  # fmt: skip


# Masked modelling of a new survey.


def run_of(**changes):
    optimizer = OptimizerRun(steps=30, learning_rate=1e-2, warmup_steps=2)
    masking = MaskingRun(input_budget=4, output_budget=4)
    given = {"optimizer": optimizer, "domains": NEW, "rank": 2, "alpha": 4.0, "row_steps": 20,
             "masking": masking, "batch": 16, "data": DataRun(held_out=0.2)}  # fmt: skip
    return LowRankRun(**(given | changes))


def new_survey():
    """Two hundred objects whose three scalars are one number."""
    words = Vocabulary(NEW)
    number = np.random.default_rng(0).integers(0, 8, (200, 1))
    codes = np.repeat(100 * number + 50, words.num_positions, axis=1).astype(np.int16)
    return TokenStore(codes_BA=codes, ids=np.arange(200))


def trained(grown, run, store):
    masked = low_rank.masked_run(grown.model, run)
    batches = MaskedBatches(store, grown.model.vocabulary, masked, seed=0)
    task = TransformerTask(grown.model, batches, masked)
    optimizer = torch.optim.AdamW([p for p in grown.model.parameters() if p.requires_grad], lr=1e-2)
    for step in range(run.optimizer.steps):
        batch = task.read(step, range(task.slots))
        optimizer.zero_grad()
        loss = (task.coefficients(task.counts(batch)) * task.sums(batch)).sum()
        loss.backward()
        optimizer.step()
    grown.model.eval()
    with torch.no_grad():
        return task.evaluate()["loss"]


def test_a_new_survey_is_learnt_and_what_comes_out_is_a_plain_model(tmp_path):
    base, run, store = model_of(), run_of(), new_survey()
    before = copies(base)
    grown = low_rank.survey_model(base, run, seed=0)
    start = trained(grown, dataclasses.replace(
        run, optimizer=dataclasses.replace(run.optimizer, steps=0, warmup_steps=0)), store)  # fmt: skip
    low_rank.free_rows(grown)
    rows = low_rank.rows_run(run)
    assert rows.optimizer.steps == 20
    first = trained(grown, rows, store)
    trunk = dict(grown.model.named_parameters())["encoder.0.attn.qkv.weight"]
    assert torch.equal(trunk, before["encoder.0.attn.qkv.weight"])
    low_rank.free_low_rank(grown, run, seed=0)
    last = trained(grown, run, store)
    assert last < first < start
    whole = low_rank.whole_model(base, grown, seed=0)
    assert set(whole.config.domains) == {*OLD, *NEW}
    assert torch.allclose(context(whole, "tok_flux_i"), context(grown.model, "tok_flux_i"))
    assert all(torch.equal(value, before[name]) for name, value in copies(base).items())
    # The rows of domains that the survey lacks are untouched.
    words, old = whole.vocabulary.codes["tok_image"].rows, base.vocabulary.codes["tok_image"].rows
    assert torch.equal(whole.token_table.weight[words], base.token_table.weight[old])
    save_transformer(whole, tmp_path / "model")
    assert Model.load(tmp_path / "model").config.domains == whole.config.domains


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"domains": ("tok_flux_q",)}, "unknown token keys tok_flux_q"),
        ({"domains": ()}, "none given"),
        ({"rank": 0}, "rank must be positive"),
    ],
)
def test_recipes_that_cannot_be_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        run_of(**change)
