"""Names of a survey -> columns of a catalog: defaults of the port, overrides, and what is refused."""

import numpy as np
import pyarrow as pa
import pytest

from skyvec.releases.hats.column_map import ColumnMap, logical_names
from skyvec_schemas.errors import ConfigurationError, ContractError, MissingColumnError
from skyvec_schemas.survey_columns import DESI, GAIA, HSC, LEGACY_SURVEY, SDSS, image_struct

PLANE = pa.list_(pa.list_(pa.float32()))
KEYS = [("object_id", pa.string()), ("ra", pa.float64()), ("dec", pa.float64())]
SPECTRUM = pa.struct(
    [(name, pa.list_(pa.float32())) for name in ("flux", "ivar", "lsf_sigma", "lambda")]
    + [("mask", pa.list_(pa.bool_()))]
)


def scalars(survey):
    return [(scalar.name, pa.float32()) for scalar in survey.scalars]


def mapped(survey, fields, overrides=None):
    return ColumnMap.of(survey, pa.schema(fields), overrides, where="cat")


def targets(columns):
    return {name: target.text for name, target in columns.targets.items()}


@pytest.mark.parametrize(
    "kind",
    [
        image_struct(),
        pa.list_(pa.struct([("band", pa.string()), ("flux", PLANE), ("mask", PLANE)])),
    ],
    ids=["struct of lists", "list of structs"],
)
@pytest.mark.parametrize("survey", [LEGACY_SURVEY, HSC])
def test_images_of_the_port_are_found(survey, kind):
    columns = mapped(survey, [*KEYS, ("image", kind), *scalars(survey)])
    found = targets(columns)
    assert {found[f"image.{part}"] for part in ("flux", "band", "mask")} == {
        "image.flux",
        "image.band",
        "image.mask",
    }
    assert columns.paths(columns.keys) == ["object_id", "ra", "dec"]
    assert "image.ivar" not in columns.paths(columns.inputs)


@pytest.mark.parametrize("survey", [SDSS, DESI])
def test_spectra_and_labels_of_the_port_are_found(survey):
    columns = mapped(survey, [*KEYS, ("spectrum", SPECTRUM), ("Z", pa.float32())])
    assert sorted(columns.paths(columns.inputs)) == [
        "spectrum.flux",
        "spectrum.ivar",
        "spectrum.lambda",
        "spectrum.mask",
    ]
    assert columns.labels == ("Z",)


def test_gaia_of_the_port_lies_in_structs_and_has_another_id():
    floats = pa.list_(pa.float32())
    photometry = [(f"phot_{band}_mean_flux", pa.float32()) for band in ("g", "bp", "rp")]
    columns = mapped(
        GAIA,
        [
            ("spectral_coefficients", pa.struct([("coeff", floats), ("coeff_error", floats)])),
            ("photometry", pa.struct(photometry)),
            ("astrometry", pa.struct([(n, pa.float32()) for n in ("ra", "parallax", "pmra", "pmdec")])),
            ("ra", pa.float64()),
            ("dec", pa.float64()),
            ("object_id", pa.int64()),
        ],
    )  # fmt: skip
    found = targets(columns)
    assert found["source_id"] == "object_id"
    assert found["ra"] == "ra"
    assert found["coeff"] == "spectral_coefficients.coeff"
    assert found["phot_bp_mean_flux"] == "photometry.phot_bp_mean_flux"
    assert columns.motion == ("pmra", "pmdec")
    assert columns.paths(columns.motion) == ["astrometry.pmra", "astrometry.pmdec"]


def test_a_catalog_may_say_which_columns_are_the_position():
    fields = [("object_id", pa.int64()), ("RA_mean", pa.float64()), ("DEC_mean", pa.float64()),
              ("spectrum", SPECTRUM)]  # fmt: skip
    columns = ColumnMap.of(SDSS, pa.schema(fields), where="cat", position=("RA_mean", "DEC_mean"))
    assert columns.paths(("ra", "dec")) == ["RA_mean", "DEC_mean"]


def test_an_override_comes_before_the_default_and_takes_no_mask_from_elsewhere():
    fields = [*KEYS, ("image", image_struct()), ("cutout", PLANE), *scalars(LEGACY_SURVEY)]
    columns = mapped(LEGACY_SURVEY, fields, {"image.flux": "cutout"})
    assert {n: t for n, t in targets(columns).items() if "image" in n} == {"image.flux": "cutout"}
    inner = [*KEYS, ("stamp", image_struct()), *scalars(LEGACY_SURVEY)]
    columns = mapped(LEGACY_SURVEY, inner, {"image.flux": "stamp.flux"})
    assert targets(columns)["image.mask"] == "stamp.mask"
    assert targets(mapped(LEGACY_SURVEY, inner, {"image": "stamp"}))["image.band"] == "stamp.band"


def test_a_plain_list_or_tensor_called_image_is_the_flux():
    tensor = pa.fixed_shape_tensor(pa.float32(), [4, 96, 96])
    fields = [*KEYS, ("image", tensor), *scalars(LEGACY_SURVEY)]
    assert targets(mapped(LEGACY_SURVEY, fields))["image.flux"] == "image"


def test_flat_columns_of_the_hdf5_layout_are_found():
    fields = [*KEYS, ("image_array", PLANE), ("image_band", pa.list_(pa.string())),
              ("image_mask", PLANE), *scalars(LEGACY_SURVEY)]  # fmt: skip
    found = targets(mapped(LEGACY_SURVEY, fields))
    assert (found["image.flux"], found["image.mask"]) == ("image_array", "image_mask")


def test_shapes_and_bands_can_be_declared():
    fields = [*KEYS, ("flat", pa.list_(pa.float32())), *scalars(LEGACY_SURVEY)]
    columns = mapped(
        LEGACY_SURVEY,
        fields,
        {"image.flux": "flat[4, 20,30]", "image.band": "=des-z, des-i,des-r,des-g"},
    )
    assert columns.targets["image.flux"].shape == (4, 20, 30)
    assert columns.targets["image.band"].constant == ("des-z", "des-i", "des-r", "des-g")
    assert "flat" in columns.paths(columns.inputs)


def test_a_column_whose_name_has_dots_comes_before_a_struct():
    fields = [*KEYS, ("a.b", pa.float32()), ("a", pa.struct([("b", pa.string())]))]
    survey = LEGACY_SURVEY.__class__(name="x", scalars=LEGACY_SURVEY.scalars[:1])
    assert mapped(survey, fields, {"FLUX_G": "a.b"}).targets["FLUX_G"].path == ("a.b",)


def test_a_logical_name_that_the_survey_lacks_is_refused_with_its_neighbour():
    with pytest.raises(ConfigurationError, match=r"'image.fluxx' \(nearest: 'image.flux'\).*Map"):
        mapped(LEGACY_SURVEY, KEYS, {"image.fluxx": "cutout"})


def test_everything_absent_is_named_in_one_error():
    fields = [KEYS[0], ("ra", pa.float64()), ("decl", pa.float64()), *scalars(LEGACY_SURVEY)[1:]]
    with pytest.raises(MissingColumnError) as caught:
        mapped(LEGACY_SURVEY, fields, {"FLUX_R": "flux_rr"})
    text = str(caught.value)
    assert text.count("'image'") == 1
    assert "'dec' (nearest: 'decl')" in text
    assert "'FLUX_G' (nearest: 'FLUX_" in text
    assert "'flux_rr'" in text
    assert "--image-column" in text


def test_an_absent_field_of_a_struct_is_named_with_what_is_there():
    lacking = pa.struct([("flux", pa.list_(pa.float32())), ("lambda", pa.list_(pa.float32()))])
    with pytest.raises(ContractError, match=r"'spectrum' is struct.*no 'ivar'.*'spectrum.ivar'"):
        mapped(SDSS, [*KEYS, ("spectrum", lacking)])


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("object_id", pa.float64(), "ids are double, which cannot hold 64-bit ids exactly"),
        ("dec", pa.string(), "column 'dec' is string, not a number"),
        ("FLUX_G", pa.list_(pa.float32()), "column 'FLUX_G' is list.*not a number"),
        ("image", pa.float64(), "column 'image' is double, not struct<band, flux"),
        ("image", pa.list_(pa.string()), "column 'image' is list.*not a list or tensor of numbers"),
        ("image", pa.list_(pa.list_(PLANE)), "at most 3 axes"),
    ],
)
def test_columns_of_a_type_that_cannot_be_are_refused(name, kind, message):
    fields = dict([*KEYS, ("image", image_struct()), *scalars(LEGACY_SURVEY)]) | {name: kind}
    with pytest.raises(ContractError, match=message):
        mapped(LEGACY_SURVEY, list(fields.items()))


@pytest.mark.parametrize("survey", [LEGACY_SURVEY, HSC, SDSS, DESI, GAIA])
def test_every_logical_name_is_listed_once(survey):
    names = logical_names(survey)
    assert len(set(names)) == len(names)
    assert {survey.id_column, *survey.labels} <= set(names)
    assert np.isin([c for c in survey.columns if c not in ("image", "spectrum")], names).all()
