"""Generation: what is revealed when, what the draws depend on, what the caches stand for."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skyvec_core import generation
from skyvec_core.generation import generate, num_codes, reveal_counts
from skyvec_core.growing_context import GrowingContext
from skyvec_core.modalities import MODALITIES
from skyvec_core.model.config import TransformerConfig
from skyvec_core.model.encoder_decoder import EncoderDecoder
from skyvec_core.observations import Tokens
from skyvec_core.prediction import pack, predict_logits, rows_of

INPUTS = ("tok_xp_rp", "tok_flux_g", "tok_ebv")
TARGETS = ("tok_xp_bp", "tok_z", "tok_flux_r")
EVERYTHING = torch.ones((1, 1, 1, 1), dtype=torch.bool)


@pytest.fixture(scope="module")
def transformer():
    config = TransformerConfig(
        dim=32, num_heads=2, encoder_depth=2, decoder_depth=2,
        domains_in=(*INPUTS, *TARGETS), domains_out=(*TARGETS, "tok_xp_rp", "tok_segmap"),
    )  # fmt: skip
    model = EncoderDecoder(config)
    generator = torch.Generator().manual_seed(0)
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


def nothing(rows):
    """Objects without any token."""
    tokens = token_set(rows, keys=("tok_ebv",))
    tokens["tok_ebv"].valid_BN[:] = False
    return tokens


def assert_same(found, expected, rows=slice(None)):
    for key, coded in found.tokens.items():
        assert torch.equal(coded.ids_BN, expected.tokens[key].ids_BN[rows]), key
        torch.testing.assert_close(
            found.log_probabilities[key], expected.log_probabilities[key][rows],
            rtol=1e-4, atol=1e-5,
        )  # fmt: skip


@given(
    schedule=st.sampled_from(["cosine", "linear"]),
    steps=st.integers(1, 700),
    total=st.integers(1, 600),
)
def test_every_step_reveals_something_and_together_all(schedule, steps, total):
    counts = reveal_counts(schedule, steps=steps, total=total)
    assert len(counts) == min(steps, total)
    assert min(counts) >= 1
    assert sum(counts) == total


def test_schedules_have_their_shapes():
    assert reveal_counts("cosine", steps=8, total=576) == [22, 62, 94, 110, 110, 94, 62, 22]
    assert reveal_counts("linear", steps=4, total=10) == [2, 3, 2, 3]


@pytest.mark.parametrize("scheme", ["maskgit", "roar"])
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("steps", [1, 7, 80])
def test_every_token_is_revealed_once(transformer, monkeypatch, scheme, schedule, steps):
    asked, revealed = [], []

    class Watched(GrowingContext):
        def with_tokens(self, codes_Bn, positions_Bn, *, reencode):
            revealed.append(positions_Bn)
            return super().with_tokens(codes_Bn, positions_Bn, reencode=reencode)

        def hidden(self, positions_BQ, keep_self):
            asked.append(positions_BQ)
            return super().hidden(positions_BQ, keep_self)

    monkeypatch.setattr(generation, "GrowingContext", Watched)
    generate(
        transformer, token_set(3), ["tok_xp_bp"], steps=steps, scheme=scheme, schedule=schedule
    )
    counts = reveal_counts(schedule, steps=steps, total=55)
    shown = [*revealed, asked[-1]]
    assert [part.shape[1] for part in shown] == counts
    hidden = [sum(counts[step:]) for step in range(len(counts))]
    assert [part.shape[1] for part in asked] == (hidden if scheme == "maskgit" else counts)
    start = transformer.vocabulary.positions["tok_xp_bp"].start
    assert torch.cat(shown, 1).sort(1).values.equal((torch.arange(55) + start).expand(3, -1))


def test_the_most_probable_draws_are_revealed_first(transformer):
    """Greedy, two steps: the first keeps the confident half of the one-pass prediction."""
    tokens = token_set(4)
    log_p = predict_logits(transformer, tokens, ["tok_xp_bp"])["tok_xp_bp"].log_softmax(-1)
    best = log_p.max(-1)
    out = generate(transformer, tokens, ["tok_xp_bp"], steps=2, temperature=0)
    first = best.values.argsort(1, descending=True)[
        :, : reveal_counts("cosine", steps=2, total=55)[0]
    ]
    found = out.tokens["tok_xp_bp"].ids_BN.gather(1, first)
    assert torch.equal(found, best.indices.gather(1, first))


@pytest.mark.parametrize("scheme", ["maskgit", "roar"])
def test_one_greedy_step_is_the_one_pass_prediction(transformer, scheme):
    tokens = token_set()
    logits = predict_logits(transformer, tokens, TARGETS)
    out = generate(
        transformer, tokens, TARGETS,
        steps=1, scheme=scheme, temperature=0, condition_on_generated=False,
    )  # fmt: skip
    for key in TARGETS:
        best = logits[key][..., : num_codes(key)].log_softmax(-1).max(-1)
        assert torch.equal(out.tokens[key].ids_BN, best.indices)
        torch.testing.assert_close(out.log_probabilities[key], best.values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scheme", ["maskgit", "roar"])
def test_one_step_needs_no_encoding_again(transformer, scheme):
    tokens = token_set()
    once, anew = (
        generate(transformer, tokens, TARGETS, steps=1, scheme=scheme, reencode=reencode)
        for reencode in (False, True)
    )
    assert all(torch.equal(once.tokens[k].ids_BN, anew.tokens[k].ids_BN) for k in TARGETS)


def some_tokens(transformer, rows, places, seed=1):
    """Joint codes and positions of drawn tokens of tok_xp_bp."""
    words = transformer.vocabulary
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 1024, (rows, len(places)), generator=generator)
    positions = torch.tensor(places).expand(rows, -1) + words.positions["tok_xp_bp"].start
    return codes + words.codes["tok_xp_bp"].start, positions


def test_encoding_anew_is_encoding_all_tokens_together(transformer):
    packed = pack(transformer, token_set())
    grown = GrowingContext.of(transformer, *packed)
    for step in range(2):
        grown = grown.with_tokens(
            *some_tokens(transformer, 5, [step, 9 + step], seed=step), reencode=True
        )
    context = transformer.encode(grown.codes_BS, grown.positions_BS, grown.valid_BS)
    _, asked = some_tokens(transformer, 5, [3, 4, 5])
    expected = transformer.decode_where(context, grown.valid_BS, asked, EVERYTHING)
    torch.testing.assert_close(grown.hidden(asked, EVERYTHING), expected, rtol=1e-4, atol=1e-5)


def test_kept_keys_stand_for_tokens_that_do_not_see_later_ones(transformer):
    """The caches equal one pass over all tokens with a mask that says who came before whom."""
    packed = pack(transformer, token_set(missing=0.2))
    grown = GrowingContext.of(transformer, *packed)
    came_in = torch.zeros(packed[0].shape[1])
    for step in (1, 2):
        new = some_tokens(transformer, 5, [step, 9 + step, 20 + step], seed=step)
        grown = grown.with_tokens(*new, reencode=False)
        came_in = torch.cat([came_in, torch.full((3,), float(step))])
    keep = (came_in[:, None] >= came_in)[None, None] & grown.valid_BS[:, None, None]
    keep = keep | torch.eye(len(came_in), dtype=torch.bool)
    embedding = transformer.embedding(grown.positions_BS)
    x = transformer.token_table(grown.codes_BS) + embedding
    for block in transformer.encoder:
        x = block(x, keep)
    context = transformer.decoder_proj_context(transformer.encoder_norm(x)) + embedding
    _, asked = some_tokens(transformer, 5, [3, 4, 5])
    expected = transformer.decode_where(context, grown.valid_BS, asked, EVERYTHING)
    torch.testing.assert_close(grown.hidden(asked, EVERYTHING), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reencode", [False, True])
def test_revealed_tokens_matter(transformer, reencode):
    grown = GrowingContext.of(transformer, *pack(transformer, token_set()))
    _, asked = some_tokens(transformer, 5, [3])
    codes, positions = some_tokens(transformer, 5, [1, 2])
    seen = grown.with_tokens(codes, positions, reencode=reencode).hidden(asked, EVERYTHING)
    other = grown.with_tokens(codes + 1, positions, reencode=reencode).hidden(asked, EVERYTHING)
    assert not torch.allclose(seen, other)
    assert not torch.allclose(seen, grown.hidden(asked, EVERYTHING))


@pytest.mark.parametrize("options", [{}, {"scheme": "roar"}, {"guidance": 1.5}, {"reencode": True}])
def test_an_object_does_not_depend_on_its_company_or_the_order(transformer, options, monkeypatch):
    tokens = token_set(7)
    whole = generate(transformer, tokens, TARGETS, steps=4, **options)
    for rows in (torch.tensor([4]), torch.randperm(7, generator=torch.Generator().manual_seed(3))):
        part = generate(
            transformer, rows_of(tokens, rows), TARGETS, steps=4, objects=rows, **options
        )
        assert_same(part, whole, rows)
    monkeypatch.setattr(generation, "TOKENS_PER_PASS", 200)
    assert_same(generate(transformer, tokens, TARGETS, steps=4, **options), whole)


def test_draws_follow_the_seed_and_the_number_of_the_object(transformer):
    tokens = rows_of(token_set(1), torch.zeros(2, dtype=torch.long))
    first = generate(transformer, tokens, ["tok_xp_bp"]).tokens["tok_xp_bp"].ids_BN
    again = generate(transformer, tokens, ["tok_xp_bp"]).tokens["tok_xp_bp"].ids_BN
    other = generate(transformer, tokens, ["tok_xp_bp"], seed=1).tokens["tok_xp_bp"].ids_BN
    alike = generate(transformer, tokens, ["tok_xp_bp"], objects=[5, 5]).tokens["tok_xp_bp"].ids_BN
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])
    assert torch.equal(alike[0], alike[1])


def test_greedy_generation_knows_no_chance(transformer):
    tokens = token_set()
    greedy = generate(transformer, tokens, TARGETS, temperature=0)
    assert_same(generate(transformer, tokens, TARGETS, temperature=0, seed=9), greedy)
    assert_same(generate(transformer, tokens, TARGETS, temperature=1e-4), greedy)
    assert_same(generate(transformer, tokens, TARGETS, top_p=1e-6), greedy)


def sampling(**changes):
    plain = {
        "steps": 1, "scheme": "maskgit", "schedule": "cosine",
        "temperature": 1.0, "top_p": 1.0, "guidance": 1.0, "reencode": False,
    }  # fmt: skip
    return generation._Sampling(**(plain | changes))


def shares(probabilities, **options):
    """How often each code is drawn when the uniform numbers are equally spaced."""
    uniforms = (torch.arange(10_000) + 0.5)[None] / 10_000
    log_p = torch.tensor(probabilities).log().expand(1, 10_000, -1)
    codes, chosen = generation._draw(log_p, uniforms, sampling(**options))
    assert torch.equal(chosen[0], log_p[0, 0][codes[0]])
    return codes[0].bincount(minlength=len(probabilities)) / 10_000


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.5, 0.0, 0.3, 0.2]),
        ({"temperature": 0}, [1.0, 0.0, 0.0, 0.0]),
        ({"temperature": 0.5}, [25 / 38, 0.0, 9 / 38, 4 / 38]),
        ({"temperature": 1e6}, [1 / 3, 0.0, 1 / 3, 1 / 3]),
        ({"top_p": 0.49}, [1.0, 0.0, 0.0, 0.0]),
        ({"top_p": 0.51}, [0.625, 0.0, 0.375, 0.0]),
        ({"top_p": 0.99}, [0.5, 0.0, 0.3, 0.2]),
        ({"top_p": 1e-9}, [1.0, 0.0, 0.0, 0.0]),
        ({"top_p": 0.51, "temperature": 0.5}, [25 / 34, 0.0, 9 / 34, 0.0]),
    ],
)
def test_codes_are_drawn_as_often_as_they_should(options, expected):
    found = shares([0.5, 0.0, 0.3, 0.2], **options)
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=2e-4)


@pytest.mark.parametrize("top_p", [1.0, 0.65])
@pytest.mark.parametrize(("uniform", "code"), [(0.0, 1), (1 - 2**-24, 3)])
def test_the_extreme_uniform_numbers_draw_possible_codes(top_p, uniform, code):
    log_p = torch.tensor([0.0, 0.35, 0.25, 0.4, 0.0, 0.0]).log()[None, None]
    codes, _ = generation._draw(log_p, torch.tensor([[uniform]]), sampling(top_p=top_p))
    assert codes.item() == code


@given(st.floats(0.5, 2, width=32))
def test_a_share_below_one_stays_below_the_total(total):
    assert torch.tensor(total) * torch.tensor(1 - 2**-24) < torch.tensor(total)


def test_guidance_of_one_is_none_and_of_zero_forgets_the_inputs(transformer):
    tokens = token_set()
    plain = generate(transformer, tokens, ["tok_xp_bp"], steps=3)
    guided = generate(transformer, tokens, ["tok_xp_bp"], steps=3, guidance=1 + 1e-12)
    assert_same(guided, plain)
    blind = generate(transformer, tokens, ["tok_xp_bp"], steps=3, guidance=0)
    assert_same(blind, generate(transformer, nothing(5), ["tok_xp_bp"], steps=3))
    assert not torch.equal(blind.tokens["tok_xp_bp"].ids_BN, plain.tokens["tok_xp_bp"].ids_BN)


def test_guidance_moves_logits_away_from_the_unconditional_ones(transformer):
    tokens = token_set()
    seen = predict_logits(transformer, tokens, ["tok_z"])["tok_z"][:, 0, :1024]
    blind = predict_logits(transformer, nothing(5), ["tok_z"])["tok_z"][:, 0, :1024]
    out = generate(transformer, tokens, ["tok_z"], guidance=2.5)
    expected = (blind + 2.5 * (seen - blind)).softmax(-1)
    torch.testing.assert_close(out.probabilities["tok_z"], expected, rtol=1e-3, atol=1e-6)


def test_a_target_is_an_input_of_those_after_it(transformer):
    tokens = token_set()
    out = generate(transformer, tokens, ["tok_xp_bp", "tok_z"], steps=3)
    drawn = tokens | {"tok_xp_bp": out.tokens["tok_xp_bp"]}
    expected = predict_logits(transformer, drawn, ["tok_z"])["tok_z"][:, 0, :1024].softmax(-1)
    torch.testing.assert_close(out.probabilities["tok_z"], expected, rtol=1e-3, atol=1e-6)


def test_independent_targets_do_not_know_each_other(transformer):
    tokens = token_set()
    together, turned = (
        generate(transformer, tokens, keys, steps=3, condition_on_generated=False)
        for keys in (TARGETS, TARGETS[::-1])
    )
    assert list(together.tokens) == list(TARGETS)
    assert_same(turned, together)
    for key in TARGETS:
        alone = generate(transformer, tokens, [key], steps=3)
        assert_same(alone, together)


def test_codes_lie_in_the_codebook_and_distributions_add_up(transformer):
    out = generate(transformer, token_set(40), TARGETS, temperature=1e6, steps=2)
    for key in TARGETS:
        ids = out.tokens[key].ids_BN
        assert ids.shape == (40, MODALITIES[key].num_tokens)
        assert out.tokens[key].valid_BN.all()
        assert ids.min() >= 0
        assert ids.max() < num_codes(key)
    assert set(out.probabilities) == {"tok_z", "tok_flux_r"}
    # Redshift has a code in the transformer that its codec never makes.
    assert out.probabilities["tok_z"].shape == (40, 1024)
    for key, probabilities in out.probabilities.items():
        torch.testing.assert_close(probabilities.sum(1), torch.ones(40))
        chosen = probabilities.gather(1, out.tokens[key].ids_BN).log()
        torch.testing.assert_close(chosen, out.log_probabilities[key], rtol=1e-4, atol=1e-4)


def test_missing_modalities_concern_their_objects_alone(transformer):
    tokens = token_set(3, missing=0.0)
    whole = generate(transformer, tokens, TARGETS, steps=3)
    for key in INPUTS:
        tokens[key].valid_BN[1] = False
    holed = generate(transformer, tokens, TARGETS, steps=3)
    assert_same(generate(transformer, rows_of(tokens, [0]), TARGETS, steps=3), whole, [0])
    for key in TARGETS:
        found, before = holed.tokens[key].ids_BN, whole.tokens[key].ids_BN
        assert torch.equal(found[[0, 2]], before[[0, 2]])
    empty = generate(transformer, nothing(1), TARGETS, steps=3, objects=[1])
    assert_same(empty, holed, [1])


def test_the_callers_tokens_stay_untouched(transformer):
    tokens, same = token_set(), token_set()
    generate(transformer, tokens, TARGETS, steps=2)
    for key in INPUTS:
        assert torch.equal(tokens[key].ids_BN, same[key].ids_BN)
        assert torch.equal(tokens[key].valid_BN, same[key].valid_BN)


def test_no_objects_give_no_tokens(transformer):
    assert generate(transformer, token_set(0), ["tok_z"]).tokens["tok_z"].ids_BN.shape == (0, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, found 0"),
        ({"scheme": "diffusion"}, "unknown scheme 'diffusion'; known are maskgit, roar"),
        ({"schedule": "square"}, "unknown schedule 'square'"),
        ({"temperature": -1.0}, "temperature must be 0"),
        ({"temperature": float("nan")}, "temperature must be 0"),
        ({"top_p": 0.0}, "top_p must be above 0"),
        ({"top_p": 1.5}, "top_p must be above 0"),
        ({"guidance": float("inf")}, "guidance must be finite"),
        ({"objects": [1, 2]}, r"\(2,\) numbers for 5 objects"),
    ],
)
def test_bad_options_are_refused(transformer, options, message):
    with pytest.raises(ValueError, match=message):
        generate(transformer, token_set(), ["tok_z"], **options)


def test_targets_that_cannot_be_generated_are_refused(transformer):
    tokens = token_set()
    with pytest.raises(ValueError, match="tok_xp_rp: given and to be generated"):
        generate(transformer, tokens, ["tok_xp_rp"])
    with pytest.raises(ValueError, match="catalog cannot be predicted"):
        generate(transformer, tokens, ["catalog"])
    with pytest.raises(ValueError, match="predicts tok_segmap but cannot encode it"):
        generate(transformer, tokens, ["tok_segmap"])
    with pytest.raises(ValueError, match="cannot encode it"):
        generate(transformer, tokens, ["tok_segmap", "tok_z"], steps=1)
    out = generate(transformer, tokens, ["tok_z", "tok_segmap"], steps=1)
    assert out.tokens["tok_segmap"].ids_BN.shape == (5, 144)
