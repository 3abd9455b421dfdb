"""Context vectors on disk, so that a head is trained without running the encoder again.

A folder holds ``cache.json``, ``keys.npy`` (what object each row is) and for each tower
``<tower>.f16`` (vectors of all tokens of all rows, one after the other) and ``<tower>.npy`` (where
each row begins). Float16 costs a head nothing and halves 0.9 MB an object at the base size; a mean
instead of all tokens is 1.5 kB.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from skyvec_schemas.errors import ConfigurationError, ContractError

# Shape letters: B object, T token, W width of a tower's input.

FACTS, KEYS = "cache.json", "keys.npy"


@dataclass(frozen=True, kw_only=True, slots=True)
class CachedTower:
    """Vectors of one tower's input."""

    values: NDArray[np.float16]
    """(tokens of all rows, W), mapped from disk."""
    starts: NDArray[np.int64]
    """(rows + 1,)"""

    @property
    def width(self) -> int:
        """W."""
        return int(self.values.shape[1])


class ContextCache:
    """A folder that `CacheWriter` wrote.

    Raises
    ------
    ConfigurationError
        If it is none, or its files are not as long as they should be.
    """

    def __init__(self, folder: Path) -> None:
        try:
            facts = json.loads((folder / FACTS).read_text())
            self.keys: NDArray[np.int64] = np.load(folder / KEYS)
            self.towers = {
                name: _mapped(folder, name, int(width)) for name, width in facts["towers"].items()
            }
        except (OSError, ValueError, KeyError) as problem:
            raise ConfigurationError(
                f"not a cache of context vectors ({problem})",
                where=str(folder),
                remedy="Delete the folder and run the command again",
            ) from problem
        self.model_digest = str(facts["model_digest"])
        self.text_digest = str(facts["text_digest"])
        self.domains = {name: tuple(keys) for name, keys in facts["domains"].items()}

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, tower: str, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Vectors (B, T, W) in float32, padded, and which are valid (B, T)."""
        parts = [self.context(tower, int(row)).float() for row in rows]
        counts_B = torch.tensor([len(part) for part in parts])
        padded = pad_sequence(parts, batch_first=True)
        return padded, torch.arange(padded.shape[1]) < counts_B[:, None]

    def context(self, tower: str, row: int) -> Tensor:
        """Vectors (T, W) of one object, float16."""
        cached = self.towers[tower]
        start, stop = cached.starts[row : row + 2]
        return torch.from_numpy(np.array(cached.values[start:stop]))


class CachedContexts(Sequence[Tensor]):
    """The contexts of some rows of a cache as a sequence that reads them when asked."""

    def __init__(self, cache: ContextCache, tower: str, rows: NDArray[np.int64]) -> None:
        self.cache, self.tower, self.rows = cache, tower, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Tensor:  # type: ignore[override]  # no slices are asked for
        return self.cache.context(self.tower, int(self.rows[place]))


class CacheWriter:
    """Writes a cache aside and renames it into place when the ``with`` block ends well.

    Parameters
    ----------
    towers
        Name -> token keys that it reads; none for words.
    """

    def __init__(
        self,
        folder: Path,
        towers: Mapping[str, Sequence[str]],
        *,
        model_digest: str,
        text_digest: str = "",
    ) -> None:
        self.folder, self.aside = folder, folder.with_name(folder.name + ".tmp")
        self.facts = {
            "model_digest": model_digest,
            "text_digest": text_digest,
            "domains": {name: list(keys) for name, keys in towers.items()},
        }
        shutil.rmtree(self.aside, ignore_errors=True)
        self.aside.mkdir(parents=True)
        self._files = {name: (self.aside / f"{name}.f16").open("wb") for name in towers}
        self._counts: dict[str, list[int]] = {name: [0] for name in towers}
        self._widths: dict[str, int] = {}
        self._keys: list[NDArray[np.int64]] = []

    def append(self, keys: NDArray[np.int64], contexts: Mapping[str, Sequence[Tensor]]) -> None:
        """Add objects: for each tower their vectors (T, W).

        Raises
        ------
        ContractError
            If a vector does not fit into float16.
        """
        for name, parts in contexts.items():
            values = torch.cat(list(parts)).half()
            if not bool(values.isfinite().all()):
                raise ContractError(
                    "a context vector is not finite in half precision",
                    where=f"tower {name}",
                    remedy="Look at the weights of this model",
                )
            values.numpy().tofile(self._files[name])
            self._counts[name] += [len(part) for part in parts]
            self._widths[name] = values.shape[1]
        self._keys.append(keys)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for file in self._files.values():
            file.close()
        if kind is not None:
            shutil.rmtree(self.aside, ignore_errors=True)
            return
        for name, counts in self._counts.items():
            np.save(self.aside / f"{name}.npy", np.cumsum(counts))
        np.save(self.aside / KEYS, np.concatenate([np.zeros(0, np.int64), *self._keys]))
        (self.aside / FACTS).write_text(json.dumps({**self.facts, "towers": self._widths}))
        shutil.rmtree(self.folder, ignore_errors=True)
        self.aside.rename(self.folder)


def _mapped(folder: Path, name: str, width: int) -> CachedTower:
    starts = np.load(folder / f"{name}.npy")
    values = np.memmap(folder / f"{name}.f16", np.float16, mode="r").reshape(-1, width)
    if starts[-1] != len(values):
        raise ValueError(f"{name}.f16 holds {len(values)} vectors, not {starts[-1]}")
    return CachedTower(values=values, starts=starts)
