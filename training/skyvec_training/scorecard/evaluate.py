"""One scorecard: a model, a release with its tokens, and what the recipe asks of them.

Vectors, stamps and predictions are kept in the folder ``work``, so a run that was stopped goes on
where it was, and another task costs only itself.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import sklearn
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from skyvec_core.embedder import Model
from skyvec_core.heads.alignment import AlignmentHead
from skyvec_schemas.errors import ContractError, WeightsError
from skyvec_schemas.survey_columns import SURVEYS
from skyvec_training.recipe.evaluation import Evaluation
from skyvec_training.recipe.reading import digest_of_run
from skyvec_training.scorecard import low_data
from skyvec_training.scorecard.card import (
    PREDICTIONS_FILE,
    LowData,
    Scorecard,
    TaskResult,
)
from skyvec_training.scorecard.embeddings import embed_sample, random_model
from skyvec_training.scorecard.methods import (
    Bench,
    InputSet,
    baselines,
    bench_of,
    embedding_method,
    supervised,
)
from skyvec_training.scorecard.prediction import CHOSEN, Folds, Method
from skyvec_training.scorecard.resampling import Resamples, folds_of, sky_blocks
from skyvec_training.scorecard.sample import Sample, read_sample
from skyvec_training.scorecard.scoring import (
    Predicted,
)
from skyvec_training.scorecard.targets import Targets, targets_of
from skyvec_training.scorecard.tasks.labels import predict_all, result_of
from skyvec_training.scorecard.tasks.reconstruction import reconstruct
from skyvec_training.scorecard.tasks.search import find
from skyvec_training.scorecard.tasks.segmentation import segment
from skyvec_training.scorecard.tasks.transfer import transfer

Say = Callable[[str], None]


def evaluate(
    model: Model,
    catalog: Path,
    tokens: Path,
    run: Evaluation,
    out: Path,
    *,
    labels: Sequence[Path] = (),
    alignments: Sequence[AlignmentHead] = (),
    seed: int = 0,
    say: Say = lambda _: None,
) -> Scorecard:
    """Score a model on a release; writes ``scorecard.json`` and the predictions into ``out``.

    Parameters
    ----------
    tokens
        Folder of the token extension of this catalog, by this model's codecs.
    labels
        Parquet files with the id column and labels that the catalog lacks.
    alignments
        Heads that compare modalities, or text; searches that need one are skipped without it.
    say
        Told what is being done.

    Raises
    ------
    ContractError
        If catalog and tokens do not fit, or were made by other codecs.
    ConfigurationError
        If the release covers too little sky for the folds.
    """
    began, work = time.monotonic(), out / "work"
    work.mkdir(parents=True, exist_ok=True)
    sample = read_sample(
        catalog, tokens, survey=run.survey, domains=model.config.domains_in,
        columns=_columns(run), labels=labels, most=run.most_rows,
    )  # fmt: skip
    _refuse_other_codecs(model, sample, tokens)
    _refuse_foreign_heads(model, alignments)
    blocks, order = sky_blocks(sample.spatial_index, order=run.block_order, least=run.least_blocks)
    fold_B = folds_of(blocks, folds=run.folds, where=str(catalog))
    folds = Folds(fold_B=fold_B, block_B=blocks, seed=seed)
    resamples = Resamples(blocks, count=run.resamples, seed=seed)
    targets, skipped = targets_of(sample, run.labelled)
    say(f"{len(sample):,} objects in {len(np.unique(blocks))} sky blocks of order {order}; "
        f"tasks with labels: {', '.join(targets.columns) or 'none'}")  # fmt: skip
    bench = bench_of(model, sample, run, work,
                     observe=lambda name, done: say(f"embedding {name}: {done:,} objects"))  # fmt: skip
    if not bench.inputs:
        raise ContractError(
            "no input set is complete: " + "; ".join(bench.skipped.values()), where=str(tokens),
            remedy="Declare input sets that model and release have under [inputs] of the recipe",
        )  # fmt: skip
    random = _random_inputs(bench, work, seed)
    network, no_network = supervised(bench, catalog, work)
    asked = [task for task in run.labelled if task.name in targets.columns]
    predicted = predict_all(bench, random, network, asked, targets, folds, work, say)
    say("scores and intervals")
    results = [result_of(task, bench, targets, predicted[task.name], resamples) for task in asked]
    results += [TaskResult(name=name, kind="labels", skipped=reason)
                for name, reason in skipped.items()]  # fmt: skip
    results += _beyond(bench, random, targets, folds, resamples, alignments, seed)
    curves = LowData(skipped=("no task has labels",))
    if asked:
        curves = low_data.curves(_low_data_methods(bench), network, asked, targets, folds,
                                 resamples, run, work, observe=say)  # fmt: skip
    say("reconstruction")
    card = Scorecard(
        model={"name": model.name, "digest": model.digest, "parameters": model.num_parameters,
               "dim": model.dim, "domains": list(model.config.domains_in)},
        release={"catalog": catalog.name, "tokens": tokens.name,
                 "token_fingerprint": sample.fingerprint, "sample": sample.digest,
                 "rows": len(sample), "repeated_ids_left_out": sample.repeated,
                 "blocks": len(np.unique(blocks)), "block_order": order,
                 "input_sets_left_out": dict(bench.skipped), "supervised_left_out": no_network},
        settings={"name": run.name, "digest": digest_of_run(run), "seed": seed,
                  "folds": run.folds, "resamples": run.resamples, "recipe": asdict(run),
                  "versions": {"torch": torch.__version__, "scikit-learn": sklearn.__version__,
                               "python": platform.python_version()}},
        tasks=tuple(results), low_data=curves, seconds=time.monotonic() - began,
        reconstruction=reconstruct(model, catalog, SURVEYS[run.survey], sample, work,
                                   objects=run.reconstructed),
    )  # fmt: skip
    _keep_predictions(predicted, targets, sample, blocks, out)
    card.write(out)
    return card


def _columns(run: Evaluation) -> list[str]:
    """Everything that some task or baseline may want of the catalog."""
    tasks = run.labelled
    photometry = run.photometry
    wanted = [*(task.column for task in (*tasks, *run.segmentation)),
              *(name for task in tasks for name in task.oracle),
              *photometry.fluxes, *photometry.magnitudes, *photometry.dust, *photometry.shapes]  # fmt: skip
    return list(dict.fromkeys(wanted))


def _refuse_other_codecs(model: Model, sample: Sample, tokens: Path) -> None:
    theirs = sample.codecs
    other = [key for key in sample.tokens
             if key in theirs and key in model.codec_digests
             and theirs[key] != model.codec_digests[key]]  # fmt: skip
    if other:
        raise ContractError(
            f"{', '.join(other)} were made by other codecs than those of {model.name}",
            where=str(tokens), remedy="Tokenize the release with this model",
        )  # fmt: skip


def _refuse_foreign_heads(model: Model, alignments: Sequence[AlignmentHead]) -> None:
    for head in alignments:
        if head.model_digest != model.digest:
            raise WeightsError(
                f"it was trained on model {head.model_digest[:12]}, this is {model.digest[:12]}",
                where="alignment head", remedy="Train it again on this model",
            )  # fmt: skip


def _random_inputs(bench: Bench, work: Path, seed: int) -> dict[str, InputSet]:
    """Vectors of an encoder that never learnt: of the richest input set, and of images alone."""
    fresh = random_model(bench.model, seed=seed)
    names = {bench.richest.name, *(t.among for t in bench.run.search if t.query == t.among),
             *(t.inputs for t in bench.run.segmentation)}  # fmt: skip
    return {
        name: InputSet(name=name, has_B=found.has_B, embedded=embed_sample(
            fresh, bench.sample, found.embedded.domains, work))
        for name, found in bench.inputs.items() if name in names
    }  # fmt: skip


def _beyond(
    bench: Bench,
    random: dict[str, InputSet],
    targets: Targets,
    folds: Folds,
    resamples: Resamples,
    alignments: Sequence[AlignmentHead],
    seed: int,
) -> list[TaskResult]:
    run = bench.run
    labelled = {task.name: task for task in run.labelled}
    return [
        *(transfer(task, labelled[task.labels], bench, targets, folds, resamples)
          for task in run.transfer),
        *(segment(task, bench, random.get(task.inputs), folds, resamples)
          for task in run.segmentation),
        *(find(task, bench, random.get(task.among), targets, alignments, resamples,
                seed=seed) for task in run.search),
    ]  # fmt: skip


def _low_data_methods(bench: Bench) -> list[Method]:
    low = bench.run.low_data
    ours = [embedding_method(bench, bench.inputs[name], low.heads)
            for name in low.inputs or bench.inputs if name in bench.inputs]  # fmt: skip
    return [*ours, *(m for m in baselines(bench) if m.name != "boosting_catalog")]


def _keep_predictions(
    predicted: dict[str, list[Predicted]],
    targets: Targets,
    sample: Sample,
    blocks: NDArray[np.int64],
    out: Path,
) -> None:
    """What promotion needs to compare two models row by row."""
    kept = {
        f"{task}/{p.method.name}": p.values[0].astype(np.float32)
        for task, found in predicted.items()
        for p in found
        if p.head == CHOSEN and p.method.role == "embeddings"
    }
    kept |= {f"{task}/truth": targets.of(task) for task in targets.columns}
    kept["blocks"] = blocks
    aside = out / f"{PREDICTIONS_FILE}.tmp"
    save_file({name: np.ascontiguousarray(values) for name, values in kept.items()}, aside,
              metadata={"ids": sample.ids_digest})  # fmt: skip
    aside.chmod(0o644)  # safetensors writes 0600
    aside.rename(out / PREDICTIONS_FILE)
