"""What a worker is told: everything that decides the rows of a pixel, and nothing that is heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property

import pyarrow as pa
from hats.pixel_math.healpix_pixel import HealpixPixel

from skyvec.releases.hats.catalog import HatsRelease
from skyvec.sources import SourceSpec
from skyvec.stage.joined import match_fields, sources_identity
from skyvec.stage.output import fingerprints
from skyvec.stage.worker import ModelReference
from skyvec_core.modalities import MODALITIES
from skyvec_schemas.embedding_columns import EmbeddingColumns
from skyvec_schemas.provenance import FOOTER_KEY, Provenance
from skyvec_schemas.survey_columns import Survey
from skyvec_schemas.token_columns import FLAGS, token_type


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredTokens:
    """A token extension that takes the place of pixels and spectra."""

    folder: str
    """Of its catalog."""
    keys: tuple[str, ...]
    """Token keys that are model inputs."""
    matched: tuple[str, ...]
    """Sources whose matches it holds."""

    def fingerprint(self, pixel: HealpixPixel, run_id: str) -> str:
        """Of its own pixel; empty if it has none.

        Looked up where it is asked for: a job with those of 200,000 pixels would put 15 MB into
        every task.
        """
        return fingerprints(self.folder, run_id).get((pixel.order, pixel.pixel), "")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run, as it travels to the workers."""

    source: str
    """Folder of the input catalog."""
    output: str
    """Folder of the output catalog."""
    survey: Survey
    model: ModelReference
    provenance: Provenance
    columns: EmbeddingColumns | None
    """What to append; None writes tokens instead of vectors."""
    batch_rows: int
    sources: tuple[SourceSpec, ...] = ()
    """What is joined to the catalog."""
    tokens: StoredTokens | None = None
    """Read instead of pixels and spectra."""
    earlier: str = ""
    """Folder of an extension whose vectors are taken over where the tokens are the same."""
    run_id: str = ""

    @property
    def source_labels(self) -> tuple[str, ...]:
        """Labels that only a source has; the catalog's own come first."""
        known = dict.fromkeys(self.survey.labels.values())
        offered = [key for spec in self.sources for key in spec.survey.labels.values()]
        return tuple(dict.fromkeys(key for key in offered if key not in known))

    @property
    def token_keys(self) -> tuple[str, ...]:
        """Columns of a token product: the inputs, then the labels."""
        surveys = (self.survey, *(spec.survey for spec in self.sources))
        inputs = tuple(key for survey in surveys for _, key in survey.inputs)
        return (*inputs, *self.survey.labels.values(), *self.source_labels)

    @property
    def match_fields(self) -> tuple[pa.Field, ...]:
        """Which object of each source a row was joined with."""
        prefix = f"{self.columns.name}_" if self.columns else ""
        names = self.tokens.matched if self.tokens else tuple(spec.name for spec in self.sources)
        return tuple(match_fields(prefix, names))

    @property
    def products(self) -> tuple[str, ...]:
        """Columns that the output adds to the keys."""
        own = self.columns.names if self.columns else (*self.token_keys, FLAGS)
        return (*own, *(field.name for field in self.match_fields))

    def keys(self, release: HatsRelease) -> list[str]:
        """Columns that the output shares with the input."""
        survey = self.survey
        return [release.healpix_column, survey.id_column, survey.ra_column, survey.dec_column]

    def schema(self, release: HatsRelease) -> pa.Schema:
        """Key columns in the input's own types, then ours; provenance in the schema metadata."""
        fields = [release.schema.field(key) for key in self.keys(release)]
        return pa.schema(
            [*fields, *self._added_fields], metadata={FOOTER_KEY: self.provenance.to_json()}
        )

    @cached_property
    def _added_fields(self) -> tuple[pa.Field, ...]:
        # Asked for with every pixel.
        if self.columns:
            return (*self.columns.fields(), *self.match_fields)
        tokens = (pa.field(k, token_type(MODALITIES[k].num_tokens)) for k in self.token_keys)
        return (*tokens, pa.field(FLAGS, pa.int32()), *self.match_fields)

    def identity(self, release: HatsRelease, pixel: HealpixPixel) -> Mapping[str, object]:
        """What the input of one pixel is, without reading it all."""
        own = dict(release.identity(pixel))
        if self.tokens:
            return {"catalog": own, "tokens": self.tokens.fingerprint(pixel, self.run_id)}
        if not self.sources:
            return own
        joined = sources_identity(release, pixel, survey=self.survey, sources=self.sources)
        return {**own, **joined}

    def describe(self) -> dict[str, object]:
        """Where everything lay, as JSON can hold it."""
        return {
            "source": self.source,
            "survey": self.survey.name,
            "id_column": self.survey.id_column,
            "ra_column": self.survey.ra_column,
            "dec_column": self.survey.dec_column,
            "model": self.model.folder,
            "model_digest": self.model.digest,
            "sources": [
                {
                    "name": spec.name,
                    "path": spec.path,
                    "survey": spec.survey.name,
                    "inputs": list(spec.inputs),
                    "format": spec.format,
                    "rule": asdict(spec.rule),
                    "columns": dict(spec.columns),
                    "files": spec.files,
                }
                for spec in self.sources
            ],
            "tokens": self.tokens.folder if self.tokens else None,
            "earlier": self.earlier or None,
            "run_id": self.run_id,
        }
