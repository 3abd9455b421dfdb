"""A trained transformer with more domains, or fewer: tables are cut and grown, the rest is kept.

New rows start at the mean of the rows of their kind, with a little noise (as 4M does for a new
modality), so that a model which has never seen a survey reads it as one that it knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from skyvec_core.model.encoder_decoder import EncoderDecoder

# Shape letters: V row of a table, D model width.


@dataclass(frozen=True, kw_only=True, slots=True)
class Grown:
    """A model with other domains."""

    model: EncoderDecoder
    new: tuple[str, ...]
    """Token keys that the old model lacks."""
    codes: Tensor
    """Rows of new codes, in the code and head tables."""
    domains: Tensor
    """Rows of new modality embeddings."""


def with_domains(
    model: EncoderDecoder,
    domains: Sequence[str],
    *,
    generator: torch.Generator,
    noise: float = 0.1,
) -> Grown:
    """A copy of a model for other domains; weights of shared ones are bit-equal.

    Parameters
    ----------
    noise
        Of new rows, over the spread of the rows of their kind.
    """
    config = replace(model.config, domains_in=tuple(domains), domains_out=tuple(domains))
    grown = EncoderDecoder(config)
    grown.initialize(generator)
    copy_shared(model, grown)
    known, words = set(model.vocabulary.codes), grown.vocabulary
    new = [m for m in words.modalities if m.token_key not in known]
    with torch.no_grad():
        for index, modality in enumerate(words.modalities):
            if modality.token_key in known:
                continue
            kin = [m for m in model.vocabulary.modalities if m.kind == modality.kind]
            kin = kin or list(model.vocabulary.modalities)
            own = words.codes[modality.token_key].rows
            places = torch.cat(
                [torch.arange(model.vocabulary.num_codes)[model.vocabulary.codes[m.token_key].rows]
                 for m in kin]
            )  # fmt: skip
            kinds = torch.tensor([model.vocabulary.modalities.index(m) for m in kin])
            for table, source in (
                (grown.token_table.weight[own], model.token_table.weight[places]),
                (grown.head_table[own], model.head_table[places]),
                (grown.domain_table.weight[index : index + 1], model.domain_table.weight[kinds]),
            ):
                _draw(table, source, noise, generator)
    rows = [torch.arange(words.num_codes)[words.codes[m.token_key].rows] for m in new]
    return Grown(
        model=grown.eval(),
        new=tuple(m.token_key for m in new),
        codes=torch.cat([torch.zeros(0, dtype=torch.int64), *rows]),
        domains=torch.tensor([words.modalities.index(m) for m in new], dtype=torch.int64),
    )


def copy_shared(source: EncoderDecoder, target: EncoderDecoder) -> None:
    """Copy the trunk, and the rows of all domains that both models have."""
    tables = ("token_table.weight", "domain_table.weight", "head_table")
    trunk = {k: v for k, v in source.state_dict().items() if k not in tables}
    target.load_state_dict(trunk, strict=False)
    ours, theirs = target.vocabulary, source.vocabulary
    with torch.no_grad():
        for index, modality in enumerate(ours.modalities):
            key = modality.token_key
            if key not in theirs.codes:
                continue
            to, of = ours.codes[key].rows, theirs.codes[key].rows
            target.token_table.weight[to] = source.token_table.weight[of]
            target.head_table[to] = source.head_table[of]
            place = theirs.modalities.index(modality)
            target.domain_table.weight[index] = source.domain_table.weight[place]
            # Published weights bring position encodings of their own.
            positions = ours.positions[key].rows
            target.position_encoding[positions] = source.position_encoding[
                theirs.positions[key].rows
            ]


def _draw(table_VD: Tensor, kin_VD: Tensor, noise: float, generator: torch.Generator) -> None:
    spread_D = kin_VD.std(0, unbiased=False)
    drawn_VD = torch.randn(table_VD.shape, generator=generator)
    table_VD.copy_(kin_VD.mean(0) + noise * spread_D * drawn_VD)
