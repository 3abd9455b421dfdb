"""Answers as files: Parquet, VOTable, FITS and ECSV, none without what the vectors are."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from skyvec.answers.precision import Precision
from skyvec.answers.scores import ScoreSample
from skyvec.extensions.vector_catalog import VectorCatalog
from skyvec.version import __version__
from skyvec_schemas.errors import ConfigurationError, ContractError, SkyvecError

if TYPE_CHECKING:
    from astropy.table import Table

    from skyvec.answers.answer import Answer

KEY = "skyvec_answer"
"""Under which a file says what its rows are, as JSON."""
_FITS_KEY = "SKYVEC"
"""The same within the eight letters of a FITS card."""
_CARDS = {
    "SVCATLG": "catalog", "SVEXTN": "extension", "SVFINGER": "fingerprint", "SVMODEL": "model",
    "SVVERSN": "skyvec_version",
}  # fmt: skip
"""FITS cards for those who look at a header."""
_UNITS = {"ra": "deg", "dec": "deg"}
_UCDS = {"ra": "pos.eq.ra;meta.main", "dec": "pos.eq.dec;meta.main"}
_ID_UCD = "meta.id;meta.main"


def facts_of(answer: Answer) -> dict[str, Any]:
    """What an answer is apart from its rows, as JSON takes it."""
    return {
        "catalog": str(answer.catalog),
        "extension": answer.extension,
        "fingerprint": answer.fingerprint,
        "model": model_of(answer),
        "id_column": answer.id_column,
        "question": dict(answer.question),
        "skyvec_version": __version__,
        **({"examples": answer.examples.to_pylist()} if answer.examples else {}),
        **({"scores": answer.scores.to_json()} if answer.scores else {}),
        **({"precision": answer.precision.to_json()} if answer.precision else {}),
    }


def model_of(answer: Answer) -> str:
    """Name of the model; empty where neither the answer nor a reachable extension knows it."""
    if answer.model:
        return answer.model
    try:
        return VectorCatalog.open(answer.catalog, answer.extension).provenance.model
    except (SkyvecError, OSError):
        return ""


def save(answer: Answer, path: Path) -> Path:
    """Write an answer in the format of the file's suffix.

    Raises
    ------
    ConfigurationError
        For another suffix, or a column that the format cannot hold.
    """
    write = _WRITERS.get(path.suffix.lower())
    if write is None:
        raise _unknown(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write(answer, path)
    return path


def load(path: Path) -> Answer:
    """Read an answer that `save` wrote.

    Raises
    ------
    ConfigurationError
        For another suffix, or a file that is not there.
    ContractError
        If the file is no answer.
    """
    from skyvec.answers.answer import Answer

    read = _READERS.get(path.suffix.lower())
    if read is None:
        raise _unknown(path)
    if not path.is_file():
        raise ConfigurationError(
            "there is no such file", where=str(path), remedy="Give a file that --save wrote"
        )
    try:
        table, text = read(path)
        facts: dict[str, Any] = json.loads(text)
    except (OSError, ValueError, KeyError, IndexError, TypeError, pa.ArrowException) as problem:
        raise ContractError(
            f"is not an answer of skyvec ({type(problem).__name__})",
            where=str(path),
            remedy="Give a file that Answer.save or --save wrote",
        ) from problem
    return Answer(
        table=table, id_column=facts["id_column"], catalog=Path(facts["catalog"]),
        extension=facts["extension"], fingerprint=facts["fingerprint"],
        question=facts["question"], model=facts["model"],
        examples=pa.Table.from_pylist(facts["examples"]) if facts.get("examples") else None,
        scores=ScoreSample.of_json(facts["scores"]) if "scores" in facts else None,
        precision=Precision.of_json(facts["precision"]) if "precision" in facts else None,
    )  # fmt: skip


def _unknown(path: Path) -> ConfigurationError:
    return ConfigurationError(
        f"no format for {path.suffix or 'a name without suffix'!r}",
        where=str(path),
        remedy=f"Use one of {', '.join(_WRITERS)}",
    )


def astropy_table(answer: Answer) -> Table:
    """Columns with units and UCDs; ``meta`` says what the vectors are."""
    from astropy.table import Column, MaskedColumn, Table

    table = Table(meta={KEY: json.dumps(facts_of(answer))})
    for name in answer.table.column_names:
        values, null = _values(answer.table.column(name), name)
        column = MaskedColumn(values, mask=null) if null.any() else Column(values)
        column.unit = _UNITS.get(name)
        if ucd := _ID_UCD if name == answer.id_column else _UCDS.get(name):
            column.meta["ucd"] = ucd
        table[name] = column
    return table


def _values(column: pa.ChunkedArray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A column as numpy array with a value in place of nulls, and where these are."""
    kind = column.type
    null = np.asarray(column.is_null().to_numpy())
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if pa.types.is_fixed_size_list(kind):
        flat = column.combine_chunks().fill_null([0] * kind.list_size).flatten()
        values = flat.to_numpy(zero_copy_only=False).reshape(len(column), kind.list_size)
        return values, np.repeat(null[:, None], kind.list_size, axis=1)
    if pa.types.is_nested(kind) or isinstance(kind, pa.BaseExtensionType):
        raise ConfigurationError(
            f"holds {kind}, which only Parquet can",
            where=f"column {name!r}",
            remedy="Save as .parquet, or drop the column",
        )
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return np.array(column.fill_null("").to_pylist(), np.str_), null
    if pa.types.is_float16(kind):
        column = column.cast(pa.float32())
    if null.any():
        column = column.fill_null(False if pa.types.is_boolean(kind) else 0)
    return np.asarray(column.to_numpy()), null


def _arrow_table(table: Table) -> pa.Table:
    """The reverse of `astropy_table`."""
    columns = {}
    for name in table.colnames:
        column = table[name]
        values = np.asarray(column)
        if values.dtype.kind == "S":
            values = values.astype(np.str_)
        if not values.dtype.isnative:  # FITS is big-endian
            values = values.astype(values.dtype.newbyteorder("="))
        mask = getattr(column, "mask", None)
        if values.ndim > 1:
            columns[name] = pa.FixedSizeListArray.from_arrays(values.ravel(), values.shape[1])
        elif values.dtype.kind == "U":
            gone = np.zeros(len(values), bool) if mask is None else mask
            columns[name] = pa.array(
                [None if m else str(v) for v, m in zip(values, gone, strict=True)], pa.string()
            )
        else:
            columns[name] = pa.array(values, mask=None if mask is None else np.array(mask))
    return pa.table(columns)


def _write_parquet(answer: Answer, path: Path) -> None:
    fields = []
    for field in answer.table.schema:
        said = {"unit": _UNITS.get(field.name), "ucd": _UCDS.get(field.name)}
        if field.name == answer.id_column:
            said["ucd"] = _ID_UCD
        fields.append(field.with_metadata({k: v for k, v in said.items() if v}))
    schema = pa.schema(fields, metadata={KEY: json.dumps(facts_of(answer))})
    pq.write_table(answer.table.replace_schema_metadata(None).cast(schema), path)


def _read_parquet(path: Path) -> tuple[pa.Table, str]:
    table = pq.read_table(path)
    text = (table.schema.metadata or {})[KEY.encode()].decode()
    plain = pa.schema([field.with_metadata(None) for field in table.schema])
    return table.cast(plain), text


def _write_votable(answer: Answer, path: Path) -> None:
    from astropy.io.votable import from_table
    from astropy.io.votable.tree import Info

    table = astropy_table(answer)
    document = from_table(table, table_id="answer")
    for name, value in _flat(facts_of(answer)).items():
        document.resources[0].infos.append(Info(ID=None, name=name, value=value))
    document.resources[0].infos.append(Info(ID=None, name=KEY, value=table.meta[KEY]))
    document.to_xml(str(path))


def _read_votable(path: Path) -> tuple[pa.Table, str]:
    from astropy.io.votable import parse

    document = parse(str(path))
    text = next(info.value for info in document.resources[0].infos if info.name == KEY)
    return _arrow_table(document.get_first_table().to_table(use_names_over_ids=True)), text


def _write_fits(answer: Answer, path: Path) -> None:
    from astropy.io import fits

    table = astropy_table(answer)
    for name in table.colnames:
        texts = table[name].tolist() if table[name].dtype.kind == "U" else []
        if not all(text is None or text.isascii() for text in texts):
            raise ConfigurationError(
                "holds text beyond ASCII, which FITS cannot",
                where=f"column {name!r}",
                remedy="Save as .parquet, .vot or .csv",
            )
    text, table.meta = table.meta[KEY], {}
    unit = fits.table_to_hdu(table)
    unit.name = "ANSWER"
    for place, name in enumerate(table.colnames, 1):
        if ucd := table[name].meta.get("ucd"):
            unit.header[f"TUCD{place}"] = ucd
    facts = facts_of(answer)
    for card, name in _CARDS.items():
        unit.header[card] = _ascii(facts[name])
    for name, value in facts["question"].items():
        unit.header["HISTORY"] = _ascii(f"{name}: {value}")
    unit.header[_FITS_KEY] = text
    fits.HDUList([fits.PrimaryHDU(), unit]).writeto(path, overwrite=True)


def _ascii(value: object) -> str:
    """What a FITS header can hold; `_FITS_KEY` has the text itself."""
    return str(value).encode("ascii", "backslashreplace").decode()


def _read_fits(path: Path) -> tuple[pa.Table, str]:
    from astropy.io import fits
    from astropy.table import Table

    with fits.open(path) as units:
        text = str(units["ANSWER"].header[_FITS_KEY])
        return _arrow_table(Table.read(units["ANSWER"])), text


def _write_csv(answer: Answer, path: Path) -> None:
    # ECSV: CSV under a commented header, so units survive and `comment="#"` reads it anywhere.
    astropy_table(answer).write(path, format="ascii.ecsv", delimiter=",", overwrite=True)


def _read_csv(path: Path) -> tuple[pa.Table, str]:
    from astropy.table import Table

    table = Table.read(path, format="ascii.ecsv")
    return _arrow_table(table), str(table.meta[KEY])


def _flat(facts: Mapping[str, Any]) -> dict[str, str]:
    """The facts that people look for in a header, one line each."""
    names = ("catalog", "extension", "fingerprint", "model", "skyvec_version")
    lines = {f"skyvec_{name.removeprefix('skyvec_')}": str(facts[name]) for name in names}
    return lines | {f"skyvec_question_{k}": v for k, v in facts["question"].items()}


_WRITERS: dict[str, Callable[[Answer, Path], None]] = {
    ".parquet": _write_parquet, ".vot": _write_votable, ".xml": _write_votable,
    ".fits": _write_fits, ".csv": _write_csv, ".ecsv": _write_csv,
}  # fmt: skip
_READERS: dict[str, Callable[[Path], tuple[pa.Table, str]]] = {
    ".parquet": _read_parquet, ".vot": _read_votable, ".xml": _read_votable,
    ".fits": _read_fits, ".csv": _read_csv, ".ecsv": _read_csv,
}  # fmt: skip
