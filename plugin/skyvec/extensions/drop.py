"""Take an extension away: unregistered first, then hidden, then deleted.

Killed at any point, it leaves a working extension or a remainder that the same call removes. It
deletes nothing that skyvec did not make, and nothing outside the folder that holds the extension.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from hats.catalog import CollectionProperties, ExtensionProperties

from skyvec.extensions.quarantine_catalog import quarantine_folder
from skyvec.releases.hats.remote import first_line, is_remote, located
from skyvec.stage.output import HOME, JOB_FILE, RUN_FILE, Output
from skyvec_schemas.errors import ConfigurationError, InfrastructureError, OutputExistsError

_COLLECTION = "collection.properties"
_MARKS = (JOB_FILE, RUN_FILE)
"""Files that a run writes before its first pixel."""
_BY_HAND = "Look at it, and remove it by hand if it is not needed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Dropped:
    """What `drop` removes, or removed."""

    name: str
    home: Path
    """Folder that holds ``<name>/`` and ``<name>.properties``."""
    collections: tuple[Path, ...]
    """Collections that list the extension."""
    properties: Path | None
    """``<name>.properties``, if there is one."""
    folders: tuple[Path, ...]
    """What goes with all that it holds: data, quarantine, the remainder of an earlier `drop`."""
    kept: tuple[Path, ...]
    """Folders called after the extension that stay."""
    files: int
    bytes: int

    @property
    def data(self) -> Path:
        """Folder of the extension's catalog."""
        return self.home / self.name

    @property
    def hidden(self) -> Path:
        """Where it is while it is deleted."""
        return self.home / f".{self.name}.dropped"


def drop(catalog: str | Path, name: str, *, keep_files: bool = False) -> Dropped:
    """Unregister an extension and delete its files; also one that never was published.

    Parameters
    ----------
    catalog
        Folder of the collection, or the ``--out`` folder that holds the extension.
    name
        Of the extension, or the path of its ``.properties`` file if that lies elsewhere.
    keep_files
        Only unregister; a further ``skyvec embed`` publishes the same files again.

    Raises
    ------
    ConfigurationError
        If there is no such extension, or skyvec did not make it, or a link or a property leads
        elsewhere; nothing was touched.
    InfrastructureError
        If the disk does not let go of it; a second call continues.
    """
    found = droppable(catalog, name, keep_files=keep_files)
    try:
        for collection in found.collections:
            _unregister(collection, found)
        if found.properties:
            found.properties.unlink()
        if found.folders:
            _delete_folders(found)
    except OSError as problem:
        raise InfrastructureError(
            f"cannot be removed completely ({first_line(problem)})",
            where=str(found.data),
            remedy="Mend that, then run the same command again, which continues",
        ) from problem
    return found


def droppable(catalog: str | Path, name: str, *, keep_files: bool = False) -> Dropped:
    """What `drop` would remove; checks everything, touches nothing."""
    catalog, home, name = _places(catalog, name)
    properties = home / f"{name}.properties"
    collections = tuple(
        place for place in dict.fromkeys((home, catalog)) if (place / _COLLECTION).is_file()
    )
    listing = tuple(place for place in collections if _aliases(place, name, properties))
    _check_properties(properties, name)
    for collection in collections:
        _refuse_parts(collection, home / name)
    there = _folders(home, name)
    folders = () if keep_files else there
    others = (home / name, home / f"{name}_quarantine")
    kept = tuple(place for place in others if os.path.lexists(place) and place not in folders)
    files = (properties,) if os.path.lexists(properties) else ()
    if not (listing or files or folders):
        raise ConfigurationError(
            f"no extension {name!r}" + (" is published" if there else ""),
            where=str(home),
            remedy="Look what is there, or give the path of its .properties file",
        )
    sizes = [size for place in (*files, *folders) for size in _sizes(place)]
    return Dropped(
        name=name, home=home, collections=listing, properties=properties if files else None,
        folders=folders, kept=kept, files=len(sizes), bytes=sum(sizes),
    )  # fmt: skip


def _places(catalog: str | Path, name: str) -> tuple[Path, Path, str]:
    """Collection, folder of the extension, and its name; links in the way to them resolved."""
    collection = home = located(catalog)
    if name.endswith(".properties"):
        file = located(name)
        home, name = file.parent, file.stem
    if not name.isidentifier():
        raise ConfigurationError(
            "not the name of an extension",
            where=f"--extension {name}",
            remedy="Give a name of letters, digits and _, or the path of a .properties file",
        )
    if is_remote(home):
        raise ConfigurationError(
            "is not on this machine",
            where=str(home),
            remedy="Give the path of an extension's .properties file on this machine, or remove "
            "the extension with the tools of its store",
        )
    if not home.is_dir():
        raise ConfigurationError(
            "there is no such folder", where=str(home), remedy="Give the collection's folder"
        )
    home = home.resolve()
    return home if is_remote(collection) else collection.resolve(), home, name


def _read_collection(folder: Path) -> CollectionProperties:
    try:
        return CollectionProperties.read_from_dir(str(folder))
    except (OSError, ValueError, TypeError) as problem:
        raise ConfigurationError(
            f"cannot be read ({first_line(problem)})",
            where=str(folder / _COLLECTION),
            remedy="Mend this file first",
        ) from problem


def _aliases(collection: Path, name: str, properties: Path) -> set[str]:
    """Names under which a collection lists the extension."""
    listed = _read_collection(collection).all_extensions or {}
    found = {
        alias
        for alias, place in listed.items()
        if "://" not in place and _unlinked(collection / place) == properties
    }
    if name in listed and name not in found and properties.parent == collection:
        raise ConfigurationError(
            f"extension {name!r} is described elsewhere, by {listed[name]}",
            where=str(collection),
            remedy="Give the path of that file instead of the name",
        )
    return found


def _unlinked(file: Path) -> Path:
    """The folder resolved, the file as it is called: a link is not what it leads to."""
    return file.parent.resolve() / file.name


def _check_properties(file: Path, name: str) -> None:
    """Refuse a file that is not what skyvec writes of this extension."""
    if not os.path.lexists(file):
        return
    problem = ""
    if file.is_symlink() or not file.is_file():
        problem = "is not a file but a link or a folder"
    else:
        try:
            info = ExtensionProperties.read_from_file(file)
        except (OSError, ValueError, TypeError) as failure:
            raise ConfigurationError(
                f"does not describe an extension ({first_line(failure)})",
                where=str(file),
                remedy=_BY_HAND,
            ) from failure
        if "skyvec_fingerprint" not in info.extra_dict():
            problem = "describes an extension that skyvec did not make"
        elif info.join_catalog != name:
            problem = f"describes data in {info.join_catalog}, not in {name}"
    if problem:
        raise ConfigurationError(problem, where=str(file), remedy=_BY_HAND)


def _refuse_parts(collection: Path, folder: Path) -> None:
    """Whoever made them: the catalog, its margins and its indexes are no extensions."""
    info = _read_collection(collection)
    parts = (*(info.all_margins or ()), *(info.all_indexes or {}).values())
    for part in (info.hats_primary_table_url, *parts):
        if "://" not in part and (collection / part).resolve() == folder.resolve():
            raise ConfigurationError(
                "is the catalog itself, its margin or its index, not an extension",
                where=str(folder),
                remedy="Name an extension",
            )


def _folders(home: Path, name: str) -> tuple[Path, ...]:
    """Remainder, data and quarantine of an extension, those that exist.

    Raises
    ------
    ConfigurationError
        If one of the first two was not made by skyvec; a quarantine of somebody else just stays.
    """
    hidden, data = home / f".{name}.dropped", home / name
    found = []
    for folder, marked in ((hidden, hidden / name), (data, data)):
        if os.path.lexists(folder):
            _refuse_foreign(folder, marked)
            found.append(folder)
    try:
        quarantine = quarantine_folder(Output(data))
    except OutputExistsError:
        return tuple(found)
    if any(map(_is_marked, (hidden / name, data))) and _is_folder(quarantine):
        found.append(quarantine)
    return tuple(found)


def _refuse_foreign(folder: Path, marked: Path) -> None:
    # Killed before its first or after its last file, a run or a drop leaves folders alone.
    if not _is_folder(folder) or not (_is_marked(marked) or _is_hollow(folder)):
        raise ConfigurationError(
            f"was not made by skyvec (a folder with {RUN_FILE} in it)",
            where=str(folder),
            remedy=_BY_HAND,
        )


def _is_folder(place: Path) -> bool:
    return place.is_dir() and not place.is_symlink()


def _is_marked(folder: Path) -> bool:
    """Whether a run of skyvec wrote in this folder itself, not where a link leads."""
    files = (folder / mark for mark in _MARKS)
    return (
        _is_folder(folder)
        and _is_folder(folder / HOME)
        and any(file.is_file() and not file.is_symlink() for file in files)
    )


def _is_hollow(folder: Path) -> bool:
    """Whether there are only folders in a folder, no files and no links."""
    return all(
        not files and not any((Path(place) / name).is_symlink() for name in folders)
        for place, folders, files in os.walk(folder)
    )


def _sizes(place: Path) -> list[int]:
    """Bytes of a file, or of every file in a folder; of a link itself, not of its target."""
    if not place.is_dir():
        return [place.lstat().st_size]
    files = (Path(folder) / name for folder, _, names in os.walk(place) for name in names)
    return [file.lstat().st_size for file in files]


def _unregister(collection: Path, found: Dropped) -> None:
    """Rewrite a collection's properties aside, so that nobody reads half of them."""
    file = collection / _COLLECTION
    info = _read_collection(collection)
    ours = _aliases(collection, found.name, found.home / f"{found.name}.properties")
    left = {name: place for name, place in info.all_extensions.items() if name not in ours}
    info.all_extensions = left or None
    aside = file.with_name(f".{file.name}.aside")
    info.to_properties_file_path(aside, initial_comments="HATS Collection")
    shutil.copymode(file, aside)
    aside.replace(file)


def _delete_folders(found: Dropped) -> None:
    """One rename takes the data out of sight; what follows may be cut short anywhere."""
    hidden = found.hidden
    if found.data in found.folders:
        if hidden in found.folders:
            _delete(hidden, found.name)
        hidden.mkdir()
        found.data.rename(hidden / found.name)
    for folder in found.folders:
        if folder not in {hidden, found.data}:
            folder.rename(hidden / folder.name)
    _delete(hidden, found.name)


def _delete(hidden: Path, name: str) -> None:
    """Delete what is hidden; its marks last, so that a remainder still says who made it."""
    data = hidden / name
    spared = {data, data / HOME, *(data / mark for mark in _MARKS)}
    folders = (hidden, data, data / HOME)
    for folder in folders:
        for place in sorted(folder.iterdir()) if folder.is_dir() else ():
            if place in spared:
                continue
            if _is_folder(place):
                shutil.rmtree(place)
            else:
                place.unlink()
    for mark in _MARKS:
        (data / mark).unlink(missing_ok=True)
    for folder in reversed(folders):
        if folder.is_dir():
            folder.rmdir()
