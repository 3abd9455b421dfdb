"""``skyvec.explore``: look at an extension in a browser, served or as one file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, overload

from skyvec.explorer.needs import require_extra
from skyvec_schemas.errors import ConfigurationError

if TYPE_CHECKING:
    from skyvec.explorer.serving import Explorer

HOST = "127.0.0.1"
SAMPLE, OBJECTS, PICTURES = 20_000, 10_000, 1_000


@overload
def explore(
    catalog: str | Path,
    *,
    extension: str | None = ...,
    export: None = ...,
    colour: str | Sequence[str] = ...,
    cache: str | Path | None = ...,
    sample: int = ...,
    seed: int = ...,
    host: str = ...,
    port: int = ...,
    expose: bool = ...,
    say: Callable[[str], None] = ...,
) -> Explorer: ...
@overload
def explore(
    catalog: str | Path,
    *,
    extension: str | None = ...,
    export: str | Path,
    colour: str | Sequence[str] = ...,
    cache: str | Path | None = ...,
    sample: int = ...,
    seed: int = ...,
    objects: int = ...,
    pictures: int = ...,
    say: Callable[[str], None] = ...,
) -> Path: ...
def explore(
    catalog: str | Path,
    *,
    extension: str | None = None,
    export: str | Path | None = None,
    colour: str | Sequence[str] = (),
    cache: str | Path | None = None,
    sample: int = SAMPLE,
    seed: int = 0,
    objects: int = OBJECTS,
    pictures: int = PICTURES,
    host: str = HOST,
    port: int = 0,
    expose: bool = False,
    say: Callable[[str], None] = print,
) -> Explorer | Path:
    """Serve a page with the objects of an extension on two maps, or write one.

    On one map objects with like vectors lie together (UMAP), the other is the sky. A click shows an
    object, its picture and its nearest neighbours by cosine, exact over all vectors; what is
    selected on one map is so on the other. No request leaves the machine.

    Parameters
    ----------
    catalog
        Collection with an embedding extension, or an ``<extension>.properties`` file.
    extension
        Which, if there are several.
    export
        HTML file to write in place of serving: static, with a sample of the objects.
    colour
        Column to colour by at first, or several to choose from in an exported file:
        ``density``, those of the catalog and of the extension, or ``extension.column`` of another
        one, such as a probe's predictions.
    cache
        Folder of the map, which is made once; ``<extension>_explorer`` beside the extension by
        default.
    sample, seed
        Objects that UMAP places; every other one lies amid its nearest of these.
    objects, pictures
        In an exported file at most.
    host, port
        Address to serve at; a port that is free by default.
    expose
        Allow an address by which other machines reach this one.
    say
        Told what is going on.

    Returns
    -------
    Explorer or Path
        A server that runs until it is closed, with its ``url``; or the file.

    Raises
    ------
    ConfigurationError
        No such extension, or one without vectors; an address that others reach; the extra
        ``explore`` is not installed.
    MissingColumnError
        No such column to colour by.
    """
    require_extra()
    named = [colour] if isinstance(colour, str) else list(colour)
    for what, number in (("sample", sample), ("objects", objects)):
        if number < 1:
            raise ConfigurationError(
                "must be at least 1", where=f"{what} = {number}", remedy="Ask for more"
            )
    from skyvec.explorer.colours import DENSITY
    from skyvec.explorer.scene import Scene
    from skyvec.explorer.serving import Explorer, refuse_others

    if export is None:
        refuse_others(host, exposed=expose)
    scene = Scene.open(
        catalog, extension, colour=named[0] if named else DENSITY,
        cache=None if cache is None else Path(cache), sample=sample, seed=seed, say=say,
    )  # fmt: skip
    if export is None:
        return Explorer(scene, host=host, port=port, exposed=expose)
    from skyvec.explorer.export import export_page

    return export_page(
        scene, Path(export), objects=objects, pictures=pictures, colours=named, seed=seed, say=say
    )
