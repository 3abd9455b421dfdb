"""Multimodal Universe HDF5: pairs of stamps in file order, files chunked as published, memory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import zip_longest
from pathlib import Path

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
        "read, whole": partial(_read_pairs, roots, None),
        "read, 96 px": partial(_read_pairs, roots, 96),
    }
    for cache, before in (("warm", int), ("cold", partial(_drop, files))):
        _raw(files)
        seconds = medians(cases, rounds, before=before)
        # What a sequential read takes for the bytes that a case is about.
        share = {"arrays": stamps / sum(file.stat().st_size for file in files), "read": 1.0}
        yield Figure(
            name=f"LS + HSC, raw sequential read, {cache}",
            measured=f"{PAIRS / seconds['raw']:,.0f} pairs/s",
            note=f"all bytes of both files, {pair / 1e6:.2f} MB a pair, into 8 MB over and over; "
            f"into the memory of a batch {PAIRS / seconds['kept']:,.0f}/s; random pread of the "
            f"stamps alone {PAIRS / seconds['random']:,.0f}/s",
        )
        for case, took in seconds.items():
            kind = case.split(",")[0]
            if kind not in share:
                continue
            what = "stamps as arrays" if kind == "arrays" else "`MmuRelease.read`: masks, flags too"
            yield Figure(
                name=f"LS + HSC pairs, {case}, {cache}",
                measured=f"{PAIRS / took:,.0f} pairs/s, {share[kind] * seconds['raw'] / took:.0%} of "
                f"raw, {share[kind] * seconds['kept'] / took:.0%} of raw into a batch",
                at_least="70%" if cache == "warm" else "",
                note=f"{what}; file order, contiguous, batches of {BATCH}; raw reads whole stamps",
            )


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


def _read_pairs(roots: list[tuple[Survey, Path]], window: int | None) -> None:
    readings = []
    for survey, root in roots:
        source = MmuRelease.open(root, survey, window=window)
        objects = source.objects(PIXEL, margin_arcsec=1)
        readings.append(source.read(objects, np.arange(PAIRS), rows=BATCH))
    assert sum(len(left.index) for left, _ in zip_longest(*readings)) == PAIRS


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
