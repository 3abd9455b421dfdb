"""Contexts of a token extension: a model's encoder reads stored tokens, and no pixel is touched."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self, cast

import numpy as np
from hats.pixel_math.healpix_pixel import HealpixPixel
from numpy.typing import NDArray
from torch import Tensor

from skyvec.extensions.vector_catalog import VectorCatalog
from skyvec.models import (
    DEFAULT,
    load_model,
    model_folder,
    packaged_models,
    pinned,
    require_pin,
)
from skyvec.probes.context_fitting import fit_contexts
from skyvec.probes.fitted import Fitted, Settings
from skyvec.probes.labels import Labels
from skyvec.probes.rows import LabelledRows
from skyvec.releases.hats.catalog import HatsRelease
from skyvec.releases.hats.leaf import Leaf
from skyvec.stage.job import StoredTokens
from skyvec.stage.row_stream import stored_rows
from skyvec.stage.stored_tokens import refuse_other_codecs, stored_tokens
from skyvec.stage.worker import ModelReference, model_on_worker, model_reference
from skyvec_core.embedder import Precision
from skyvec_schemas.errors import ConfigurationError
from skyvec_schemas.quality_flags import FATAL
from skyvec_schemas.token_columns import FLAGS

if TYPE_CHECKING:
    from distributed import Client
    from nested_pandas import NestedFrame

    from skyvec.probes.probe import Probe

_TOGETHER = 64
"""Rows whose contexts are held at a time: 10 MB of ``skyvec-tiny``, 60 MB at AION-1's base size."""
_FLAGS_TOGETHER = 1 << 16


@dataclass(frozen=True, kw_only=True)
class TokenInputs:
    """What the encoder of a model makes of the tokens of an extension, token by token.

    Small, so that it travels to workers: they load the model themselves, once each.
    """

    catalog: VectorCatalog
    tokens: StoredTokens
    reference: ModelReference
    place: str
    """Name or folder of the model."""
    dim: int
    """Values of a context vector."""
    num_heads: int

    @classmethod
    def open(cls, catalog: VectorCatalog, model: str | Path | None = None) -> Self:
        """Open tokens and a model that can read them.

        Raises
        ------
        ConfigurationError
            If the extension holds no tokens, or those of other codecs than the model's.
        WeightsError
            If there is no such model.
        """
        home = HatsRelease.open(catalog.primary)
        tokens, _, made = stored_tokens(home, catalog.release.root)
        name = model or DEFAULT
        precision = cast("Precision", made.precision)
        loaded = load_model(name, precision=precision)
        require_pin(name, loaded)
        refuse_other_codecs(loaded, made, where=tokens.folder, precision=precision)
        folder = model_folder(name).resolve()
        return cls(
            catalog=catalog, tokens=tokens, reference=model_reference(loaded, folder),
            place=_place(name, folder), dim=loaded.dim, num_heads=loaded.config.num_heads,
        )  # fmt: skip

    @property
    def model(self) -> dict[str, str]:
        """See `Inputs.model`; ``encoder`` is its name or folder."""
        return {"model": self.reference.name, "model_digest": self.model_digest,
                "encoder": self.place}  # fmt: skip

    @property
    def model_digest(self) -> str:
        """Identity of the model."""
        return self.reference.digest

    @property
    def identity(self) -> tuple[str, ...]:
        """See `Inputs.identity`."""
        return str(self.catalog.release.root), self.model_digest

    def admit(self, probe: Probe) -> None:
        """See `Inputs.admit`."""
        made = self.catalog.provenance
        if made.fingerprint() != probe.fingerprint:
            raise ConfigurationError(
                f"learnt on tokens {probe.fingerprint[:8]}, these are {made.fingerprint()[:8]}",
                where=f"probe for {', '.join(probe.targets)}",
                remedy="Fit it again on this extension; codes of other inputs mean nothing to it",
            )
        learnt = probe.attentive.pool.model_digest if probe.attentive else ""
        if self.model_digest != learnt:
            raise ConfigurationError(
                f"learnt on contexts of {probe.record['model']} {learnt[:12]}, this is "
                f"{self.reference.name} {self.model_digest[:12]}",
                where=f"probe for {', '.join(probe.targets)}",
                remedy="Name the model that it learnt with by model=... (--model), or fit it again",
            )

    def fit(
        self, labels: Labels, settings: Settings, *, workers: int, client: Client | None
    ) -> Fitted:
        """See `Inputs.fit`."""
        if client is not None:
            raise ConfigurationError(
                "is not used by an attentive probe, whose contexts lie on this machine's disk",
                where="client (--scheduler)",
                remedy="Leave it out; workers (--workers) are threads here",
            )
        rows = LabelledRows(catalog=self.catalog, source=labels, block_order=settings.block_order)
        return fit_contexts(rows, self, settings, workers=workers)

    def none(self) -> list[Tensor]:
        """See `Inputs.none`."""
        return []

    def of_frame(self, frame: NestedFrame) -> None:
        """See `Inputs.of_frame`: contexts are in no frame."""
        del frame

    def present(self, pixel: HealpixPixel) -> NDArray[np.bool_]:
        """Which rows have tokens to attend to: those that the stage would give a vector."""
        flags = [np.zeros(0, np.int32)]
        with Leaf.open(self.catalog.release.files(pixel)) as leaf:
            for _, batch in leaf.batches([FLAGS], rows=_FLAGS_TOGETHER):
                flags.append(batch.column(FLAGS).to_numpy())
        return (np.concatenate(flags) & FATAL) == 0

    def read(
        self, pixel: HealpixPixel, wanted: NDArray[np.bool_]
    ) -> Iterator[tuple[NDArray[np.int64], list[Tensor]]]:
        """Wanted rows that are present, and their contexts (tokens, dim) in float16.

        The same tokens and the same encoder as of a vector that the stage writes; row groups
        without a wanted row are not read. A row whose contexts are not finite is left out.
        """
        asked = np.flatnonzero(wanted)
        if not len(asked):
            return
        keys, model = self.tokens.keys, model_on_worker(self.reference)
        with Leaf.open(self.catalog.release.files(pixel)) as leaf:
            for first, batch in leaf.batches([*keys, FLAGS], rows=_TOGETHER, wanted=asked):
                coded = stored_rows(batch, keys)
                rows = np.flatnonzero(wanted[first : first + len(batch)] & ~coded.failed)
                if not len(rows):
                    continue
                found = model.contexts_of_objects(coded.chosen(rows))
                good = np.array([bool(context.isfinite().all()) for context in found])
                yield first + rows[good], [found[place] for place in np.flatnonzero(good)]


def _place(name: str | Path, folder: Path) -> str:
    """What names the model in any working folder."""
    text = str(name)
    known = pinned(text)[0] in packaged_models() or text.startswith("hf://")
    return text if known else str(folder)
