"""Which methods a release allows: embeddings of every input set, and what they stand beside."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from skyvec_core.embedder import Model
from skyvec_schemas.survey_columns import SURVEYS
from skyvec_training.recipe.evaluation import Evaluation, HeadName, HeadRun
from skyvec_training.scorecard.embeddings import Embedded, embed_sample
from skyvec_training.scorecard.heads import AttentiveHead, Floats, Head, MlpHead, RidgeHead
from skyvec_training.scorecard.kernel import KernelHead
from skyvec_training.scorecard.photometry import (
    BoostingHead,
    photometric_features,
    with_columns,
)
from skyvec_training.scorecard.prediction import Method
from skyvec_training.scorecard.sample import Sample, input_domains
from skyvec_training.scorecard.supervised import SupervisedHead, has_cutouts, stamps_of

VERSION = "2"
"""Counts changes of heads and baselines that change numbers; kept predictions are of one version."""


@dataclass(frozen=True, kw_only=True)
class InputSet:
    """Vectors of one choice of modalities, and the objects that have all of them."""

    name: str
    embedded: Embedded
    has_B: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Everything that methods are made of."""

    model: Model
    sample: Sample
    run: Evaluation
    inputs: Mapping[str, InputSet]
    skipped: Mapping[str, str]
    """Input set -> why it is not there."""
    excluded: tuple[str, ...]
    """Token keys that are inputs of no set."""

    @property
    def richest(self) -> InputSet:
        """The input set with most domains; ties go to the first."""
        return max(self.inputs.values(), key=lambda found: len(found.embedded.domains))


def bench_of(
    model: Model,
    sample: Sample,
    run: Evaluation,
    work: Path,
    *,
    observe: Callable[[str, int], None] | None = None,
) -> Bench:
    """Embed every input set that model and release allow."""
    stated = {key for task in run.labelled for key in task.excluded} | set(sample.labels_in_tokens)
    excluded = tuple(sorted(stated & set(model.config.domains_in)))
    keys = [key for key in model.config.domains_in if key in sample.tokens]
    inputs, skipped = {}, {}
    for name, patterns in run.inputs.items():
        groups = [input_domains([pattern], keys, excluded) for pattern in patterns]
        if lacking := [p for p, group in zip(patterns, groups, strict=True) if not group]:
            skipped[name] = f"model and release share no {', '.join(lacking)}"
            continue
        has = [np.any([_valid(sample, key) for key in group], axis=0) for group in groups]
        domains = input_domains(patterns, keys, excluded)
        embedded = embed_sample(
            model, sample, domains, work,
            observe=partial(observe, name) if observe else None,
        )  # fmt: skip
        inputs[name] = InputSet(name=name, embedded=embedded, has_B=np.all(has, axis=0))
    return Bench(model=model, sample=sample, run=run, inputs=inputs, skipped=skipped,
                 excluded=excluded)  # fmt: skip


def embedding_method(
    bench: Bench, found: InputSet, heads: Sequence[HeadName], *, role: str = "embeddings"
) -> Method:
    """Heads on the vectors of one input set."""
    made = list(heads_on(found.embedded, heads, bench.run.heads))
    words = "embeddings" if role == "embeddings" else "random encoder"
    return Method(
        name=f"{words}, {found.name}", role="embeddings" if role == "embeddings" else "control",
        inputs=found.name, heads=made, has_B=found.has_B,
        version=_version(bench.model.digest if role == "embeddings" else role,
                         bench.sample.digest, found.embedded.domains, asdict(bench.run.heads)),
    )  # fmt: skip


def heads_on(embedded: Embedded, names: Sequence[HeadName], run: HeadRun) -> Iterator[Head]:
    """Heads by name."""
    modalities = embedded.by_modality_BKD.reshape(len(embedded), -1)
    for name in names:
        if name == "ridge_mean":
            yield RidgeHead(name, embedded.mean_BD)
        elif name == "ridge_modalities":
            yield RidgeHead(name, modalities)
        elif name == "kernel_modalities":
            yield KernelHead(name, modalities)
        elif name == "mlp_modalities":
            yield MlpHead(name, modalities, run)
        else:
            yield AttentiveHead(name, embedded, run)


def baselines(bench: Bench) -> list[Method]:
    """Boosted trees, a kernel and a linear model on the catalog's columns; none without fluxes."""
    sample, run = bench.sample, bench.run
    colours, used = photometric_features(sample, run.photometry, shapes=False)
    if not used:
        return []
    plain, _ = photometric_features(sample, run.photometry, shapes=False, colours=False)
    catalog, all_used = photometric_features(sample, run.photometry, shapes=True)
    has_B = np.asarray(np.isfinite(colours).any(1))
    trees = partial(BoostingHead, iterations=run.photometry.iterations)
    kinds: list[tuple[str, Callable[[str, Floats], Head], Floats, tuple[str, ...]]] = [
        ("boosting_photometry", trees, colours, used),
        ("kernel_photometry", KernelHead, colours, used),
        ("linear_photometry", RidgeHead, plain, used),
    ]
    if all_used != used:
        kinds.insert(1, ("boosting_catalog", trees, catalog, all_used))
    facts = asdict(run.photometry)
    return [
        Method(name=name, role="baseline", inputs=", ".join(columns), has_B=has_B,
               heads=[kind(name, features)], version=_version(name, sample.digest, facts))
        for name, kind, features, columns in kinds
    ]  # fmt: skip


def oracle(bench: Bench, task: str, columns: Sequence[str]) -> Method | None:
    """Boosted trees that also get truth columns: what could be known at best."""
    sample = bench.sample
    known = [name for name in columns if sample.numbers(name) is not None]
    features, used = photometric_features(sample, bench.run.photometry, shapes=True)
    if not known or not used:
        return None
    name = "boosting_with_truth"
    return Method(
        name=name, role="limit", inputs=", ".join((*used, *known)), has_B=np.ones(len(sample), bool),
        heads=[BoostingHead(name, with_columns(features, sample, known),
                            iterations=bench.run.photometry.iterations)],
        version=_version(name, sample.digest, task, known, asdict(bench.run.photometry)),
    )  # fmt: skip


def supervised(bench: Bench, catalog: Path, work: Path) -> tuple[Method | None, str]:
    """The image network that learns from scratch, or why there is none."""
    survey = SURVEYS[bench.run.survey]
    if not has_cutouts(catalog, survey):
        return None, "the release has no cutouts with inverse variances"
    run = bench.run.supervised
    stamps = stamps_of(catalog, survey, bench.sample, work / "pixels")
    method = Method(
        name="supervised_image", role="baseline", inputs=f"image, {run.crop} x {run.crop} pixels",
        heads=[SupervisedHead(stamps, run)], has_B=stamps.row_B >= 0,
        version=_version("supervised", bench.sample.digest, asdict(run)),
    )  # fmt: skip
    return method, ""


def _valid(sample: Sample, key: str) -> NDArray[np.bool_]:
    return np.asarray(sample.tokens[key].valid_BN.any(1))


def _version(*facts: object) -> str:
    text = json.dumps([VERSION, *facts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
