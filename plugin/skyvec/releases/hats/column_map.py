"""Which column, or field of a struct, of a catalog holds what a survey declares.

Logical names are those of the `Survey`: its id, position, scalars, labels and coefficients by
column name, images and spectra also by part (``image.flux``, ``spectrum.lambda``). A target is a
column or a dotted path into structs or lists of structs (``photometry.phot_g_mean_flux``).
Defaults find the Multimodal Universe's HATS port as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import pyarrow as pa

from skyvec.releases.hats.arrow_types import depth, fields_of, innermost, is_numeric, type_at
from skyvec_schemas.errors import ConfigurationError, ContractError, MissingColumnError
from skyvec_schemas.survey_columns import ImageColumn, Survey

IMAGE_PARTS = {"flux": True, "band": False, "mask": False}
"""Parts of an image that an embedding reads, and whether one cannot do without."""
SPECTRUM_PARTS = {"flux": True, "ivar": True, "lambda": True, "mask": False}
"""Parts of a spectrum that an embedding reads, and whether one cannot do without."""

_DEFAULTS: Mapping[str, tuple[str, ...]] = {
    "source_id": ("object_id",),
    "object_id": ("source_id", "TARGETID", "targetid"),
    "ra": ("RA",),
    "dec": ("DEC",),
    "coeff": ("spectral_coefficients.coeff",),
    **{f"phot_{band}_mean_flux": (f"photometry.phot_{band}_mean_flux",) for band in ("g", "bp", "rp")},
    **{name: (f"astrometry.{name}",) for name in ("parallax", "pmra", "pmdec")},
}  # fmt: skip
"""Where else a column lies if not under its own name (Gaia as the port nests it)."""
_PART_NAMES = {"flux": ("flux", "array"), "lambda": ("lambda", "wavelength")}
"""Names of a part, beside its own; the HDF5 layout calls the flux of an image ``image_array``."""
_SHAPED = re.compile(r"^(?P<path>.+)\[(?P<shape>\d+(?:\s*,\s*\d+)*)\]$")


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """Where one logical name lies."""

    path: tuple[str, ...] = ()
    """Column, then fields of structs."""
    shape: tuple[int, ...] | None = None
    """Declared by ``column[4,160,160]`` for lists that are stored flat."""
    constant: tuple[str, ...] | None = None
    """Declared by ``=des-g,des-r``: the same names for every row."""

    @property
    def text(self) -> str:
        """Dotted path."""
        return ".".join(self.path)


@dataclass(frozen=True, kw_only=True, slots=True)
class ColumnMap:
    """The targets of everything that a survey declares and a catalog has."""

    survey: Survey
    targets: Mapping[str, Target]
    """By logical name; optional ones that are absent are left out."""

    @classmethod
    def of(
        cls,
        survey: Survey,
        schema: pa.Schema,
        overrides: Mapping[str, str] | None = None,
        *,
        where: str,
        position: tuple[str, str] | None = None,
    ) -> ColumnMap:
        """Find every column of a survey in a schema.

        Parameters
        ----------
        overrides
            Logical name -> target, before all defaults: ``{"image.flux": "cutout"}``.
        where
            Names the catalog in errors.
        position
            Columns that the catalog itself declares as right ascension and declination.

        Raises
        ------
        ConfigurationError
            For logical names that the survey does not have.
        MissingColumnError
            For everything that is nowhere, with its nearest neighbours.
        ContractError
            For columns whose type cannot hold what they should.
        """
        return _Search(survey, schema, dict(overrides or {}), where, position).found()

    @property
    def keys(self) -> tuple[str, ...]:
        """Logical names of id, position and motion."""
        survey = self.survey
        names = (survey.id_column, survey.ra_column, survey.dec_column, *self.motion)
        return tuple(name for name in names if name in self.targets)

    @property
    def motion(self) -> tuple[str, ...]:
        """Logical names of the proper motion, if both are there."""
        names = (self.survey.pm_ra_column, self.survey.pm_dec_column)
        there = tuple(name for name in names if name and name in self.targets)
        return there if len(there) == 2 else ()

    @property
    def labels(self) -> tuple[str, ...]:
        """Logical names of labels that are there."""
        return tuple(name for name in self.survey.labels if name in self.targets)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Logical names of everything that a vector is made of."""
        apart = {*self.keys, *self.survey.labels} - {scalar.name for scalar in self.survey.scalars}
        return tuple(name for name in self.targets if name not in apart)

    def paths(self, names: Iterable[str]) -> list[str]:
        """Dotted paths to read for these logical names."""
        chosen = (self.targets[name] for name in names)
        return list(dict.fromkeys(target.text for target in chosen if target.path))


class _Search:
    """One search of a schema; collects everything that is absent before it complains."""

    def __init__(
        self,
        survey: Survey,
        schema: pa.Schema,
        overrides: dict[str, str],
        where: str,
        position: tuple[str, str] | None,
    ) -> None:
        self.survey, self.schema, self.where = survey, schema, where
        self.targets: dict[str, Target] = {}
        self.absent: list[str] = []
        self.position = position or (survey.ra_column, survey.dec_column)
        self.overrides = {
            survey.id_column if name == "object_id" else name: target
            for name, target in overrides.items()
        }

    def found(self) -> ColumnMap:
        self._refuse_unknown()
        survey = self.survey
        self._one(survey.id_column)
        for name, declared in zip(
            (survey.ra_column, survey.dec_column), self.position, strict=True
        ):
            self._one(name, first=(declared,))
        for motion in (survey.pm_ra_column, survey.pm_dec_column):
            if motion:
                self._one(motion, needed=False)
        if survey.image:
            self._parts(survey.image.name, IMAGE_PARTS, "struct<band, flux, mask, ...>")
        if survey.spectrum:
            self._parts(survey.spectrum.name, SPECTRUM_PARTS, "struct<flux, ivar, mask, lambda>")
        if survey.coefficients:
            self._one(survey.coefficients.name)
        for scalar in survey.scalars:
            self._one(scalar.name)
        for label in survey.labels:
            self._one(label, needed=False)
        if self.absent:
            raise MissingColumnError(
                "no column " + ", ".join(with_neighbour(c, self._known()) for c in self.absent),
                where=self.where,
                remedy=_column_remedy(self.absent, survey),
            )
        self._check_types()
        return ColumnMap(survey=survey, targets=self.targets)

    def _refuse_unknown(self) -> None:
        names = logical_names(self.survey)
        if unknown := [name for name in self.overrides if name not in names]:
            raise ConfigurationError(
                f"survey {self.survey.name} has no "
                + ", ".join(with_neighbour(name, list(names)) for name in unknown),
                where=f"columns of {self.where}",
                remedy=f"Map one of: {', '.join(names)}",
            )

    def _one(self, name: str, *, needed: bool = True, first: tuple[str, ...] = ()) -> None:
        """Find one column under its override, else under its default names."""
        candidates = (*first, name, *_DEFAULTS.get(name, ()))
        if name in self.overrides:
            candidates, needed = (self.overrides[name],), True
        for candidate in candidates:
            if target := self._target(candidate):
                self.targets[name] = target
                return
        if needed:
            self.absent.append(self.overrides.get(name, name))

    def _parts(self, name: str, parts: Mapping[str, bool], expected: str) -> None:
        """Find the parts of an image or spectrum: declared, beside the declared flux, or usual."""
        whole = self.overrides.get(name, name)
        flux = self.overrides.get(f"{name}.flux")
        if flux:
            # Mask and bands of another image would be wrong, so none is taken from elsewhere.
            places = [flux.rpartition(".")[0] + "."] if "." in flux else []
        else:
            places = [f"{whole}.", f"{whole}_"]
        kind = self._kind(whole)
        if not flux and kind is not None and not fields_of(kind) and depth(kind):
            self.targets[f"{name}.flux"] = Target(path=self._path(whole) or ())
        for part, needed in parts.items():
            logical = f"{name}.{part}"
            if logical in self.overrides:
                self._one(logical)
            elif logical not in self.targets:
                usual = _PART_NAMES.get(part, (part,))
                targets = (self._target(place + each) for place in places for each in usual)
                target = next((each for each in targets if each), None)
                if target:
                    self.targets[logical] = target
                elif needed and kind is not None:
                    raise ContractError(
                        f"column {whole!r} is {str(kind)[:60]}, not {expected} (no {part!r})",
                        where=self.where,
                        remedy="Import it in the Multimodal Universe layout (docs/formats.md), or "
                        f"say where it lies: map {logical!r} to a column",
                    )
                elif needed:
                    self.absent.append(whole if whole not in self.absent else logical)
        self.absent = list(dict.fromkeys(self._shortened(whole, parts)))

    def _shortened(self, whole: str, parts: Mapping[str, bool]) -> list[str]:
        """A column that is absent altogether is named once, without its parts."""
        inner = {f"{whole}.{part}" for part in parts}
        return [name for name in self.absent if whole not in self.absent or name not in inner]

    def _target(self, text: str) -> Target | None:
        if text.startswith("="):
            return Target(constant=tuple(part.strip() for part in text[1:].split(",")))
        shaped = _SHAPED.match(text)
        path = self._path(shaped["path"] if shaped else text)
        if path is None:
            return None
        shape = tuple(map(int, shaped["shape"].split(","))) if shaped else None
        return Target(path=path, shape=shape)

    def _path(self, text: str) -> tuple[str, ...] | None:
        """Column and fields; a column whose own name has dots comes before any struct."""
        pieces = text.split(".")
        for cut in range(len(pieces), 0, -1):
            column, fields = ".".join(pieces[:cut]), pieces[cut:]
            if column in self.schema.names:
                kind = self.schema.field(column).type
                for field in fields:
                    kind = fields_of(kind).get(field)
                    if kind is None:
                        return None
                return (column, *fields)
        return None

    def _kind(self, text: str) -> pa.DataType | None:
        path = self._path(text)
        return None if path is None else type_at(self.schema, path)

    def _known(self) -> list[str]:
        """Everything that could be meant, columns first."""
        inner = [
            f"{field.name}.{name}" for field in self.schema for name in fields_of(field.type)
        ]  # fmt: skip
        return sorted(self.schema.names) + inner

    def _check_types(self) -> None:
        survey = self.survey
        numbers = {survey.ra_column, survey.dec_column, *(s.name for s in survey.scalars)}
        numbers |= {*survey.labels, survey.pm_ra_column or "", survey.pm_dec_column or ""}
        arrays = {f"{c.name}.flux" for c in (survey.image, survey.spectrum) if c}
        arrays |= {survey.coefficients.name} if survey.coefficients else set()
        for name, target in self.targets.items():
            if not target.path:
                continue
            kind = type_at(self.schema, target.path)
            if name == survey.id_column and pa.types.is_floating(kind):
                raise ContractError(
                    f"ids are {kind}, which cannot hold 64-bit ids exactly",
                    where=f"{self.where}, column {target.text!r}",
                    remedy="Import the ids as integers or text, or map another column to them",
                )
            if name in numbers and not is_numeric(kind):
                self._refuse(target, kind, "a number")
            if name in arrays and not (0 < depth(kind) <= 3 and is_numeric(innermost(kind))):
                self._refuse(target, kind, "a list or tensor of numbers with at most 3 axes")
            if name.endswith(".band") and not (
                depth(kind) == 1 and pa.types.is_string(innermost(kind))
            ):
                self._refuse(target, kind, "a list of band names")

    def _refuse(self, target: Target, kind: pa.DataType, wanted: str) -> None:
        raise ContractError(
            f"column {target.text!r} is {str(kind)[:60]}, not {wanted}",
            where=self.where,
            remedy="Map the name to another column",
        )


def logical_names(survey: Survey) -> tuple[str, ...]:
    """Everything of a survey that can be mapped."""
    whole = {c.name: parts for c, parts in ((survey.image, IMAGE_PARTS),
             (survey.spectrum, SPECTRUM_PARTS)) if c}  # fmt: skip
    names = [survey.id_column, survey.ra_column, survey.dec_column]
    names += [name for name in (survey.pm_ra_column, survey.pm_dec_column) if name]
    for name, parts in whole.items():
        names += [name, *(f"{name}.{part}" for part in parts)]
    names += [survey.coefficients.name] if survey.coefficients else []
    names += [scalar.name for scalar in survey.scalars]
    return tuple(dict.fromkeys([*names, *survey.labels]))


def band_order(found: Sequence[str], image: ImageColumn) -> list[int] | None:
    """For each band of the survey its place in ``found``; None where the sets differ.

    Both spellings count, the file's (``des-g``) and the codec's (``DES-G``).
    """
    places = {str(name).lower(): place for place, name in enumerate(found)}
    wanted = [ours.lower() if ours.lower() in places else codec.lower()
              for ours, codec in image.bands.items()]  # fmt: skip
    if len(found) != len(wanted) or any(name not in places for name in wanted):
        return None
    return [places[name] for name in wanted]


def with_neighbour(column: str, known: list[str]) -> str:
    """The name and, if something is called nearly so, that too."""
    near = get_close_matches(column, known, n=1)
    return f"{column!r} (nearest: {near[0]!r})" if near else f"{column!r}"


def _column_remedy(absent: list[str], survey: Survey) -> str:
    remedies = []
    if survey.id_column in absent:
        remedies.append("name the id with --id-column")
    if survey.image and survey.image.name in absent:
        remedies.append("name the cutouts with --image-column")
    scalars = [scalar.name for scalar in survey.scalars if scalar.name in absent]
    if scalars:
        remedies.append(f"embed without them by --without {','.join(scalars)}")
        remedies.append("take ids and positions alone by --survey objects and add a --source")
    text = ", or ".join(remedies) or "map the names to columns that are there"
    return text[0].upper() + text[1:]
