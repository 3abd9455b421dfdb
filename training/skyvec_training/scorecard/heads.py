"""Heads on frozen vectors: each learns the labels of some rows and predicts those of others.

A head never sees the rows that it predicts: scalers, ridge strengths and stopping are of the
training rows. Unknown labels (NaN) are left out target by target.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.impute import SimpleImputer
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional

from skyvec_training.recipe.evaluation import HeadRun
from skyvec_training.scorecard.embeddings import Embedded
from skyvec_training.scorecard.targets import Targets

# Shape letters: B object, T token, D width, K target, Q learned query, F feature.

Rows = NDArray[np.int64]
Floats = NDArray[np.floating]
ALPHAS = tuple(10.0**power for power in range(-1, 6))


class Head(Protocol):
    """Learns and predicts."""

    name: str

    def predict(self, train: Rows, test: Rows, targets: Targets, *, seed: int) -> Floats:
        """Targets (test, K) of rows that were not learnt from."""
        ...


class RidgeHead:
    """Ridge regression, its strength chosen by leave-one-out for each target."""

    def __init__(self, name: str, features_BF: Floats) -> None:
        self.name = name
        self.features_BF = features_BF

    def predict(self, train: Rows, test: Rows, targets: Targets, *, seed: int) -> Floats:  # noqa: ARG002
        """See `Head`."""
        out_BK = np.full((len(test), targets.values_BK.shape[1]), np.nan)
        for chosen, rows in known_alike(targets.values_BK[train]):
            learnt = train[rows]
            labels = targets.values_BK[learnt][:, chosen]
            if len(learnt) < 3:
                out_BK[:, chosen] = labels.mean(0) if len(learnt) else np.nan
                continue
            with np.errstate(divide="ignore", invalid="ignore"):
                model = ridge().fit(self.features_BF[learnt], labels)
            out_BK[:, chosen] = model.predict(self.features_BF[test]).reshape(len(test), -1)
        return out_BK


def ridge() -> Pipeline:
    """Means for what is missing, standardized features, ridge."""
    return make_pipeline(
        SimpleImputer(keep_empty_features=True),
        StandardScaler(),
        RidgeCV(alphas=ALPHAS, alpha_per_target=True),
    )


class MlpHead:
    """Two layers on pooled features, as in AION-1's evaluations (hidden 256, GELU, dropout 0.1)."""

    def __init__(self, name: str, features_BF: Floats, run: HeadRun) -> None:
        self.name, self.run = name, run
        self.features_BF = features_BF

    def predict(self, train: Rows, test: Rows, targets: Targets, *, seed: int) -> Floats:
        """See `Head`."""
        prepare = make_pipeline(SimpleImputer(keep_empty_features=True), StandardScaler())
        x_BF = torch.from_numpy(prepare.fit_transform(self.features_BF[train]).astype(np.float32))
        seen_BF = torch.from_numpy(prepare.transform(self.features_BF[test]).astype(np.float32))
        labels = Scaled(targets.values_BK[train])
        network = mlp(x_BF.shape[1], labels.width, self.run, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        steps = self.run.epochs * -(-len(train) // self.run.batch)
        optimizer, schedule = optimizer_of(network, self.run, steps)
        for _ in range(self.run.epochs):
            for rows in torch.split(torch.randperm(len(train), generator=generator),
                                    self.run.batch):  # fmt: skip
                loss = labels.loss(network(x_BF[rows]), rows)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
        network.eval()
        with torch.inference_mode():
            return labels.unscaled(network(seen_BF))


class AttentiveHead:
    """Learned queries attend to an object's context vectors; two layers follow.

    The cross-attention of the paper with its key projection folded into the queries and that of
    the values into the first layer: nothing is computed for a token but Q products.
    """

    def __init__(self, name: str, embedded: Embedded, run: HeadRun) -> None:
        self.name, self.embedded, self.run = name, embedded, run

    def predict(self, train: Rows, test: Rows, targets: Targets, *, seed: int) -> Floats:
        """See `Head`."""
        run = self.run
        labels = Scaled(targets.values_BK[train])
        network = AttentivePool(self.embedded.dim, labels.width, run, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        steps = run.epochs * -(-len(train) // run.batch)
        optimizer, schedule = optimizer_of(network, run, steps)
        for _ in range(run.epochs):
            order = torch.randperm(len(train), generator=generator)
            for rows in torch.split(order, run.batch):
                context_BTD, valid_BT = self.embedded.padded(train[rows.numpy()])
                loss = labels.loss(network(context_BTD, valid_BT), rows)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
        network.eval()
        with torch.inference_mode():
            parts = [
                network(*self.embedded.padded(rows))
                for rows in np.array_split(test, max(1, -(-len(test) // run.batch)))
            ]
        return labels.unscaled(torch.cat(parts))


class AttentivePool(nn.Module):
    """(B, T, D) and (B, T) to (B, K)."""

    def __init__(self, dim: int, width: int, run: HeadRun, *, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.queries_QD = nn.Parameter(torch.randn(run.queries, dim, generator=generator))
        self.after = mlp(run.queries * dim, width, run, seed=seed)

    def forward(self, context_BTD: Tensor, valid_BT: Tensor) -> Tensor:
        """Targets, standardized."""
        with torch.no_grad():
            x_BTD = functional.layer_norm(context_BTD, context_BTD.shape[-1:])
        logits_BTQ = x_BTD @ self.queries_QD.T / x_BTD.shape[-1] ** 0.5
        logits_BTQ = logits_BTQ.masked_fill(~valid_BT[..., None], -torch.inf)
        weights_BTQ = logits_BTQ.softmax(1).nan_to_num()
        pooled_BQD = weights_BTQ.transpose(1, 2) @ x_BTD
        out_BK: Tensor = self.after(pooled_BQD.flatten(1))
        return out_BK


class Scaled:
    """Labels in units of their spread, and the squared error over those that are known."""

    def __init__(self, values_BK: Floats) -> None:
        with np.errstate(invalid="ignore"):
            known = np.isfinite(values_BK)
            count = np.maximum(known.sum(0), 1)
            self.mean_K = np.where(known, values_BK, 0).sum(0) / count
            spread = np.where(known, values_BK - self.mean_K, 0)
        self.scale_K = np.maximum(np.sqrt((spread**2).sum(0) / count), 1e-12)
        self.known_BK = torch.from_numpy(known)
        self.scaled_BK = torch.from_numpy((spread / self.scale_K).astype(np.float32))
        self.width = values_BK.shape[1]

    def loss(self, out_bK: Tensor, rows: Tensor) -> Tensor:
        """Mean squared error of a batch."""
        known_bK = self.known_BK[rows]
        return ((out_bK - self.scaled_BK[rows]).square() * known_bK).sum() / known_bK.sum().clamp(1)

    def unscaled(self, out_BK: Tensor) -> Floats:
        """In the labels' units."""
        return np.asarray(out_BK.double().numpy() * self.scale_K + self.mean_K)


def mlp(dim: int, width: int, run: HeadRun, *, seed: int) -> nn.Sequential:
    """Two layers with fresh weights; the last begins at zero."""
    first, last = nn.Linear(dim, run.hidden), nn.Linear(run.hidden, width)
    generator = torch.Generator().manual_seed(seed)
    nn.init.xavier_uniform_(first.weight, generator=generator)
    nn.init.zeros_(first.bias)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(first, nn.GELU(), _Dropout(run.dropout, generator), last)


def optimizer_of(
    network: nn.Module, run: HeadRun, steps: int
) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.OneCycleLR]:
    """AdamW with warm-up and cosine decay over all steps."""
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=run.learning_rate, weight_decay=run.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, run.learning_rate, total_steps=max(steps, 2) + 1, pct_start=0.1,
        cycle_momentum=False,
    )  # fmt: skip
    return optimizer, schedule


class _Dropout(nn.Module):
    """Dropout from a generator, so that equal seeds give equal heads."""

    def __init__(self, share: float, generator: torch.Generator) -> None:
        super().__init__()
        self.share, self.generator = share, generator

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.share == 0:
            return x
        keep = torch.rand(x.shape, generator=self.generator) >= self.share
        return x * keep / (1 - self.share)


def known_alike(values_BK: Floats) -> Iterator[tuple[Rows, Rows]]:
    """Targets that are known of the same rows, and those rows."""
    known_BK = np.isfinite(values_BK)
    patterns, group_K = np.unique(known_BK, axis=1, return_inverse=True)
    for group in range(patterns.shape[1]):
        yield np.flatnonzero(group_K.ravel() == group), np.flatnonzero(patterns[:, group])
