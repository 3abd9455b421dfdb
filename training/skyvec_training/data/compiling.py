"""Token extensions compiled into shards that training reads at random; see `shard_files`.

A shard is made of consecutive leaves; a compilation that was stopped goes on with the next shard.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from skyvec_core.modalities import MODALITIES
from skyvec_schemas.errors import (
    ConfigurationError,
    ContractError,
    InfrastructureError,
    MissingColumnError,
    OutputExistsError,
)
from skyvec_training.data.leaves import catalog_folder, healpix_of, leaves_of
from skyvec_training.data.shard_files import (
    LAYOUT_VERSION,
    MANIFEST,
    SHARDS,
    DatasetRecord,
    LeafRecord,
    ShardManifest,
    ShardRecord,
    write_synced,
)
from skyvec_training.data.shard_rows import LEAST_TOKENS
from skyvec_training.data.shard_writing import ShardJob, write_shard
from skyvec_training.data.token_leaves import TokenLeaf, open_leaf, require_one_codec

ROWS_PER_SHARD = 1 << 20
"""Of tokens of an image and scalars, 1.2 GB."""

Observe = Callable[[ShardRecord], None]


def compile_shards(
    sources: Mapping[str, Path],
    out: Path,
    *,
    rows_per_shard: int = ROWS_PER_SHARD,
    workers: int = 1,
    observe: Observe = lambda _: None,
) -> ShardManifest:
    """Compile token catalogs into ``out``; call again to go on after a stop.

    Parameters
    ----------
    sources
        Name of a data set -> HATS catalog or collection of tokens.
    rows_per_shard
        A shard closes with the leaf that reaches this many rows.
    workers
        Processes; each makes a shard at a time.
    observe
        Told of each shard that is there.

    Raises
    ------
    ConfigurationError
        If the sources were made by different codecs, or a name cannot be a folder's.
    OutputExistsError
        If ``out`` holds shards of something else.
    ContractError
        If a code is outside its domain, or no object has two tokens.
    InfrastructureError
        If the disk is full or fails.
    """
    jobs, leaves = _planned(sources, out, rows_per_shard)
    codecs = require_one_codec(leaf for group in leaves.values() for leaf in group)
    plan = _digest({"codecs": codecs, "jobs": [job.identity() for job in jobs]})
    known = _manifest_of(out, plan)
    if known is not None:
        return known
    (out / SHARDS).mkdir(parents=True, exist_ok=True)
    try:
        records = list(_made(jobs, workers, observe))
        manifest = _manifest(sources, jobs, records, leaves, codecs, plan)
        write_synced(out / MANIFEST, manifest.to_json())
    except OSError as error:
        raise InfrastructureError(
            f"the shards could not be written ({error})",
            where=str(out),
            remedy="Make room and run the same command again; complete shards are kept",
        ) from error
    return manifest


def _planned(
    sources: Mapping[str, Path], out: Path, rows_per_shard: int
) -> tuple[list[ShardJob], dict[str, list[TokenLeaf]]]:
    jobs: list[ShardJob] = []
    leaves: dict[str, list[TokenLeaf]] = {}
    for name, source in sources.items():
        if not re.fullmatch(r"[\w.][\w.-]*", name):
            raise ConfigurationError(
                f"{name!r} cannot name a data set",
                where=str(source),
                remedy="Use letters, digits, points, dashes and underscores",
            )
        root = catalog_folder(source)
        leaves[name] = [open_leaf(path) for path in leaves_of(source)]
        keys = leaves[name][0].keys
        for leaf in leaves[name]:
            if leaf.keys != keys:
                raise MissingColumnError(
                    f"it has other token columns ({', '.join(leaf.keys)}) than "
                    f"{leaves[name][0].path.name} ({', '.join(keys)})",
                    where=str(leaf.path),
                    remedy="Tokenize the whole catalog again, or give the parts as two data sets",
                )
        for number, group in enumerate(_grouped(leaves[name], rows_per_shard)):
            records = [_leaf_record(leaf, root) for leaf in group]
            jobs.append(ShardJob(dataset=name, folder=out / SHARDS / f"{name}-{number:05d}",
                             keys=keys, leaves=tuple(group), records=tuple(records)))  # fmt: skip
    return jobs, leaves


def _grouped(leaves: Sequence[TokenLeaf], rows_per_shard: int) -> Iterator[list[TokenLeaf]]:
    group: list[TokenLeaf] = []
    for leaf in leaves:
        group.append(leaf)
        if sum(held.rows for held in group) >= rows_per_shard:
            yield group
            group = []
    if group:
        yield group


def _leaf_record(leaf: TokenLeaf, root: Path) -> LeafRecord:
    order, pixel = healpix_of(leaf.path)
    return LeafRecord(path=leaf.path.relative_to(root).as_posix(), order=order, pixel=pixel,
                      rows=leaf.rows, footer=leaf.footer)  # fmt: skip


def _manifest_of(out: Path, plan: str) -> ShardManifest | None:
    """The manifest that is there already, if it is that of this plan."""
    place = out / MANIFEST
    if not place.is_file():
        return None
    facts = json.loads(place.read_text())
    if facts.get("plan") != plan:
        raise OutputExistsError(
            "it holds shards of other sources, or of an earlier state of these",
            where=str(out),
            remedy="Give another --out",
        )
    return ShardManifest.from_json(place.read_text())


def _made(jobs: Sequence[ShardJob], workers: int, observe: Observe) -> Iterator[ShardRecord]:
    if workers <= 1:
        for job in jobs:
            record = write_shard(job)
            observe(record)
            yield record
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for record in pool.map(write_shard, jobs):
            observe(record)
            yield record


def _manifest(
    sources: Mapping[str, Path],
    jobs: Sequence[ShardJob],
    records: Sequence[ShardRecord],
    leaves: Mapping[str, Sequence[TokenLeaf]],
    codecs: Mapping[str, str],
    plan: str,
) -> ShardManifest:
    datasets = []
    for name, source in sources.items():
        own = [record for job, record in zip(jobs, records, strict=True) if job.dataset == name]
        rows = sum(record.rows for record in own)
        if not rows:
            raise ContractError(
                f"no object has {LEAST_TOKENS} tokens", where=str(source), remedy="Tokenize again"
            )
        datasets.append(
            DatasetRecord(
                name=name,
                fingerprints=tuple(sorted({f for leaf in leaves[name] if (f := leaf.fingerprint)})),
                rows=rows,
                tokens=sum(record.tokens for record in own),
                too_few=sum(record.too_few for record in own),
                shards=tuple(own),
            )
        )
    return ShardManifest(
        layout=LAYOUT_VERSION,
        plan=plan,
        domains={k: (MODALITIES[k].num_tokens, MODALITIES[k].vocabulary) for k in codecs},
        codecs=codecs,
        datasets=tuple(datasets),
    )


def _digest(facts: object) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
