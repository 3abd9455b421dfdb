"""Where pixels, spectra and measurements of a catalog's objects lie, as a user declares it.

On the command line ``--source hsc=/data/hsc`` (a known survey and its folder), or for more a TOML
file with one table for each source::

    [hsc]
    path = "/data/hsc"          # folder or URI
    survey = "hsc"              # the table's name by default
    format = "auto"             # mmu-hdf5, hats, release, working-copy, fits-...
    join = "auto"               # id or position
    radius = 1.0                # arcsec
    epoch = 2015.5              # Julian year of the catalog's positions, for proper motions
    without = ["a_y"]           # columns that are not to be inputs
    columns = { "image.flux" = "cutout" }
    files = { image = "{tile}-{band}.fits", bands = { hsc-g = "g" } }   # of FITS images
"""

from __future__ import annotations

import json
import tomllib
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast, get_args

from skyvec.releases.hats.catalog import HatsRelease
from skyvec.releases.joining.catalog_keys import CatalogKeys, read_catalog_keys
from skyvec.releases.joining.join import JoinRule, decide_rule, margin_needed
from skyvec.releases.source import AnySource, PositionSource, SourceObjects
from skyvec.surveys import leave_out, named_survey
from skyvec_core.codecs.image import ImageCodec
from skyvec_schemas.errors import ConfigurationError, ContractError
from skyvec_schemas.release_manifest import CURRENT, MANIFEST
from skyvec_schemas.survey_columns import SURVEYS, Survey

Format = Literal["mmu-hdf5", "hats", "release", "working-copy", "fits-images", "fits-spectra"]
FORMATS: tuple[Format, ...] = get_args(Format)
SAMPLED_PIXELS = 5
"""Pixels with objects of a source that settle how it is joined."""
_KEYS = ("path", "survey", "format", "join", "radius", "epoch", "without", "columns", "files")


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceSpec:
    """One source; travels to the workers, which open it."""

    name: str
    """Names its columns in the output."""
    path: str
    """Folder or URI."""
    survey: Survey
    format: Format
    rule: JoinRule
    columns: tuple[tuple[str, str], ...] = ()
    """Logical name -> column in the source, where they differ from the survey's."""
    files: str = ""
    """How FITS images are named, as the JSON of the keys of `ImageFiles`; empty for the usual."""

    run: str = ""
    """Set for one run: within it a process opens the source once."""

    def open(self) -> AnySource:
        """The source, ready to be asked."""
        key = (self.path, self.format, self.describe(), self.run)
        if self.run and key in _OPENED:
            return _OPENED[key]
        source = _OPENERS[self.format](self)
        if self.run:
            if len(_OPENED) >= _MOST_OPENED:
                _OPENED.pop(next(iter(_OPENED)))
            _OPENED[key] = source
        return source

    @property
    def inputs(self) -> tuple[str, ...]:
        """What it feeds, as ``column=token_key``."""
        return tuple(f"{column}={key}" for column, key in self.survey.inputs)

    def describe(self) -> str:
        """All that decides what is read and joined, in one line."""
        rule = self.rule
        epoch = "" if rule.epoch is None else f" at epoch {rule.epoch:g}"
        mapped = "".join(f", {logical} from {column}" for logical, column in self.columns)
        named = f", files {self.files}" if self.files else ""
        return (
            f"{self.name} ({self.survey.name}): {', '.join(self.inputs)}; joined by {rule.by} "
            f"within {rule.radius_arcsec:g} arcsec{epoch}{mapped}{named}"
        )


def declared_sources(
    pairs: Iterable[str] = (), file: str | Path | None = None, *, radius: float = 1.0
) -> tuple[SourceSpec, ...]:
    """Sources from ``name=path`` pairs and a TOML file.

    Parameters
    ----------
    radius
        Arcseconds within which positions match, where the file does not say otherwise.

    Raises
    ------
    ConfigurationError
        For an unknown survey, key or format, a name used twice, or a path that is not there.
    """
    tables: dict[str, Mapping[str, object]] = {}
    for pair in pairs:
        name, separator, path = pair.partition("=")
        if not separator or not path:
            raise ConfigurationError(
                "not NAME=PATH",
                where=f"--source {pair}",
                remedy="Write e.g. --source hsc=/data/hsc",
            )
        _refuse_twice(name, tables)
        tables[name] = {"path": path}
    if file is not None:
        for name, table in _read_toml(Path(file)).items():
            _refuse_twice(name, tables)
            tables[name] = table
    return tuple(_spec(name, table, radius) for name, table in tables.items())


def settled(spec: SourceSpec, release: HatsRelease, survey: Survey) -> SourceSpec:
    """The source with its join decided once for all pixels, where it was left to us.

    The epoch is the catalog's if its survey has one. ``auto`` looks at the ids and positions of a few pixels in which both have objects.
    """
    spec = replace(spec, run=uuid.uuid4().hex)
    source = spec.open()
    spec = replace(spec, survey=source.survey)  # a working copy may hold less
    if spec.rule.epoch is None and survey.epoch is not None:
        spec = replace(spec, rule=replace(spec.rule, epoch=survey.epoch))
    if spec.rule.by != "auto":
        return spec
    if isinstance(source, PositionSource):
        return replace(spec, rule=replace(spec.rule, by="position"))
    margin = reach(spec, release, survey)
    sample: list[tuple[CatalogKeys, SourceObjects]] = []
    for pixel in release.pixels:
        try:
            objects = source.objects(pixel, margin_arcsec=margin)
            if len(objects):
                keys = read_catalog_keys(release, pixel, survey, margin_arcsec=margin)
                sample.append((keys, objects))
        except ContractError:  # this pixel will say so itself
            continue
        if len(sample) == SAMPLED_PIXELS:
            break
    decision = decide_rule(sample, spec.rule, survey=spec.survey)
    return replace(spec, rule=replace(spec.rule, by=decision.by))


def reach(spec: SourceSpec, release: HatsRelease, survey: Survey) -> float:
    """Arcsec around a pixel that the join with this source looks at."""
    moves = survey.pm_ra_column in release.schema.names
    return margin_needed(spec.rule, spec.survey, catalog_moves=moves)


def _refuse_twice(name: str, tables: Mapping[str, object]) -> None:
    if name in tables:
        raise ConfigurationError(
            "declared twice", where=f"source {name}", remedy="Give every source its own name"
        )


def _read_toml(file: Path) -> Mapping[str, Mapping[str, object]]:
    try:
        tables = tomllib.loads(file.read_text())
    except FileNotFoundError as problem:
        raise ConfigurationError(
            "there is no such file", where=str(file), remedy="Give the TOML file of the sources"
        ) from problem
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise ConfigurationError(
            f"not TOML ({problem})", where=str(file), remedy="See docs/releases.md"
        ) from problem
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise ConfigurationError(
                f"{name!r} is not a table", where=str(file), remedy=f"Write [{name}] and its keys"
            )
    return tables


def _spec(name: str, table: Mapping[str, object], radius: float) -> SourceSpec:
    where = f"source {name}"
    if unknown := sorted(set(table) - set(_KEYS)):
        raise ConfigurationError(
            f"unknown key {', '.join(unknown)}", where=where, remedy=f"Known: {', '.join(_KEYS)}"
        )
    if not name.isidentifier():
        raise ConfigurationError(
            "not usable in a column name", where=where, remedy="Use letters, digits, _"
        )
    if "path" not in table:
        raise ConfigurationError("has no path", where=where, remedy='Write path = "/data/..."')
    survey = str(table.get("survey", name))
    if survey not in SURVEYS:
        raise ConfigurationError(
            f"no survey is called {survey!r}",
            where=where,
            remedy=f'Say which it is by survey = "..." in a sources file: {", ".join(SURVEYS)}',
        )
    by = str(table.get("join", "auto"))
    if by not in ("auto", "id", "position"):
        raise ConfigurationError(
            f"join is {by!r}", where=where, remedy="Choose from: auto, id, position"
        )
    arcsec = _number(where, "radius", table.get("radius", radius))
    if not 0 < arcsec <= 60:
        raise ConfigurationError(
            f"radius is {arcsec}",
            where=where,
            remedy="Choose arcseconds, more than 0 and at most 60",
        )
    epoch = table.get("epoch")
    columns = cast("Mapping[str, str]", table.get("columns", {}))
    spec = SourceSpec(
        name=name,
        path=_resolved(str(table["path"])),
        survey=leave_out(
            named_survey(survey), _texts(where, "without", table.get("without", [])), where=where
        ),
        format="hats",
        rule=JoinRule(
            by=cast("Literal['auto', 'id', 'position']", by),
            radius_arcsec=arcsec,
            epoch=None if epoch is None else _number(where, "epoch", epoch),
        ),
        columns=tuple((str(k), str(v)) for k, v in columns.items()),
        files=json.dumps(table["files"], sort_keys=True) if "files" in table else "",
    )
    chosen = str(table.get("format", "auto"))
    found = recognize(spec.path, where=where) if chosen == "auto" else chosen
    if found not in FORMATS:
        raise ConfigurationError(
            f"format is {found!r}", where=where, remedy=f"Choose from: auto, {', '.join(FORMATS)}"
        )
    for key, only in (("columns", "hats"), ("files", "fits-images")):
        if key in table and found != only:
            raise ConfigurationError(
                f"{key} is not heeded for {found}", where=where, remedy=f"It is for {only} only"
            )
    return replace(spec, format=found)


def _texts(where: str, key: str, value: object) -> list[str]:
    if not isinstance(value, list):
        raise ConfigurationError(
            f"{key} is {value!r}", where=where, remedy=f'Give a list: {key} = ["..."]'
        )
    return [str(each) for each in value]


def _number(where: str, key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigurationError(f"{key} is {value!r}", where=where, remedy="Give a number")
    return float(value)


def _resolved(path: str) -> str:
    """A local path made absolute, since workers may run elsewhere; a URI as it is."""
    return path if "://" in path else str(Path(path).expanduser().resolve())


def recognize(path: str, *, where: str) -> Format:
    """The format of a folder, from what lies in it.

    Raises
    ------
    ConfigurationError
        If there is nothing, or nothing that is known.
    """
    if "://" in path:
        return "hats"
    folder = Path(path)
    if not folder.exists():
        raise ConfigurationError(
            "there is no such folder", where=f"{where}, {path}", remedy="Mount or download it first"
        )
    from skyvec.releases.working_copy.source import is_working_copy

    marks: Mapping[Format, bool] = {
        "working-copy": is_working_copy(folder),
        "release": any((folder / name).is_file() for name in (MANIFEST, CURRENT)),
        "hats": any(folder.glob("*.properties")) or (folder / "properties").is_file(),
        "mmu-hdf5": any(folder.glob("healpix=*")) or any(folder.glob("*/healpix=*")),
    }
    surveys = {place.parent.name for place in folder.glob("*/healpix=*")}
    if len(surveys) > 1 and not any(folder.glob("healpix=*")):
        raise ConfigurationError(
            f"holds several releases: {', '.join(sorted(surveys))}",
            where=f"{where}, {path}",
            remedy="Give the folder of one of them",
        )
    for name, there in marks.items():
        if there:
            return name
    files = [place.name for place in folder.rglob("*.fits*")]
    if files:
        spectra = any(name.startswith(("coadd-", "spec-", "spectra-")) for name in files)
        return "fits-spectra" if spectra else "fits-images"
    raise ConfigurationError(
        "no format is recognized: neither *.properties (HATS), healpix=* (Multimodal Universe), a "
        "release, a working copy nor *.fits",
        where=f"{where}, {path}",
        remedy="Give the folder that holds them, or say format = ... in a sources file",
    )


def _open_mmu(spec: SourceSpec) -> AnySource:
    from skyvec.releases.mmu.release import MmuRelease

    return MmuRelease.open(spec.path, spec.survey)


def _open_hats(spec: SourceSpec) -> AnySource:
    from skyvec.releases.hats.source import HatsSource

    return HatsSource.open(spec.path, spec.survey, columns=dict(spec.columns) or None)


def _open_release(spec: SourceSpec) -> AnySource:
    from skyvec.releases.versions.source_folder import open_folder
    from skyvec.releases.versions.withdrawn import WithoutWithdrawn

    opened = open_folder(Path(spec.path), spec.survey, window=ImageCodec.size)
    return WithoutWithdrawn(source=opened.source, withdrawn=opened.withdrawn)


def _open_working_copy(spec: SourceSpec) -> AnySource:
    from skyvec.releases.working_copy.source import WorkingCopy

    copy = WorkingCopy.open(spec.path, spec.survey)
    if copy.survey.image and copy.window < ImageCodec.size:
        raise ConfigurationError(
            f"its cutouts have {copy.window} pixels, the codec's window has {ImageCodec.size}",
            where=spec.path,
            remedy="Make it again without --window",
        )
    return copy


def _open_fits_images(spec: SourceSpec) -> AnySource:
    from skyvec.releases.fits.images import FitsImages
    from skyvec.releases.fits.names import ImageFiles

    try:
        files = ImageFiles(**json.loads(spec.files)) if spec.files else None
    except TypeError as problem:
        raise ConfigurationError(
            f"files: {problem}", where=f"source {spec.name}", remedy="See docs/fits.md"
        ) from problem
    return FitsImages.open(spec.path, spec.survey, files=files)


def _open_fits_spectra(spec: SourceSpec) -> AnySource:
    from skyvec.releases.fits.spectra import FitsSpectra

    return FitsSpectra.open(spec.path, spec.survey)


_MOST_OPENED = 16
_OPENED: dict[tuple[str, ...], AnySource] = {}

_OPENERS: Mapping[str, Callable[[SourceSpec], AnySource]] = {
    "mmu-hdf5": _open_mmu,
    "hats": _open_hats,
    "release": _open_release,
    "working-copy": _open_working_copy,
    "fits-images": _open_fits_images,
    "fits-spectra": _open_fits_spectra,
}
