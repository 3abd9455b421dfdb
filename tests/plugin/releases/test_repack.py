"""Working copies: the same observations again, exact in float32, rounded in a known way in float16."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hats.pixel_math.healpix_pixel import HealpixPixel
from hats.pixel_math.spatial_index import compute_spatial_index
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from skyvec.releases.source import Quarantined, Reading, SourceObjects
from skyvec.releases.working_copy.repack import repack
from skyvec.releases.working_copy.source import MARKER, WorkingCopy, copy_path
from skyvec.releases.working_copy.writer import FLOAT16_MAX, to_float16
from skyvec_core.observations import CutoutCatalogs, Images, Spectra, fit_to_grid
from skyvec_schemas.errors import ConfigurationError, ContractError, OutputExistsError
from skyvec_schemas.survey_columns import LEGACY_SURVEY, ScalarColumn, SpectrumColumn, Survey

BANDS = ("DES-G", "DES-R", "DES-I", "DES-Z")
MIXED = replace(
    LEGACY_SURVEY,
    spectrum=SpectrumColumn(name="spectrum", token_key="tok_spectrum_desi", unit="x"),
    scalars=(ScalarColumn(name="FLUX_G", token_key="tok_flux_g", unit="nanomaggy"),),
)


class FakeSource:
    """Objects in memory, every kind of observation, readings in a scrambled order."""

    def __init__(self, rows=23, *, size=20, seed=0, survey=MIXED):
        rng = np.random.default_rng(seed)
        self.survey, self.version, self.reads = survey, 1, 0
        self.ra = 9.9 + rng.random(rows) * 6
        self.dec = rng.random(rows) * 4
        self.ids = np.array([f"id{i}" for i in range(rows)])
        self.flux = torch.from_numpy(rng.normal(0, 0.05, (rows, 4, size, size))).float()
        self.good = torch.from_numpy(rng.random((rows, 4, size, size)) > 0.1)
        self.good[: rows // 2] = True
        self.lengths = rng.integers(0, 9, rows)
        self.scalar = torch.from_numpy(rng.normal(size=rows)).float()
        self.scalar[1] = torch.nan
        self.coefficients = torch.from_numpy(rng.normal(size=(rows, 55))).float()
        self.flags = rng.integers(0, 1 << 17, rows).astype(np.int32)
        self.quarantined = (Quarantined(file="f", row=3, object_id="bad", reason="dec is 123.4"),)

    @property
    def pixels(self):
        cells = np.unique(compute_spatial_index(self.ra, self.dec) >> 50)
        return [HealpixPixel(4, int(cell)) for cell in cells]

    def objects(self, pixel, *, margin_arcsec):  # noqa: ARG002 - a Source
        places = np.arange(len(self.ids))  # more than asked for does no harm
        return SourceObjects(
            ids=self.ids, ra=self.ra, dec=self.dec, file=np.zeros(len(places), np.int32),
            row=places, quarantined=self.quarantined,
        )  # fmt: skip

    def observe(self, places):
        width = max(1, int(self.lengths[places].max(initial=0)))
        inside = torch.arange(width) < torch.from_numpy(self.lengths[places])[:, None]
        wave = torch.where(inside, 3600 + torch.arange(width).float(), -1)
        value = torch.from_numpy(places)[:, None] + torch.arange(width) / 16
        marked = inside & (torch.arange(width) % 3 != 1)
        return {
            "tok_image": Images(
                flux_BCHW=self.flux[places], good_BCHW=self.good[places], bands=BANDS
            ),
            "tok_spectrum_desi": Spectra(
                flux_BL=value, ivar_BL=value * 2, good_BL=marked, wavelength_BL=wave
            ),
            "catalog": CutoutCatalogs(
                **dict.fromkeys(("x_BO", "y_BO", "e1_BO", "e2_BO", "radius_BO"), value),
                present_BO=inside,
            ),
            "tok_flux_g": self.scalar[places],
            "tok_xp_bp": self.coefficients[places],
        }

    def read(self, objects, wanted, *, rows):
        order = np.random.default_rng(5).permutation(len(wanted))
        for start in range(0, len(order), rows):
            self.reads += 1
            index = order[start : start + rows]
            places = objects.row[wanted[index]]
            yield Reading(
                index=index, observations=self.observe(places), flags=self.flags[places],
                labels={"tok_z": self.scalar[places] + 1},
            )  # fmt: skip

    def identity(self, pixel, *, margin_arcsec):  # noqa: ARG002 - a Source
        return {"version": self.version, "pixel": pixel.pixel}


@pytest.fixture
def source():
    return FakeSource()


def copied(source, out, **options):
    options = {"pixels": source.pixels, "window": 12, "rows": 4} | options
    return repack(source, out, **options)


def read_all(copy, *, rows=5, choose=slice(None)):
    """id -> (observations of one object, flags, labels)."""
    found = {}
    for pixel in copy.pixels:
        objects = copy.objects(pixel, margin_arcsec=0)
        wanted = np.arange(len(objects))[choose]
        seen = []
        for reading in copy.read(objects, wanted, rows=rows):
            assert len(reading.index) <= rows
            seen += reading.index.tolist()
            for place, index in enumerate(reading.index):
                found[str(objects.ids[wanted[index]])] = (
                    {key: pick(o, place) for key, o in reading.observations.items()},
                    reading.flags[place],
                    reading.labels["tok_z"][place],
                )
        assert sorted(seen) == list(range(len(wanted)))
    return found


def pick(observed, place):
    if isinstance(observed, torch.Tensor):
        return observed[place]
    return type(observed)(**{
        name: part[place : place + 1] if isinstance(part, torch.Tensor) else part
        for name, part in ((n, getattr(observed, n)) for n in observed.__slots__)
    })  # fmt: skip


def same(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


def test_a_float32_copy_gives_back_every_observation(source, tmp_path):
    done = copied(source, tmp_path / "copy", dtype="float32")
    assert (done.rows, done.kept, done.rounding) == (23, 0, 0)
    assert done.pixels == len(source.pixels) > 1
    found = read_all(done.copy)
    assert set(found) == set(source.ids.tolist())
    for place, one in enumerate(source.ids.tolist()):
        ours, flags, label = found[one]
        theirs = source.observe(np.array([place]))
        flux, good = fit_to_grid(source.flux[[place]], source.good[[place]], size=12)
        same(ours["tok_image"].flux_BCHW, flux)
        same(ours["tok_image"].good_BCHW, good)
        assert ours["tok_image"].bands == BANDS
        length = int(source.lengths[place])
        for key in ("tok_spectrum_desi", "catalog"):
            for name in theirs[key].__slots__:
                mine = getattr(ours[key], name)
                same(mine[:, :length], getattr(theirs[key], name)[:, :length])
                filling = -1.0 if name == "wavelength_BL" else 0
                assert (mine[:, length:] == filling).all()
        same(ours["tok_flux_g"], source.scalar[place])
        same(ours["tok_xp_bp"], source.coefficients[place])
        same(label, source.scalar[place] + 1)
        assert flags == source.flags[place]


@pytest.mark.parametrize("size", [20, 12, 9])
def test_tokens_of_a_float32_copy_are_those_of_whole_cutouts(factory, tmp_path, size):
    from skyvec_core.codecs.image import ImageCodec

    codec = factory.tiny_codecs()["tok_image"]
    assert isinstance(codec, ImageCodec)
    scale = codec.size // 12
    source = FakeSource(6, size=size * scale, survey=replace(LEGACY_SURVEY, scalars=()))
    copy = copied(source, tmp_path / "copy", dtype="float32", window=codec.size).copy
    found = read_all(copy)
    for place, one in enumerate(source.ids.tolist()):
        flux, good = fit_to_grid(source.flux[[place]], source.good[[place]], size=codec.size)
        whole = codec.encode(Images(flux_BCHW=flux, good_BCHW=good, bands=BANDS))
        ours = codec.encode(found[one][0]["tok_image"])
        same(ours.ids_BN, whole.ids_BN)
        same(ours.valid_BN, whole.valid_BN)


def test_a_float16_copy_rounds_and_says_how_much(source, tmp_path):
    done = copied(source, tmp_path / "copy")
    found = read_all(done.copy)
    worst = 0.0
    for place, one in enumerate(source.ids.tolist()):
        flux, good = fit_to_grid(source.flux[[place]], source.good[[place]], size=12)
        image = found[one][0]["tok_image"]
        same(image.good_BCHW, good)
        error = (image.flux_BCHW - flux).abs()[good]
        assert (error <= flux[good].abs() * 2**-11 + 2**-25).all()
        worst = max(worst, float(error.max()))
    assert done.rounding == pytest.approx(worst)
    assert 0 < done.rounding_sigma < 0.01
    assert done.scaled == 0
    assert WorkingCopy.open(tmp_path / "copy").marker.dtype == "float16"


def test_flux_beyond_float16_is_scaled_and_never_infinite(source, tmp_path):
    source.good[:, :, 10, 10] = True
    source.flux[0, :, 10, 10], source.flux[1, 0, 10, 10] = 3e6, -7e34
    source.flux[2] *= 1e-9
    source.flux[3, 0, 10, 10], source.good[3, 0, 10, 10] = 1e30, False
    source.flux[4, 0, 10, 10], source.good[4, 0, 10, 10] = torch.inf, False
    source.flux[5] = 0
    source.flux[6, 0, 10, 10] = FLOAT16_MAX
    done = copied(source, tmp_path / "copy")
    assert done.scaled == 3
    found = read_all(done.copy)
    for place in range(7):
        image = found[f"id{place}"][0]["tok_image"]
        flux, good = fit_to_grid(source.flux[[place]], source.good[[place]], size=12)
        assert torch.isfinite(image.flux_BCHW).all()
        brightest = float(flux.abs()[good].max())
        error = (image.flux_BCHW - flux).abs()[good]
        assert (error <= flux.abs()[good] * 2**-11 + brightest * 2**-21).all()


flux_rows = arrays.arrays(
    np.float32, (3, 2, 2, 2), elements=st.floats(-(2.0**127), 2.0**127, width=32)
)


@given(flux=flux_rows, good=arrays.arrays(np.bool_, (3, 2, 2, 2)))
def test_float16_with_a_scale_keeps_what_it_promises(flux, good):
    flux, good = torch.from_numpy(flux), torch.from_numpy(good)
    brightest = flux.abs().masked_fill(~good, 0).flatten(1).amax(1).double()
    stored, scale = to_float16(flux, brightest.numpy())
    assert torch.isfinite(stored).all()
    back = stored.double() * torch.from_numpy(scale).double().view(-1, 1, 1, 1)
    error = (back - flux.double()).abs()
    allowed = flux.abs().double() * 2**-11 + brightest.view(-1, 1, 1, 1) * 2**-21
    # 2^-149 is the least that a float32 can differ by.
    assert (error <= allowed + 2.0**-148)[good].all()


def test_a_pixel_that_is_not_finite_is_not_good(source, tmp_path):
    source.flux[0, 1, 10, 10], source.flux[3, 0, 9, 9] = torch.nan, torch.inf
    source.good[:] = True
    for dtype in ("float16", "float32"):
        found = read_all(copied(source, tmp_path / dtype, dtype=dtype).copy)
        good = found["id0"][0]["tok_image"].good_BCHW
        assert not good[0, 1, 6, 6]
        assert not found["id3"][0]["tok_image"].good_BCHW[0, 0, 5, 5]
        assert int((~good).sum()) == 1


def test_any_choice_of_rows_comes_back(source, tmp_path):
    copy = copied(source, tmp_path / "copy", dtype="float32").copy
    every = read_all(copy, rows=100)
    for choose in (slice(None, None, -2), slice(1, 2), slice(0, 0), slice(None, None, 3)):
        for one, (observed, flags, label) in read_all(copy, rows=3, choose=choose).items():
            same(observed["tok_image"].flux_BCHW, every[one][0]["tok_image"].flux_BCHW)
            same(observed["tok_xp_bp"], every[one][0]["tok_xp_bp"])
            same(label, every[one][2])
            assert flags == every[one][1]


def test_an_object_may_be_wanted_twice(source, tmp_path):
    copy = copied(source, tmp_path / "copy", dtype="float32").copy
    objects = copy.objects(copy.pixels[0], margin_arcsec=0)
    readings = list(copy.read(objects, np.array([1, 0, 1, 1]), rows=3))
    index = np.concatenate([reading.index for reading in readings])
    assert sorted(index.tolist()) == [0, 1, 2, 3]
    numbers = torch.cat([reading.observations["tok_xp_bp"] for reading in readings])
    place = {int(i): number for i, number in zip(index, numbers, strict=True)}
    same(place[0], place[2])
    same(place[0], place[3])
    assert not torch.equal(place[0], place[1])


def test_objects_are_those_of_the_pixel_and_its_margin(source, tmp_path):
    copy = copied(source, tmp_path / "copy").copy
    whole = HealpixPixel(0, source.pixels[0].pixel >> 8)
    margin = copy.objects(whole, margin_arcsec=3600)
    assert set(margin.ids.tolist()) == set(source.ids.tolist())
    pixel = source.pixels[0]
    objects = copy.objects(pixel, margin_arcsec=0)
    inside = compute_spatial_index(source.ra, source.dec) >> 50 == pixel.pixel
    assert set(objects.ids.tolist()) == set(source.ids[inside].tolist())
    assert objects.quarantined == source.quarantined
    fine = HealpixPixel(7, int(compute_spatial_index(objects.ra, objects.dec)[0] >> 44))
    assert 0 < len(copy.objects(fine, margin_arcsec=0)) <= len(objects)
    assert len(copy.objects(HealpixPixel(4, 3000), margin_arcsec=0)) == 0


def test_a_stopped_run_continues_where_it_was(source, tmp_path, monkeypatch):
    out, whole = tmp_path / "copy", FakeSource.read

    def failing(self, objects, wanted, *, rows):
        for reading in whole(self, objects, wanted, rows=rows):
            yield reading
            if self.reads == 4:
                raise ContractError("broken", where="f", remedy="Mend it")

    monkeypatch.setattr(FakeSource, "read", failing)
    with pytest.raises(ContractError, match="broken"):
        copied(source, out)
    finished = len(list(out.glob("healpix=*.hdf5")))
    assert 0 < finished < len(source.pixels)
    assert not list(out.glob(".*"))
    with pytest.raises(ConfigurationError, match="unfinished"):
        WorkingCopy.open(out)
    monkeypatch.setattr(FakeSource, "read", whole)
    assert copied(source, out).kept == finished
    source.reads = 0
    again = copied(source, out)
    assert (again.kept, again.rows, source.reads) == (len(source.pixels), 23, 0)
    source.version = 2
    assert copied(source, out).kept == 0


def test_a_damaged_file_is_made_again(source, tmp_path):
    out = tmp_path / "copy"
    copied(source, out)
    path = copy_path(out, source.pixels[0].pixel)
    path.write_bytes(path.read_bytes()[:2000])
    assert copied(source, out).kept == len(source.pixels) - 1


def test_the_same_command_makes_the_same_identity(source, tmp_path):
    pixel = source.pixels[0]
    ours = copied(source, tmp_path / "a").copy.identity(pixel, margin_arcsec=1)
    theirs = copied(source, tmp_path / "b").copy.identity(pixel, margin_arcsec=1)
    assert json.dumps(ours) == json.dumps(theirs)
    source.version = 2
    other = copied(source, tmp_path / "c").copy.identity(pixel, margin_arcsec=1)
    assert json.dumps(ours) != json.dumps(other)


def test_withdrawn_objects_are_left_out_and_counted(source, tmp_path):
    done = copied(source, tmp_path / "copy", without={"id3", "id4"})
    assert (done.rows, done.left_out) == (21, 2)
    assert not {"id3", "id4"} & set(read_all(done.copy))
    assert copied(source, tmp_path / "copy", without={"id3", "id4"}).left_out == 2
    assert copied(source, tmp_path / "copy", without={"id3"}).rows == 22


@pytest.mark.parametrize("quarantined", [True, False])
def test_a_pixel_without_objects_says_so(source, tmp_path, quarantined):
    if not quarantined:
        source.quarantined = ()
    empty = HealpixPixel(4, 3000)
    copy = copied(source, tmp_path / "copy", pixels=[*source.pixels, empty]).copy
    assert copy_path(tmp_path / "copy", 3000).exists() == quarantined
    objects = copy.objects(empty, margin_arcsec=0)
    assert len(objects) == 0
    assert len(objects.quarantined) == quarantined
    assert list(copy.read(objects, np.empty(0, np.int64), rows=4)) == []


def test_a_pixel_that_lost_its_objects_loses_its_file(source, tmp_path):
    source.quarantined = ()
    copied(source, tmp_path / "copy")
    gone = compute_spatial_index(source.ra, source.dec) >> 50 == source.pixels[0].pixel
    copy = copied(source, tmp_path / "copy", without=set(source.ids[gone].tolist())).copy
    assert not copy_path(tmp_path / "copy", source.pixels[0].pixel).exists()
    assert copy.pixels == source.pixels[1:]


def test_pixels_of_any_order_are_brought_to_order_4(source, tmp_path):
    source.quarantined = ()
    coarse = sorted({HealpixPixel(2, pixel.pixel >> 4) for pixel in source.pixels})
    done = copied(source, tmp_path / "copy", pixels=coarse)
    assert done.copy.pixels == source.pixels
    assert done.rows == 23


def test_a_copy_is_not_mixed_with_another(source, tmp_path):
    out = tmp_path / "copy"
    copied(source, out)
    with pytest.raises(OutputExistsError, match="has dtype float16, this run float32"):
        copied(source, out, dtype="float32")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    with pytest.raises(OutputExistsError, match="something else is there"):
        copied(source, tmp_path / "other")
    with pytest.raises(ConfigurationError, match="'float8' is not known"):
        copied(source, tmp_path / "new", dtype="float8")


def test_a_source_that_forgets_an_object_is_found_out(source, tmp_path, monkeypatch):
    whole = FakeSource.read
    monkeypatch.setattr(
        FakeSource, "read", lambda *args, **options: list(whole(*args, **options))[:-1]
    )
    with pytest.raises(ContractError, match="gave no observations of"):
        copied(source, tmp_path / "copy")


def test_a_file_that_changes_under_the_reader_is_refused(source, tmp_path):
    out = tmp_path / "copy"
    copy = copied(source, out).copy
    pixel = copy.pixels[0]
    objects = copy.objects(pixel, margin_arcsec=0)
    path = copy_path(out, pixel.pixel)
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(ContractError, match="is missing"):
        next(copy.read(objects, np.arange(1), rows=1))
    with pytest.raises(ContractError, match="is missing or not the file that was written"):
        copy.identity(pixel, margin_arcsec=0)
    path.write_bytes(content)
    with pytest.raises(ContractError, match="changed since its objects were listed"):
        next(copy.read(objects, np.arange(1), rows=1))
    path.write_bytes(b"<html>")
    with pytest.raises(ContractError, match="not a whole file of a working copy"):
        next(WorkingCopy.open(out).read(objects, np.arange(1), rows=1))


def test_what_is_not_a_working_copy_is_refused(source, tmp_path):
    with pytest.raises(ConfigurationError, match=r"no working_copy\.json there"):
        WorkingCopy.open(tmp_path)
    (tmp_path / MARKER).write_text("{")
    with pytest.raises(ContractError, match="damaged"):
        WorkingCopy.open(tmp_path)
    copied(source, tmp_path / "copy")
    marker = tmp_path / "copy" / MARKER
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"version": 9}))
    with pytest.raises(ContractError, match="version 9"):
        WorkingCopy.open(tmp_path / "copy")


def test_the_survey_of_a_copy_is_as_narrow_as_its_source(tmp_path):
    source = FakeSource(4, survey=replace(LEGACY_SURVEY, scalars=LEGACY_SURVEY.scalars[:1]))
    copied(source, tmp_path / "copy")
    survey = WorkingCopy.open(tmp_path / "copy").survey
    assert isinstance(survey, Survey)
    assert survey.inputs == source.survey.inputs
    images = WorkingCopy.open(tmp_path / "copy", replace(LEGACY_SURVEY, scalars=()))
    objects = images.objects(images.pixels[0], margin_arcsec=0)
    reading = next(images.read(objects, np.arange(1), rows=1))
    assert "tok_image" in reading.observations
    assert "tok_flux_g" not in reading.observations
