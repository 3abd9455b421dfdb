"""A learned pool: queries that attend to an object's context vectors, and a linear head on top.

One layer of cross-attention and a linear head, as AION-1's evaluations have it (arXiv 2510.17960,
table 6: where modalities are mixed it beats the mean by far). A pool belongs to the model whose
digest it was fitted on, and is saved in one file with its head.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from skyvec_core.model.blocks import CrossAttention, Norm, keep_mask
from skyvec_core.model.config import TransformerConfig

# Shape letters: B object, T token, Q learned query, D model width, K target.

PoolLoss = Literal["squared", "cross_entropy"]


class AttentionPool(nn.Module):
    """Pools context vectors (B, T, D) to (B, Q D) and predicts K targets from that.

    Parameters
    ----------
    dim, num_heads
        Of the model.
    num_queries
        Learned queries; the pooled vector has ``num_queries * dim`` values.
    targets
        Names of the K quantities that the head predicts.
    model_digest
        Identity of the model.
    """

    target_mean: Tensor
    target_scale: Tensor

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        targets: Sequence[str],
        model_digest: str,
        num_queries: int = 1,
    ) -> None:
        super().__init__()
        self.targets = tuple(targets)
        self.model_digest = model_digest
        sizes = TransformerConfig(dim=dim, num_heads=num_heads, encoder_depth=0, decoder_depth=0)
        self.queries = nn.Parameter(torch.zeros(num_queries, dim))
        self.context_norm = Norm(dim)
        self.attention = CrossAttention(sizes)
        self.head = nn.Linear(num_queries * dim, len(self.targets))
        self.register_buffer("target_mean", torch.zeros(len(self.targets)))
        self.register_buffer("target_scale", torch.ones(len(self.targets)))

    @property
    def dim(self) -> int:
        """Values of a pooled vector."""
        return self.queries.numel()

    def forward(self, context_BTD: Tensor, valid_BT: Tensor) -> Tensor:
        """Pooled vectors (B, Q D); those of an object without valid tokens mean nothing."""
        queries_BQD = self.queries.expand(len(context_BTD), -1, -1)
        memory = self.attention.keys_values(self.context_norm(context_BTD))
        keep = keep_mask(queries_BQD[..., 0], valid_BT)
        pooled_BQD: Tensor = self.attention(queries_BQD, memory, keep)
        return pooled_BQD.flatten(1)

    def predict(self, pooled: Tensor) -> Tensor:
        """Targets (B, K) in their units from pooled vectors (B, Q D)."""
        out: Tensor = self.head(pooled) * self.target_scale + self.target_mean
        return out

    @torch.no_grad()
    def predict_contexts(self, contexts: Sequence[Tensor]) -> Tensor:
        """Targets (B, K) of objects from their context vectors (T, D), at least one each.

        Objects are taken one by one: the bits of none depend on its company.
        """
        found_BK = torch.zeros(len(contexts), len(self.targets))
        for row in range(len(contexts)):
            pooled = self(*_padded([contexts[row]]))
            found_BK[row] = self.predict(pooled)[0]
        return found_BK

    def save(self, path: str | Path) -> None:
        """Write weights, head and what they belong to, to one safetensors file."""
        path = Path(path)
        queries, dim = self.queries.shape
        facts = {
            "dim": dim,
            "num_heads": self.attention.num_heads,
            "num_queries": queries,
            "targets": self.targets,
            "model_digest": self.model_digest,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, path, metadata={"attention_pool": json.dumps(facts)})
        path.chmod(0o644)  # safetensors writes 0600

    @classmethod
    def load(cls, path: str | Path) -> AttentionPool:
        """Read a file that `save` wrote, in eval mode.

        Raises
        ------
        ValueError
            If the file is no attention pool, or its tensors do not fit.
        """
        with safe_open(path, framework="pt") as stored:
            facts = (stored.metadata() or {}).get("attention_pool")
            if facts is None:
                raise ValueError(f"{path} is not an attention pool: its header does not say so")
            pool = cls(**json.loads(facts))
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        try:
            pool.load_state_dict(tensors)
        except RuntimeError as problem:
            raise ValueError(f"{path}: {problem}") from problem
        return pool.eval()


def fit_attention_pool(
    pool: AttentionPool,
    contexts: Sequence[Tensor],
    targets_BK: Tensor,
    *,
    loss: PoolLoss = "squared",
    epochs: int = 20,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.05,
    seed: int = 0,
) -> list[float]:
    """Fit a pool and its head to labels by gradient descent; the transformer stays as it is.

    Parameters
    ----------
    pool
        Drawn anew and fitted in place.
    contexts
        For each object its context vectors (T, D), as many as it has tokens, of any float type.
    targets_BK
        Labels, NaN where unknown; every target needs two that differ.
    loss
        ``squared`` for numbers. With ``cross_entropy`` the targets are K classes, the labels the
        probability of each (1 and 0 where it is known), and the pool predicts logits.
    seed
        Fixes the first weights and the order of the objects.

    Returns
    -------
    list of float
        Loss of each epoch: mean squared error in units of each target's variance, or nats.

    Raises
    ------
    ValueError
        If contexts, labels and pool do not fit together, or labels teach nothing.
    """
    targets_BK = torch.as_tensor(targets_BK)
    if len(contexts) != len(targets_BK) or targets_BK.shape[1:] != (len(pool.targets),):
        raise ValueError(
            f"{len(contexts)} objects with labels {tuple(targets_BK.shape)}; the pool has "
            f"{len(pool.targets)} targets"
        )
    labels = _squared(pool, targets_BK) if loss == "squared" else _classes(pool, targets_BK)
    generator = torch.Generator().manual_seed(seed)
    _initialize(pool, generator)
    parameters = [p for p in pool.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay)
    steps = epochs * -(-len(contexts) // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses = []
    pool.train()
    for _ in range(epochs):
        lost, counted = 0.0, 0
        order = torch.randperm(len(contexts), generator=generator)
        for rows in torch.split(order, batch_size):
            context_bTD, valid_bT = _padded([contexts[row] for row in rows.tolist()])
            total, count = labels.loss(pool.head(pool(context_bTD, valid_bT)), rows)
            optimizer.zero_grad()
            (total / max(count, 1)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            lost, counted = lost + total.item(), counted + count
        losses.append(lost / counted)
    pool.eval()
    return losses


class _Numbers:
    """Labels in units of their spread; unknown ones do not count."""

    def __init__(self, scaled_BK: Tensor, known_BK: Tensor) -> None:
        self.scaled_BK, self.known_BK = scaled_BK, known_BK

    def loss(self, out_bK: Tensor, rows: Tensor) -> tuple[Tensor, int]:
        """Sum over the known labels of a batch, and their number."""
        known_bK = self.known_BK[rows]
        total = ((out_bK - self.scaled_BK[rows]).square() * known_bK).sum()
        return total, int(known_bK.sum())


class _Probabilities:
    """Labels that are probabilities of classes."""

    def __init__(self, shares_BK: Tensor) -> None:
        self.shares_BK = shares_BK

    def loss(self, out_bK: Tensor, rows: Tensor) -> tuple[Tensor, int]:
        """Sum over a batch, and its rows."""
        total = functional.cross_entropy(out_bK, self.shares_BK[rows], reduction="sum")
        return total, len(rows)


def _squared(pool: AttentionPool, targets_BK: Tensor) -> _Numbers:
    known_BK = targets_BK.isfinite()
    for index, (values, known) in enumerate(zip(targets_BK.T, known_BK.T, strict=True)):
        labels = values[known].double()
        if len(labels) < 2 or float(labels.std()) == 0:
            raise ValueError(f"target {pool.targets[index]} has no two labels that differ")
        pool.target_mean[index], pool.target_scale[index] = labels.mean(), labels.std()
    scaled_BK = (targets_BK.float().nan_to_num() - pool.target_mean) / pool.target_scale
    return _Numbers(scaled_BK, known_BK)


def _classes(pool: AttentionPool, shares_BK: Tensor) -> _Probabilities:
    if not bool(shares_BK.isfinite().all()):
        raise ValueError("an object has no known class; leave it out")
    pool.target_mean.zero_()
    pool.target_scale.fill_(1)
    return _Probabilities(shares_BK.float())


def _initialize(pool: AttentionPool, generator: torch.Generator) -> None:
    with torch.no_grad():
        nn.init.trunc_normal_(pool.queries, std=0.02, generator=generator)
        for module in pool.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
            elif isinstance(module, Norm):
                nn.init.ones_(module.weight)
        nn.init.zeros_(pool.head.bias)


def _padded(contexts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    counts_B = torch.tensor([len(context) for context in contexts])
    context_BTD = pad_sequence([context.float() for context in contexts], batch_first=True)
    return context_BTD, torch.arange(context_BTD.shape[1]) < counts_B[:, None]
