"""Time and storage of a whole run, extrapolated from the objects that were probed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import pyarrow as pa

from skyvec.preview.probe import CATALOG, Probed
from skyvec.stage.plan import Plan
from skyvec_core.modalities import MODALITIES

_TEXT_BYTES = 20  # of an id, before compression


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What the pixels that are left to do will take."""

    rows: int
    """Left to do."""
    sampled: Mapping[str, int]
    """Source -> objects that the times rest on."""
    tokens: Mapping[str, float]
    """Token key -> tokens of a mean row, rows without a match included."""
    seconds: Mapping[str, float]
    """Step -> seconds of one worker; `write` and `verify` are not in it."""
    workers: int
    wall_seconds: float
    """With these workers, if they do not wait for a disk or each other."""
    read_bytes: int
    """At least: the catalog, and of every source its matched objects."""
    vector_bytes: int
    """Vectors, or tokens; stored without compression."""
    key_bytes: int
    """Ids, positions, flags, matched ids; before compression."""
    spool_bytes: int
    """On the disk of each worker, for the largest pixel known."""

    def to_dict(self) -> dict[str, object]:
        """Plain values, for JSON."""
        return asdict(self)


def estimate(
    plan: Plan,
    probed: Probed,
    *,
    catalog_bytes: int,
    largest: int,
    source_sizes: Mapping[str, tuple[int, int]],
    workers: int,
) -> Cost | None:
    """Extrapolate; None where nothing was tokenized.

    Parameters
    ----------
    largest
        Rows of the largest pixel of the catalog.
    source_sizes
        Source -> (bytes, rows).
    """
    if not probed.objects:
        return None
    left = len(plan.todo) / max(1, len(plan.pixels))
    rows = round(plan.rows * left)
    shares = {
        spec.name: found.fraction
        for spec in plan.job.sources
        if (found := probed.matched(spec.name))
    }
    tokens = probed.mean_tokens(CATALOG)
    seconds = dict.fromkeys(("match", "read", "tokenize", "encode"), 0.0)
    for step in ("match", "read", "tokenize"):
        seconds[step] += rows * probed.rate(CATALOG, step)
    read = catalog_bytes * left
    for name, share in shares.items():
        tokens |= {key: share * mean for key, mean in probed.mean_tokens(name).items()}
        seconds["match"] += rows * probed.rate(name, "match")
        for step in ("read", "tokenize"):
            seconds[step] += rows * share * probed.rate(name, step)
        size, count = source_sizes.get(name, (0, 0))
        read += min(size, rows * share * size / count) if count else 0
    seconds["encode"] = rows * sum(tokens.values()) * probed.rate(CATALOG, "encode")
    arrays, keys = _row_bytes(plan)
    waiting = [key for spec in plan.job.sources for _, key in spec.survey.inputs]
    waiting += () if plan.job.columns else plan.job.source_labels
    return Cost(
        rows=rows,
        sampled=dict(probed.objects),
        tokens={key: round(mean, 2) for key, mean in tokens.items()},
        seconds={step: round(spent, 3) for step, spent in seconds.items()},
        workers=workers,
        wall_seconds=round(sum(seconds.values()) / min(workers, max(1, len(plan.todo))), 3),
        read_bytes=round(read),
        vector_bytes=rows * arrays,
        key_bytes=rows * keys,
        spool_bytes=largest * sum(2 * MODALITIES[key].num_tokens for key in waiting),
    )


def _row_bytes(plan: Plan) -> tuple[int, int]:
    """Bytes of the products and of the other columns of one row."""
    job = plan.job
    products = {job.columns.name} if job.columns else set(job.token_keys)
    widths = {field.name: _width(field.type) for field in job.schema(plan.release)}
    arrays = sum(width for name, width in widths.items() if name in products)
    return arrays, sum(widths.values()) - arrays


def _width(kind: pa.DataType) -> int:
    if isinstance(kind, pa.FixedShapeTensorType):
        values = kind.storage_type
        return int(values.list_size * values.value_type.bit_width // 8)
    try:
        return max(1, int(kind.bit_width) // 8)
    except ValueError:
        return _TEXT_BYTES
