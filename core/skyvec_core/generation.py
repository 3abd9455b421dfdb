"""Generation: tokens of some domains in, drawn tokens of others out, some at a time.

Within a domain, each step predicts hidden tokens, draws codes, reveals some of them, and lets the
next step see those: ``maskgit`` predicts all and reveals the most probable draws (arXiv
2202.04200), ``roar`` predicts and reveals the next few of a random order (AION-1, arXiv
2510.17960).

What a step has revealed enters through the encoder, as in training. Encoding everything anew gives
the official sampler's numbers (``reencode=True``). By default only the new tokens are encoded: they
attend to the tokens before them, which stay as they were, so that keys and values of these are kept
in both stacks. The first step is the same either way; from the second on it is an approximation.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, TypedDict, get_args

import torch
from torch import Tensor

from skyvec_core.growing_context import GrowingContext
from skyvec_core.modalities import MODALITIES
from skyvec_core.model.config import TransformerConfig
from skyvec_core.model.encoder_decoder import EncoderDecoder
from skyvec_core.observations import Tokens, TokenSet
from skyvec_core.prediction import (
    pack,
    passes,
    require_targets,
    require_tokens,
    rows_of,
)

# Shape letters: B object, T token given, S token seen so far, n token added, Q target token asked
# for, N token of one domain, K step, V code that the domain's codec knows.

Scheme = Literal["maskgit", "roar"]
Schedule = Literal["cosine", "linear"]

TOKENS_PER_PASS = 8_192
"""Input and target tokens of the objects that are generated together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Generated:
    """Drawn tokens of B objects, on the CPU."""

    tokens: dict[str, Tokens] = field(default_factory=dict)
    """Token key -> drawn codes; all are valid."""
    log_probabilities: dict[str, Tensor] = field(default_factory=dict)
    """Token key -> (B, N) natural logarithm of the probability that each code had when it was
    revealed, under the guided logits, at temperature 1 and with all codes allowed."""
    probabilities: dict[str, Tensor] = field(default_factory=dict)
    """Token key -> (B, V) that distribution, over the codec's codes; targets of one token only."""


class GenerationOptions(TypedDict, total=False):
    """Keywords of `generate`."""

    steps: int
    scheme: Scheme
    schedule: Schedule
    temperature: float
    top_p: float
    guidance: float
    condition_on_generated: bool
    reencode: bool
    seed: int
    objects: Sequence[int] | Tensor | None


@torch.no_grad()
def generate(
    transformer: EncoderDecoder,
    tokens: TokenSet,
    targets: Sequence[str],
    *,
    steps: int = 8,
    scheme: Scheme = "maskgit",
    schedule: Schedule = "cosine",
    temperature: float = 1.0,
    top_p: float = 1.0,
    guidance: float = 1.0,
    condition_on_generated: bool = True,
    reencode: bool = False,
    seed: int = 0,
    objects: Sequence[int] | Tensor | None = None,
) -> Generated:
    """Draw all tokens of each target, in the order of ``targets``.

    Parameters
    ----------
    tokens
        Inputs; an object without any valid token is generated from nothing.
    targets
        Token keys, none of them among the inputs.
    steps
        Steps for each target, at most one for each of its tokens.
    scheme
        ``maskgit`` reveals the draws first that the model holds most probable (at temperature 1),
        ``roar`` goes in a random order.
    schedule
        Share revealed after step i of n: ``cosine`` (1 - cos(pi i / n)) / 2, as the official
        sampler, or ``linear`` i / n. Every step reveals at least one token.
    temperature
        Divides the logits; 0 takes the most probable code.
    top_p
        Draw from the fewest codes that together have this probability (before the temperature).
    guidance
        s in logits_u + s (logits_c - logits_u), where c sees the inputs and u only what is
        revealed of the target itself; 1 is no guidance and costs one pass less, 0 ignores the
        inputs.
    condition_on_generated
        Finished targets become inputs of those after them. Otherwise each target is drawn given
        the inputs alone, and those of one token share one pass.
    reencode
        Encode all tokens anew at each step.
    seed
        With the object's number and the target it fixes every draw of an object, so company and
        order do not matter, but for rounding of the logits.
    objects
        Number of each object (B,); its place by default.

    Raises
    ------
    ValueError
        If an option is out of range, a target cannot be predicted, or the tokens do not fit the
        model.
    """
    sampling = _Sampling(
        steps=steps,
        scheme=scheme,
        schedule=schedule,
        temperature=temperature,
        top_p=top_p,
        guidance=guidance,
        reencode=reencode,
    )
    require_targets(transformer.config, targets)
    count = require_tokens(transformer.config, tokens)
    given = [key for key in targets if key in tokens]
    if given:
        raise ValueError(f"{', '.join(given)}: given and to be generated; leave it out of one")
    _require_encodable(
        transformer.config, targets, steps=steps, condition_on_generated=condition_on_generated
    )
    numbers_B = torch.arange(count) if objects is None else torch.as_tensor(objects).cpu()
    if numbers_B.shape != (count,):
        raise ValueError(f"{tuple(numbers_B.shape)} numbers for {count} objects")
    sizes = {key: MODALITIES[key].num_tokens for key in targets}
    out = Generated()
    for key, size in sizes.items():
        ids_BN = torch.empty((count, size), dtype=torch.int64)
        out.tokens[key] = Tokens(ids_BN=ids_BN, valid_BN=torch.ones_like(ids_BN, dtype=torch.bool))
        out.log_probabilities[key] = torch.empty((count, size))
        if size == 1:
            out.probabilities[key] = torch.empty((count, num_codes(key)))
    for rows in passes(tokens, queries=sum(sizes.values()), limit=TOKENS_PER_PASS):
        uniforms = {key: _uniforms(seed, numbers_B[rows], key, sampling) for key in targets}
        drawn = _generate_pass(
            transformer,
            rows_of(tokens, rows),
            _groups(targets, condition_on_generated=condition_on_generated),
            uniforms,
            sampling,
            condition_on_generated=condition_on_generated,
        )
        for key in targets:
            out.tokens[key].ids_BN[rows] = drawn[key].codes_BN.cpu()
            out.log_probabilities[key][rows] = drawn[key].log_probabilities_BN.cpu()
            if key in out.probabilities:
                out.probabilities[key][rows] = drawn[key].probabilities_BV.cpu()
    return out


def reveal_counts(schedule: Schedule, *, steps: int, total: int) -> list[int]:
    """Tokens that each step reveals: at least one each, ``total`` together."""
    steps = min(steps, total)
    reached = [0]
    for step in range(1, steps + 1):
        if schedule == "cosine":
            wanted = round(total * (1 - math.cos(math.pi * step / steps)) / 2)
        else:
            wanted = total * step // steps
        # At least one for this step, and one left for each step after it.
        reached.append(min(max(wanted, reached[-1] + 1), total - steps + step))
    return [after - before for before, after in pairwise(reached)]


def num_codes(token_key: str) -> int:
    """Codes that the codec of a domain knows; redshift has a code more in the transformer."""
    modality = MODALITIES[token_key]
    return modality.vocabulary - (modality.quantizer == "grid_scalar")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sampling:
    """How codes are drawn and revealed; see `generate`."""

    steps: int
    scheme: Scheme
    schedule: Schedule
    temperature: float
    top_p: float
    guidance: float
    reencode: bool

    def __post_init__(self) -> None:
        for name, value, known in (
            ("scheme", self.scheme, get_args(Scheme)),
            ("schedule", self.schedule, get_args(Schedule)),
        ):
            if value not in known:
                raise ValueError(f"unknown {name} {value!r}; known are {', '.join(known)}")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, found {self.steps}")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be 0 (greedy) or more, found {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, found {self.top_p}")
        if not math.isfinite(self.guidance):
            raise ValueError(f"guidance must be finite, found {self.guidance}")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Drawn:
    """Tokens of one target."""

    codes_BN: Tensor
    log_probabilities_BN: Tensor
    probabilities_BV: Tensor
    """Distribution of the last token, which is the only one of a scalar."""


def _require_encodable(
    config: TransformerConfig, targets: Sequence[str], *, steps: int, condition_on_generated: bool
) -> None:
    for key in targets:
        in_steps = steps > 1 and MODALITIES[key].num_tokens > 1
        before_others = condition_on_generated and key != targets[-1]
        if key not in config.domains_in and (in_steps or before_others):
            raise ValueError(
                f"the model predicts {key} but cannot encode it, so it can only be generated with "
                "steps=1, last or with condition_on_generated=False"
            )


def _groups(targets: Sequence[str], *, condition_on_generated: bool) -> list[list[str]]:
    """Targets that are drawn together: independent ones of a single token."""
    single = [key for key in targets if MODALITIES[key].num_tokens == 1]
    if condition_on_generated or not single:
        return [[key] for key in targets]
    return [single, *([key] for key in targets if key not in single)]


def _generate_pass(
    transformer: EncoderDecoder,
    tokens: TokenSet,
    groups: list[list[str]],
    uniforms: dict[str, Tensor],
    sampling: _Sampling,
    *,
    condition_on_generated: bool,
) -> dict[str, _Drawn]:
    codes_BT, positions_BT, valid_BT = pack(transformer, tokens)
    given = GrowingContext.of(transformer, codes_BT, positions_BT, valid_BT)
    compared = []
    if sampling.guidance != 1:
        nothing = (codes_BT[:, :1], positions_BT[:, :1], torch.zeros_like(valid_BT[:, :1]))
        compared = [GrowingContext.of(transformer, *nothing)]
    drawn: dict[str, _Drawn] = {}
    for group in groups:
        draws = [uniforms[key].to(codes_BT.device) for key in group]
        if len(group) == 1:
            drawn[group[0]] = _unmask([given, *compared], group[0], draws[0], sampling)
        else:
            drawn |= _draw_single([given, *compared], group, draws, sampling)
        if condition_on_generated and group is not groups[-1]:
            (key,) = group
            codes_BN = drawn[key].codes_BN
            places_BN = _grid(*codes_BN.shape, device=codes_BN.device)
            given = given.with_tokens(*_joint(transformer, key, codes_BN, places_BN), reencode=True)
    return drawn


def _unmask(
    contexts: list[GrowingContext], key: str, uniforms_BKN: Tensor, sampling: _Sampling
) -> _Drawn:
    """Draw one domain in steps. The first of ``uniforms_BKN`` is the order, one follows a step."""
    transformer = contexts[0].transformer
    rows, _, size = uniforms_BKN.shape
    device = uniforms_BKN.device
    codes_BN = torch.zeros((rows, size), dtype=torch.int64, device=device)
    chosen_BN = torch.zeros((rows, size), device=device)
    log_p_BQV = torch.zeros((rows, 0, num_codes(key)), device=device)
    in_order = sampling.scheme == "roar"
    hidden_BQ = uniforms_BKN[:, 0].argsort(1) if in_order else _grid(rows, size, device=device)
    everything = torch.ones((1, 1, 1, 1), dtype=torch.bool, device=device)
    start = transformer.vocabulary.positions[key].start
    for step, count in enumerate(_counts(sampling, size), start=1):
        asked_BQ = hidden_BQ[:, :count] if in_order else hidden_BQ
        states = [seen.hidden(asked_BQ + start, everything) for seen in contexts]
        log_p_BQV = _log_probabilities(transformer, states, key, sampling)
        codes_BQ, chosen_BQ = _draw(log_p_BQV, uniforms_BKN[:, step].gather(1, asked_BQ), sampling)
        # The most probable first; of equals, the first in the grid.
        order_BQ = chosen_BQ.argsort(dim=1, descending=True, stable=True)
        shown_Bn, kept_BQ = order_BQ[:, :count], order_BQ[:, count:].sort(dim=1).values
        places_Bn, new_Bn = asked_BQ.gather(1, shown_Bn), codes_BQ.gather(1, shown_Bn)
        codes_BN.scatter_(1, places_Bn, new_Bn)
        chosen_BN.scatter_(1, places_Bn, chosen_BQ.gather(1, shown_Bn))
        hidden_BQ = torch.cat([asked_BQ.gather(1, kept_BQ), hidden_BQ[:, asked_BQ.shape[1] :]], 1)
        if hidden_BQ.shape[1]:
            joint = _joint(transformer, key, new_Bn, places_Bn)
            contexts = [c.with_tokens(*joint, reencode=sampling.reencode) for c in contexts]
    return _Drawn(
        codes_BN=codes_BN, log_probabilities_BN=chosen_BN, probabilities_BV=log_p_BQV[:, -1].exp()
    )


def _draw_single(
    contexts: list[GrowingContext], keys: list[str], uniforms: list[Tensor], sampling: _Sampling
) -> dict[str, _Drawn]:
    """Draw independent targets of a single token each in one pass of the decoder."""
    transformer = contexts[0].transformer
    starts = [transformer.vocabulary.positions[key].start for key in keys]
    positions_BQ = torch.tensor(starts, device=uniforms[0].device).expand(len(uniforms[0]), -1)
    itself = torch.eye(len(keys), dtype=torch.bool, device=positions_BQ.device)[None, None]
    states = [seen.hidden(positions_BQ, itself) for seen in contexts]
    drawn = {}
    for place, (key, uniforms_BKN) in enumerate(zip(keys, uniforms, strict=True)):
        own = [state_BQD[:, place : place + 1] for state_BQD in states]
        log_p_BQV = _log_probabilities(transformer, own, key, sampling)
        codes_BN, chosen_BN = _draw(log_p_BQV, uniforms_BKN[:, 1], sampling)
        drawn[key] = _Drawn(
            codes_BN=codes_BN,
            log_probabilities_BN=chosen_BN,
            probabilities_BV=log_p_BQV[:, -1].exp(),
        )
    return drawn


def _log_probabilities(
    transformer: EncoderDecoder, states: list[Tensor], key: str, sampling: _Sampling
) -> Tensor:
    """(B, Q, V) under the guided logits; the second of two states is the unconditional one."""
    known = slice(num_codes(key))
    logits = [transformer.logits(state_BQD, key).float()[..., known] for state_BQD in states]
    guided_BQV = logits[0]
    if len(logits) > 1:
        guided_BQV = logits[1] + sampling.guidance * (logits[0] - logits[1])
    return guided_BQV.log_softmax(-1)


def _draw(log_p_BQV: Tensor, uniforms_BQ: Tensor, sampling: _Sampling) -> tuple[Tensor, Tensor]:
    """Codes (B, Q) and their log-probabilities: where a uniform number falls in the cumulative."""
    if sampling.temperature == 0:
        codes_BQ = log_p_BQV.argmax(-1)
    else:
        allowed_BQV = _nucleus(log_p_BQV, sampling.top_p)
        reached_BQV = (allowed_BQV / sampling.temperature).softmax(-1).cumsum(-1)
        # At most 1 - 2^-24 of the total stays below it after rounding, so the code has some mass.
        wanted_BQ1 = uniforms_BQ[..., None] * reached_BQV[..., -1:]
        codes_BQ = torch.searchsorted(reached_BQV, wanted_BQ1, right=True)[..., 0]
    return codes_BQ, log_p_BQV.gather(-1, codes_BQ[..., None])[..., 0]


def _nucleus(log_p_BQV: Tensor, top_p: float) -> Tensor:
    """Minus infinity outside the fewest codes that together have the probability ``top_p``."""
    if top_p == 1:
        return log_p_BQV
    sorted_BQV, order_BQV = log_p_BQV.sort(dim=-1, descending=True)
    probability_BQV = sorted_BQV.exp()
    more_probable_BQV = probability_BQV.cumsum(-1) - probability_BQV
    kept_BQV = torch.where(more_probable_BQV < top_p, sorted_BQV, -torch.inf)
    return torch.empty_like(log_p_BQV).scatter_(-1, order_BQV, kept_BQV)


def _joint(
    transformer: EncoderDecoder, key: str, codes_Bn: Tensor, places_Bn: Tensor
) -> tuple[Tensor, Tensor]:
    """Rows of the joint tables, for codes and places within one domain."""
    words = transformer.vocabulary
    return codes_Bn + words.codes[key].start, places_Bn + words.positions[key].start


def _grid(rows: int, size: int, *, device: torch.device) -> Tensor:
    return torch.arange(size, device=device).expand(rows, -1)


def _counts(sampling: _Sampling, size: int) -> list[int]:
    return reveal_counts(sampling.schedule, steps=sampling.steps, total=size)


def _uniforms(seed: int, numbers_B: Tensor, key: str, sampling: _Sampling) -> Tensor:
    """(B, 1 + steps, N) in [0, 1), each object's and target's own stream."""
    size = MODALITIES[key].num_tokens
    rows = 1 + len(_counts(sampling, size))
    streams = []
    for number in numbers_B.tolist():
        digest = hashlib.sha256(f"{seed}|{number}|{key}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
        streams.append(torch.rand((rows, size), generator=generator))
    return torch.stack(streams)
