"""Options of the ceci stages: names, types and defaults are those of `skyvec.run`.

Where the command line has more than `skyvec.run` (``sources`` from a file, a ``cone`` as text), they
are those of the command line. ceci itself has an option ``name``: the stage's.
"""

from __future__ import annotations

from collections.abc import Mapping

from ceci.config import StageParameter

Options = Mapping[str, StageParameter]


def _optional(kind: type, msg: str) -> StageParameter:
    return StageParameter(kind, None, required=False, msg=msg)


MODEL: Options = {
    "model": StageParameter(
        str, "skyvec-tiny", msg="skyvec-tiny, a model folder, or hf://owner/name@revision"
    ),
    "precision": StageParameter(str, "float32", msg="Arithmetic: float32 or bfloat16"),
    "device": StageParameter(str, "cpu", msg="Torch device of every worker"),
    "batch_rows": StageParameter(int, 128, msg="Rows in memory at a time"),
    "reuse": _optional(str, "An earlier extension: only what changed since is computed"),
}

VECTORS: Options = {
    "dtype": StageParameter(str, "float16", msg="Stored vectors: float16 or float32"),
}

INPUT: Options = {
    "survey": StageParameter(str, "legacysurvey", msg="Which columns feed which modality"),
    "id_column": _optional(str, "Column with the unique id of an object"),
    "image_column": _optional(str, "Column with the cutouts"),
    "without": StageParameter(list, [], msg="Columns to leave out"),
    "source": StageParameter(list, [], msg="NAME=PATH of more pixels or spectra, each"),
    "sources": _optional(str, "TOML file of sources"),
    "radius": StageParameter(float, 1.0, msg="Arcseconds within which positions match"),
}

CHOICE: Options = {
    "cone": _optional(str, "RA,DEC,ARCSEC: only HEALPix pixels that it touches"),
    "moc": _optional(str, "File of a MOC: only HEALPix pixels that it touches"),
    "pixels": _optional(str, "Norder/Npix, separated by commas: only these"),
    "limit": _optional(int, "Only the first HEALPix pixels with so many rows"),
}

WORK: Options = {
    "workers": _optional(
        int, "Dask worker processes; 0: none. By default one a core, at most one a pixel"
    ),
    "scheduler": _optional(str, "Address of a running Dask scheduler, e.g. tcp://host:8786"),
    "resources": _optional(dict, "What a task needs of a Dask worker, e.g. {GPU: 1}"),
    "max_bad": StageParameter(
        float, 0.1, msg="Largest share of bad rows with which the extension is published"
    ),
    "strict": StageParameter(
        bool, default=False, msg="End with 10 where any object was quarantined"
    ),
}
