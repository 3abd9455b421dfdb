"""Multimodal Universe HDF5: pairs of stamps in file order, files chunked as published, memory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from io import FileIO
from itertools import cycle, zip_longest
from pathlib import Path
from statistics import median
from time import process_time

import h5py
import numpy as np
import torch
from cdshealpix.nested import healpix_to_lonlat
from hats.pixel_math.healpix_pixel import HealpixPixel
from releases.figure import Figure, medians

from skyvec.releases.mmu.release import MmuRelease
from skyvec.releases.mmu.rows import open_rows
from skyvec.releases.mmu.writer import Columns, Layout, write_mmu_file
from skyvec_schemas.survey_columns import HSC, LEGACY_SURVEY, Survey

PIXEL = HealpixPixel(4, 1000)
SIDE = 160
BATCH = 32
PAIRS = 1000
FIRST_WRITE = 516
"""Objects of the brick whose write fixes the chunks at (65, 1, 20, 20)."""
BLOCK = 1 << 23
AT_ONCE = 4
"""Stamps at a time in the loop of what is needed: fewer cost calls, more the cache."""
SMALL = 48
"""Side of the stamps in the files of the memory test, for want of disk: 20,000 of 4x48x48."""


def measure(scratch: Path, *, rounds: int) -> list[Figure]:
    """Rates of reading, and peak memory, of one order-4 pixel."""
    torch.set_num_threads(1)
    return [
        *_pairs(scratch, rounds),
        *_published(scratch, rounds),
        *_memory(scratch),
    ]


# ---- pairs from contiguous files


def _pairs(scratch: Path, rounds: int) -> Iterator[Figure]:
    roots = [(survey, scratch / survey.name) for survey in (LEGACY_SURVEY, HSC)]
    for survey, root in roots:
        _write(root, survey, PAIRS, SIDE, 250)
    files = [root / "healpix=1000" / "001-of-001.hdf5" for _, root in roots]
    stamps, masks = (
        sum(_bytes(file, name) for file in files) for name in ("image_array", "image_mask")
    )
    pair = (stamps + masks) // PAIRS
    cases: dict[str, Callable[[], object]] = {
        "raw": partial(_raw, files),
        "kept": partial(_raw, files, BATCH * pair),
        "random": partial(_random_pread, files),
        "arrays, whole": partial(_arrays, files, None),
        "arrays, 96 px": partial(_arrays, files, 96),
        "needed, whole": partial(_least, files, None),
        "needed, 96 px": partial(_least, files, 96),
        "read, whole": partial(_read_pairs, roots, None),
        "read, 96 px": partial(_read_pairs, roots, 96),
        "open": partial(_read_pairs, roots, 96, 1),
    }
    # What a sequential read takes for the bytes that a case is about.
    share = {"arrays": stamps / sum(file.stat().st_size for file in files), "read": 1.0}
    for cache in ("warm", "cold"):
        if cache == "warm":
            _raw(files)
            seconds, of = _cpu_medians(cases, rounds), "per CPU second"
        else:
            seconds, of = medians(cases, rounds, before=partial(_drop, files)), "per second"
        yield Figure(
            name=f"LS + HSC, raw sequential read, {cache}",
            measured=f"{PAIRS / seconds['raw']:,.0f} pairs/s",
            note=f"{of}; all bytes of both files, {pair / 1e6:.2f} MB a pair, into 8 MB over and "
            f"over; into the memory of a batch {PAIRS / seconds['kept']:,.0f}/s; random pread of "
            f"the stamps alone {PAIRS / seconds['random']:,.0f}/s",
        )
        for case, took in seconds.items():
            kind, _, part = case.partition(", ")
            if kind not in share:
                continue
            raw, kept = (share[kind] * seconds[name] / took for name in ("raw", "kept"))
            measured = f"{PAIRS / took:,.0f} pairs/s, {raw:.0%} of raw, {kept:.0%} into a batch"
            what = "stamps as arrays"
            if kind == "read":
                needed = seconds[f"needed, {part}"]
                measured += f", {needed / took:.0%} of what is needed"
                opened = took - seconds["open"]
                what = (
                    f"`MmuRelease.read`: masks, flags too; what is needed for that "
                    f"{PAIRS / needed:,.0f}/s, {seconds['raw'] / needed:.0%} of raw; to open the "
                    f"files and find their objects takes {1000 * seconds['open']:.0f} ms, after "
                    f"which it is {needed / opened:.0%} of what is needed"
                )
            yield Figure(
                name=f"LS + HSC pairs, {case}, {cache}",
                measured=measured,
                at_least="70% of raw" if cache == "warm" else "",
                note=f"{of}; {what}; file order, contiguous, batches of {BATCH}",
            )


def _cpu_medians(cases: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """As `medians`, of CPU seconds: from the page cache nothing waits, and others may be at work."""
    taken: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, call in cases.items():
            start = process_time()
            call()
            taken[name].append(process_time() - start)
    return {name: median(seconds) for name, seconds in taken.items()}


def _write(
    root: Path, survey: Survey, count: int, side: int, at_once: int, layout: Layout = "contiguous",
    compression: str | None = None,
) -> None:  # fmt: skip
    batches = _objects(survey, count, side, at_once)
    path = root / "healpix=1000" / "001-of-001.hdf5"
    write_mmu_file(path, batches, rows=count, layout=layout, compression=compression)


def _objects(survey: Survey, count: int, side: int, at_once: int) -> Iterator[Columns]:
    """Galaxies in noise; a fifth of them with some bad pixels."""
    rng = np.random.default_rng(0)
    cells = (PIXEL.pixel << 16) + np.arange(count) * (4**8 // count)
    lon, lat = healpix_to_lonlat(cells, PIXEL.order + 8)
    bands = list(survey.image.bands)
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    galaxy = np.exp(-np.hypot(x, y) / 4).astype(np.float32)
    for start in range(0, count, at_once):
        rows = np.arange(start, min(start + at_once, count))
        flux = rng.standard_normal((len(rows), len(bands), side, side), np.float32)
        planes = (len(rows), side, side)
        mask = np.ones(planes if survey is LEGACY_SURVEY else flux.shape, np.bool_)
        mask[::5, ..., :3, :] = False
        mask[::5, ..., side // 2, side // 2] = False
        yield {
            "object_id": rows,
            "ra": lon.deg[rows],
            "dec": lat.deg[rows],
            "image_array": flux * 0.02 + galaxy,
            "image_mask": mask,
            "image_band": np.tile(np.array(bands), (len(rows), 1)),
            **{scalar.name: np.ones(len(rows), ">f4") for scalar in survey.scalars},
        }


def _bytes(file: Path, name: str) -> int:
    with h5py.File(file) as opened:
        return opened[name].nbytes


def _raw(files: list[Path], block: int = BLOCK) -> None:
    """Read all bytes; a block beyond the processor's cache ends up in memory, as a batch does."""
    buffer = bytearray(block)
    for file in files:
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass


def _random_pread(files: list[Path]) -> None:
    for file in files:
        with h5py.File(file) as opened:
            start, size = opened["image_array"].id.get_offset(), opened["image_array"].nbytes
        stamp = size // PAIRS
        buffer = bytearray(stamp)
        with file.open("rb", buffering=0) as opened:
            for row in np.random.default_rng(0).permutation(PAIRS).tolist():
                os.preadv(opened.fileno(), [buffer], start + row * stamp)


def _drop(files: list[Path]) -> None:
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _stamps(file: Path, window: int | None) -> Iterator[np.ndarray]:
    with file.open("rb") as raw, h5py.File(file) as opened:
        dataset = opened["image_array"]
        rows = np.arange(len(dataset))
        chosen = open_rows(dataset, rows, descriptor=raw.fileno(), window=window)
        for start in range(0, len(rows), BATCH):
            yield chosen.take(start, min(start + BATCH, len(rows)))


def _arrays(files: list[Path], window: int | None) -> None:
    for _ in zip_longest(*(_stamps(file, window) for file in files)):
        pass


def _least(files: list[Path], window: int | None) -> None:
    """The least that gives the arrays of `MmuRelease.read`: a limit for any reader with numpy."""
    for _ in zip_longest(*(_least_of(file, window or SIDE) for file in files)):
        pass


def _least_of(file: Path, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Read the lines under the window, copy them, go over them once for finiteness and for masks.

    No checks, flags or objects; into the memory of three batches, since fresh memory takes longer.
    """
    with h5py.File(file) as opened, file.open("rb", buffering=0) as raw:
        pixels, mask = (_Lines(opened[f"image_{name}"], raw, size) for name in ("array", "mask"))
        shape = (BATCH, pixels.planes, size, size)
        batches = cycle([(np.empty(shape, np.float32), np.empty(shape, np.bool_)) for _ in "abc"])
        for start in range(0, PAIRS, BATCH):
            flux, good = next(batches)
            for row in range(start, min(start + BATCH, PAIRS), AT_ONCE):
                some = slice(row - start, min(row + AT_ONCE, PAIRS) - start)
                pixels.read(row, flux[some])
                flat = flux[some].reshape(-1, size**2)
                np.isfinite(np.vecdot(flat, flat)).all()
                mask.read(row, good[some].view(np.uint8))
                good[some, : mask.planes].reshape(some.stop - some.start, -1).all(axis=1)
            yield flux[: some.stop], good[: some.stop]


class _Lines:
    """The centre of stamps, read plane by plane into memory for a few of them, over and over."""

    def __init__(self, dataset: h5py.Dataset, file: FileIO, size: int) -> None:
        top, self.file = (SIDE - size) // 2, file
        self.planes = dataset.shape[1] if dataset.ndim == 4 else 1
        dtype = np.dtype(np.uint8) if dataset.dtype.kind == "b" else dataset.dtype
        lines = np.empty((AT_ONCE, self.planes, size, SIDE), dtype)
        self.window = lines[..., top : top + size]
        self.pieces = [_buffer(piece) for piece in lines.reshape(-1, size, SIDE)]
        self.step = SIDE * SIDE * dtype.itemsize
        self.first = dataset.id.get_offset() + top * SIDE * dtype.itemsize

    def read(self, row: int, out: np.ndarray) -> None:
        position = self.first + row * self.planes * self.step
        if out.shape[1:] == (self.planes, SIDE, SIDE):
            os.preadv(self.file.fileno(), [_buffer(out)], position)
            return
        for piece in self.pieces[: len(out) * self.planes]:
            os.preadv(self.file.fileno(), [piece], position)
            position += self.step
        out[...] = self.window[: len(out)]


def _buffer(values: np.ndarray) -> memoryview:
    return memoryview(values.reshape(-1).view(np.uint8))


def _read_pairs(roots: list[tuple[Survey, Path]], window: int | None, count: int = PAIRS) -> None:
    readings = []
    for survey, root in roots:
        source = MmuRelease.open(root, survey, window=window)
        objects = source.objects(PIXEL, margin_arcsec=1)
        readings.append(source.read(objects, np.arange(count), rows=BATCH))
    assert sum(len(left.index) for left, _ in zip_longest(*readings)) == count


# ---- files chunked as published


def _published(scratch: Path, rounds: int) -> Iterator[Figure]:
    for compression, count, least in (("lzf", 2 * FIRST_WRITE, 1200), ("gzip", FIRST_WRITE, 190)):
        root = scratch / compression
        _write(root, LEGACY_SURVEY, count, SIDE, FIRST_WRITE, "mmu", compression)
        file = root / "healpix=1000" / "001-of-001.hdf5"
        with h5py.File(file) as opened:
            chunks = opened["image_array"].chunks
        tenth = np.sort(np.random.default_rng(1).choice(count, count // 10, replace=False))
        chosen = {"all rows": np.arange(count), "10% of the rows": tenth}
        cases: dict[str, Callable[[], object]] = {
            f"{rows}, {window or 'whole'}": partial(_read_rows, root, places, window)
            for rows, places in chosen.items()
            for window in (None, 96)
        }
        _raw([file])
        seconds = medians({"raw": partial(_raw, [file]), **cases}, rounds)
        raw = count / seconds.pop("raw")
        for case, took in seconds.items():
            rows, window = case.rsplit(", ", 1)
            passed = len(np.unique(chosen[rows] // chunks[0])) * chunks[0]
            wanted = len(chosen[rows]) / took
            slabs = f", {wanted:,.0f} wanted/s" if rows != "all rows" else ""
            yield Figure(
                name=f"stamps as published, {compression}, {rows}, {window} px, warm",
                measured=f"{min(passed, count) / took:,.0f} stamps/s{slabs}",
                at_least=f"{least:,}",
                note=f"chunks {chunks}; rate of stamps in the slabs that are decoded; raw read of "
                f"the file {raw:,.0f}/s",
            )


def _read_rows(root: Path, places: np.ndarray, window: int | None) -> None:
    source = MmuRelease.open(root, LEGACY_SURVEY, window=window)
    objects = source.objects(PIXEL, margin_arcsec=1)
    for _ in source.read(objects, places, rows=BATCH):
        pass


# ---- memory


def _memory(scratch: Path) -> Iterator[Figure]:
    for layout, compression in (("contiguous", None), ("mmu", "lzf")):
        peaks = {}
        for count in (1000, 20_000):
            root = scratch / f"{layout}-{count}"
            _write(root, LEGACY_SURVEY, count, SMALL, FIRST_WRITE, layout, compression)
            command = [sys.executable, "-c", _READER, str(root)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            before, peak = map(int, done.stdout.split())
            peaks[count] = (before / 1024, peak / 1024)
        (_, small), (idle, large) = peaks.values()
        yield Figure(
            name=f"peak RSS, pixel of 20,000 objects over one of 1,000, {layout}",
            measured=f"{large / small - 1:+.1%} ({small:,.0f} -> {large:,.0f} MB)",
            at_least="within 10%",
            note=f"VmHWM of a process that only reads, {idle:,.0f} MB of it after import; stamps "
            f"of 4x{SMALL}x{SMALL} to fit the disk, cropped to 32 px, batches of {BATCH}",
        )


_READER = f"""
import sys
import numpy as np
from hats.pixel_math.healpix_pixel import HealpixPixel
from skyvec.releases.mmu.release import MmuRelease
from skyvec_schemas.survey_columns import LEGACY_SURVEY
def peak():
    with open("/proc/self/status") as status:
        return next(line.split()[1] for line in status if line.startswith("VmHWM"))
source = MmuRelease.open(sys.argv[1], LEGACY_SURVEY, window=32)
print(peak())
objects = source.objects(HealpixPixel({PIXEL.order}, {PIXEL.pixel}), margin_arcsec=1)
for reading in source.read(objects, np.arange(len(objects)), rows={BATCH}):
    pass
print(peak())
"""
