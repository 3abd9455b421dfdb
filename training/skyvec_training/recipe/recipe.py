"""One recipe: everything that makes one model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from skyvec_training.recipe.codecs import CodecRun, ScalarRun
from skyvec_training.recipe.reading import read
from skyvec_training.recipe.transformer import TransformerRun


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Everything that makes one model."""

    name: str
    image_codec: CodecRun
    scalars: ScalarRun
    transformer: TransformerRun


def load_recipe(path: Path) -> Recipe:
    """Read a recipe; every unknown, missing or mistyped key is named in one error."""
    return read(Recipe, path)
