"""What a catalog states about the mock galaxies: cutouts, measured numbers, label and truth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from hats.pixel_math import compute_spatial_index
from numpy.typing import NDArray

from skyvec.mock.camera import Cutout
from skyvec.mock.legacy import expose
from skyvec.mock.objects import describe
from skyvec.mock.render import IMAGE, IMAGE_BANDS, PIXEL_SCALE
from skyvec.mock.sky import Sky
from skyvec.mock.survey_ids import object_ids
from skyvec_schemas.survey_columns import LEGACY_SURVEY, image_struct

_TRUTH = ("TRUE_LOGMASS", "TRUE_SSFR", "TRUE_BT")


def survey_schema(*, images: bool = True) -> pa.Schema:
    """Columns of the catalog in their order."""
    numbers = [scalar.name for scalar in LEGACY_SURVEY.scalars]
    return pa.schema(
        [
            ("_healpix_29", pa.int64()),
            (LEGACY_SURVEY.id_column, pa.int64()),
            (LEGACY_SURVEY.ra_column, pa.float64()),
            (LEGACY_SURVEY.dec_column, pa.float64()),
            *([(IMAGE.name, image_struct())] if images else []),
            *((column, pa.float32()) for column in (*numbers, *LEGACY_SURVEY.labels, *_TRUTH)),
        ]
    )


def survey_table(sky: Sky, *, seed: int, size: int, images: bool = True) -> pa.Table:
    """Observe these objects, in this order; about 330 kB each at 96 pixels.

    Without images all other columns are the same.
    """
    objects = describe(sky, seed=seed)
    cutouts, measured = [], []
    for row in range(len(sky)):
        exposure = expose(objects, row, seed=seed, size=size, core=size)
        if images:
            cutouts.append(exposure.cutout())
        measured.append(exposure.measured.columns)
    columns = {
        "_healpix_29": compute_spatial_index(sky.ra, sky.dec),
        LEGACY_SURVEY.id_column: object_ids(sky.key, seed=seed),
        LEGACY_SURVEY.ra_column: sky.ra,
        LEGACY_SURVEY.dec_column: sky.dec,
        **({IMAGE.name: image_array(cutouts)} if images else {}),
        **{key: [row[key] for row in measured] for key in measured[0]},
        "Z": objects.redshift,
        "TRUE_LOGMASS": objects.log_mass,
        "TRUE_SSFR": objects.log_ssfr,
        "TRUE_BT": objects.legacy.bulge_fraction,
    }
    schema = survey_schema(images=images)
    arrays = [
        columns[field.name] if field.name == IMAGE.name else _array(columns[field.name], field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def _array(values: Sequence[float] | NDArray[np.generic], kind: pa.DataType) -> pa.Array:
    return pa.array(np.asarray(values).astype(kind.to_pandas_dtype()), type=kind)


def image_array(cutouts: Sequence[Cutout]) -> pa.StructArray:
    """Pack cutouts into the struct of the Multimodal Universe without a Python list of pixels."""
    count = len(cutouts)
    scale = np.full((count, len(IMAGE_BANDS)), PIXEL_SCALE, dtype=np.float32)
    names = pa.array(IMAGE_BANDS * count)
    offsets = pa.array(np.arange(count + 1, dtype=np.int32) * len(IMAGE_BANDS))
    children = [
        pa.ListArray.from_arrays(offsets, names),
        _nested(np.stack([cutout.flux for cutout in cutouts])),
        _nested(np.stack([cutout.ivar for cutout in cutouts])),
        _nested(np.stack([cutout.mask for cutout in cutouts])),
        _nested(np.stack([cutout.psf_fwhm for cutout in cutouts])),
        _nested(scale),
    ]
    return pa.StructArray.from_arrays(children, fields=list(image_struct()))


def _nested(values: NDArray[np.generic]) -> pa.Array:
    """Lists of lists, one level for every axis after the first."""
    array = pa.array(values.reshape(-1))
    for axis in range(values.ndim - 1, 0, -1):
        ends = np.arange(np.prod(values.shape[:axis]) + 1, dtype=np.int32) * values.shape[axis]
        array = pa.ListArray.from_arrays(pa.array(ends), array)
    return array
