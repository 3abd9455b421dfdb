"""Stamps from survey images and spectra from DESI coadds, each beside what reading alone takes."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS
from hats.pixel_math.healpix_pixel import HealpixPixel
from releases.figure import Figure, medians

from skyvec.releases.fits.desi import GRID
from skyvec.releases.fits.images import FitsImages
from skyvec.releases.fits.spectra import FitsSpectra
from skyvec_schemas.survey_columns import DESI, LEGACY_SURVEY

SIDE = 3600
"""Pixels on a side of a brick of the Legacy Surveys."""
DENSE, SPARSE = 550, 20
"""Objects of a brick: about as many as the Multimodal Universe takes, and a rare class."""
TARGETS = 500
"""Targets of a coadd file."""


def _header() -> fits.Header:
    header = fits.Header()
    header.update(CTYPE1="RA---TAN", CTYPE2="DEC--TAN", CRVAL1=40.0, CRVAL2=1.0, CRPIX1=1800.5,
                  CRPIX2=1800.5, CD1_1=-0.262 / 3600, CD1_2=0.0, CD2_1=0.0, CD2_2=0.262 / 3600,
                  BUNIT="nanomaggy", MAGZERO=22.5)  # fmt: skip
    return header


def _write_bricks(scratch: Path) -> dict[str, Path]:
    """One brick as the survey stores it (Rice, tiles of 100 x 100) and one without compression."""
    rng = np.random.default_rng(0)
    flux = rng.normal(0, 0.02, (SIDE, SIDE)).astype(np.float32)
    flux[rng.integers(0, SIDE, 4000), rng.integers(0, SIDE, 4000)] += 5
    planes = {f"image-{band}": flux for band in "griz"}
    planes |= {f"invvar-{band}": np.float32(2500) + flux for band in "griz"}
    planes["maskbits"] = np.zeros((SIDE, SIDE), np.int16)
    folders = {}
    for kind in ("fpack", "plain"):
        folders[kind] = scratch / f"bricks-{kind}"
        folders[kind].mkdir(parents=True)
        for name, pixels in planes.items():
            path = folders[kind] / f"legacysurvey-0400p010-{name}.fits"
            if kind == "plain":
                fits.PrimaryHDU(pixels, _header()).writeto(path)
                continue
            packed = fits.CompImageHDU(
                pixels, _header(), compression_type="RICE_1", tile_shape=(100, 100),
                quantize_level=16 if pixels.dtype.kind == "f" else 0,
            )  # fmt: skip
            fits.HDUList([fits.PrimaryHDU(), packed]).writeto(f"{path}.fz")
    return folders


def _write_coadd(folder: Path) -> Path:
    rng = np.random.default_rng(1)
    table = fits.BinTableHDU.from_columns(
        [
            fits.Column("TARGETID", "K", array=np.arange(TARGETS)),
            fits.Column("TARGET_RA", "D", array=np.linspace(40, 41, TARGETS)),
            fits.Column("TARGET_DEC", "D", array=np.linspace(1, 2, TARGETS)),
            fits.Column("OBJTYPE", "3A", array=["TGT"] * TARGETS),
            fits.Column("COADD_FIBERSTATUS", "J", array=np.zeros(TARGETS, int)),
        ],
        name="FIBERMAP",
    )
    hdus = [fits.PrimaryHDU(), table]
    for arm, place in {"B": slice(0, 2751), "R": slice(2700, 5026), "Z": slice(4900, 7781)}.items():
        wave = GRID[place]
        shape = (TARGETS, len(wave))
        parts = {
            "WAVELENGTH": wave,
            "FLUX": rng.normal(1, 1, shape).astype(np.float32),
            "IVAR": rng.uniform(0.5, 2, shape).astype(np.float32),
            "MASK": np.zeros(shape, np.int32),
        }
        hdus += [fits.ImageHDU(part, name=f"{arm}_{name}") for name, part in parts.items()]
    folder.mkdir(parents=True)
    path = folder / "coadd-main-dark-1.fits"
    fits.HDUList(hdus).writeto(path)
    return path


def _stamps(source: FitsImages, count: int) -> None:
    rng = np.random.default_rng(2)
    x, y = rng.uniform(100, SIDE - 100, (2, count))
    ra, dec = WCS(_header()).all_pix2world(x, y, 0)
    read = sum(len(reading.index) for reading in source.read_at(ra, dec, rows=256))
    assert read == count


def _spectra(source: FitsSpectra, pixels: list[HealpixPixel]) -> None:
    read = 0
    for pixel in pixels:
        objects = source.objects(pixel, margin_arcsec=0)
        wanted = np.arange(len(objects))
        read += sum(len(part.index) for part in source.read(objects, wanted, rows=256))
    assert read == TARGETS


def _decode(folder: Path) -> None:
    for path in folder.iterdir():
        with fits.open(path, memmap=False) as hdus:
            assert hdus[-1].data.shape == (SIDE, SIDE)


def _read(paths: list[Path]) -> None:
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 24):
                pass


def measure(scratch: Path, *, rounds: int) -> list[Figure]:
    """Rates of one core with a warm page cache, beside a sequential read or a decode of all planes.

    Parameters
    ----------
    scratch
        Folder for about 700 MB of synthetic files.
    rounds
        How often each is timed; the medians count.
    """
    bricks = _write_bricks(scratch)
    coadd = _write_coadd(scratch / "coadds")
    plain, packed = (FitsImages.open(bricks[kind], LEGACY_SURVEY) for kind in ("plain", "fpack"))
    spectra = FitsSpectra.open(coadd, DESI)
    sky = [HealpixPixel(0, number) for number in range(12)]
    seconds = medians(
        {
            "raw plain": partial(_read, list(bricks["plain"].iterdir())),
            "plain": partial(_stamps, plain, DENSE),
            "decode": partial(_decode, bricks["fpack"]),
            "packed": partial(_stamps, packed, DENSE),
            "sparse": partial(_stamps, packed, SPARSE),
            "raw coadd": partial(_read, [coadd]),
            "spectra": partial(_spectra, spectra, sky),
        },
        rounds,
    )
    share = {
        "plain": seconds["raw plain"] / seconds["plain"],
        "packed": seconds["decode"] / seconds["packed"],
        "spectra": seconds["raw coadd"] / seconds["spectra"],
    }
    stamp = "griz, 96 x 96 px, with invvar and maskbits; 9 planes of 3600 x 3600 px"
    return [
        Figure(
            name=f"stamps from a plain brick, {DENSE} objects",
            measured=f"{DENSE / seconds['plain']:.0f}/s, {share['plain']:.0%} of a read of the brick",
            note=f"{stamp}; warm",
        ),
        Figure(
            name=f"stamps from an fpack brick, {DENSE} objects",
            measured=f"{DENSE / seconds['packed']:.0f}/s, {share['packed']:.0%} of decoding the brick",
            at_least="50% of decoding",
            note="limit: astropy unpacks every plane whole; warm",
        ),
        Figure(
            name=f"stamps from an fpack brick, {SPARSE} objects",
            measured=f"{SPARSE / seconds['sparse']:.0f}/s",
            note=f"{seconds['sparse'] / seconds['decode']:.0%} of the time that decoding all takes",
        ),
        Figure(
            name="spectra from a DESI coadd file",
            measured=f"{TARGETS / seconds['spectra']:.0f}/s, {share['spectra']:.0%} of a read of it",
            note="7781 samples from three arms, averaged by ivar; warm",
        ),
    ]
