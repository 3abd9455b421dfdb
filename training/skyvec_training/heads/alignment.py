"""Contrastive training of an `AlignmentHead`: the task that the loop knows.

What a step needs is made in chunks that are computed again for the gradient (as in GradCache, arXiv
2101.06983), so memory follows from the chunk and not from the batch, which a contrastive loss wants
large: 16k objects of cached means, or 16k through a tuned encoder, differ in time alone.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from skyvec_core.heads.alignment import TEXT, AlignmentHead
from skyvec_core.heads.tower import TowerConfig
from skyvec_schemas.errors import ConfigurationError
from skyvec_training.data.draws import rows_of_step
from skyvec_training.heads.cache import ContextCache
from skyvec_training.heads.contrastive import recall, sigmoid_share, softmax_share
from skyvec_training.heads.ranks import add_over_ranks, rank_and_world
from skyvec_training.recipe.heads import AlignmentRun
from skyvec_training.recipe.reading import rows_to_train

# Shape letters: B object, m object of this rank, T token, W width of a tower's input, D width.

RECALLS = (1, 10)


class Contexts(Protocol):
    """Where the towers' inputs come from: a cache, or an encoder that is tuned."""

    @property
    def keys(self) -> NDArray[np.int64]:
        """What object each row is."""
        ...

    def read(self, tower: str, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Vectors (B, T, W) and which are valid (B, T)."""
        ...


def build_head(
    cache: ContextCache, run: AlignmentRun, *, num_heads: int, seed: int
) -> AlignmentHead:
    """A head with fresh weights for what a cache holds.

    Parameters
    ----------
    num_heads
        Of the model; the attention that pools has as many.
    """
    towers = {
        name: TowerConfig(
            width=cached.width, dim=run.dim, hidden=run.hidden, domains=cache.domains[name],
            num_heads=0 if run.pooled or name == TEXT else num_heads,
        )
        for name, cached in cache.towers.items()
    }  # fmt: skip
    head = AlignmentHead(towers, model_digest=cache.model_digest, text_digest=cache.text_digest)
    head.initialize(torch.Generator().manual_seed(seed))
    return head


class AlignmentTask:
    """Contrast of the objects of a step, the last rows held out.

    Ranks hold copies of the head and share the batch equally; their gradients are added. A batch
    cannot be cut into microbatches, since every pair in it counts: ``chunk`` is what bounds memory.

    Parameters
    ----------
    contexts
        Inputs of both towers.
    encoder
        What else is trained, if ``contexts`` come from it.
    """

    def __init__(
        self,
        head: AlignmentHead,
        contexts: Contexts,
        run: AlignmentRun,
        *,
        seed: int,
        encoder: nn.Module | None = None,
    ) -> None:
        self.head, self.contexts, self.run, self.seed = head, contexts, run, seed
        self.module: nn.Module = head
        if encoder is not None:
            self.module = nn.ModuleDict({"head": head, "encoder": encoder})
        self.root = self.module
        self.names, self.slots = tuple(head.towers), run.batch
        rows = len(contexts.keys)
        self.train_rows = rows_to_train(rows, run.held_out, where="alignment")
        if run.batch > self.train_rows:
            raise ConfigurationError(
                f"a batch of {run.batch} from {self.train_rows} objects would hold one twice",
                where="alignment",
                remedy="Lower batch or held_out in the recipe, or align more objects",
            )
        _, world = rank_and_world()
        if run.batch % world:
            raise ConfigurationError(
                f"a batch of {run.batch} cannot be shared equally by {world} ranks",
                where="alignment",
                remedy="Make batch in the recipe a multiple of the ranks",
            )
        add_over_ranks(self.module)

    def read(self, step: int, slots: range) -> NDArray[np.int64]:
        """Rows of some slots of a step."""
        rows = rows_of_step(seed=self.seed, step=step, batch=self.run.batch, rows=self.train_rows)
        return rows[slots.start : slots.stop]

    def counts(self, batch: NDArray[np.int64]) -> Tensor:
        """Objects."""
        return torch.tensor([len(batch)])

    def coefficients(self, counts_C: Tensor) -> Tensor:  # noqa: ARG002
        """Shares of the loss just add up."""
        return torch.ones(1)

    def sums(self, batch: NDArray[np.int64]) -> Tensor:
        """Share (1,) of the loss that is this rank's; all ranks call it together, with as many objects."""
        ours, theirs = (self._vectors(name, batch) for name in self.names)
        keys_m = torch.from_numpy(self.contexts.keys[batch])
        return self._contrast(ours, theirs, keys_m, everywhere=True)[None]

    def describe(self, sums_K: Tensor, counts_C: Tensor) -> dict[str, float]:  # noqa: ARG002
        """Scale and bias of the logits."""
        return {"scale": self.head.scale.item(), "bias": self.head.bias.item()}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Loss in batches of training's size, and recall among all evaluated objects."""
        last = min(len(self.contexts.keys), self.train_rows + self.run.evaluated)
        rows = np.arange(self.train_rows, last)
        keys_B = torch.from_numpy(self.contexts.keys[rows])
        ours, theirs = (self._vectors(name, rows) for name in self.names)
        total = 0.0
        for start in range(0, len(rows), self.run.batch):
            p = slice(start, start + self.run.batch)
            loss = self._contrast(ours[p], theirs[p], keys_B[p], everywhere=False)
            total += float(loss) * len(keys_B[p])
        scores = {"loss": total / len(rows)}
        for k in RECALLS:
            found, chance = recall(ours, theirs, keys_B, k=k, distinct=self.names[1] == TEXT)
            back, back_chance = recall(theirs, ours, keys_B, k=k)
            scores |= {
                f"recall_{k}": found, f"recall_{k}_chance": chance,
                f"recall_{k}_back": back, f"recall_{k}_back_chance": back_chance,
            }  # fmt: skip
        return scores

    def _contrast(
        self, ours_mD: Tensor, theirs_mD: Tensor, keys_m: Tensor, *, everywhere: bool
    ) -> Tensor:
        head = self.head
        if self.run.loss == "softmax":
            return softmax_share(
                ours_mD, theirs_mD, keys_m, scale=head.scale, everywhere=everywhere
            )
        return sigmoid_share(
            ours_mD, theirs_mD, keys_m, scale=head.scale, bias=head.bias, everywhere=everywhere
        )

    def _vectors(self, name: str, rows: NDArray[np.int64]) -> Tensor:
        """Unit vectors (m, D) of one tower, chunk by chunk."""
        chunks = np.split(rows, range(self.run.chunk, len(rows), self.run.chunk))
        return torch.cat(
            [
                checkpoint(self._chunk, name, chunk, use_reentrant=False, preserve_rng_state=False)
                for chunk in chunks
            ]
        )

    def _chunk(self, name: str, rows: NDArray[np.int64]) -> Tensor:
        vectors_mD: Tensor = self.head.tower(name)(*self.contexts.read(name, rows))
        return vectors_mD
