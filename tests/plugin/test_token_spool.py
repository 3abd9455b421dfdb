"""Tokens in any order in, in the catalog's order out."""

import os

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skyvec.stage.token_spool import TokenSpool
from skyvec_core.observations import Tokens


def test_a_write_that_stops_half_way_is_continued(tmp_path, monkeypatch):
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: whole(file, data[:3], at))
    spool = TokenSpool(tmp_path, rows=4, widths={"tok_image": 5})
    ids = torch.arange(20).view(4, 5)
    spool.put("tok_image", np.arange(4), Tokens(ids_BN=ids, valid_BN=torch.ones(4, 5).bool()))
    assert torch.equal(spool.get("tok_image", 0, 4).ids_BN, ids)


def test_a_spool_that_lost_its_end_is_no_absence(tmp_path):
    spool = TokenSpool(tmp_path, rows=4, widths={"tok_image": 5})
    os.truncate(spool._file._file.fileno(), 10)
    with pytest.raises(OSError, match="10 of 40 bytes"):
        spool.get("tok_image", 0, 4)


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
