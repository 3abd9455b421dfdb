import h5py
import numpy as np
import pytest
from hats.pixel_math.healpix_shim import radec2pix

from skyvec.releases.mmu.writer import write_mmu_file, write_mmu_release
from skyvec_schemas.errors import ConfigurationError, ContractError
from skyvec_schemas.survey_columns import DESI, GAIA, LEGACY_SURVEY, SDSS


def batch(count, start=0, side=6):
    rng = np.random.default_rng(start)
    return {
        "object_id": np.arange(start, start + count),
        "ra": rng.uniform(0, 360, count),
        "dec": np.degrees(np.arcsin(rng.uniform(-1, 1, count))),
        "image_array": rng.normal(0, 1, (count, 4, side, side)).astype(np.float32),
        "image_mask": rng.random((count, side, side)) > 0.2,
        "image_band": np.tile(np.array(["des-g", "des-r", "des-i", "des-z"]), (count, 1)),
        "FLUX_G": rng.random(count).astype(">f4"),
    }


@pytest.mark.parametrize("layout", ["contiguous", "object", "mmu"])
def test_what_is_written_in_batches_is_read_back(tmp_path, layout):
    batches = [batch(3), batch(0, start=3), batch(5, start=3)]
    path = write_mmu_file(tmp_path / "a" / "x.hdf5", iter(batches), rows=8, layout=layout)
    with h5py.File(path) as file:
        assert set(file) == set(batches[0])
        for name in file:
            values = np.concatenate([b[name] for b in batches])
            values = values.astype("S5") if name == "image_band" else values
            assert file[name].dtype == values.dtype.newbyteorder(batches[0][name].dtype.byteorder)
            np.testing.assert_array_equal(file[name][:], values)
    assert [place.name for place in path.parent.iterdir()] == ["x.hdf5"]


def test_layouts_are_what_they_say(tmp_path):
    for layout in ("contiguous", "object", "mmu"):
        write_mmu_file(tmp_path / f"{layout}.h5", [batch(8, side=40)], rows=8, layout=layout)
    chunks = {}
    for layout in ("contiguous", "object", "mmu"):
        with h5py.File(tmp_path / f"{layout}.h5") as file:
            chunks[layout] = {name: file[name].chunks for name in ("image_array", "ra")}
    assert chunks["contiguous"] == {"image_array": None, "ra": None}
    assert chunks["object"] == {"image_array": (1, 4, 40, 40), "ra": None}
    assert chunks["mmu"]["image_array"][1:] != (4, 40, 40)
    assert chunks["mmu"]["ra"] == (8,)


def test_mmu_chunks_are_those_of_the_builders_first_write(tmp_path):
    """516 stamps at first make h5py guess (65, 1, 20, 20), as in the files of the release."""
    first = {"image_array": np.broadcast_to(np.float32(0), (516, 4, 160, 160))}
    more = {name: values[:20] for name, values in first.items()}
    path = write_mmu_file(
        tmp_path / "x.hdf5", [first, more], rows=536, layout="mmu", compression="lzf"
    )
    with h5py.File(path) as file:
        assert file["image_array"].chunks == (65, 1, 20, 20)
        assert file["image_array"].compression == "lzf"
        assert file["image_array"].shape[0] == 536


@pytest.mark.parametrize(
    ("batches", "rows", "said"),
    [
        ([], 0, "no batch"),
        ([batch(3)], 4, "3 rows came, 4 were announced"),
        ([batch(3), batch(3)], 4, "of which 1 are left"),
        ([batch(3), {**batch(3), "extra": np.zeros(3)}], 6, "differs in columns"),
        ([batch(3), batch(3, side=7)], 6, "image_array"),
        ([batch(3), {**batch(3), "ra": np.zeros(3, np.float32)}], 6, "'ra' is float32"),
        ([{**batch(3), "ra": np.zeros(2)}], 3, "'ra': 2"),
        ([{"object_id": np.array(["a"])}, {"object_id": np.array(["bcd"])}], 2, "S3"),
    ],
)
def test_batches_that_disagree_leave_what_was_there(tmp_path, batches, rows, said):
    path = tmp_path / "x.hdf5"
    path.write_bytes(b"old")
    with pytest.raises(ConfigurationError, match=said):
        write_mmu_file(path, batches, rows=rows)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_contiguous_and_compressed_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="cannot be compressed"):
        write_mmu_file(tmp_path / "x.hdf5", [batch(1)], rows=1, compression="gzip")


def test_rows_go_to_the_folder_of_their_nested_pixel_and_none_is_lost(tmp_path):
    batches = [batch(10), batch(20, start=10)]
    files = write_mmu_release(tmp_path, LEGACY_SURVEY, iter(batches))
    seen = []
    for path in files:
        with h5py.File(path) as file:
            pixel = int(path.parent.name.removeprefix("healpix="))
            assert path.name == "001-of-001.hdf5"
            assert (file["healpix"][:] == pixel).all()
            assert (radec2pix(4, file["ra"][:], file["dec"][:]) == pixel).all()
            seen += file["object_id"][:].tolist()
            assert file["FLUX_G"].dtype == ">f4"
    assert sorted(seen) == list(range(30))
    assert {place.name for place in tmp_path.iterdir()} == {path.parent.name for path in files}


def test_ids_of_later_batches_may_be_longer(tmp_path):
    batches = [{"object_id": np.array([text]), "ra": np.ones(1), "dec": np.ones(1)}
               for text in ("a-1", "a-100000")]  # fmt: skip
    (path,) = write_mmu_release(tmp_path, LEGACY_SURVEY, batches)
    with h5py.File(path) as file:
        assert file["object_id"][:].tolist() == [b"a-1", b"a-100000"]


def test_columns_have_the_types_of_the_builders(tmp_path):
    place = {"ra": np.ones(1), "dec": np.ones(1)}
    spectrum = {f"spectrum_{name}": np.ones((1, 9)) for name in ("flux", "ivar", "lambda", "mask")}
    ids = np.array([2**62 + 1])
    written = {
        "sdss": write_mmu_release(
            tmp_path / "sdss", SDSS, [{"object_id": np.array(["  1"]), **place, **spectrum}]
        ),
        "desi": write_mmu_release(
            tmp_path / "desi", DESI, [{"object_id": ids, **place, **spectrum}]
        ),
        "gaia": write_mmu_release(
            tmp_path / "gaia", GAIA, [{"source_id": ids, **place, "coeff": np.ones((1, 110))}]
        ),
    }
    types = {}
    for survey, (path,) in written.items():
        with h5py.File(path) as file:
            types[survey] = {name: file[name].dtype.str for name in file}
            if survey != "sdss":
                id_name = "source_id" if survey == "gaia" else "object_id"
                assert file[id_name][0] == ids[0]
    assert types["desi"]["spectrum_flux"] == types["sdss"]["spectrum_lambda"] == "<f4"
    assert types["desi"]["spectrum_mask"] == "|b1"
    assert types["gaia"]["coeff"] == "<f4"
    assert types["sdss"]["object_id"] == "|S3"
    assert types["gaia"]["healpix"] == types["gaia"]["source_id"] == "<i8"


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        ({"ra": None}, ConfigurationError, "no column 'ra'"),
        ({"object_id": None}, ConfigurationError, "no column 'object_id'"),
        ({"dec": np.array([0, 91.0, 0])}, ContractError, "row 1: .* dec = 91"),
        ({"ra": np.array([0, 1, np.nan])}, ContractError, "row 2: ra = nan"),
        ({"ra": np.zeros(2)}, ConfigurationError, "differ in rows"),
        ({"spectrum_mask": np.full((3, 4), 2)}, ContractError, "'spectrum_mask' holds values"),
        ({"object_id": np.full(3, 2**63, np.uint64)}, ContractError, "'object_id' holds values"),
        ({"object_id": np.array([7.5e16] * 3)}, ContractError, "'object_id' is float64"),
    ],
)
def test_rows_that_have_no_place_are_refused(tmp_path, change, kind, said):
    columns = {"object_id": np.arange(3), "ra": np.zeros(3), "dec": np.zeros(3), **change}
    columns = {name: values for name, values in columns.items() if values is not None}
    with pytest.raises(kind, match=said):
        write_mmu_release(tmp_path, DESI, [columns])
    assert not list(tmp_path.glob("healpix=*"))
