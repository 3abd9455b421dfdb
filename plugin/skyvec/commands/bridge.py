"""The command line of bridges: ``skyvec bridge``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from skyvec.commands.options import Catalog
from skyvec.commands.terminal import facts, out

if TYPE_CHECKING:
    from skyvec.bridge import Bridge


def bridge(
    catalog: Catalog,
    *,
    new: Annotated[
        str, typer.Option("--from", help="Extension by the newer model, or its .properties file.")
    ],
    old: Annotated[
        str, typer.Option("--to", help="Extension by the older model, or its .properties file.")
    ],
    save: Annotated[Path, typer.Option("--out", help="Folder for the bridge.")],
    max_loss: Annotated[
        float, typer.Option(min=0, help="R2 that a probe may lose; beyond it is refused.")
    ] = 0.02,
    probe: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of a probe whose loss to measure against labels; repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the choice of held-out sky blocks.")] = 0,
) -> None:
    """Fit a linear map from new vectors to old ones, so that old probes run on new vectors.

    Its error is measured on blocks of the sky that it has not seen, and travels with it.
    """
    from skyvec.bridging.fitting import fit_bridge
    from skyvec.probes.probe import Probe

    probes = [Probe.load(folder) for folder in probe or []]
    found = fit_bridge(catalog, new=new, old=old, max_loss=max_loss, probes=probes, seed=seed)
    out.print(facts(_lines(found)))
    out.print(f"bridge in {found.save(save)}")


def _lines(found: Bridge) -> dict[str, str]:
    quality, dims = found.quality, found.quality.r2_dimensions
    lines = {
        "from": f"{found.source.extension} by {found.source.model} ({found.source.dim} values, "
        f"fingerprint {found.source.fingerprint[:12]})",
        "to": f"{found.target.extension} by {found.target.model} ({found.target.dim} values, "
        f"fingerprint {found.target.fingerprint[:12]})",
        "fitted on": f"{quality.fitted_rows:,} objects, ridge {quality.ridge:g}",
        "measured on": f"{quality.rows:,} objects in {quality.blocks} sky blocks left out",
        "R2": f"{quality.r2:.4f} (rotation and scale alone: {quality.r2_procrustes:.4f})",
        "R2 of a dimension": f"{dims['least']:.3f} least, {dims['median']:.3f} median, "
        f"{dims['most']:.3f} most",
        "cosine": f"{quality.cosine:.4f}",
        "ten neighbours kept": f"{quality.neighbours:.1%}",
        "CKA of both sides": f"{quality.cka:.4f}",
        "a probe may lose": f"{found.max_loss:g} of R2",
    }
    for loss in found.probes.values():
        verdict = "" if loss.loss <= found.max_loss else ": refused"
        lines[f"probe for {loss.target}"] = (
            f"R2 {loss.r2:.4f}, through the bridge {loss.r2_bridged:.4f} "
            f"({loss.rows:,} labels){verdict}"
        )
    return lines
