"""The command line of releases: ``skyvec release make|show|verify|diff|withdraw|publish``, ``repack``."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape

from skyvec.commands.terminal import counting, facts, fail, out
from skyvec.surveys import named_survey
from skyvec_schemas.errors import ConfigurationError

if TYPE_CHECKING:
    from skyvec.releases.versions.manifest import Release

release_app = typer.Typer(no_args_is_help=True, help="Releases as immutable versions.")

_SHOWN = 10
"""Files or objects listed; `--save` keeps all."""

ReleaseArgument = Annotated[
    Path, typer.Argument(help="Folder of the release, or of a store for its current one.")
]
NameOption = Annotated[str, typer.Option(help="Of the new release, e.g. dr2.")]
CurrentOption = Annotated[
    bool, typer.Option(help="Make it the current release of the store.", show_default=True)
]


@release_app.command("make")
def make(
    data: Annotated[Path, typer.Argument(help="Folder with healpix=P/*.hdf5, or a collection.")],
    *,
    store: Annotated[Path, typer.Option(help="Folder of releases.")],
    name: NameOption,
    survey: Annotated[str, typer.Option(help="Of which the files are, e.g. hsc.")],
    upstream: Annotated[str, typer.Option(help="Release that it was made from, as text.")] = "",
    parent: Annotated[
        str | None, typer.Option(help="Release of the store that this one follows.")
    ] = None,
    withdrawn: Annotated[
        Path | None, typer.Option(help="CSV with object_id and reason of withdrawn objects.")
    ] = None,
    readmit: Annotated[
        list[str] | None, typer.Option(help="Id whose withdrawal ends; may be repeated.")
    ] = None,
    link: Annotated[
        bool, typer.Option("--link", help="Hard-link the files into the release.")
    ] = False,
    carry: Annotated[
        bool, typer.Option("--carry", help="Pixels that the folder lacks are the parent's.")
    ] = False,
    allow_duplicates: Annotated[
        bool, typer.Option("--allow-duplicates", help="Count ids that occur twice.")
    ] = False,
    current: CurrentOption = True,
) -> None:
    """Digest files into an immutable release: every file, every object, what is withdrawn."""
    from skyvec.releases.versions.files import discover
    from skyvec.releases.versions.making import make_release

    _, files = discover(data)
    with counting("files", len(files)) as advance:
        made = make_release(
            data, store=store, name=name, survey=survey, upstream=upstream, parent=parent,
            withdrawn=_read_ids(withdrawn), readmit=readmit or (), link=link, carry=carry,
            allow_duplicates=allow_duplicates, current=current, progress=advance,
        )  # fmt: skip
    _show(made)
    if parent:
        out.print(f"Compare: skyvec release diff {store / parent} {store / name}")


@release_app.command("show")
def show(release: ReleaseArgument) -> None:
    """What a release is and holds."""
    from skyvec.releases.versions.manifest import Release

    _show(Release.open(release))


@release_app.command("verify")
def verify(
    release: ReleaseArgument,
    *,
    sample: Annotated[float, typer.Option(help="Share of the files to digest again.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Of the choice of files.")] = None,
) -> None:
    """Digest the files again; name those that are missing, changed or extra."""
    from skyvec.releases.versions.manifest import Release, verify_release

    opened = Release.open(release)
    with counting("files", len(opened.files)) as advance:
        found = verify_release(opened, sample=sample, seed=seed, progress=advance)
    if found.ok:
        out.print(f"{found.release}: {found.checked:,} of {found.files:,} files digested, all well")
        return
    for what in ("missing", "changed", "extra"):
        files = getattr(found, what)
        for file in files[:_SHOWN]:
            out.print(f"[red]{what}[/] {escape(file)}")
        if len(files) > _SHOWN:
            out.print(f"[red]{what}[/] ... {len(files):,} files")
    fail(
        f"{release}: {len(found.missing)} files are missing, {len(found.changed)} changed, "
        f"{len(found.extra)} extra. Restore them, or make a new release",
        30,
    )


@release_app.command("diff")
def diff(
    older: ReleaseArgument,
    newer: ReleaseArgument,
    *,
    save: Annotated[
        Path | None, typer.Option(help="Write all differences to this .parquet or .json file.")
    ] = None,
) -> None:
    """List pixels and objects that were added, changed, moved or withdrawn."""
    from skyvec.releases.versions.diff import diff_releases
    from skyvec.releases.versions.manifest import Release

    found = diff_releases(Release.open(older), Release.open(newer))
    if save:
        found.save(save)
    out.print(found.table(shown=_SHOWN))
    out.print(f"{found.unchanged:,} objects are equal in {found.older} and {found.newer}")
    if not found.same_schema:
        out.print("The columns differ, so every object of a file with other columns is changed")
    if save:
        out.print(f"{len(found.objects):,} differences in {save}")


@release_app.command("withdraw")
def withdraw(
    release: ReleaseArgument,
    *,
    name: NameOption,
    identifier: Annotated[
        list[str] | None, typer.Option("--id", help="Id of an object; may be repeated.")
    ] = None,
    reason: Annotated[str, typer.Option(help="Why, for --id and rows without a reason.")] = "",
    ids: Annotated[Path | None, typer.Option(help="CSV with object_id and reason.")] = None,
    current: CurrentOption = True,
) -> None:
    """Make a release with the same files, less some objects."""
    from skyvec.releases.versions.making import withdraw as without
    from skyvec.releases.versions.manifest import Release

    chosen = {**dict.fromkeys(identifier or (), ""), **_read_ids(ids)}
    chosen = {one: said or reason for one, said in chosen.items()}
    if not chosen or not all(chosen.values()):
        raise ConfigurationError(
            "a withdrawal needs ids and a reason for each",
            where="withdraw",
            remedy="Give --id and --reason, or --ids FILE with both columns",
        )
    _show(without(Release.open(release), name=name, withdrawn=chosen, current=current))


@release_app.command("publish")
def publish(release: ReleaseArgument) -> None:
    """Make a release the current one of its store."""
    from skyvec.releases.versions.manifest import Release
    from skyvec.releases.versions.manifest import publish as point

    opened = Release.open(release)
    point(opened)
    out.print(f"{opened.name} is the current release of {opened.folder.parent}")


def repack(
    release: Annotated[
        Path, typer.Argument(help="A release or store, a folder with healpix=P, or a collection.")
    ],
    *,
    to: Annotated[Path, typer.Option("--out", help="Folder of the working copy.")],
    dtype: Annotated[str, typer.Option(help="Flux of cutouts: float16 or float32.")] = "float16",
    window: Annotated[
        int, typer.Option(min=8, help="Side of the cutouts in pixels; an embedding needs 96.")
    ] = 96,
    survey: Annotated[
        str | None, typer.Option(help="Of which the files are; a release knows it.")
    ] = None,
    batch_rows: Annotated[int, typer.Option(min=1, help="Objects in memory at a time.")] = 128,
) -> None:
    """Copy a release to what an embedding reads, contiguous: tens of thousands of stamps a second.

    Run again after a failure: finished pixels are kept.
    """
    from skyvec.releases.versions.source_folder import open_folder
    from skyvec.releases.working_copy.repack import repack as run

    chosen: Literal["float16", "float32"] = "float16" if dtype == "float16" else "float32"
    if dtype not in {"float16", "float32"}:
        raise ConfigurationError(
            f"{dtype!r} is not known", where="--dtype", remedy="Choose from: float16, float32"
        )
    opened = open_folder(release, named_survey(survey) if survey else None, window=window)
    with counting("objects", opened.rows) as advance:
        done = run(
            opened.source, to, pixels=opened.pixels, dtype=chosen, window=window,
            provenance=opened.provenance, without=opened.withdrawn, rows=batch_rows,
            progress=advance,
        )  # fmt: skip
    lines = {
        "working copy": f"{to}: {done.rows:,} objects in {done.pixels:,} pixels "
        f"({done.kept:,} done before), {done.bytes / 1e9:,.2f} GB",
        "cutouts": f"{window} x {window} {dtype}",
        "rounding": f"at most {done.rounding:.3g}, {done.rounding_sigma:.2g} sigma of the noise"
        if dtype == "float16"
        else "none",
        **({"scaled": f"{done.scaled:,} cutouts beyond float16"} if done.scaled else {}),
        **({"quarantined": f"{done.quarantined:,} rows"} if done.quarantined else {}),
        **({"left out": f"{done.left_out:,} withdrawn objects"} if done.left_out else {}),
    }
    out.print(facts(lines))
    out.print(
        f"Use it: skyvec embed CATALOG --survey objects --source {done.copy.survey.name}={to}"
    )


def _show(release: Release) -> None:
    manifest, counts = release.manifest, release.manifest.counts
    lines = {
        "release": f"{manifest.release} of {manifest.survey}"
        + (f" ({manifest.upstream})" if manifest.upstream else ""),
        "digest": manifest.digest()[:12],
        "parent": f"{manifest.parent} ({(manifest.parent_digest or '')[:12]})"
        if manifest.parent
        else "none",
        "files": f"{counts['shards']:,} with objects, {counts['reused_shards']:,} of them reused; "
        f"{counts['files'] - counts['shards']:,} others; {counts['bytes'] / 1e9:,.2f} GB "
        f"({manifest.layout})",
        "objects": f"{counts['objects']:,}",
        "made": f"{manifest.created} by {manifest.builder}",
        "root": str(release.root),
    }
    out.print(facts(lines))
    doubts = {
        "withdrawn": "objects are withdrawn",
        "duplicates": "rows repeat an id; they are never joined by it",
        "without_position": "objects have no place on the sky",
        "outside_pixel": "objects lie outside the pixel of their file",
    }
    for name, text in doubts.items():
        if counts[name]:
            out.print(f"[yellow]{counts[name]:,} {text}[/]")


def _read_ids(file: Path | None) -> dict[str, str]:
    """Ids and reasons of a CSV file."""
    if file is None:
        return {}
    try:
        with file.open(newline="") as text:
            rows = list(csv.DictReader(text, skipinitialspace=True))
    except (OSError, UnicodeDecodeError, csv.Error) as problem:
        raise ConfigurationError(
            f"cannot be read ({problem})", where=str(file), remedy="Give a CSV file"
        ) from problem
    if rows and "object_id" not in rows[0]:
        raise ConfigurationError(
            f"no column object_id (it has {', '.join(map(str, rows[0]))})",
            where=str(file),
            remedy="Name the columns object_id and reason in its first line",
        )
    return {row["object_id"]: row.get("reason") or "" for row in rows}
