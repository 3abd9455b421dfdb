"""One pixel's file of a working copy: contiguous HDF5 datasets, read by position in the file.

    facts                     JSON: what the pixel came from, what was left out, rounding errors
    object_id, ra, dec, ...   (n,) by ascending ``_healpix_29``
    flags                     (n,) reasons for doubt, as the source found them
    observations/<token key>  one group for each modality; labels/<token key> likewise
        images                ``flux`` (n, band, size, size) float16 or float32; ``good``, its mask
                              packed to bits; ``whole`` (n,), all of it good; ``scale`` (n,), what
                              float16 flux is multiplied by: a power of two, nearly always 1
        sequences             ``start`` and ``length`` (n,) into the flat float32 fields
        numbers               ``values`` (n, ...) float32

HDF5's own conversion of float16 takes 2 ms a cutout, so the bytes are read from the file and
converted by torch. ``facts`` also says where each dataset begins, since to open them one by one
takes as long as to read a hundred cutouts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from skyvec_core.observations import CutoutCatalogs, Images, Observed, Spectra
from skyvec_schemas.errors import ContractError

FORMAT = 1
FACTS = "facts"
OBSERVATIONS, LABELS = "observations", "labels"
REMEDY = "Remove the file and repack again"
_BLOCK_BYTES = 1 << 19
"""Of float16 read before it is converted: small enough to stay in the cache of a core."""
_RESIDENT_BYTES = 64
"""Arrays with rows up to this size are read whole, since a read costs as much as 16 kB."""

Rows = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sequences:
    """How observations of varying length are stored: flat fields, cut off where filling begins."""

    kind: type[Spectra | CutoutCatalogs]
    fields: Mapping[str, str]
    """Name in the file -> attribute, all float32."""
    mark: str
    """Attribute of bools, stored as ``mark``."""
    filling: Mapping[str, float]
    """Attribute -> value beyond a row's length, where it is not 0."""


SPECTRA = Sequences(
    kind=Spectra,
    fields={"flux": "flux_BL", "ivar": "ivar_BL", "wavelength": "wavelength_BL"},
    mark="good_BL",
    filling={"wavelength_BL": -1.0},
)
CATALOGS = Sequences(
    kind=CutoutCatalogs,
    fields={"x": "x_BO", "y": "y_BO", "e1": "e1_BO", "e2": "e2_BO", "radius": "radius_BO"},
    mark="present_BO",
    filling={},
)


@dataclass(frozen=True, slots=True)
class _Stored:
    """A contiguous dataset: where it begins, and what a row is."""

    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, place: tuple[int, str, list[int]]) -> _Stored:
        offset, dtype, shape = place
        return cls(offset, np.dtype(dtype), tuple(shape))

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * prod(self.shape[1:])


class CopyFile:
    """The file of one pixel, open for reading; use it in a ``with`` statement.

    Raises
    ------
    ContractError
        If it is damaged or of another format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with h5py.File(path, "r") as file:
                self.facts = json.loads(file[FACTS][()].tobytes())
            self._stored = {n: _Stored.of(place) for n, place in self.facts["layout"].items()}
            version, groups = self.facts["format"], self.facts["groups"]
            self._handle = os.open(path, os.O_RDONLY)
        except (OSError, KeyError, ValueError, TypeError) as problem:
            raise ContractError(
                f"not a whole file of a working copy ({str(problem).splitlines()[0][:100]})",
                where=str(path),
                remedy=REMEDY,
            ) from problem
        if version != FORMAT:
            os.close(self._handle)
            raise ContractError(
                f"format {version}, this skyvec reads {FORMAT}",
                where=str(path),
                remedy="Repack with this skyvec",
            )
        self._block: NDArray[np.uint8] = np.empty(0, np.uint8)
        self._resident: dict[str, NDArray[Any]] = {}
        self._readers: dict[str, dict[str, Callable[[Rows], Observed]]]
        self._readers = {OBSERVATIONS: {}, LABELS: {}}
        for name, about in groups.items():
            kind, _, key = name.partition("/")
            self._readers[kind][key] = self._reader(name, about)

    def __len__(self) -> int:
        """Count the objects."""
        return self._stored["ra"].shape[0]

    def column(self, name: str) -> NDArray[Any] | None:
        """One of ``object_id``, ``ra``, ``dec``, ``pm_ra``, ...; None if there is none."""
        return self._whole(name) if name in self._stored else None

    @property
    def flags(self) -> NDArray[np.int32]:
        """Reasons for doubt of every row."""
        return self._whole("flags")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._handle)

    def observations(self, rows: Rows, *, without: Collection[str] = ()) -> dict[str, Observed]:
        """Token key -> observations of these rows, which must ascend."""
        readers = self._readers[OBSERVATIONS]
        return {key: read(rows) for key, read in readers.items() if key not in without}

    def labels(self, rows: Rows) -> dict[str, Observed]:
        """Token key -> labels of these rows, which must ascend."""
        return {key: read(rows) for key, read in self._readers[LABELS].items()}

    def _reader(self, group: str, about: Mapping[str, Any]) -> Callable[[Rows], Observed]:
        if about["kind"] == "images":
            bands = tuple(about["bands"])
            return lambda rows: self._images(rows, group, bands)
        if layout := _SEQUENCES.get(about["kind"]):
            return lambda rows: self._sequences(rows, group, layout)
        return lambda rows: self._numbers(rows, f"{group}/values")

    def _whole(self, name: str) -> NDArray[Any]:
        """A dataset, read once."""
        if name not in self._resident:
            stored = self._stored[name]
            found = np.empty(stored.shape, stored.dtype)
            self._fill(_bytes(found), stored.offset)
            self._resident[name] = found
        return self._resident[name]

    def _images(self, rows: Rows, group: str, bands: tuple[str, ...]) -> Images:
        flux, mask = self._stored[f"{group}/flux"], self._stored[f"{group}/good"]
        shape = (len(rows), *flux.shape[1:])
        values = _empty(shape)
        if flux.dtype == np.float16:
            self._convert(rows, flux, values)
            scale = self._whole(f"{group}/scale")[rows]
            for place in np.flatnonzero(scale != 1):
                values[place] *= float(scale[place])
        else:
            self._into(rows, flux, values.numpy())
        good = np.ones(shape, np.bool_)
        partly = np.flatnonzero(~self._whole(f"{group}/whole")[rows])
        if len(partly):
            packed = np.empty((len(partly), *mask.shape[1:]), np.uint8)
            self._into(rows[partly], mask, packed)
            bits = np.unpackbits(packed, axis=1, count=prod(shape[1:]))
            good[partly] = bits.view(np.bool_).reshape(-1, *shape[1:])
        return Images(flux_BCHW=values, good_BCHW=torch.from_numpy(good), bands=bands)

    def _convert(self, rows: Rows, stored: _Stored, values: torch.Tensor) -> None:
        step = max(1, _BLOCK_BYTES // stored.row_bytes)
        if len(self._block) != step * stored.row_bytes:
            self._block = np.empty(step * stored.row_bytes, np.uint8)
        block = self._block.view(stored.dtype).reshape(step, *stored.shape[1:])
        for start in range(0, len(rows), step):
            some = rows[start : start + step]
            self._into(some, stored, block[: len(some)])
            values[start : start + len(some)].copy_(torch.from_numpy(block[: len(some)]))

    def _sequences(self, rows: Rows, group: str, layout: Sequences) -> Observed:
        starts, lengths = (self._whole(f"{group}/{name}")[rows] for name in ("start", "length"))
        inside = np.arange(max(1, int(lengths.max(initial=1)))) < lengths[:, None]
        parts = {}
        for name, attribute in (*layout.fields.items(), ("mark", layout.mark)):
            stored = self._stored[f"{group}/{name}"]
            flat = self._flat(starts, lengths, stored)
            filled = np.full(inside.shape, layout.filling.get(attribute, 0), stored.dtype)
            filled[inside] = flat
            part = torch.from_numpy(filled)
            parts[attribute] = part.bool() if name == "mark" else part
        return layout.kind(**parts)

    def _flat(self, starts: Rows, lengths: Rows, stored: _Stored) -> NDArray[Any]:
        """Values of sequences one after the other; neighbours in the file come in one read."""
        found = np.empty(int(lengths.sum()), stored.dtype)
        places = np.concatenate([[0], np.cumsum(lengths)])
        view = _bytes(found)
        size = stored.dtype.itemsize
        for first, last in _runs(starts[1:] == starts[:-1] + lengths[:-1], len(starts)):
            part = view[int(places[first]) * size : int(places[last]) * size]
            self._fill(part, stored.offset + int(starts[first]) * size)
        return found

    def _numbers(self, rows: Rows, name: str) -> torch.Tensor:
        stored = self._stored[name]
        if stored.row_bytes <= _RESIDENT_BYTES:
            return torch.from_numpy(self._whole(name)[rows])
        values = _empty((len(rows), *stored.shape[1:]))
        self._into(rows, stored, values.numpy())
        return values

    def _into(self, rows: Rows, stored: _Stored, out: NDArray[Any]) -> None:
        """Read rows; neighbours in the file come in one read."""
        view = _bytes(out)
        size = stored.row_bytes
        for first, last in _runs(rows[1:] == rows[:-1] + 1, len(rows)):
            self._fill(view[first * size : last * size], stored.offset + int(rows[first]) * size)

    def _fill(self, view: memoryview, offset: int) -> None:
        while view:
            count = os.preadv(self._handle, [view], offset)
            if not count:
                raise ContractError("ends too early", where=str(self.path), remedy=REMEDY)
            view, offset = view[count:], offset + count


_SEQUENCES = {"spectra": SPECTRA, "catalogs": CATALOGS}


def _empty(shape: tuple[int, ...]) -> torch.Tensor:
    """Memory from numpy, which asks for huge pages: new ones cost less than the reading."""
    return torch.from_numpy(np.empty(shape, np.float32))


def _bytes(values: NDArray[Any]) -> memoryview:
    return values.reshape(-1).view(np.uint8).data


def _is_column(name: str, item: h5py.Dataset | h5py.Group) -> bool:
    return name != FACTS and isinstance(item, h5py.Dataset)


def _runs(joined: NDArray[np.bool_], count: int) -> Iterator[tuple[int, int]]:
    """Stretches [first, last) of entries of which each is joined to the one before it."""
    edges = [0, *(np.flatnonzero(~joined) + 1).tolist(), count] if count else [0]
    yield from pairwise(edges)
