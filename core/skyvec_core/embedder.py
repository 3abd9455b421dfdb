"""The one door for inference: observations -> tokens -> one vector per object."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from skyvec_core.batches import batches
from skyvec_core.codecs.folder import Codec, load_codec
from skyvec_core.codecs.image import ImageCodec
from skyvec_core.modalities import MODALITIES
from skyvec_core.model.encoder_decoder import EncoderDecoder
from skyvec_core.model.pooling import masked_mean
from skyvec_core.observations import Images, Observations, Tokens, TokenSet, fit_to_grid
from skyvec_core.weights import digest_of, load_transformer, published_tensors

CODEC_ROWS = 32
"""Cutouts per codec call, the last call filled up: equal shapes make equal bits."""

Precision = Literal["float32", "bfloat16"]


class Model:
    """A transformer with its codecs, frozen, on one device."""

    def __init__(
        self,
        transformer: EncoderDecoder,
        codecs: Mapping[str, Codec],
        *,
        name: str,
        device: str | torch.device = "cpu",
        precision: Precision = "float32",
    ) -> None:
        self.name = name
        self.device = torch.device(device)
        self.precision = precision
        self.digest = model_digest(transformer, codecs)
        self.transformer = transformer.eval().requires_grad_(requires_grad=False).to(self.device)
        self.codecs = {
            key: codec.eval().requires_grad_(requires_grad=False).to(self.device)
            for key, codec in codecs.items()
        }

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        name: str | None = None,
        device: str | torch.device = "cpu",
        precision: Precision = "float32",
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
        transformer = load_transformer(folder)
        return cls(
            transformer,
            load_codecs(folder, transformer.config.domains_in),
            name=name or folder.name,
            device=device,
            precision=precision,
        )

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return self.transformer.config.dim

    @torch.inference_mode()
    def tokenize(self, observations: Observations) -> dict[str, Tokens]:
        """Tokens of every modality given, on the CPU; the caller's tensors stay untouched.

        Raises
        ------
        ValueError
            If the model has no codec for a modality, or the bands are not the codec's.
        """
        tokens = {}
        for key, observed in observations.items():
            codec = self.codecs.get(key)
            if codec is None:
                known = ", ".join(sorted(self.codecs))
                raise ValueError(f"model {self.name} has no codec for {key}; it has {known}")
            if isinstance(codec, ImageCodec):
                if not isinstance(observed, Images):
                    raise TypeError(f"{key} takes Images, found {type(observed).__name__}")
                tokens[key] = self._tokenize_images(codec, observed)
            else:
                if not isinstance(observed, Tensor):
                    raise TypeError(f"{key} takes a tensor (B,), found {type(observed).__name__}")
                coded = codec.encode(observed.to(self.device))
                tokens[key] = Tokens(ids_BN=coded.ids_BN.cpu(), valid_BN=coded.valid_BN.cpu())
        return tokens

    @torch.inference_mode()
    def embed(
        self,
        tokens: TokenSet,
        *,
        pooling: Literal["mean"] = "mean",
        domains: Sequence[str] | None = None,
    ) -> Tensor:
        """One float32 vector per object (B, D), on the CPU; NaN for an object without tokens.

        Parameters
        ----------
        tokens
            As `tokenize` returns them, or as read back from a token extension.
        pooling
            ``mean`` over the object's valid tokens.
        domains
            Token keys to use; all that ``tokens`` holds by default.
        """
        if pooling != "mean":
            raise ValueError(f"unknown pooling {pooling!r}; known is 'mean'")
        count = len(next(iter(tokens.values())).ids_BN)
        vectors_BD = torch.full((count, self.dim), torch.nan)
        for batch in batches(tokens, self.transformer.vocabulary, domains=domains):
            valid_BT = batch.valid_BT.to(self.device)
            with torch.autocast(
                self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"
            ):
                context_BTD = self.transformer.encode(
                    batch.codes_BT.to(self.device), batch.positions_BT.to(self.device), valid_BT
                )
            pooled_BD = masked_mean(context_BTD.float(), valid_BT)
            vectors_BD[batch.rows] = pooled_BD[: len(batch.rows)].cpu()
        return vectors_BD

    def _tokenize_images(self, codec: ImageCodec, images: Images) -> Tokens:
        flux, good = fit_to_grid(images.flux_BCHW, images.good_BCHW, size=codec.size)
        ids, valid = [], []
        for flux_bCHW, good_bCHW in zip(
            torch.split(flux, CODEC_ROWS), torch.split(good, CODEC_ROWS), strict=True
        ):
            rows = len(flux_bCHW)
            padding = (CODEC_ROWS - rows, *flux_bCHW.shape[1:])
            coded = codec.encode(
                Images(
                    flux_BCHW=torch.cat([flux_bCHW, torch.zeros(padding)]).to(self.device),
                    good_BCHW=torch.cat([good_bCHW, torch.zeros(padding, dtype=torch.bool)]).to(
                        self.device
                    ),
                    bands=images.bands,
                )
            )
            ids.append(coded.ids_BN[:rows].cpu())
            valid.append(coded.valid_BN[:rows].cpu())
        return Tokens(ids_BN=torch.cat(ids), valid_BN=torch.cat(valid))


def load_codecs(folder: Path, token_keys: Sequence[str]) -> dict[str, Codec]:
    """The codecs of these modalities that a folder holds; two surveys share one image codec."""
    loaded: dict[str, Codec] = {}
    codecs: dict[str, Codec] = {}
    for key in token_keys:
        modality = MODALITIES[key]
        if not (folder / "codecs" / modality.codec / "config.json").is_file():
            continue
        if modality.quantizer in {"spectrum", "multi_scalar", "field", "catalog"}:
            continue
        if modality.codec not in loaded:
            loaded[modality.codec] = load_codec(folder, modality)
        codecs[key] = loaded[modality.codec]
    return codecs


def model_digest(transformer: EncoderDecoder, codecs: Mapping[str, Codec]) -> str:
    """Identity of a model: digest of its tensors and sizes, codecs included."""
    digest = hashlib.sha256(json.dumps(transformer.config.to_json(), sort_keys=True).encode())
    digest.update(digest_of(published_tensors(transformer)).encode())
    for key in sorted(codecs):
        digest.update(f"{key}:{digest_of(codecs[key].state_dict())}".encode())
    return digest.hexdigest()
