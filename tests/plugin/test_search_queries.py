"""Queries that are no ids: uploaded images and spectra; likeness as a search of LSDB; commands."""

import h5py
import lsdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from typer.testing import CliRunner

from skyvec.cli import app
from skyvec.extensions.vector_catalog import VectorCatalog
from skyvec.models import load_model
from skyvec.search import SimilarTo, encode, find_vector, search
from skyvec.search.uploads import read_upload
from skyvec_schemas.errors import BandError, ConfigurationError, ContractError, MissingColumnError
from skyvec_schemas.survey_columns import DESI, LEGACY_SURVEY

pytestmark = [
    pytest.mark.filterwarnings("ignore:Right catalog does not have a margin"),
]


@pytest.fixture(scope="module")
def rows(embedded):
    """Id -> row of the primary catalog."""
    paths = sorted((embedded / "cat/dataset").glob("Norder*/*/*.parquet"))
    table = pa.concat_tables([pq.read_table(path, partitioning=None) for path in paths])
    return {row["object_id"]: row for row in table.to_pylist()}


def arrays_of(row, *, scalars=True):
    """What a file of one object holds."""
    image = row["image"]
    arrays = {
        "flux": np.array(image["flux"], np.float32),
        "mask": np.array(image["mask"], bool),
        "band": np.array(image["band"]),
    }
    if scalars:
        arrays |= {s.name: np.array(row[s.name], np.float32) for s in LEGACY_SURVEY.scalars}
    return arrays


def test_an_upload_of_an_object_of_the_catalog_finds_that_object(
    embedded, model_folder, rows, tmp_path
):
    some = sorted(rows)[7]
    np.savez(tmp_path / "one.npz", **arrays_of(rows[some]))
    query = encode(embedded, tmp_path / "one.npz", model=model_folder)
    assert np.allclose(query.vectors[0], find_vector(VectorCatalog.open(embedded), some), atol=2e-3)
    found = search(embedded, vector=query, k=3)
    assert found.table.column("object_id")[0].as_py() == some
    assert found.table.column("similarity")[0].as_py() > 0.9999
    assert found.question["like"] == "one.npz"


def test_all_kinds_of_files_hold_the_same_image(embedded, model_folder, rows, tmp_path):
    arrays = arrays_of(rows[min(rows)], scalars=False)
    np.savez(tmp_path / "one.npz", **arrays)
    with h5py.File(tmp_path / "one.hdf5", "w") as file:
        file["image_array"], file["image_mask"] = arrays["flux"][None], arrays["mask"][None]
        file["image_band"] = arrays["band"].astype("S")[None]
    header = fits.Header({"BANDS": "griz"})
    fits.PrimaryHDU(arrays["flux"], header).writeto(tmp_path / "one.fits")
    queries = [
        encode(embedded, tmp_path / f"one.{kind}", model=model_folder).vectors
        for kind in ("npz", "hdf5", "fits")
    ]
    assert np.array_equal(queries[0], queries[1])
    assert np.array_equal(queries[0], queries[2])
    asked = encode(embedded, tmp_path / "one.npz", model=model_folder).asked
    assert asked["made from"].startswith("tok_image; the vectors also from tok_ebv")


def test_bands_in_another_order_are_put_in_the_surveys(rows, tmp_path):
    arrays = arrays_of(rows[min(rows)], scalars=False)
    np.savez(tmp_path / "a.npz", **arrays)
    order = [2, 0, 3, 1]
    turned = {name: array[order] for name, array in arrays.items()}
    np.savez(tmp_path / "b.npz", **turned)
    one, other = (
        read_upload(tmp_path / name, LEGACY_SURVEY)["tok_image"] for name in ("a.npz", "b.npz")
    )
    assert one.flux_BCHW.equal(other.flux_BCHW)
    assert one.good_BCHW.equal(other.good_BCHW)


def test_an_uploaded_spectrum(tmp_path):
    wave = np.linspace(3600, 9800, 500)
    flux, ivar, mask = np.sin(wave / 300) + 3, np.ones(500), np.zeros(500, np.int32)
    mask[3] = 4
    columns = [
        fits.Column(name=name, format=kind, array=array)
        for name, kind, array in (
            ("FLUX", "E", flux), ("IVAR", "E", ivar), ("LOGLAM", "D", np.log10(wave)),
            ("AND_MASK", "J", mask),
        )
    ]  # fmt: skip
    fits.BinTableHDU.from_columns(columns).writeto(tmp_path / "spec.fits")
    np.savez(tmp_path / "spec.npz", flux=flux, ivar=ivar, mask=mask, wavelength=wave)
    for name in ("spec.fits", "spec.npz"):
        spectra = read_upload(tmp_path / name, DESI)["tok_spectrum_desi"]
        assert np.allclose(spectra.wavelength_BL[0], wave, rtol=1e-5)
        assert np.allclose(spectra.flux_BL[0], flux, rtol=1e-5)
        assert spectra.good_BL[0].sum() == 499
        assert not spectra.good_BL[0, 3]


def test_observations_are_encoded_as_they_are(embedded, model_folder, rows, tmp_path):
    np.savez(tmp_path / "one.npz", **arrays_of(rows[min(rows)]))
    observed = read_upload(tmp_path / "one.npz", LEGACY_SURVEY)
    model = load_model(model_folder)
    assert np.array_equal(
        encode(embedded, observed, model=model).vectors,
        encode(embedded, tmp_path / "one.npz", model=model_folder).vectors,
    )


def bad_uploads(good):
    """Name -> what the file holds, and what its error says."""
    short = {**good, "flux": good["flux"][:3], "band": good["band"][:3], "mask": good["mask"][:3]}
    return {
        "bands": (short, BandError, "has 3 planes of bands des-g, des-r, des-i, the survey has"),
        "no_bands": ({"flux": good["flux"]}, BandError, "that it does not name"),
        "nothing": ({"x": np.ones(3)}, ContractError, "holds none of image_array"),
        "flat": ({"flux": np.ones((4, 4))}, ContractError, r"its flux has shape \(4, 4\)"),
        "spectrum": ({"flux": np.ones(40)}, ContractError, "nothing that legacysurvey has"),
        "dark": ({**good, "flux": good["flux"] * np.nan}, ContractError, "image_unusable"),
        "two": ({**good, "flux": np.stack([good["flux"]] * 2)}, ContractError, "holds 2 objects"),
    }


@pytest.mark.parametrize(
    "name", ["bands", "no_bands", "nothing", "flat", "spectrum", "dark", "two"]
)
def test_an_upload_that_cannot_be_used_says_why(rows, tmp_path, name):
    arrays, kind, message = bad_uploads(arrays_of(rows[min(rows)], scalars=False))[name]
    np.savez(tmp_path / f"{name}.npz", **arrays)
    with pytest.raises(kind, match=rf"{name}\.npz: .*{message}"):
        read_upload(tmp_path / f"{name}.npz", LEGACY_SURVEY)


def test_a_file_that_is_none_says_so(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"no")
    (tmp_path / "a.fits").write_bytes(b"no")
    (tmp_path / "a.png").write_bytes(b"no")
    for name in ("a.npz", "a.fits", "b.fits", "b.h5"):
        with pytest.raises(ContractError, match=r"cannot be read"):
            read_upload(tmp_path / name, LEGACY_SURVEY)
    with pytest.raises(ContractError, match=r"a\.png: is no kind of file"):
        read_upload(tmp_path / "a.png", LEGACY_SURVEY)


def test_pixels_of_another_size_are_refused(rows, tmp_path):
    flux = arrays_of(rows[min(rows)])["flux"]
    header = fits.Header({"BANDS": "griz", "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN"})
    header.update({"CRVAL1": 10.0, "CRVAL2": 1.0, "CRPIX1": 48.5, "CRPIX2": 48.5})
    for name, scale in (("right", 0.262), ("wrong", 0.5)):
        header.update({"CDELT1": -scale / 3600, "CDELT2": scale / 3600})
        fits.PrimaryHDU(flux, header).writeto(tmp_path / f"{name}.fits")
    read_upload(tmp_path / "right.fits", LEGACY_SURVEY)
    with pytest.raises(ContractError, match=r"pixels of 0\.500 arcsec, the survey's are 0\.262"):
        read_upload(tmp_path / "wrong.fits", LEGACY_SURVEY)


def test_another_model_is_refused_by_its_digest(embedded, other_model_folder, rows, tmp_path):
    np.savez(tmp_path / "one.npz", **arrays_of(rows[min(rows)]))
    with pytest.raises(ConfigurationError, match=r"model other: is .* the vectors were made by"):
        encode(embedded, tmp_path / "one.npz", model=other_model_folder)
    with pytest.raises(ConfigurationError, match=r"not in the package.*--model"):
        encode(embedded, tmp_path / "one.npz")


def brute(embedded, like):
    """Ids and cosine similarities of all objects to one."""
    parts = list(VectorCatalog.open(embedded).parts())
    ids = pa.concat_arrays([part.ids for part in parts]).to_numpy()
    vectors = np.concatenate([part.vectors for part in parts]).astype(np.float64)
    query = vectors[list(ids).index(like)]
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return ids, unit @ query / np.linalg.norm(query)


@pytest.fixture(scope="module")
def opened(embedded):
    return lsdb.open_catalog(embedded, columns=["object_id", "ra", "dec", "Z"])


def ids_of(catalog):
    return sorted(catalog.compute(progress_bar=False)["object_id"].tolist())


def test_the_k_best_are_a_search_of_lsdb(embedded, opened, rows):
    like = min(rows)
    best = search(embedded, like=like, k=8).table.column("object_id").to_pylist()
    alike = SimilarTo(embedded, like=like, k=8)
    found = opened.search(alike)
    assert ids_of(found) == sorted(best)
    west = [i for i in best if rows[i]["ra"] < 100]
    assert 0 < len(west) < 8
    box = {"ra": (0, 100), "dec": (-10, 10)}
    assert ids_of(opened.box_search(**box).search(alike)) == sorted(west)
    assert ids_of(found.box_search(**box)) == sorted(west)
    assert ids_of(found.query("Z < 0.5")) == sorted(i for i in best if rows[i]["Z"] < 0.5)
    one = SimilarTo(embedded, like=like, k=1, cone=(20, 0, 20 * 3600))
    assert len(opened.search(one).get_healpix_pixels()) == 1


@pytest.mark.parametrize("limit", ["at_least", "at_most"])
def test_a_threshold_composes_in_any_order(embedded, opened, rows, limit):
    like = min(rows)
    ids, similarity = brute(embedded, like)
    between = float(np.sort(similarity)[[29, 30]].mean())
    expected = sorted(ids[similarity >= between].tolist())
    assert len(expected) == 30
    catalog = opened.load_extension("small_v1")
    alike = SimilarTo(
        embedded, like=like, **{limit: between if limit == "at_least" else 1 - between}
    )
    assert ids_of(catalog.search(alike)) == expected
    west = [i for i in expected if rows[i]["ra"] < 100]
    box = {"ra": (0, 100), "dec": (-10, 10)}
    assert ids_of(catalog.search(alike).box_search(**box)) == west
    assert ids_of(catalog.box_search(**box).search(alike)) == west
    assert ids_of(lsdb.open_catalog(embedded / "small_v1").search(alike)) == expected


def test_a_search_of_lsdb_that_cannot_work_says_why(embedded, opened, rows):
    like = min(rows)
    with pytest.raises(ConfigurationError, match="needs one limit"):
        SimilarTo(embedded, like=like)
    with pytest.raises(ConfigurationError, match="needs one limit"):
        SimilarTo(embedded, like=like, k=3, at_least=0.5)
    with pytest.raises(ConfigurationError, match="l2 has no similarity"):
        SimilarTo(embedded, like=like, at_least=0.5, metric="l2")
    with pytest.raises(ConfigurationError, match="where needs k"):
        SimilarTo(embedded, like=like, at_least=0.5, where="Z > 1")
    with pytest.raises(ConfigurationError, match="no object -1"):
        SimilarTo(embedded, like=-1, at_least=0.5)
    with pytest.raises(MissingColumnError, match=r"no column 'small_v1'.*load_extension"):
        opened.search(SimilarTo(embedded, like=like, at_least=0.5))


def invoke(*words):
    return CliRunner().invoke(app, ["search", *map(str, words)], catch_exceptions=False)


def test_the_command_line_has_the_same_verbs(embedded, model_folder, rows, tmp_path):
    some = sorted(rows)[4]
    place = rows[some]["ra"], rows[some]["dec"]
    by_id = search(embedded, like=some, k=3).table
    for words in (["--like", some], ["--at", *place]):
        result = invoke(embedded, *words, "-k", 3, "--save", tmp_path / "found.parquet")
        assert result.exit_code == 0, result.output
        ids = pq.read_table(tmp_path / "found.parquet").column("object_id")
        assert ids.to_pylist() == by_id.column("object_id").to_pylist()
    np.savez(tmp_path / "one.npz", **arrays_of(rows[some]))
    result = invoke(embedded, "--image", tmp_path / "one.npz", "--model", model_folder, "-k", 1)
    assert str(some) in result.output
    others = [str(i) for i in sorted(rows)[5:7]]
    result = invoke(
        embedded, "--like", some, "--like", others[0], "--unlike", others[1], "--where", "Z < 0.5",
        "--cone", f"{place[0]},{place[1]},36000", "--metric", "inner_product",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "inner product" in result.output
