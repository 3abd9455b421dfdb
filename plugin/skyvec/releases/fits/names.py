"""How an imaging survey names its files, and which of them make up one tile of the sky."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from skyvec.releases.fits.files import fits_files
from skyvec_schemas.errors import ConfigurationError, ContractError
from skyvec_schemas.survey_columns import ImageColumn


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFiles:
    """How the images of a survey are named.

    A pattern is the end of a path, with ``{tile}``, ``{band}`` and ``*`` (anything but a slash).
    ``.fits`` at its end also stands for ``.fits.fz`` and ``.fits.gz``, and ``[NAME]`` after it
    chooses the HDU of that EXTNAME (or EXTTYPE), else the first image is taken.
    """

    image: str
    """Flux: one file for each band of a tile."""
    bands: Mapping[str, str]
    """Band of the survey -> its text in file names."""
    invvar: str | None = None
    """Inverse variance: where it is not positive, a pixel was not observed."""
    variance: str | None = None
    """Variance: where it is zero or not finite, a pixel was not observed."""
    mask: str | None = None
    """Bit mask; without ``{band}`` it is one for all bands."""
    bad_bits: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """Mask planes whose pixels are bad: name -> bit; ``MP_<name>`` in a header overrules the bit."""
    skip_incomplete: bool = False
    """Leave out tiles that lack a file instead of refusing the folder; objects there are flagged
    ``image_missing``."""

    @property
    def patterns(self) -> Mapping[str, str]:
        """Kind of plane -> pattern, of those declared."""
        kinds = {"image": self.image, "invvar": self.invvar, "variance": self.variance,
                 "mask": self.mask}  # fmt: skip
        return {kind: pattern for kind, pattern in kinds.items() if pattern}


LEGACY_BAD_BITS: Mapping[str, int] = MappingProxyType(
    {
        "BRIGHT": 1, "SATUR_G": 2, "SATUR_R": 3, "SATUR_Z": 4, "ALLMASK_G": 5, "ALLMASK_R": 6,
        "ALLMASK_Z": 7, "MEDIUM": 11, "SATUR_I": 14, "ALLMASK_I": 15,
    }
)  # fmt: skip
"""Bits of the Legacy Surveys DR10 maskbits that mark bad pixels.

The Multimodal Universe also masks NPRIMARY (bit 0), pixels that belong to the neighbouring brick;
they are observed as well as any, so they count as good here.
"""

IMAGE_FILES: Mapping[str, ImageFiles] = MappingProxyType(
    {
        "legacysurvey": ImageFiles(
            image="legacysurvey-{tile}-image-{band}.fits",
            invvar="legacysurvey-{tile}-invvar-{band}.fits",
            mask="legacysurvey-{tile}-maskbits.fits",
            bands=MappingProxyType({f"des-{band}": band for band in "griz"}),
            bad_bits=LEGACY_BAD_BITS,
        ),
        "hsc": ImageFiles(
            image="calexp-{band}-{tile}.fits[IMAGE]",
            variance="calexp-{band}-{tile}.fits[VARIANCE]",
            mask="calexp-{band}-{tile}.fits[MASK]",
            bands=MappingProxyType({f"hsc-{band}": f"HSC-{band.upper()}" for band in "grizy"}),
            bad_bits=MappingProxyType({"BAD": 0, "SAT": 1, "NO_DATA": 8}),
        ),
    }
)
"""How surveys name their images: bricks of the Legacy Surveys, patches of HSC-SSP."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tile:
    """The files of one tile, in the survey's band order."""

    name: str
    planes: Mapping[str, tuple[Path, ...]]
    """Kind (``image``, ``invvar``, ``variance``, ``mask``) -> one path for each band."""

    @property
    def reference(self) -> Path:
        """Image of the first band, whose grid the others must share."""
        return self.planes["image"][0]


def find_tiles(root: str | Path, image: ImageColumn, files: ImageFiles) -> tuple[Tile, ...]:
    """Tiles under a folder, by name, each with all files that are declared.

    Raises
    ------
    ContractError
        If there is none, a file is missing, or a file is there twice.
    """
    if lacking := [band for band in image.bands if band not in files.bands]:
        raise ConfigurationError(
            f"ImageFiles.bands does not say how {', '.join(lacking)} is spelt in file names",
            where=str(root),
            remedy="Add it there",
        )
    texts = {files.bands[band]: band for band in image.bands}
    finders = {kind: _finder(pattern, texts) for kind, pattern in files.patterns.items()}
    found: dict[tuple[str, str, str | None], Path] = {}
    for name, path in fits_files(root):
        for kind, finder in finders.items():
            if (match := finder.fullmatch(name)) is None:
                continue
            parts = match.groupdict()
            key = (kind, parts["tile"], texts.get(parts.get("band") or ""))
            if key in found:
                raise ContractError(
                    f"the same {kind} as {path}", where=str(found[key]), remedy="Keep one of them"
                )
            found[key] = path
    names = sorted({tile for kind, tile, _ in found if kind == "image"})
    if not names:
        raise ContractError(
            f"no file is named like {files.image}",
            where=str(root),
            remedy="Declare how the images are named: ImageFiles(image=...)",
        )
    tiles = [_assemble(tile, found, image, files, root=root) for tile in names]
    return tuple(tile for tile in tiles if tile is not None)


def _assemble(
    name: str,
    found: Mapping[tuple[str, str, str | None], Path],
    image: ImageColumn,
    files: ImageFiles,
    *,
    root: str | Path,
) -> Tile | None:
    planes = {}
    for kind, pattern in files.patterns.items():
        per_band = "{band}" in pattern
        wanted = {band: found.get((kind, name, band if per_band else None)) for band in image.bands}
        paths = tuple(path for path in wanted.values() if path is not None)
        if len(paths) < len(wanted):
            if files.skip_incomplete:
                return None
            absent = [band for band, path in wanted.items() if path is None]
            file = pattern.split("[")[0].replace("{tile}", name)
            file = file.replace("{band}", files.bands[absent[0]])
            raise ContractError(
                f"no {file} ({kind}, {', '.join(absent)}) in it or below",
                where=str(root),
                remedy="Fetch it, declare the images without it, or set skip_incomplete",
            )
        planes[kind] = paths
    return Tile(name=name, planes=planes)


def hdu_name(pattern: str) -> str | None:
    """What a pattern says in brackets."""
    return pattern[pattern.index("[") + 1 : -1] if pattern.endswith("]") else None


def _finder(pattern: str, bands: Mapping[str, str]) -> re.Pattern[str]:
    """A pattern of file names as a regular expression for relative paths."""
    path = pattern[: pattern.index("[")] if pattern.endswith("]") else pattern
    path = re.sub(r"\.fits(\.fz|\.gz)?$", "", path)
    if "{tile}" not in path:
        raise ConfigurationError(
            f"the pattern {pattern!r} has no {{tile}}",
            where="ImageFiles",
            remedy="Put it where the name of a brick or patch stands",
        )
    spelt = "|".join(sorted(map(re.escape, bands), key=len, reverse=True))
    first = {"{tile}": r"(?P<tile>[^/]+?)", "{band}": f"(?P<band>{spelt})"}
    text = ""
    for part in re.split(r"(\{tile\}|\{band\}|\*)", path):
        if part == "*":
            text += "[^/]*"
        elif part in first:
            named = f"(?P<{part[1:-1]}>"
            text += f"(?P={part[1:-1]})" if named in text else first[part]
        else:
            text += re.escape(part)
    return re.compile(rf"(?:.*/)?{text}\.fits(?:\.fz|\.gz)?")
