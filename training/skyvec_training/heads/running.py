"""What the commands of heads share: inputs for the towers, the run, the files that it leaves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from skyvec_core.embedder import Model
from skyvec_core.heads.alignment import TEXT
from skyvec_core.heads.minilm import SentenceEncoder
from skyvec_core.weights import load_transformer
from skyvec_schemas.errors import ConfigurationError, WeightsError
from skyvec_training.heads.adapters import add_shifts, merge
from skyvec_training.heads.alignment import AlignmentTask, build_head
from skyvec_training.heads.cache import CacheWriter, ContextCache
from skyvec_training.heads.captions import NO_CAPTION, read_captions
from skyvec_training.heads.domains import copy_shared, with_domains
from skyvec_training.heads.filling import Words, fill
from skyvec_training.heads.tuned import TunedContexts
from skyvec_training.loop.progress import RunProgress
from skyvec_training.loop.task import SplitTask, Task
from skyvec_training.loop.trainer import Outcome, train
from skyvec_training.publish.export import export_model
from skyvec_training.recipe.heads import AlignmentRun, CaptionRun
from skyvec_training.recipe.optimizer import OptimizerRun
from skyvec_training.recipe.reading import digest_of_run

HEAD_FILE, SCORES_FILE, CACHE, RUN, MODEL = (
    "head.safetensors", "scores.json", "cache", "run", "model",
)  # fmt: skip


def load_model(folder: Path) -> Model:
    """A model folder; what is wrong with it is a `WeightsError`."""
    try:
        return Model.load(folder)
    except (OSError, ValueError) as problem:
        raise WeightsError(
            str(problem), where=str(folder), remedy="Give the folder of a trained model"
        ) from problem


def sentence_encoder() -> SentenceEncoder:
    """The installed text encoder; its absence is a `ConfigurationError` that says what to do."""
    try:
        return SentenceEncoder.load()
    except (FileNotFoundError, ValueError) as problem:
        what, _, remedy = str(problem).partition(": ")
        raise ConfigurationError(
            what, where="captions", remedy=(remedy or "Install it again")[0].upper() + remedy[1:]
        ) from problem


def words_of_catalog(catalog: Path, run: CaptionRun, encoder: SentenceEncoder) -> Words:
    """Captions of a catalog as `skyvec_training.heads.filling.fill` asks for them."""
    captions = read_captions(catalog, run)
    vectors = encoder.embed(captions.texts)

    def words(ids: np.ndarray) -> tuple[np.ndarray, torch.Tensor]:
        places = captions.of(ids)
        return places, vectors[torch.from_numpy(places.clip(min=NO_CAPTION + 1))]

    return words


def align(
    run: AlignmentRun,
    *,
    tokens: Path,
    model_folder: Path,
    out: Path,
    seed: int,
    console: Console,
    captions: Path | None = None,
    minutes: float | None = None,
) -> Outcome:
    """Cache the towers' inputs, train, and write head, scores and, if tuned, the model.

    Parameters
    ----------
    captions
        Catalog with the columns of the captions, where one tower reads words.
    """
    model = load_model(model_folder)
    words, text_digest = None, ""
    if captions is not None:
        encoder = sentence_encoder()
        words, text_digest = words_of_catalog(captions, run.captions, encoder), encoder.digest
    cache = _cached(run, model, tokens, out / CACHE, words, text_digest, console)
    heads = model.config.num_heads
    head = build_head(cache, run, num_heads=heads, seed=seed)
    tuned = base = None
    if not run.encoder_share:
        task = AlignmentTask(head, cache, run, seed=seed)
    else:
        base = load_transformer(model_folder)
        domains = sorted({key for keys in run.towers.values() for key in keys})
        tuned = with_domains(base, domains, generator=torch.Generator()).model
        add_shifts(tuned, share=run.encoder_share)
        source = TunedContexts(tuned, tokens, run.towers, key_column=run.key_column, words=words)
        task = AlignmentTask(head, source, run, seed=seed, encoder=tuned)
    identity = f"{digest_of_run(run)}-{seed}-{model.digest}-{text_digest}"
    outcome = run_task(task, run.optimizer, out / RUN, run_digest=identity, title="alignment",
                       console=console, minutes=minutes)  # fmt: skip
    if not outcome.finished:
        return outcome
    write_scores(task.evaluate(), out)
    if tuned is not None and base is not None:
        merge(tuned)
        copy_shared(tuned, base)
        exported = export_model(base, None, [model_folder], out / MODEL, name=model.name)
        head.model_digest = exported.digest
    head.save(out / HEAD_FILE)
    return outcome


def run_task(
    task: Task | SplitTask,
    optimizer: OptimizerRun,
    folder: Path,
    *,
    run_digest: str,
    title: str,
    console: Console,
    minutes: float | None = None,
) -> Outcome:
    """Train with a bar; resumes."""
    with RunProgress(title, steps=optimizer.steps, console=console) as progress:
        return train(task, optimizer, folder, run_digest=run_digest, minutes=minutes,
                     observe=progress.show)  # fmt: skip


def write_scores(scores: Mapping[str, object], out: Path) -> None:
    """Scores beside the head."""
    (out / SCORES_FILE).write_text(json.dumps(dict(scores), indent=2))


def _cached(
    run: AlignmentRun,
    model: Model,
    tokens: Path,
    folder: Path,
    words: Words | None,
    text_digest: str,
    console: Console,
) -> ContextCache:
    if folder.is_dir():
        cache = ContextCache(folder)
        if (cache.model_digest, cache.text_digest) != (model.digest, text_digest):
            raise ConfigurationError(
                "the contexts in it were made by another model or text encoder",
                where=str(folder),
                remedy="Give another --out, or delete the folder",
            )
        return cache
    console.print(f"encoding {tokens}")
    towers = {**run.towers, TEXT: ()} if words else dict(run.towers)
    with CacheWriter(folder, towers, model_digest=model.digest, text_digest=text_digest) as writer:
        count = fill(writer, model, tokens, run.towers, key_column=run.key_column,
                     pooled=run.pooled, words=words)  # fmt: skip
    console.print(f"{count} objects have all that is aligned")
    return ContextCache(folder)
