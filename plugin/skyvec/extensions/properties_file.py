"""Properties files, local or on an object store: read as a whole, replaced as a whole."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hats.catalog import CollectionProperties, ExtensionProperties

from skyvec.releases.hats.remote import is_remote
from skyvec.stage.output import Output


def replace_properties(
    properties: ExtensionProperties | CollectionProperties,
    place: Path,
    *,
    comment: str,
    closing: Callable[[str], str] | None = None,
) -> None:
    """Write properties aside and put them in place in one step.

    A kill or a full disk must not cost a collection what it had.

    Parameters
    ----------
    comment
        First line of the file.
    closing
        Makes the last line out of those before it.
    """
    with _aside(place) as aside:
        properties.to_properties_file_path(aside, initial_comments=comment)
        if closing:
            text = aside.read_text()
            aside.write_text(text + closing(text))
        Output(place.parent).put(aside, place)


def text_of(place: Path) -> str | None:
    """What a small file holds; None if it is not there or no text."""
    try:
        return place.read_text()
    except (FileNotFoundError, UnicodeDecodeError):
        return None


@contextmanager
def _aside(place: Path) -> Iterator[Path]:
    """A local file to write to; beside the place if that is local, with the same mode."""
    if is_remote(place):
        with tempfile.TemporaryDirectory(prefix="skyvec-") as folder:
            yield Path(folder) / place.name
        return
    for left in place.parent.glob(f".{place.name}.*.aside"):  # by who was killed
        left.unlink(missing_ok=True)
    aside = place.with_name(f".{place.name}.{uuid.uuid4().hex}.aside")
    try:
        aside.touch()
        if place.exists():
            shutil.copymode(place, aside)
        yield aside
    finally:
        aside.unlink(missing_ok=True)
