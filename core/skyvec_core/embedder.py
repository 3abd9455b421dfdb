"""The one door for inference: observations -> tokens -> vectors, predictions, new tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, Unpack

import torch
from torch import Tensor

from skyvec_core.batches import GPU, PROCESSOR, TokenBatch, batches, on_device
from skyvec_core.codecs.codec import Codec
from skyvec_core.codecs.folder import load_codecs
from skyvec_core.compat import OFFICIAL_TOKENS, official_mean
from skyvec_core.generation import Generated, GenerationOptions, generate
from skyvec_core.model.attention_pool import AttentionPool
from skyvec_core.model.config import Pooling, TransformerConfig
from skyvec_core.model.encoder_decoder import EncoderDecoder
from skyvec_core.model.frozen_encoder import FrozenEncoder, Precision
from skyvec_core.model.pooling import domain_means, masked_mean, mean_of_domains
from skyvec_core.model.vocabulary import Vocabulary
from skyvec_core.observations import (
    Observations,
    Observed,
    Tokens,
    TokenSet,
    pieces,
    require_kind,
    to_device,
)
from skyvec_core.prediction import predict_logits
from skyvec_core.weights import digest_of, folder_digest, load_transformer, transformer_digest

__all__ = ["Model", "Pooling", "Precision", "model_digest"]


class Model:
    """A transformer with its codecs, frozen, on one device.

    Parameters
    ----------
    transformer
        The weights, or the folder to read them from; of a folder, only what encoding needs is read
        until something else is asked for.
    codecs
        Token key -> codec.
    device, precision
        Where and in which numbers the encoder and the codecs compute: ``float32``, or ``bfloat16``
        on processors and GPUs that have it.
    compat
        Give the numbers of the official package also where it is wrong; see docs/aion.md.
    compiled
        Run the encoder through ``torch.compile``, on a GPU as CUDA graphs.
    """

    def __init__(
        self,
        transformer: EncoderDecoder | Path,
        codecs: Mapping[str, Codec],
        *,
        name: str,
        device: str | torch.device = "cpu",
        precision: Precision = "float32",
        compat: bool = False,
        compiled: bool = False,
    ) -> None:
        self.name = name
        self.device = torch.device(device)
        self.precision = precision
        self.compat = compat
        # What is compiled is compiled for each shape: few shapes, then.
        self._layout = GPU if compiled or self.device.type != "cpu" else PROCESSOR
        self._source = transformer
        tensors = (
            folder_digest(transformer)
            if isinstance(transformer, Path)
            else transformer_digest(transformer)
        )
        weights = (
            load_transformer(transformer, part="encoder")
            if isinstance(transformer, Path)
            else _frozen(transformer)
        )
        self.config: TransformerConfig = weights.config
        self.vocabulary: Vocabulary = weights.vocabulary
        self.codec_digests = _codec_digests(codecs)
        """Token key -> digest of the codec's tensors: tokens are the same where these are."""
        self.digest = _model_digest(self.config, tensors, self.codec_digests)
        """Identity of the model: digest of its sizes and tensors, codecs included."""
        self.num_parameters = sum(p.numel() for p in weights.parameters())
        self.encoder = FrozenEncoder(
            weights, device=self.device, precision=precision, compiled=compiled
        )
        self.codecs = {key: codec.to(self.device) for key, codec in codecs.items()}
        for codec in {id(codec): codec for codec in self.codecs.values()}.values():
            codec.eval().requires_grad_(requires_grad=False).prepare(precision)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        name: str | None = None,
        device: str | torch.device = "cpu",
        precision: Precision = "float32",
        compat: bool = False,
        compiled: bool = False,
    ) -> Model:
        """Load a model folder in the AION-1 layout; codecs that are absent are left out.

        Raises
        ------
        FileNotFoundError
            If the folder has no ``config.json`` or weights.
        ValueError
            If tensors are missing, unknown or misshapen; all are named.
        """
        folder = Path(folder)
        config = TransformerConfig.from_json(json.loads((folder / "config.json").read_text()))
        return cls(
            folder,
            load_codecs(folder, config.domains_in),
            name=name or folder.name,
            device=device,
            precision=precision,
            compat=compat,
            compiled=compiled,
        )

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return self.config.dim

    @cached_property
    def transformer(self) -> EncoderDecoder:
        """All weights in float32 on the device, the decoder included; read when first asked for."""
        if isinstance(self._source, Path):
            return _frozen(load_transformer(self._source)).to(self.device)
        return self._source.to(self.device)

    @torch.inference_mode()
    def tokenize(self, observations: Observations) -> dict[str, Tokens]:
        """Tokens of every modality given, on the CPU; the caller's tensors stay untouched.

        Raises
        ------
        ValueError
            If the model has no codec for a modality, or the bands are not the codec's.
        TypeError
            If a codec is given observations of another kind.
        """
        tokens = {}
        for key, observed in observations.items():
            if key not in self.codecs:
                known = ", ".join(sorted(self.codecs))
                raise ValueError(f"model {self.name} has no codec for {key}; it has {known}")
            tokens[key] = self._tokenize(key, observed)
        return tokens

    @torch.no_grad()
    def embed(
        self,
        tokens: TokenSet,
        *,
        pooling: Pooling | AttentionPool | None = None,
        domains: Sequence[str] | None = None,
        num_encoder_tokens: int | None = None,
    ) -> Tensor:
        """One float32 vector per object (B, D), on the CPU; NaN for an object without tokens.

        Parameters
        ----------
        tokens
            As `tokenize` returns them, or as read back from a token extension.
        pooling
            ``mean`` over the object's valid tokens; ``mean_of_modalities``, where each modality
            that the object has counts the same; or a fitted `AttentionPool`. By default as the
            model's config says: ``mean`` for published folders.
        domains
            Token keys to use; all that ``tokens`` holds by default.
        num_encoder_tokens
            Only with ``compat``: tokens after which the official package drops the rest.

        Raises
        ------
        ValueError
            If the pooling is unknown or belongs to another model, a domain is not the model's, or
            a code lies outside its vocabulary.
        """
        pooling = pooling or self.config.pooling
        if self.compat:
            if pooling != "mean":
                raise ValueError(
                    "a model with compat=True pools by the official mean over all tokens; for any "
                    "other pooling load it without compat"
                )
            kept = {key: coded for key, coded in tokens.items() if not domains or key in domains}
            limit = OFFICIAL_TOKENS if num_encoder_tokens is None else num_encoder_tokens
            return official_mean(self.transformer, kept, num_encoder_tokens=limit).float().cpu()
        if num_encoder_tokens is not None:
            raise ValueError("num_encoder_tokens drops tokens: it needs a model with compat=True")
        if isinstance(pooling, AttentionPool):
            self._refuse_foreign(pooling)
            pool = pooling.to(self.device)
            return self._pooled(
                tokens, domains, (pool.dim,), lambda context, batch: pool(context, batch.valid_BT)
            )
        if pooling == "mean":
            return self._pooled(tokens, domains, (self.dim,), _mean)
        if pooling == "mean_of_modalities":
            return self._by_domain(tokens, domains, (self.dim,), mean_of_domains)
        raise ValueError(
            f"unknown pooling {pooling!r}; known are 'mean', 'mean_of_modalities' or an AttentionPool"
        )

    @torch.no_grad()
    def embed_by_modality(
        self, tokens: TokenSet, *, domains: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Mean context vector of each modality's tokens (B, D); NaN where an object lacks it.

        All tokens of an object attend to each other first, as in `embed`.
        """
        count = len(self.vocabulary.modalities)
        means_BKD = self._by_domain(tokens, domains, (count, self.dim), domain_means)
        asked = tokens.keys() if domains is None else tokens.keys() & set(domains)
        return {
            m.token_key: means_BKD[:, index]
            for index, m in enumerate(self.vocabulary.modalities)
            if m.token_key in asked
        }

    @torch.no_grad()
    def contexts(
        self, tokens: TokenSet, *, domains: Sequence[str] | None = None
    ) -> Iterator[tuple[TokenBatch, Tensor]]:
        """Batches of objects with their context vectors (B, T, D), float32, on the device.

        This is the official ``encode`` token by token; rows of a batch beyond ``batch.rows`` and
        tokens that are not valid mean nothing.
        """
        # On a GPU the kernels queue up, so the next batch is packed and copied meanwhile.
        for packed in batches(tokens, self.vocabulary, layout=self._layout, domains=domains):
            batch = on_device(packed, self.device)
            valid_BT = None if batch.full else batch.valid_BT
            yield batch, self.encoder(batch.codes_BT, batch.positions_BT, valid_BT)

    def contexts_of_objects(
        self, tokens: TokenSet, *, dtype: torch.dtype = torch.float16
    ) -> list[Tensor]:
        """Context vectors (T, D) of each object's valid tokens, on the CPU; (0, D) without any.

        What `skyvec_core.model.attention_pool.fit_attention_pool` takes: 150 kB an object of
        ``skyvec-tiny`` with an image, 0.9 MB at the base size.
        """
        count = _count(tokens)
        found = [torch.zeros((0, self.dim), dtype=dtype) for _ in range(count)]
        for batch, context_BTD in self.contexts(tokens):
            for place, row in enumerate(batch.rows.tolist()):
                found[row] = context_BTD[place, batch.valid_BT[place]].to("cpu", dtype)
        return found

    def predict(self, tokens: TokenSet, targets: Sequence[str]) -> dict[str, Tensor]:
        """Logits (B, N, V) of every token of each target in one pass, on the CPU.

        With ``compat``, those of the official ``forward``; see `skyvec_core.prediction`.
        """
        attention: Literal["compat", "full"] = "compat" if self.compat else "full"
        return predict_logits(self.transformer, tokens, targets, attention=attention)

    def generate(
        self, tokens: TokenSet, targets: Sequence[str], **options: Unpack[GenerationOptions]
    ) -> Generated:
        """Draw the tokens of each target given ``tokens``; see `skyvec_core.generation.generate`."""
        return generate(self.transformer, tokens, targets, **options)

    def _pooled(
        self,
        tokens: TokenSet,
        domains: Sequence[str] | None,
        shape: tuple[int, ...],
        pool: Callable[[Tensor, TokenBatch], Tensor],
    ) -> Tensor:
        count = _count(tokens)
        vectors = torch.full((count, *shape), torch.nan, device=self.device)
        for batch, context_BTD in self.contexts(tokens, domains=domains):
            vectors[batch.rows] = pool(context_BTD, batch)[: len(batch.rows)]
        return vectors.cpu()

    def _by_domain(
        self,
        tokens: TokenSet,
        domains: Sequence[str] | None,
        shape: tuple[int, ...],
        pool: Callable[..., Tensor],
    ) -> Tensor:
        count = len(self.vocabulary.modalities)
        domain_of_position = self.vocabulary.domain_of_position().to(self.device)
        return self._pooled(
            tokens,
            domains,
            shape,
            lambda context_BTD, batch: pool(
                context_BTD, batch.valid_BT, domain_of_position[batch.positions_BT], count=count
            ),
        )

    def _refuse_foreign(self, pool: AttentionPool) -> None:
        if pool.model_digest != self.digest:
            raise ValueError(
                f"the attention pool was fitted on model {pool.model_digest[:12]}, this is "
                f"{self.digest[:12]}; fit it again"
            )

    def _tokenize(self, key: str, observed: Observed) -> Tokens:
        codec = self.codecs[key]
        require_kind(key, observed, same_survey=not self.compat)
        ids, valid, start = [], [], 0
        for piece, real in pieces(observed, codec.rows):
            try:
                coded = codec.encode(to_device(piece, self.device), compat=self.compat)
            except ValueError as problem:
                rows = f"rows {start} to {start + real - 1}"
                raise ValueError(f"{key}, {rows}: {problem}") from problem
            ids.append(coded.ids_BN[:real])
            valid.append(coded.valid_BN[:real])
            start += real
        return Tokens(ids_BN=torch.cat(ids).cpu(), valid_BN=torch.cat(valid).cpu())


def model_digest(transformer: EncoderDecoder, codecs: Mapping[str, Codec]) -> str:
    """Identity of a model in memory: digest of its sizes and tensors, codecs included."""
    return _model_digest(
        transformer.config, transformer_digest(transformer), _codec_digests(codecs)
    )


def _codec_digests(codecs: Mapping[str, Codec]) -> dict[str, str]:
    # Two surveys share a codec: its 280 MB are read once.
    digests = {id(codec): digest_of(codec.state_dict()) for codec in codecs.values()}
    return {key: digests[id(codecs[key])] for key in sorted(codecs)}


def _model_digest(config: TransformerConfig, tensors: str, codecs: Mapping[str, str]) -> str:
    lines = "".join(f"{key}:{codecs[key]}" for key in sorted(codecs))
    sizes = json.dumps(config.to_json(), sort_keys=True)
    return hashlib.sha256(f"{sizes}{tensors}{lines}".encode()).hexdigest()


def _count(tokens: TokenSet) -> int:
    counts = {key: len(coded.ids_BN) for key, coded in tokens.items()}
    if len(set(counts.values())) != 1:
        raise ValueError(f"tokens must be of one number of objects, found {counts or 'none'}")
    return next(iter(counts.values()))


def _frozen(model: EncoderDecoder) -> EncoderDecoder:
    return model.eval().requires_grad_(requires_grad=False)


def _mean(context_BTD: Tensor, batch: TokenBatch) -> Tensor:
    return masked_mean(context_BTD, batch.valid_BT)
