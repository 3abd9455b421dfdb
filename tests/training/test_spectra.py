"""Spectra from Parquet and HDF5 to arrays."""

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skyvec_schemas.errors import ConfigurationError, ContractError, MissingColumnError
from skyvec_schemas.survey_columns import DESI, HSC, SDSS
from skyvec_training.data.arrays import ArrayWriter, open_arrays
from skyvec_training.data.spectra import unpack

FIELDS = ("flux", "ivar", "mask", "lambda")


def rows(count, length, *, first=3800.0, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "flux": rng.normal(5, 1, (count, length)).astype(np.float32),
        "ivar": np.ones((count, length), np.float32),
        "mask": np.zeros((count, length), bool),
        "lambda": np.tile(first + np.arange(length, dtype=np.float32), (count, 1)),
    }


def release(folder, samples, *, pixel=1, leave_out=()):
    place = folder / f"healpix={pixel}" / "001-of-001.hdf5"
    place.parent.mkdir(parents=True)
    with h5py.File(place, "w") as file:
        file["object_id"] = 100 * pixel + np.arange(len(samples["flux"]))
        for name, values in samples.items():
            if name not in leave_out:
                file[f"spectrum_{name}"] = values
    return folder


def test_short_and_long_files_become_one_array(tmp_path):
    long, short = rows(2, 40), rows(3, 30, seed=1)
    release(tmp_path / "sdss", long, pixel=9)
    release(tmp_path / "sdss", short, pixel=10)
    store = unpack(tmp_path / "sdss", SDSS, tmp_path / "store")
    assert (len(store), store.left_out, store.flux_BL.shape) == (5, 0, (5, 40))
    assert store.ids.tolist() == [b"900", b"901", b"1000", b"1001", b"1002"]
    spectra = store.read(np.array([1, 4]))
    np.testing.assert_array_equal(spectra.flux_BL[0], long["flux"][1])
    np.testing.assert_array_equal(spectra.flux_BL[1, :30], short["flux"][2])
    assert (spectra.wavelength_BL[1, 30:] == -1).all()
    assert not spectra.good_BL[1, 30:].any()


def test_filling_anywhere_moves_to_the_end_and_counts_for_nothing(tmp_path):
    samples = rows(1, 20)
    samples["lambda"][0, [0, 1, 7, 19]] = -1
    samples["flux"][0, [0, 1, 7, 19]] = 1e30
    store = unpack(release(tmp_path / "sdss", samples), SDSS, tmp_path / "store")
    spectra = store.read(np.array([0]))
    kept = np.delete(np.arange(20), [0, 1, 7, 19])
    np.testing.assert_array_equal(spectra.flux_BL[0, :16], samples["flux"][0, kept])
    np.testing.assert_array_equal(spectra.wavelength_BL[0, :16], samples["lambda"][0, kept])
    assert spectra.good_BL[0, :16].all()
    assert not spectra.flux_BL[0, 16:].any()


def test_what_cannot_be_learnt_from_is_left_out(tmp_path):
    samples = rows(6, 20)
    samples["mask"][1] = True
    samples["ivar"][2] = 0
    samples["lambda"][3] = -1
    samples["lambda"][4, 5] = 9000
    samples["flux"][5, 3] = np.nan
    store = unpack(release(tmp_path / "desi", samples), DESI, tmp_path / "store")
    assert store.left_out == 4
    assert store.ids.tolist() == [b"100", b"105"]
    spectra = store.read(np.array([1]))
    assert not spectra.good_BL[0, 3]
    assert spectra.flux_BL[0, 3] == spectra.ivar_BL[0, 3] == 0


def test_parquet_spectra_of_any_length_are_read(tmp_path):
    long, short = rows(1, 12), rows(1, 5, seed=1)
    structs = [{name: s[name][0].tolist() for name in FIELDS} for s in (long, short)]
    leaf = tmp_path / "survey" / "dataset" / "Norder=0" / "Dir=0" / "Npix=0.parquet"
    leaf.parent.mkdir(parents=True)
    types = {"flux": pa.float32(), "ivar": pa.float32(), "mask": pa.bool_(), "lambda": pa.float32()}
    kind = pa.struct([(name, pa.list_(t)) for name, t in types.items()])
    column = pa.array([structs[0], None, structs[1]], type=kind)
    pq.write_table(pa.table({"object_id": [7, 8, 9], "spectrum": column}), leaf)
    store = unpack(tmp_path / "survey", DESI, tmp_path / "store")
    assert store.ids.tolist() == [b"7", b"9"]
    np.testing.assert_array_equal(store.read(np.array([0])).flux_BL[0], long["flux"][0])
    np.testing.assert_array_equal(store.read(np.array([1])).flux_BL[0, :5], short["flux"][0])


def test_nothing_usable_is_an_error(tmp_path):
    samples = rows(2, 10)
    samples["mask"][:] = True
    with pytest.raises(ConfigurationError, match="no object was usable"):
        unpack(release(tmp_path / "desi", samples), DESI, tmp_path / "store")


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match="hsc: it declares no spectra"):
        unpack(tmp_path, HSC, tmp_path / "store")
    folder = release(tmp_path / "desi", rows(1, 10), leave_out=("ivar",))
    with pytest.raises(MissingColumnError, match="spectrum_ivar is missing"):
        unpack(folder, DESI, tmp_path / "store")
    samples = rows(1, 10) | {"flux": np.zeros((1, 11), np.float32)}
    with pytest.raises(ContractError, match="parts of its spectra differ in shape"):
        unpack(release(tmp_path / "sdss", samples), SDSS, tmp_path / "store")


def test_arrays_refuse_rows_that_do_not_belong_together(tmp_path):
    layout = {"a": ("<f4", (2,)), "b": ("<i8", ())}
    with ArrayWriter(tmp_path / "arrays", layout) as writer:
        with pytest.raises(ValueError, match="equally many rows of a, b"):
            writer.append(a=np.zeros((2, 2)), b=np.zeros(3))
        with pytest.raises(ValueError, match=r"rows of a are \(3,\), expected \(2,\)"):
            writer.append(a=np.zeros((2, 3)), b=np.zeros(2))
        writer.append(a=np.arange(4).reshape(2, 2), b=np.arange(2))
        writer.commit(what=1)
    arrays, facts = open_arrays(tmp_path / "arrays")
    assert (arrays["a"].tolist(), arrays["b"].tolist()) == ([[0, 1], [2, 3]], [0, 1])
    assert facts == {"what": 1}
