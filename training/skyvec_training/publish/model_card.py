"""``card.json`` beside the weights: what the model is, how it was made and how well it does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from skyvec_core.embedder import Model
from skyvec_training.loop import curves
from skyvec_training.loop.checkpoint import newest
from skyvec_training.recipe.recipe import Recipe

CARD_FILE = "card.json"
LICENCE = "BSD-3-Clause"


def model_card(
    model: Model,
    recipe: Recipe,
    *,
    seed: int,
    data: str,
    codec_run: Path,
    transformer_run: Path,
    commands: Sequence[str],
) -> dict[str, object]:
    """The card of an exported model; the curves are averaged down to 200 points.

    Parameters
    ----------
    data
        What it was trained on, for people.
    codec_run, transformer_run
        Run folders, for logs and scores.
    commands
        Command lines that make this model again.
    """
    scores = codec_run / "reconstruction.json"
    return {
        "name": model.name,
        "digest": model.digest,
        "licence": LICENCE,
        "seed": seed,
        "data": data,
        "domains": list(model.config.domains_in),
        "codecs": sorted(model.codecs),
        "parameters": model.num_parameters,
        "recipe": asdict(recipe),
        "commands": list(commands),
        "runs": {"image_codec": _run(codec_run), "transformer": _run(transformer_run)},
        "reconstruction": json.loads(scores.read_text()) if scores.is_file() else {},
    }


def write_card(folder: Path, card: Mapping[str, object]) -> Path:
    """Write the card into a model folder."""
    path = folder / CARD_FILE
    path.write_text(json.dumps(card, indent=1))
    return path


def _run(folder: Path) -> dict[str, object]:
    """Steps, hours, where its weights came from, last scores and loss curves of one run."""
    records = curves.read_log(folder)
    latest = newest(folder)
    held_out = [r for r in records if r["kind"] == "held_out"]
    return {
        "steps": latest.step if latest else 0,
        "hours": round(latest.seconds / 3600, 3) if latest else 0.0,
        "from": latest.facts.origin if latest else "",
        "held_out": {k: v for k, v in held_out[-1].items() if k != "kind"} if held_out else {},
        "curves": {kind: curves.curve(records, kind=kind) for kind in ("train", "held_out")},
    }
