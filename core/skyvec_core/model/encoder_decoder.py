"""The transformer: encode observed tokens, predict masked ones.

Source: AION-1 (arXiv 2510.17960), after 4M (arXiv 2312.06647). The vector of a token is the
*context*, that is the projected encoder output plus its position and modality embedding, as the
official ``encode`` returns it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from skyvec_core.model.blocks import DecoderBlock, EncoderBlock, Norm, Rows, keep_mask
from skyvec_core.model.config import TransformerConfig
from skyvec_core.model.vocabulary import Vocabulary

# Shape letters: B object, T input token, Q target token, D model width, V codes of one domain.


class EncoderDecoder(nn.Module):
    """Tokens of any subset of domains in, context vectors or logits out."""

    domain_of_position: Tensor
    position_encoding: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.vocabulary = Vocabulary(config.domains)
        width, words = config.dim, self.vocabulary
        self.token_table = nn.Embedding(words.num_codes, width)
        self.domain_table = nn.Embedding(len(words.modalities), width)
        self.head_table = nn.Parameter(torch.empty(words.num_codes, width))
        self.mask_token = nn.Parameter(torch.zeros(width))
        with torch.device("cpu"):  # constants have numbers even where a model has none yet
            encodings, domains = words.position_encodings(width), words.domain_of_position()
        self.register_buffer("position_encoding", encodings, persistent=False)
        self.register_buffer("domain_of_position", domains, persistent=False)
        self.encoder = nn.ModuleList(EncoderBlock(config) for _ in range(config.encoder_depth))
        self.encoder_norm = Norm(width)
        self.decoder_proj_context = nn.Linear(width, width)
        self.decoder = nn.ModuleList(DecoderBlock(config) for _ in range(config.decoder_depth))
        self.decoder_norm = Norm(width)

    def initialize(self, generator: torch.Generator) -> None:
        """Draw fresh weights: truncated normal tables (0.02), Xavier linear layers."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for table in (self.token_table.weight, self.domain_table.weight, self.head_table):
            nn.init.trunc_normal_(table, std=0.02, generator=generator)
        nn.init.normal_(self.mask_token, std=0.02, generator=generator)

    def embedding(self, positions_BT: Tensor) -> Tensor:
        """Position plus modality embedding (B, T, D)."""
        domains_BT = self.domain_of_position[positions_BT]
        out_BTD: Tensor = self.position_encoding[positions_BT] + self.domain_table(domains_BT)
        return out_BTD

    def encode(
        self,
        codes_BT: Tensor,
        positions_BT: Tensor,
        valid_BT: Tensor,
        rows: Rows | None = None,
    ) -> Tensor:
        """Context vectors (B, T, D) of input tokens.

        Parameters
        ----------
        codes_BT
            Rows of the joint code table.
        positions_BT
            Rows of the joint position table.
        valid_BT
            False for padding, which no token attends to; its own outputs are meaningless.
        rows
            Of ``valid_BT``: leave the padding out of all but attention, and zeros for its outputs.
        """
        if rows is not None:
            codes_BT, positions_BT = (
                x_BT.flatten().index_select(0, rows.places_n) for x_BT in (codes_BT, positions_BT)
            )
        embedding_BTD = self.embedding(positions_BT)
        x_BTD = self.token_table(codes_BT) + embedding_BTD
        keep = keep_mask(valid_BT, valid_BT)
        for block in self.encoder:
            x_BTD = block(x_BTD, keep, rows)
        context_BTD: Tensor = self.decoder_proj_context(self.encoder_norm(x_BTD)) + embedding_BTD
        return context_BTD if rows is None else rows.padded(context_BTD)

    def decode(
        self,
        context_BTD: Tensor,
        valid_BT: Tensor,
        positions_BQ: Tensor,
        target_valid_BQ: Tensor,
        rows: Rows | None = None,
        target_rows: Rows | None = None,
    ) -> Tensor:
        """Hidden states (B, Q, D) of masked targets; targets of one domain see each other.

        ``rows`` and ``target_rows`` leave padding out of all but attention; see `encode`.
        """
        domains_BQ = self.domain_of_position[positions_BQ]
        same_BQQ = domains_BQ[:, :, None] == domains_BQ[:, None, :]
        identity = torch.eye(domains_BQ.shape[1], dtype=torch.bool, device=domains_BQ.device)
        keep_self = ((same_BQQ & target_valid_BQ[:, None, :]) | identity)[:, None]
        return self.decode_where(context_BTD, valid_BT, positions_BQ, keep_self, rows, target_rows)

    def decode_where(
        self,
        context_BTD: Tensor,
        valid_BT: Tensor,
        positions_BQ: Tensor,
        keep_self: Tensor | None,
        rows: Rows | None = None,
        target_rows: Rows | None = None,
    ) -> Tensor:
        """Hidden states (B, Q, D) of masked targets that see each other where it is said.

        ``keep_self`` is a mask that broadcasts to (B, 1, Q, Q); without one, every target takes
        the mean of the values of all, as the official ``forward`` does (not with ``target_rows``).
        """
        keep_context = keep_mask(positions_BQ, valid_BT)
        if rows is not None:
            context_BTD = rows.packed(context_BTD)
        if target_rows is not None:
            positions_BQ = positions_BQ.flatten().index_select(0, target_rows.places_n)
        x_BQD = self.mask_token + self.embedding(positions_BQ)
        for block in self.decoder:
            x_BQD = block(x_BQD, context_BTD, keep_self, keep_context, target_rows, rows)
        hidden_BQD: Tensor = self.decoder_norm(x_BQD)
        return hidden_BQD if target_rows is None else target_rows.padded(hidden_BQD)

    def heads(self) -> tuple[Tensor, ...]:
        """Head (V, D) of each domain, all cut at once.

        The gradient of a slice is a whole table of zeros around it; a split needs one for all.
        """
        return torch.split(self.head_table, [m.vocabulary for m in self.vocabulary.modalities])

    def logits(self, hidden_QD: Tensor, token_key: str) -> Tensor:
        """Logits (..., V) over the codes of one domain."""
        head_VD = self.head_table[self.vocabulary.codes[token_key].rows]
        return hidden_QD @ head_VD.T
