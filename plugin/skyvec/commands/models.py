"""The command line of models: ``skyvec models list``, ``show`` and ``verify``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from skyvec.commands.terminal import facts, out
from skyvec_schemas.errors import WeightsError

if TYPE_CHECKING:
    from skyvec_core.embedder import Model
    from skyvec_core.golden import GoldenVectors

models_app = typer.Typer(no_args_is_help=True, help="Models: what is there, what it is.")
ModelArgument = Annotated[
    str, typer.Argument(help="Name, folder, or hf://owner/name@revision.", metavar="MODEL")
]

READ = {".safetensors", ".json"}
"""All that is ever read of a model folder."""
_PROSE = {".md"}


@models_app.command("list")
def models_list() -> None:
    """Models inside the package."""
    from skyvec.models import model_card, packaged_models

    out.print(facts({n: str(model_card(f).get("data", "")) for n, f in packaged_models().items()}))


@models_app.command("show")
def models_show(model: ModelArgument) -> None:
    """Size, modalities, digest and origin of a model."""
    from skyvec.models import load_model, model_card, model_folder

    loaded = load_model(model)
    card = model_card(model_folder(model))
    lines = {
        "digest": loaded.digest,
        "vector": f"{loaded.dim} values",
        "parameters": f"{loaded.num_parameters:,} in the transformer",
        "modalities": ", ".join(loaded.codecs),
    }
    simple = {k: str(v) for k, v in card.items() if isinstance(v, str | int | float)}
    out.print(facts({**lines, **{k: v for k, v in simple.items() if k not in lines}}))


@models_app.command("verify")
def models_verify(
    model: ModelArgument,
    *,
    write: Annotated[
        bool, typer.Option("--write", help="Keep golden vectors in the folder, if it has none.")
    ] = False,
    device: Annotated[str, typer.Option(help="Torch device to compute on.")] = "cpu",
    precision: Annotated[str, typer.Option(help="Arithmetic: float32 or bfloat16.")] = "float32",
) -> None:
    """Prove that the weights are whole and that this machine computes right with them.

    Ends with 40 if they are not, or if it does not.
    """
    from skyvec.models import load_model, model_folder
    from skyvec.stage.worker import kept_golden

    folder = model_folder(model)
    loaded = load_model(model, device=device, precision=precision)  # type: ignore[arg-type]  # checked there
    out.print(
        facts(
            {
                "folder": str(folder),
                "digest": loaded.digest,
                "parameters": f"{loaded.num_parameters:,} in the transformer",
                "codecs": ", ".join(loaded.codecs) or "none",
                "files": _files(folder),
            }
        )
    )
    kept = kept_golden(folder)
    if write and (kept is None or not kept.current or kept.model_digest != loaded.digest):
        _refuse_another_card(folder, loaded)
        kept = _write(folder)
    golden = verdict_on(folder, loaded, kept, model)  # names what changed, so it goes first
    _refuse_another_card(folder, loaded)
    out.print(facts({"golden": golden}))


def verdict_on(folder: Path, loaded: Model, kept: GoldenVectors | None, model: str) -> str:
    """How this machine's golden vectors compare with the folder's, in words.

    Raises
    ------
    WeightsError
        If they deviate.
    """
    from skyvec_core.golden import GoldenVectors

    if kept is None:
        return f"has no golden vectors; `skyvec models verify {model} --write` keeps them"
    if not kept.current:
        return (
            "golden vectors of another version of skyvec, which say nothing about this one; "
            f"`skyvec models verify {model} --write` renews them"
        )
    computed = GoldenVectors.of(loaded, threads=1)
    deviation = computed.compare(kept)
    if kept.model_digest != loaded.digest:
        changed = ", ".join(_changed_parts(folder, loaded, kept)) or "something"
        raise WeightsError(
            f"{changed} changed since the golden vectors were made; {deviation}",
            where=str(folder),
            remedy="Restore the folder; if the change is yours, "
            f"`skyvec models verify {model} --write`",
        )
    if not deviation.ok:
        raise WeightsError(
            f"the weights are whole, but this machine computes other numbers with them; {deviation}",
            where=str(folder),
            remedy="Compare with another machine; this one's torch or hardware computes wrong",
        )
    return (
        "the same, bit for bit" if computed.bits == kept.bits else f"within rounding: {deviation}"
    )


def _write(folder: Path) -> GoldenVectors:
    from skyvec_core.golden import GOLDEN_FILE, write_golden

    try:
        golden = write_golden(folder)
    except (OSError, ValueError) as problem:
        raise WeightsError(
            f"golden vectors cannot be kept ({problem})",
            where=str(folder),
            remedy="Use a folder that may be written to, with usable weights",
        ) from problem
    out.print(f"wrote {folder / GOLDEN_FILE}")
    return golden


def _refuse_another_card(folder: Path, loaded: Model) -> None:
    from skyvec.models import model_card

    stated = model_card(folder).get("digest", loaded.digest)
    if stated != loaded.digest:
        raise WeightsError(
            f"card.json says digest {str(stated)[:12]}, the weights are {loaded.digest[:12]}",
            where=str(folder),
            remedy="Restore the folder; if the change is yours, take the digest out of card.json",
        )


def _changed_parts(folder: Path, loaded: Model, kept: GoldenVectors) -> list[str]:
    from skyvec_core.golden import part_digests

    now = part_digests(folder, loaded)
    return sorted(
        part for part in now.keys() | kept.parts.keys() if now.get(part) != kept.parts.get(part)
    )


def _files(folder: Path) -> str:
    """What the folder holds; nothing but safetensors and JSON is ever opened."""
    files = sorted(place for place in folder.rglob("*") if place.is_file())
    counts = Counter(place.suffix for place in files if place.suffix in READ)
    read = ", ".join(f"{counts[suffix]} {suffix}" for suffix in sorted(counts))
    others = [str(f.relative_to(folder)) for f in files if f.suffix not in READ | _PROSE]
    if not others:
        return f"{read}; nothing else"
    more = f" and {len(others) - 8} more" if others[8:] else ""
    return f"{read}; never read: {', '.join(others[:8])}{more}"
