"""The approximate index on vectors of skyvec-tiny: is its recall as stated, and what does it save?

    python integration/bench/bench_index.py [--rows 100000] [--queries 2000] [--scratch FOLDER]

The recall that an index states comes from objects held out while it was built. Here it is measured again
with other objects: searched for by their vectors in both ways, the index and the exact pass.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np
import pyarrow as pa
import torch

from skyvec.extensions.vector_catalog import VectorCatalog
from skyvec.mock.survey import write_mock_survey
from skyvec.search import find_vectors, search
from skyvec.search.approximate import ApproximateIndex
from skyvec.stage.run import run
from skyvec.surveys import leave_out
from skyvec_schemas.survey_columns import LEGACY_SURVEY

K = 10
EXPANSIONS = (16, 32, 64, 128)


def main() -> None:
    """Print the table of docs/search.md."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=2000)
    parser.add_argument("--scratch", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        sky = write_mock_survey(
            Path(scratch) / "sky", rows=arguments.rows, seed=404, images=False, workers=1
        )
        run(sky, survey=leave_out(LEGACY_SURVEY, ["image"], where="bench"), workers=0,
            batch_rows=2048)  # fmt: skip
        _table(sky, Path(scratch), arguments.queries)


def _table(sky: Path, scratch: Path, queries: int) -> None:
    catalog = VectorCatalog.open(sky)
    ids = pa.concat_arrays([part.ids for part in catalog.parts()])
    chosen = ids.take(pa.array(np.random.default_rng(11).permutation(len(ids))[:queries]))
    asked = find_vectors(catalog, chosen.to_pylist())
    start = perf_counter()
    exact = _found(search(sky, vector=asked, k=K), queries)
    seconds = (perf_counter() - start) / queries
    start = perf_counter()
    search(sky, vector=asked[:1], k=K)
    alone = perf_counter() - start
    print(f"{len(ids):,} vectors of {catalog.dim}, {len(catalog.release.pixels)} pixels, k = {K}\n")
    print("| candidates | stated | measured again | difference | exact over index, one at a time |")
    print("|---|---|---|---|---|")
    for expansion in EXPANSIONS:
        index = ApproximateIndex.build(sky, scratch / f"i{expansion}", k=K, expansion=expansion)
        near = _found(index.search(vector=asked, k=K), queries)
        recall = np.mean([len(a & b) / K for a, b in zip(near, exact, strict=True)])
        index.search(vector=asked[:1], k=K)
        start = perf_counter()
        for row in asked[:50]:
            index.search(vector=row, k=K)
        one = (perf_counter() - start) / 50
        stated = index.recall
        print(
            f"| {expansion} | {stated.recall:.4f} ({stated.low:.3f} to {stated.high:.3f}) "
            f"| {recall:.4f} | {abs(recall - stated.recall):.4f} | {alone / one:.1f} |",
            flush=True,
        )
    print(f"\nExact: {alone * 1e3:.0f} ms alone, {seconds * 1e3:.2f} ms each of {queries} at once.")


def _found(answer: object, queries: int) -> list[set[object]]:
    groups = answer.to_pandas().groupby("query")["object_id"]  # type: ignore[attr-defined]
    return [{*groups.get_group(query)} for query in range(queries)]


if __name__ == "__main__":
    main()
