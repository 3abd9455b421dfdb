"""A model folder from the parts of a run: transformer, codecs, golden vectors, in half precision."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from skyvec_core.embedder import Model
from skyvec_core.golden import write_golden
from skyvec_core.model.encoder_decoder import EncoderDecoder
from skyvec_core.weights import save_transformer
from skyvec_schemas.errors import WeightsError
from skyvec_training.loop import restoring
from skyvec_training.loop.checkpoint import Checkpoint, newest


def newest_of(folder: Path) -> Checkpoint:
    """The newest complete checkpoint of a run folder; none is an error."""
    found = newest(folder)
    if found is None:
        raise WeightsError(
            "there is no complete checkpoint",
            where=str(folder),
            remedy="Train the transformer first",
        )
    return found


def load_weights(model: EncoderDecoder, checkpoint: Checkpoint) -> None:
    """Whole weights into a model, in one process, whatever number of ranks wrote them.

    Raises
    ------
    WeightsError
        If a shard is damaged, or the checkpoint is of other sizes.
    """
    if wrong := restoring.damage(checkpoint):
        raise WeightsError(
            "it changed after it was written",
            where=", ".join(wrong),
            remedy="Remove this checkpoint to use the one before it",
        )
    restoring.load(
        checkpoint, {f"module.{name}": p.detach() for name, p in model.named_parameters()}
    )


def export_model(
    model: EncoderDecoder,
    checkpoint: Checkpoint | None,
    codec_folders: list[Path],
    out: Path,
    *,
    name: str,
    constants: bool = True,
) -> Model:
    """Write a model folder aside and rename it into place; returns it as users will load it.

    Parameters
    ----------
    model
        A transformer of the right sizes; takes the weights of the checkpoint.
    checkpoint
        None keeps the model's own weights: enough to tokenize with the codecs.
    codec_folders
        Folders that hold ``codecs/<name>``, all of which are copied.
    constants
        Also write what only the official package reads (`save_transformer`).
    """
    if checkpoint is not None:
        load_weights(model, checkpoint)
    aside = out.with_name(out.name + ".tmp")
    shutil.rmtree(aside, ignore_errors=True)
    save_transformer(model, aside, dtype=torch.float16, constants=constants)
    for folder in codec_folders:
        if not (folder / "codecs").is_dir():
            raise WeightsError(
                "there is no folder codecs",
                where=str(folder),
                remedy="Train or fit the codecs first",
            )
        shutil.copytree(folder / "codecs", aside / "codecs", dirs_exist_ok=True)
    exported = Model.load(aside, name=name)
    write_golden(aside)
    shutil.rmtree(out, ignore_errors=True)
    aside.rename(out)
    return exported
