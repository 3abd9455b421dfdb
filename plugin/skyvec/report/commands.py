"""The commands that a report hands out: try again, mend, join, look further."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path

from skyvec.models import packaged_models
from skyvec.releases.hats.remote import resolved
from skyvec.releases.joining.join import JoinRule
from skyvec.report.kept_run import KeptRun
from skyvec.stage.record_table import Key
from skyvec.surveys import chosen_survey
from skyvec_schemas.errors import SkyvecError
from skyvec_schemas.survey_columns import SURVEYS

_DEFAULTS = {"--precision": "float32", "--device": "cpu", "--dtype": "float16"}


def same_command(run: KeptRun, *, pixels: Iterable[Key] = ()) -> tuple[str, str]:
    """The command that continues a run, and what it lacks (empty if nothing).

    What is finished under the same fingerprint is skipped.

    Parameters
    ----------
    pixels
        Only these.
    """
    made, job = run.provenance, run.job
    words = ["skyvec", "tokenize" if made.product == "tokens" else "embed", str(_input(run))]
    words += ["--name", run.name, "--model", _model(run)]
    if (home := resolved(run.output.root.parent)) != _input(run):
        words += ["--out", str(home)]
    survey, lacking = _survey_options(run)
    words += survey
    plain, others = _source_options(run)
    words += plain
    lacking += others
    for option, key in (("--tokens", "tokens"), ("--reuse", "earlier")):
        if job.get(key):
            words += [option, str(job[key])]
    if made.product != "tokens":
        chosen = {"--precision": made.precision, "--dtype": made.vector_type}
        for option, value in chosen.items():
            words += [option, value] if value != _DEFAULTS[option] else []
    if made.device != _DEFAULTS["--device"]:
        words += ["--device", made.device]
    if listed := [f"{order}/{pixel}" for order, pixel in pixels]:
        words += ["--pixels", ",".join(listed)]
    return shlex.join(words), lacking


def skyvec_command(verb: str, run: KeptRun, *options: str) -> str:
    """``skyvec VERB`` about this extension."""
    home = str(resolved(run.output.root.parent))
    return shlex.join(["skyvec", verb, home, "--extension", run.name, *options])


def join_code(run: KeptRun) -> str:
    """Python that reads the extension with its catalog."""
    home, source = resolved(run.output.root.parent), _input(run)
    load = run.name if source == home else str(home / f"{run.name}.properties")
    return (
        f"import lsdb\n\ncatalog = lsdb.open_catalog({str(source)!r})\n"
        f"joined = catalog.load_extension({load!r})\njoined.head()"
    )


def quarantine_code(run: KeptRun) -> str:
    """Python that reads everything that was set aside, published or not."""
    place = resolved(run.output.root.parent) / f"{run.name}_quarantine"
    if place.exists():
        return f"import lsdb\n\nlsdb.open_catalog({str(place)!r}).compute()"
    lists = resolved(run.output.root) / "skyvec" / "quarantine"
    return f"import pandas\n\npandas.read_parquet({str(lists)!r})"


def _input(run: KeptRun) -> Path:
    """What was given as CATALOG: the collection, where the catalog lies in one."""
    catalog = run.source or Path(run.job.get("source", run.catalog))
    catalog = resolved(catalog)  # a page travels, and its commands with it
    collection = catalog.parent
    return collection if (collection / "collection.properties").is_file() else catalog


def _model(run: KeptRun) -> str:
    return run.provenance.model if run.provenance.model in packaged_models() else str(
        run.job.get("model", run.provenance.model)
    )  # fmt: skip


def _survey_options(run: KeptRun) -> tuple[list[str], str]:
    made = run.provenance
    known = SURVEYS.get(made.survey)
    if known is None:
        return [], "its survey was declared in Python"
    read = dict(entry.rsplit("=", 1) for entry in made.inputs)
    keys = set(read.values())
    without = [column for column, key in known.inputs if key not in keys]
    image = next((c for c, k in read.items() if k == "tok_image"), None) if known.image else None
    image = image if known.image and image != known.image.name else None
    id_column = run.job.get("id_column", known.id_column)
    id_column = None if id_column == known.id_column else id_column
    options = ["--survey", made.survey] if made.survey != "legacysurvey" else []
    for option, value in (
        ("--id-column", id_column),
        ("--image-column", image),
        ("--without", ",".join(without)),
    ):
        options += [option, value] if value else []
    try:
        survey = chosen_survey(
            made.survey, id_column=id_column, image_column=image, without=",".join(without)
        )
    except SkyvecError:
        return options, "the columns that the survey's own names do not tell"
    same = {key for _, key in survey.inputs} == keys or bool(run.job.get("tokens"))
    return options, "" if same else "the columns that the survey's own names do not tell"


def _source_options(run: KeptRun) -> tuple[list[str], str]:
    """``--source NAME=PATH`` where that says it all; a sources file cannot be written back."""
    sources = run.job.get("sources") or []
    if not sources:
        return [], ""
    words = [word for each in sources for word in ("--source", f"{each['name']}={each['path']}")]
    rules = [each.get("rule", {}) for each in sources]
    radii = {rule.get("radius_arcsec", 1.0) for rule in rules}
    if len(radii) == 1 and (radius := radii.pop()) != 1.0:
        words += ["--radius", f"{radius:g}"]
    usual = JoinRule()
    plain = not radii and all(
        each["name"] == each["survey"]
        and not each.get("columns")
        and rule.get("max_pm", usual.max_pm) == usual.max_pm
        for each, rule in zip(sources, rules, strict=True)
    )
    return words, "" if plain else "your --sources file"
