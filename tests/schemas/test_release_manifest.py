"""The record of a release: it vouches for itself and for its files."""

import json
from dataclasses import replace

import pyarrow as pa
import pytest

from skyvec_schemas.errors import ContractError
from skyvec_schemas.release_manifest import (
    FILES,
    ReleaseFile,
    ReleaseManifest,
    files_of,
    files_table,
    schema_digest,
)


@pytest.fixture
def manifest():
    return ReleaseManifest(
        release="dr1",
        survey="legacysurvey",
        upstream="DR10 South",
        layout="mmu-hdf5",
        schema="ab",
        root="../../data",
        builder="skyvec",
        created="2026-01-01T00:00:00+00:00",
        parent=None,
        parent_digest=None,
        counts={"objects": 3},
        tables={"files.parquet": "cd"},
    )


def test_a_manifest_comes_back_as_it_was_written(manifest):
    again = ReleaseManifest.from_json(manifest.to_json(), where="x")
    assert again == manifest
    assert json.loads(manifest.to_json())["digest"] == manifest.digest()


@pytest.mark.parametrize("key", ["counts", "tables", "root", "release", "digest"])
def test_an_edited_manifest_is_refused(manifest, key):
    facts = json.loads(manifest.to_json())
    facts[key] = {"objects": 4} if key in {"counts", "tables"} else "other"
    with pytest.raises(ContractError, match=r"here: does not match its own digest"):
        ReleaseManifest.from_json(json.dumps(facts), where="here")


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"digest": 1, "version": 1, "x": 2}'])
def test_what_is_not_a_manifest_is_refused(text):
    with pytest.raises(ContractError, match="not a release manifest"):
        ReleaseManifest.from_json(text, where="here")


def test_a_later_version_names_itself(manifest):
    facts = json.loads(manifest.to_json()) | {"version": 2}
    with pytest.raises(ContractError, match="version 2 of the manifest"):
        ReleaseManifest.from_json(json.dumps(facts), where="here")


def test_any_fact_changes_the_digest(manifest):
    assert replace(manifest, upstream="DR9").digest() != manifest.digest()


def test_files_come_back_as_they_were_written():
    files = (
        ReleaseFile(path="healpix=5/001.hdf5", sha256="a", bytes=7, rows=0, order=4, npix=5),
        ReleaseFile(path="README.md", sha256="b", bytes=9),
    )
    table = files_table(files)
    assert table.schema == FILES
    assert files_of(table, where="x") == files
    assert [file.is_shard for file in files] == [True, False]


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "a/../../b", ""])
def test_a_path_that_leads_out_of_the_release_is_refused(path):
    table = files_table([ReleaseFile(path=path, sha256="a", bytes=1)])
    with pytest.raises(ContractError, match="leads out of the release"):
        files_of(table, where="x")


def test_a_table_without_digests_is_refused():
    table = files_table([]).drop_columns(["sha256"])
    with pytest.raises(ContractError, match="no column sha256"):
        files_of(table, where="x")
    assert isinstance(table, pa.Table)


def test_the_order_of_columns_is_not_part_of_a_schema():
    assert schema_digest(["a:f4", "b:f8"]) == schema_digest(["b:f8", "a:f4"])
    assert schema_digest(["a:f4"]) != schema_digest(["a:f8"])
