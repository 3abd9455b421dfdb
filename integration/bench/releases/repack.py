"""Working copies: how fast they are made, and read back into float32 batches.

Stamps are of the true size of the Legacy Surveys, 4 x 160 x 160 float32, in one contiguous HDF5
file; the copies hold the codec's 96 pixels. Every read goes through `WorkingCopy.read`, as the
stage's does: opening the file, cutouts and masks as tensors, flags and ids included.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import torch
from hats.pixel_math.healpix_pixel import HealpixPixel
from releases.figure import Figure, medians

from skyvec.releases.mmu.release import MmuRelease
from skyvec.releases.mmu.writer import write_mmu_release
from skyvec.releases.working_copy.repack import repack
from skyvec.releases.working_copy.source import WorkingCopy, copy_path
from skyvec_schemas.survey_columns import LEGACY_SURVEY

STAMPS, BATCH, BANDS, SIZE, WINDOW = 2048, 128, 4, 160, 96
BAD_SHARE = 0.3
"""Share of stamps with bad pixels; the others have none."""


def measure(scratch: Path, *, rounds: int) -> list[Figure]:
    """Measure in a folder that is emptied afterwards (1.5 GB)."""
    torch.set_num_threads(1)
    with _folder(scratch / "repack") as place:
        root = place / "release"
        write_mmu_release(root, LEGACY_SURVEY, _batches())
        release = MmuRelease.open(root, LEGACY_SURVEY, window=WINDOW)
        figures = _making(release, root, place, rounds)
        for dtype in ("float16", "float32"):
            copy = WorkingCopy.open(place / dtype)
            for warm in (True, False):
                figures += _reading(copy, dtype, rounds, warm=warm)
    return figures


def _making(release: MmuRelease, root: Path, place: Path, rounds: int) -> list[Figure]:
    (pixel,) = release.folders

    def make(dtype: str) -> Callable[[], object]:
        def run() -> None:
            shutil.rmtree(place / dtype, ignore_errors=True)
            repack(release, place / dtype, pixels=[HealpixPixel(4, pixel)], dtype=dtype, rows=BATCH)

        return run

    (file,) = root.rglob("*.hdf5")
    with h5py.File(file) as opened:
        stamps = opened["image_array"].id.get_offset(), opened["image_array"].nbytes
    cases = {
        "float16": make("float16"),
        "float32": make("float32"),
        "raw": lambda: _pread(file, np.arange(STAMPS), stamps[0], stamps[1] // STAMPS, BATCH),
    }
    taken = medians(cases, rounds)
    return [
        Figure(
            name=f"repack, {SIZE} to {WINDOW} px {dtype}, warm",
            measured=f"{STAMPS / taken[dtype]:,.0f} stamps/s",
            note=f"raw sequential read of the whole stamps {STAMPS / taken['raw']:,.0f}/s",
        )
        for dtype in ("float16", "float32")
    ]


def _reading(copy: WorkingCopy, dtype: str, rounds: int, *, warm: bool) -> list[Figure]:
    pixel = copy.pixels[0]
    path = copy_path(copy.path, pixel.pixel)
    objects = copy.objects(pixel, margin_arcsec=0)
    some = np.sort(np.random.default_rng(1).choice(STAMPS, STAMPS // 10, replace=False))
    chosen = {"file order": np.arange(STAMPS), "random 10%": some}
    with h5py.File(path) as opened:
        flux = opened["observations/tok_image/flux"]
        offset, row = flux.id.get_offset(), flux.nbytes // STAMPS

    def read(wanted: np.ndarray) -> Callable[[], object]:
        def run() -> None:
            for reading in copy.read(objects, wanted, rows=BATCH):
                assert reading.observations["tok_image"].flux_BCHW.dtype == torch.float32

        return run

    cases: dict[str, Callable[[], object]] = {}
    for name, wanted in chosen.items():
        step = BATCH if name == "file order" else 1
        cases[name] = read(wanted)
        cases[f"raw {name}"] = lambda w=wanted, s=step: _pread(path, w, offset, row, s)
    taken = medians(cases, rounds, before=int if warm else lambda: _forget(path))
    state = "warm" if warm else "cold"
    return [
        Figure(
            name=f"working copy {dtype}, {name}, {state}",
            measured=f"{len(wanted) / taken[name]:,.0f} stamps/s",
            at_least="20,000 stamps/s" if warm and name == "file order" else "",
            note=f"raw {'sequential read' if name == 'file order' else 'random pread'} of the "
            f"same bytes {len(wanted) / taken[f'raw {name}']:,.0f}/s; batches of {BATCH}",
        )
        for name, wanted in chosen.items()
    ]


def _batches() -> Iterator[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    for start in range(0, STAMPS, BATCH):
        good = np.ones((BATCH, SIZE, SIZE), np.bool_)
        spoilt = rng.random(BATCH) < BAD_SHARE
        good[spoilt] = rng.random((int(spoilt.sum()), SIZE, SIZE)) > 0.02
        yield {
            "object_id": np.array([f"b-{start + i}" for i in range(BATCH)], "S16"),
            "ra": 45 + rng.uniform(-0.3, 0.3, BATCH),  # about the centre of pixel 0
            "dec": 2.39 + rng.uniform(-0.3, 0.3, BATCH),
            "image_array": rng.normal(0, 0.02, (BATCH, BANDS, SIZE, SIZE)).astype(np.float32),
            "image_mask": good,
            "image_band": np.array([["des-g", "des-r", "des-i", "des-z"]] * BATCH, "S5"),
            **{s.name: rng.random(BATCH).astype(np.float32) for s in LEGACY_SURVEY.scalars},
        }


def _pread(path: Path, rows: np.ndarray, offset: int, row: int, step: int) -> None:
    """Read rows, ``step`` neighbours at a time, into one buffer."""
    handle = os.open(path, os.O_RDONLY)
    buffer = memoryview(bytearray(row * step))
    try:
        for first in rows[::step].tolist():
            os.preadv(handle, [buffer], offset + first * row)
    finally:
        os.close(handle)


def _forget(path: Path) -> None:
    """Drop a file from the page cache."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


@contextmanager
def _folder(place: Path) -> Iterator[Path]:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
