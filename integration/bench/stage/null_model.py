"""A model that costs next to nothing: what is left is the stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch
from torch import Tensor

from skyvec.stage.worker import ModelReference
from skyvec_core.modalities import MODALITIES
from skyvec_core.observations import Observations, Tokens, TokenSet, count_of
from skyvec_schemas.survey_columns import LEGACY_SURVEY

CODES = 1000


class NullModel:
    """Looks like `skyvec_core.embedder.Model`; a code is a rounded number, a vector a row of a table."""

    name, digest, precision = "null", "0" * 64, "float32"
    device = torch.device("cpu")

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.codecs: Mapping[str, None] = {key: None for _, key in LEGACY_SURVEY.inputs}
        self.codec_digests = dict.fromkeys(self.codecs, self.digest)
        self._table = torch.randn((CODES, dim), generator=torch.Generator().manual_seed(0))

    def tokenize(self, observations: Observations) -> dict[str, Tokens]:
        """Codes that differ from row to row."""
        tokens = {}
        for key, observed in observations.items():
            shape = count_of(observed), MODALITIES[key].num_tokens
            if isinstance(observed, Tensor):
                codes = (observed.abs() * 64).nan_to_num_().long().remainder_(CODES)[:, None]
            else:
                codes = torch.ones(shape, dtype=torch.int64)
            tokens[key] = Tokens(ids_BN=codes, valid_BN=torch.ones(shape, dtype=torch.bool))
        return tokens

    def embed(self, tokens: TokenSet) -> Tensor:
        """A vector for each value of the last modality's first code."""
        *_, last = tokens.values()
        return self._table[last.ids_BN[:, 0]]


@contextmanager
def null_model(dim: int) -> Iterator[NullModel]:
    """Let `skyvec.run` in this process use a `NullModel` of this width."""
    model = NullModel(dim)
    reference = ModelReference(folder="", name=model.name, digest=model.digest)
    with ExitStack() as stack:
        for target, value in {
            "skyvec.stage.plan.load_model": lambda *_, **__: model,
            "skyvec.stage.plan.model_path": lambda _: "",
            "skyvec.stage.plan.model_reference": lambda *_: reference,
            "skyvec.stage.quantum.model_on_worker": lambda _: model,
            "skyvec.stage.quantum.golden_on_worker": lambda _: "",
        }.items():
            stack.enter_context(patch(target, value))
        yield model
