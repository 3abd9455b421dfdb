"""What objects look like, as PNG, read from the catalog when they are asked for."""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from threading import Lock

import numpy as np
import pyarrow as pa
from hats.pixel_math.healpix_pixel import HealpixPixel
from numpy.typing import NDArray

from skyvec.answers import figures
from skyvec.answers.answer import Answer
from skyvec.answers.looks import looks_of, pictured
from skyvec.explorer.objects import Objects
from skyvec.extensions.vector_catalog import VectorCatalog
from skyvec.releases.hats.catalog import HatsRelease
from skyvec_schemas.errors import SkyvecError

_KEPT = 512
"""Pictures of some 30 kB that are held."""
_THREADS = 2
"""One for what was clicked at while another reads a dozen of its neighbours."""

Cutout = bytes | str
"""PNG, or why there is none."""


class Cutouts:
    """Pictures of the objects of a map; may be asked by several threads."""

    def __init__(self, vectors: VectorCatalog, objects: Objects) -> None:
        self._vectors, self._objects = vectors, objects
        self._asked: OrderedDict[int, Future[Cutout]] = OrderedDict()
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="skyvec-cutouts")
        self._lock = Lock()
        self._place = {(p.order, p.pixel): n for n, p in enumerate(vectors.release.pixels)}

    @cached_property
    def absent(self) -> str:
        """Why the catalog has no pictures at all; empty if it has."""
        try:
            schema = HatsRelease.open(self._vectors.primary).schema
        except SkyvecError as problem:
            return f"the catalog cannot be read: {problem.what}"
        if pictured(self._vectors.provenance, schema) is None:
            return "the catalog holds no cutouts or spectra that the extension was made of"
        return ""

    def pixel_of(self, which: int) -> HealpixPixel:
        """HEALPix pixel of the partition that holds an object."""
        return self._vectors.release.pixels[self._objects.place[which]]

    def find(self, order: int, pixel: int, object_id: str) -> int | None:
        """The object with this id in this pixel, by which a browser asks; None if there is none."""
        place = self._place.get((order, pixel))
        return None if place is None else self._objects.find_one(object_id, place=place)

    def of(self, which: int) -> Cutout:
        """Picture of one object."""
        return self.ask(np.array([which]))[0].result()

    def of_all(self, which: NDArray[np.int64]) -> list[Cutout]:
        """Pictures of some objects."""
        return [asked.result() for asked in self.ask(which)]

    def ask(self, which: NDArray[np.int64]) -> list[Future[Cutout]]:
        """Begin to read pictures, together; those that were asked for before are not read again."""
        with self._lock:
            new = [w for w in dict.fromkeys(which.tolist()) if w not in self._asked]
            self._asked |= {w: Future() for w in new}
            asked = [self._asked[w] for w in which.tolist()]
            while len(self._asked) > max(_KEPT, len(new)):
                self._asked.popitem(last=False)
        if new:
            waiting = dict(zip(which.tolist(), asked, strict=True))
            self._pool.submit(self._answer, {w: waiting[w] for w in new})
        return asked

    def close(self) -> None:
        """Read no more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _answer(self, waiting: dict[int, Future[Cutout]]) -> None:
        try:
            found = self._read(np.array(list(waiting), np.int64))
        except Exception as problem:  # noqa: BLE001 - whoever waits is told
            with self._lock:
                for which in waiting:
                    self._asked.pop(which, None)
            for future in waiting.values():
                future.set_exception(problem)
            return
        for future, cutout in zip(waiting.values(), found, strict=True):
            future.set_result(cutout)

    def _read(self, which: NDArray[np.int64]) -> list[Cutout]:
        if self.absent:
            return [self.absent] * len(which)
        vectors, some = self._vectors, self._objects.take(which)
        asked = Answer(
            table=pa.table({vectors.id_column: some.ids, "ra": some.ra, "dec": some.dec}),
            id_column=vectors.id_column, catalog=vectors.primary, extension=vectors.name,
            fingerprint=vectors.provenance.fingerprint(),
        )  # fmt: skip
        pictures: list[Cutout] = []
        for place, look in enumerate(looks_of(asked, shown=len(which))):
            picture = figures.thumbnail(look, alt=some.name(place))
            pictures.append(look.why if picture is None else picture.png)
        return pictures
