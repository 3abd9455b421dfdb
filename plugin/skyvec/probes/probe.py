"""``skyvec.Probe``: a small model from vectors to what a catalog says of its objects.

It is an estimator as scikit-learn has them, and knows catalogs: fitted on one it streams the
vectors and remembers which model made them, which vectors it may be applied to, and how well it did
on parts of the sky that it had not seen.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from skyvec.bridge import Bridge
from skyvec.probes.applying import Predicting, answer, predicted_catalog
from skyvec.probes.catalogs import label_source, opened
from skyvec.probes.estimator import Floats, VectorEstimator
from skyvec.probes.fitting import fit_rows
from skyvec.probes.inputs import inputs_of, product_read
from skyvec.probes.labels import RADIUS
from skyvec.probes.leaks import refuse_leaks
from skyvec.probes.publishing import publish_predictions
from skyvec.probes.rows import array_rows
from skyvec.probes.storage import load_probe, save_probe
from skyvec_schemas.errors import ConfigurationError

if TYPE_CHECKING:
    from distributed import Client
    from lsdb import Catalog


class Probe(VectorEstimator):
    """From vectors to one or more columns, with intervals, bound to the model of the vectors.

    Its parameters are those of `VectorEstimator`.
    """

    def fit(
        self,
        X: str | Path | Catalog | Floats,  # noqa: N803 - scikit-learn's name
        y: NDArray[Any] | None = None,
        *,
        groups: NDArray[np.int64] | None = None,
        extension: str | None = None,
        labels: pd.DataFrame | pa.Table | str | Path | None = None,
        on: str | None = None,
        radius_arcsec: float = RADIUS,
        where: str | None = None,
        model: str | Path | None = None,
        workers: int | None = None,
        client: Client | None = None,
    ) -> Self:
        """Fit on the rows of a catalog that have a vector and a label, or on arrays.

        Parameters
        ----------
        X
            Collection (or LSDB catalog, whose rows are meant, by id), or vectors (rows, dim).
        y, groups
            With vectors: labels (rows,) or (rows, targets), and the sky block of each row.
        extension
            Which vectors, if the collection has several; which tokens for an attentive probe.
        labels
            Another table with the targets: Parquet file or data frame with ids (``on`` names
            them) or positions, matched within ``radius_arcsec``.
        where
            Only rows that fulfil this expression over the columns of the labels.
        model
            Whose encoder reads the tokens, only of an attentive probe: as `load_model` takes it,
            ``skyvec-tiny`` by default.
        workers, client
            Threads (all cores by default), or a Dask client whose workers are used instead (not by
            an attentive probe).

        Raises
        ------
        MissingColumnError
            If a target is no column of the labels.
        ConfigurationError
            Too few labels or sky blocks, a constant label, one that the model has read, or an
            extension that this kind does not read.
        WeightsError
            If there is no such model.
        """
        self._refuse_settings()
        workers = workers or os.cpu_count() or 1
        if y is not None:
            self._refuse_arrays()
            rows = array_rows(
                np.asarray(X), np.asarray(y), groups, targets=self.targets,
                words=self.kind == "logistic",
            )  # fmt: skip
            self._take(fit_rows(rows, self._settings(sky=groups is not None), workers=workers))
            self.extension = self.fingerprint = ""
            return self
        catalog, table_of = opened(X, extension, product=product_read(self.kind))
        made = catalog.provenance
        notes = refuse_leaks(made, self.targets, allowed=self.allow_leaks)
        inputs = inputs_of(self.kind, catalog, model=model)
        if labels is None and table_of is not None:
            labels = table_of(self.targets)
        source = label_source(
            catalog, labels, self.targets, kind=self.kind, on=on, radius_arcsec=radius_arcsec,
            where=where,
        )  # fmt: skip
        self._take(inputs.fit(source, self._settings(), workers=workers, client=client))
        self.extension, self.fingerprint = catalog.name, made.fingerprint()
        self.record |= {
            "labels": source.description, "catalog": str(catalog.primary), **inputs.model,
            "block_order": self.block_order, "notes": [*notes, *self.record["notes"]],
        }  # fmt: skip
        return self

    def apply(
        self,
        catalog: str | Path | Catalog,
        *,
        extension: str | None = None,
        bridge: Bridge | str | Path | None = None,
        model: str | Path | None = None,
        name: str | None = None,
        where: str | None = None,
        workers: int | None = None,
    ) -> Any:  # noqa: ANN401 - Answer or Catalog, as asked
        """Predict for every row with a vector.

        Of a collection's path an `Answer` with id, position and predictions. Of an LSDB catalog the
        same catalog with lazy columns: prediction, ``_low``, ``_high`` and ``_width`` (classes:
        ``_probability`` and ``_p_<class>``), NaN where there is no vector. If the catalog does not
        hold the vectors, they are looked up by id in the extension's files, of which only the id
        and, in row groups that are needed, the vector column are read. An attentive probe reads
        the tokens there in the same way, and runs the encoder on them, 64 rows at a time.

        Parameters
        ----------
        extension
            Name or properties file; by default the one that the probe learnt on.
        bridge
            From these vectors to those that the probe learnt on, or its folder.
        model
            Where the model of an attentive probe lies, if not where it was fitted.
        name
            Of the columns, as in `Probe`.
        where
            Only rows whose predictions fulfil this expression, e.g. ``photoz > 1``.
        workers
            Threads for a path, all cores by default; an LSDB catalog runs where Dask does.

        Raises
        ------
        ConfigurationError
            If the vectors were made by another model or setting than those the probe learnt on,
            and no bridge leads there, or the probe loses more on it than it allows; or if an
            attentive probe meets other tokens or another model than it learnt with.
        WeightsError
            If the model of an attentive probe is not there.
        """
        predicting = self._predicting(catalog, extension, bridge, model, name)
        if isinstance(catalog, str | Path):
            return answer(predicting, where=where, workers=workers or os.cpu_count() or 1)
        made = predicted_catalog(catalog, predicting)
        return made.query(where) if where else made

    def publish(
        self,
        catalog: str | Path,
        name: str,
        *,
        extension: str | None = None,
        bridge: Bridge | str | Path | None = None,
        model: str | Path | None = None,
        columns: str | None = None,
        workers: int | None = None,
    ) -> Path:
        """Write the predictions as an extension of the catalog; returns its properties file.

        It is read back by ``lsdb.open_catalog(catalog).load_extension(name)``. Every row of the
        vectors' extension is there, with nulls where it has no vector.

        Parameters
        ----------
        name
            Of the extension.
        model
            As in `apply`.
        columns
            Name of the columns, as in `Probe`.
        """
        predicting = self._predicting(catalog, extension, bridge, model, columns)
        return publish_predictions(predicting, name, workers=workers or os.cpu_count() or 1)

    def save(self, folder: str | Path) -> Path:
        """Write ``probe.json`` and ``probe.safetensors`` (never pickle)."""
        self._model()
        return save_probe(self, Path(folder))

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read `save`.

        Raises
        ------
        WeightsError
            If it is no probe, of an older skyvec, or one of its files was changed.
        """
        return load_probe(cls, Path(folder))

    def singles(self) -> list[Probe]:
        """The linear probe of each target, as a bridge measures it.

        Raises
        ------
        ConfigurationError
            If it is not linear.
        """
        if self.kind != "ridge":
            raise ConfigurationError(
                f"what a probe of kind {self.kind!r} loses on a bridge is not known",
                where=self._told,
                remedy="Fit it again on the new vectors, or use a ridge",
            )
        if isinstance(self.target, str):
            return [self]
        probes = []
        for place, target in enumerate(self.target):
            one = Probe(target)
            one.extension, one.fingerprint = self.extension, self.fingerprint
            one.weights, one.intercept = self.weights[:, place], float(self.intercept[place])
            probes.append(one)
        return probes

    def _refuse_arrays(self) -> None:
        if product_read(self.kind) == "tokens":
            raise ConfigurationError(
                "learns from every token of an object, an array holds one vector a row",
                where=self._told,
                remedy="Give a catalog with a token extension (`skyvec tokenize`), or fit a "
                "kind='ridge' on the array",
            )

    def _predicting(
        self,
        catalog: str | Path | Catalog,
        extension: str | None,
        bridge: Bridge | str | Path | None,
        model: str | Path | None,
        name: str | None,
    ) -> Predicting:
        if not self.fingerprint:
            raise ConfigurationError(
                "is bound to no vectors: it was fitted on arrays, or not at all",
                where=self._told,
                remedy="Fit it on a catalog, or use predict",
            )
        if isinstance(bridge, str | Path):
            bridge = Bridge.load(bridge)
        own = bridge.source.extension if bridge else self.extension
        found, _ = opened(catalog, extension or own, product=product_read(self.kind))
        known = model or self.record.get("encoder")
        inputs = inputs_of(self.kind, found, model=known, bridge=bridge)
        inputs.admit(self)
        return Predicting(probe=self, inputs=inputs, name=name)
