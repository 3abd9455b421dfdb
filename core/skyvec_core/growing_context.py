"""Tokens seen so far by both stacks, to which more are added without encoding the old ones anew."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from skyvec_core.model.blocks import DecoderBlock, EncoderBlock, KeysValues, joined, keep_mask
from skyvec_core.model.encoder_decoder import EncoderDecoder
from skyvec_core.prediction import or_else

# Shape letters: B object, T token given, S token seen so far, n token added, Q target token asked
# for, D model width.


@dataclass(frozen=True, kw_only=True, slots=True)
class GrowingContext:
    """What the decoder sees of each object; adding tokens gives a new one and leaves the old."""

    transformer: EncoderDecoder
    codes_BS: Tensor
    positions_BS: Tensor
    valid_BS: Tensor
    encoder: tuple[KeysValues, ...]
    """Keys and values of every encoder layer."""
    decoder: tuple[KeysValues, ...]
    """Keys and values of the context in every decoder layer."""

    @classmethod
    def of(
        cls,
        transformer: EncoderDecoder,
        codes_BT: Tensor,
        positions_BT: Tensor,
        valid_BT: Tensor,
        *,
        before: GrowingContext | None = None,
    ) -> GrowingContext:
        """Encode tokens, which attend to those of ``before`` and to each other."""
        if before is None:
            codes_BS, positions_BS, valid_BS = codes_BT, positions_BT, valid_BT
        else:
            codes_BS = torch.cat([before.codes_BS, codes_BT], dim=1)
            positions_BS = torch.cat([before.positions_BS, positions_BT], dim=1)
            valid_BS = torch.cat([before.valid_BS, valid_BT], dim=1)
        embedding_BTD = transformer.embedding(positions_BT)
        x_BTD = transformer.token_table(codes_BT) + embedding_BTD
        keep = keep_mask(valid_BT, valid_BS)
        encoder = []
        for layer, block in enumerate(cast("Iterable[EncoderBlock]", transformer.encoder)):
            past = None if before is None else before.encoder[layer]
            x_BTD, keys_values = block.extend(x_BTD, past, keep)
            encoder.append(keys_values)
        projected_BTD = transformer.decoder_proj_context(transformer.encoder_norm(x_BTD))
        nothing_D = torch.zeros_like(transformer.mask_token)
        context_BTD = or_else(projected_BTD + embedding_BTD, valid_BT, nothing_D)
        decoder = []
        for layer, reader in enumerate(cast("Iterable[DecoderBlock]", transformer.decoder)):
            past = None if before is None else before.decoder[layer]
            decoder.append(joined(past, reader.memory(context_BTD)))
        return cls(
            transformer=transformer,
            codes_BS=codes_BS,
            positions_BS=positions_BS,
            valid_BS=valid_BS,
            encoder=tuple(encoder),
            decoder=tuple(decoder),
        )

    def with_tokens(
        self, codes_Bn: Tensor, positions_Bn: Tensor, *, reencode: bool
    ) -> GrowingContext:
        """The same with valid tokens added; ``reencode`` updates the old ones too."""
        valid_Bn = torch.ones_like(codes_Bn, dtype=torch.bool)
        if not reencode:
            return self.of(self.transformer, codes_Bn, positions_Bn, valid_Bn, before=self)
        return self.of(
            self.transformer,
            torch.cat([self.codes_BS, codes_Bn], dim=1),
            torch.cat([self.positions_BS, positions_Bn], dim=1),
            torch.cat([self.valid_BS, valid_Bn], dim=1),
        )

    def hidden(self, positions_BQ: Tensor, keep_self: Tensor) -> Tensor:
        """Hidden states (B, Q, D) of masked targets; see `EncoderDecoder.decode_where`."""
        model = self.transformer
        x_BQD = model.mask_token + model.embedding(positions_BQ)
        keep_context = keep_mask(positions_BQ, self.valid_BS)
        blocks = cast("Iterable[DecoderBlock]", model.decoder)
        for block, memory in zip(blocks, self.decoder, strict=True):
            x_BQD = block.attend(x_BQD, memory, keep_self, keep_context)
        hidden_BQD: Tensor = model.decoder_norm(x_BQD)
        return hidden_BQD
