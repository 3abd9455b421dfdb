"""A folder of files -> an immutable release of a store; or the same release less some objects."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import h5py
import pyarrow.compute as pc

from skyvec.releases.versions.files import discover, main_catalog, pixel_of
from skyvec.releases.versions.manifest import (
    Release,
    check_name,
    flush,
    publish,
    sha256_of,
)
from skyvec.releases.versions.tables import Found, tombstones, write_release
from skyvec.surveys import named_survey
from skyvec_schemas.errors import ConfigurationError, ContractError, OutputExistsError
from skyvec_schemas.release_manifest import ROW_DIGEST, Layout, ReleaseFile
from skyvec_schemas.survey_columns import Survey

LINKED = "data"
"""Folder of hard links inside a release that was made with ``link``."""


def make_release(
    data: str | Path,
    *,
    store: str | Path,
    name: str,
    survey: str | Survey,
    upstream: str = "",
    parent: str | None = None,
    withdrawn: Mapping[str, str] | None = None,
    readmit: Sequence[str] = (),
    link: bool = False,
    carry: bool = False,
    allow_duplicates: bool = False,
    current: bool = True,
    progress: Callable[[int], None] | None = None,
) -> Release:
    """Digest a folder of Multimodal Universe files or a HATS collection into a release.

    The data are not copied and not changed. The release appears whole or not at all.

    Parameters
    ----------
    data
        Folder with ``healpix=P/*.hdf5``, or a HATS collection or catalog.
    store
        Folder of releases; made if absent.
    parent
        Release of the store that this one follows: its equal files are not digested by row again,
        and its tombstones hold on.
    withdrawn
        Id -> reason of objects that are not part of the release, whether or not the files still
        hold them.
    readmit
        Ids whose tombstones end.
    link
        Make hard links to all files inside the release, so that ``data`` may be removed.
    carry
        The folder holds changed pixels only; all others are the parent's.
    allow_duplicates
        Count ids that occur twice instead of refusing them.
    current
        Make it the current release of the store.
    progress
        Called with 1 after each file.

    Raises
    ------
    OutputExistsError
        If the store has a release of that name; a release is never rewritten.
    DuplicateIdsError
        Names ids that occur more than once, and where.
    ContractError
        If a file cannot be read; it is named.
    """
    store, data, survey = Path(store), Path(data), named_survey(survey)
    _refuse_existing(store / check_name(name))
    before = Release.open(store / parent) if parent else None
    _check_parent(before, survey, carry=carry)
    layout, found_paths = discover(data)
    _refuse_other_survey(data, layout, found_paths, survey)
    found = list(_digested(data, layout, found_paths, before, progress))
    if carry and before:
        found += list(_carried(before, found))
    if not any(one.file.is_shard for one in found):
        raise ConfigurationError(
            "no file with objects", where=str(data), remedy="Give the folder above the pixels'"
        )
    with _draft(store, name) as draft:
        if link:
            found = [_linked(draft / LINKED, one) for one in found]
        write_release(
            draft,
            found,
            survey=survey,
            before=before,
            tombstones=tombstones(before, name, withdrawn or {}, readmit),
            allow_duplicates=allow_duplicates,
            facts={
                "release": name,
                "upstream": upstream,
                "layout": layout,
                "root": LINKED
                if link
                else os.path.relpath(data.resolve(), (store / name).resolve()),
            },
        )
    return _published(store / name, current=current)


def withdraw(
    release: Release, *, name: str, withdrawn: Mapping[str, str], current: bool = True
) -> Release:
    """A new release with the same files, less some objects.

    Raises
    ------
    ConfigurationError
        If an id is not part of the release.
    """
    store = release.folder.parent
    _refuse_existing(store / check_name(name))
    added = tombstones(release, name, withdrawn, ())
    new = pc.equal(added.column("since"), name)
    wanted = added.filter(new).column("object_id").combine_chunks()
    absent = wanted.filter(
        pc.invert(pc.is_in(wanted, release.objects(["object_id"]).column(0).combine_chunks()))
    )
    if len(absent):
        raise ConfigurationError(
            f"{len(absent)} of the ids are not part of it, e.g. {absent[0].as_py()!r}",
            where=str(release.folder),
            remedy="Check the ids; `skyvec release show` counts the objects",
        )
    found = [
        Found(
            file=replace(file, reused_from=file.reused_from or release.name),
            source=release.path_of(file),
            twin=place,
        )
        for place, file in enumerate(release.files)
    ]
    with _draft(store, name) as draft:
        write_release(
            draft,
            found,
            survey=named_survey(release.manifest.survey),
            before=release,
            tombstones=added,
            allow_duplicates=True,
            facts={
                "release": name,
                "upstream": release.manifest.upstream,
                "layout": release.manifest.layout,
                "root": os.path.relpath(release.root.resolve(), (store / name).resolve()),
            },
        )
    return _published(store / name, current=current)


def _refuse_other_survey(data: Path, layout: Layout, found: list[str], survey: Survey) -> None:
    """A release is never written again, so what it is said to be is checked first."""
    if layout == "hats" or not found:
        return
    roots = {str(Path(path).parent.parent) for path in found}
    if len(roots) > 1:
        raise ConfigurationError(
            f"holds several releases: {', '.join(sorted(roots))}",
            where=str(data),
            remedy="Give the folder of one of them",
        )
    kinds = {
        "image_array": survey.image,
        "image_flux": survey.image,
        "spectrum_flux": survey.spectrum,
        "coeff": survey.coefficients,
    }
    try:
        with h5py.File(data / found[0]) as file:
            names = set(file)
            bands = file["image_band"][0].astype(str).tolist() if "image_band" in names else []
    except (OSError, KeyError, IndexError, AttributeError):
        return  # what is wrong with it is said where it is digested
    known = (
        {name.lower() for pair in survey.image.bands.items() for name in pair}
        if survey.image
        else set()
    )
    foreign = bool(bands and known and known.isdisjoint(band.lower() for band in bands))
    others = [name for name, column in kinds.items() if name in names and column is None]
    if foreign or others:
        evidence = f"bands {', '.join(bands)}" if foreign else ", ".join(others)
        raise ConfigurationError(
            f"not a file of {survey.name}: it has {evidence}",
            where=str(data / found[0]),
            remedy="Choose the right --survey",
        )


def _published(place: Path, *, current: bool) -> Release:
    release = Release.open(place)
    if current:
        publish(release)
    return release


def _digested(
    data: Path,
    layout: Layout,
    found: list[str],
    before: Release | None,
    progress: Callable[[int], None] | None,
) -> Iterator[Found]:
    twins = {f.sha256: p for p, f in enumerate(before.files) if f.is_shard} if before else {}
    main = (main_catalog(data) if layout == "hats" else data).absolute()
    for path in found:
        source = data / path
        inside = source.absolute().is_relative_to(main)
        pixel = pixel_of(path, layout) if inside else None
        file = ReleaseFile(path=path, sha256=sha256_of(source), bytes=source.stat().st_size)
        twin = None
        if pixel:
            file = replace(file, order=pixel[0], npix=pixel[1], rows=0)
            twin = twins.pop(file.sha256, None)  # a second copy of a file is read like a new one
        if before and twin is not None:
            file = replace(file, reused_from=before.files[twin].reused_from or before.name)
        yield Found(file=file, source=source, twin=twin)
        if progress:
            progress(1)


def _carried(before: Release, found: list[Found]) -> Iterator[Found]:
    """The parent's shards of pixels that the folder does not hold."""
    here = {(one.file.order, one.file.npix) for one in found if one.file.is_shard}
    for place, file in enumerate(before.files):
        if file.is_shard and (file.order, file.npix) not in here:
            carried = replace(
                file,
                held_by=file.held_by or before.name,
                reused_from=file.reused_from or before.name,
            )
            yield Found(file=carried, source=before.path_of(file), twin=place)


def _linked(root: Path, one: Found) -> Found:
    place = root / one.file.path
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(one.source.resolve(), place)
    except FileExistsError as problem:
        raise ContractError(
            "the parent has another file of this name for another pixel",
            where=one.file.path,
            remedy="Make the release without linking",
        ) from problem
    except OSError as problem:
        what = "is on another disk" if problem.errno == errno.EXDEV else problem.strerror
        raise ConfigurationError(
            f"cannot be linked ({what})",
            where=str(one.source),
            remedy="Put the store on the disk of the data, or make the release without linking",
        ) from problem
    return replace(one, file=replace(one.file, held_by=None), source=place)


def _refuse_existing(place: Path) -> None:
    if place.exists():
        raise OutputExistsError(
            "a release is never rewritten",
            where=str(place),
            remedy="Choose another name; remove the folder only if nothing was made from it",
        )


def _check_parent(before: Release | None, survey: Survey, *, carry: bool) -> None:
    if before is None:
        if carry:
            raise ConfigurationError(
                "there is no parent to carry pixels from", where="carry", remedy="Name the parent"
            )
        return
    if before.manifest.survey != survey.name:
        raise ConfigurationError(
            f"is a release of {before.manifest.survey}, not of {survey.name}",
            where=str(before.folder),
            remedy="Give a parent of the same survey",
        )
    if before.manifest.row_digest != ROW_DIGEST:
        raise ConfigurationError(
            f"digests rows by {before.manifest.row_digest}, this skyvec by {ROW_DIGEST}",
            where=str(before.folder),
            remedy="Make the parent again under another name, or make a release without parent",
        )


@contextmanager
def _draft(store: Path, name: str) -> Iterator[Path]:
    """A hidden folder that becomes the release only if everything went well."""
    draft = store / f".{name}.{uuid.uuid4().hex}"
    try:
        draft.mkdir(parents=True)
    except OSError as problem:
        raise ConfigurationError(
            f"cannot be written ({problem.strerror})",
            where=str(store),
            remedy="Choose a folder on a disk that you may write to",
        ) from problem
    try:
        yield draft
        for path in draft.iterdir():
            flush(path)
        flush(draft)
        try:
            draft.rename(store / name)
        except OSError:
            _refuse_existing(store / name)
            raise
        flush(store)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
