"""Tokens in any order in, in the catalog's order out."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from skyvec.token_spool import TokenSpool
from skyvec_core.observations import Tokens


@given(rows=st.integers(1, 30), seed=st.integers(0, 99))
def test_what_went_in_comes_out(tmp_path_factory, rows, seed):
    rng = np.random.default_rng(seed)
    widths = {"tok_image": 5, "tok_z": 1}
    spool = TokenSpool(tmp_path_factory.mktemp("spool"), rows=rows, widths=widths)
    expected = {
        key: (np.zeros((rows, n), int), np.zeros((rows, n), bool)) for key, n in widths.items()
    }
    for key, width in widths.items():
        some = rng.permutation(rows)[: rng.integers(0, rows + 1)]
        for part in np.array_split(some, 3):
            ids = rng.integers(0, 4375, (len(part), width))
            valid = rng.random((len(part), width)) < 0.7
            spool.put(
                key, part, Tokens(ids_BN=torch.from_numpy(ids), valid_BN=torch.from_numpy(valid))
            )
            expected[key][0][part], expected[key][1][part] = np.where(valid, ids, 0), valid
    start = int(rng.integers(0, rows))
    for key, (ids, valid) in expected.items():
        found = spool.get(key, start, rows)
        assert np.array_equal(found.ids_BN.numpy(), ids[start:])
        assert np.array_equal(found.valid_BN.numpy(), valid[start:])
    spool.close()
