"""The demo from pixels to page, step by step; every step is what a user would call."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from skyvec.demo.baselines import embed_at_random, redshift_scores
from skyvec.demo.facts import DemoFacts
from skyvec.demo.looks import catalog_facts, neighbours, query_cutout
from skyvec.demo.page import write_page
from skyvec.demo.real_galaxies import WITHOUT, import_real_galaxies
from skyvec.mock.survey import write_mock_survey
from skyvec.models import load_model, model_card, model_folder
from skyvec.stage.cluster import dask_client
from skyvec.stage.plan import default_name
from skyvec.stage.run import run
from skyvec.stage.run_record import RunRecord
from skyvec.version import __version__
from skyvec_schemas.errors import OutputExistsError
from skyvec_schemas.survey_columns import LEGACY_SURVEY

Say = Callable[[str], None]

REAL, MOCK = "ls10_galaxies", "mock_survey"
TARGET = "Z"
REAL_SURVEY = replace(
    LEGACY_SURVEY, scalars=tuple(s for s in LEGACY_SURVEY.scalars if s.name != WITHOUT)
)


@dataclass
class _Clock:
    say: Say
    timings: list[tuple[str, float]] = field(default_factory=list)

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        self.say(what)
        started = time.monotonic()
        yield
        self.timings.append((what, time.monotonic() - started))


def run_demo(to: Path, *, rows: int, seed: int, model: str, workers: int | None, say: Say) -> Path:
    """Make everything under ``to`` and return the page; a second call reuses what is there.

    Raises
    ------
    OutputExistsError
        If ``to`` holds something else, or a demo of other galaxies.
    """
    _claim(to, {"rows": rows, "seed": seed})
    clock = _Clock(say)
    say("This takes two to five minutes on two cores.")
    with clock.step("Real galaxies: 100 Legacy Survey DR10 objects, imported by hats-import"):
        if not (to / REAL).exists():
            import_real_galaxies(to / REAL)
    with clock.step(f"Mock galaxies: {rows:,} griz cutouts with PSF and noise"):
        if not (to / MOCK).exists():
            write_mock_survey(to / MOCK, rows=rows, seed=seed, workers=workers)
    name = default_name(model_folder(model).name, "embedding")
    with dask_client(workers=workers) as client:
        with clock.step("Embedding the real galaxies"):
            real = run(to / REAL, model=model, name=name, survey=REAL_SURVEY, client=client)
        _tell(real, say)
        with clock.step("Embedding the mock galaxies"):
            mock = run(to / MOCK, model=model, name=name, client=client)
        _tell(mock, say)
        with clock.step("The same with untrained encoder blocks, for comparison"):
            random_vectors = embed_at_random(to / MOCK, to / "baselines", model, client=client)
    with clock.step("Opening both with plain LSDB and checking every row"):
        catalogs = [
            catalog_facts(real, kind="real", description=_REAL_TEXT),
            catalog_facts(mock, kind="mock", description=_MOCK_TEXT),
        ]
    with clock.step(f"Linear model: {TARGET} from vectors, on sky blocks left out"):
        scores, truth, predicted = redshift_scores(mock, random_vectors, target=TARGET)
    with clock.step("Nearest neighbours of one real galaxy"):
        query = query_cutout(real)
        near_real = neighbours(real, real, query.object_id, k=6)
        near_mock = neighbours(mock, real, query.object_id, k=6)
    loaded = load_model(model)
    facts = DemoFacts(
        skyvec_version=__version__, date=f"{datetime.now(UTC):%Y-%m-%d}", model=loaded.name,
        model_digest=loaded.digest, dim=loaded.dim, fingerprint=mock.provenance.fingerprint(),
        model_card=model_card(model_folder(model)), catalogs=catalogs, probe_target=TARGET,
        probe_truth=truth, probe_predicted=predicted, scores=scores, query=query,
        neighbours_real=near_real, neighbours_mock=near_mock, timings=clock.timings,
        commands=_commands(rows, seed, name),
    )  # fmt: skip
    _conclude(facts, say)
    return write_page(facts, to / "index.html")


def _claim(to: Path, settings: dict[str, int]) -> None:
    marker = to / "demo.json"
    if marker.is_file():
        if json.loads(marker.read_text()) != settings:
            raise OutputExistsError(
                f"holds a demo made with {marker.read_text().strip()}",
                where=str(to),
                remedy="Choose another --out, or the same --rows and --seed",
            )
        return
    if to.exists() and any(to.iterdir()):
        raise OutputExistsError(
            "is not empty and holds no demo", where=str(to), remedy="Choose another --out"
        )
    to.mkdir(parents=True, exist_ok=True)
    marker.write_text(json.dumps(settings))


def _tell(record: RunRecord, say: Say) -> None:
    for problem in record.problems:
        say(f"  {problem}")
    ok = record.rows - record.partial_rows - record.failed_rows
    done = f"{record.rows:,} rows: {ok:,} ok, {record.partial_rows:,} partial, "
    reasons = ", ".join(f"{k.replace('_', ' ')}: {v:,}" for k, v in record.flags.items())
    say(f"  {done}{record.failed_rows:,} failed, {record.seconds:.0f} s ({reasons or 'no doubts'})")


def _conclude(facts: DemoFacts, say: Say) -> None:
    checks = [check for catalog in facts.catalogs for check in catalog.checks]
    say(f"Checks through LSDB: {sum(c.passed for c in checks)} of {len(checks)} passed")
    for row in facts.scores:
        score = row.score
        say(f"  R2({facts.probe_target}) {score.r2:6.3f} "
            f"[{score.r2_low:.3f}, {score.r2_high:.3f}]  {row.name}")  # fmt: skip


def _commands(rows: int, seed: int, name: str) -> list[str]:
    return [
        f"skyvec mock-survey --rows {rows} --seed {seed} --out sky",
        "skyvec plan sky",
        "skyvec embed sky",
        f"python -c \"import lsdb; print(lsdb.open_catalog('sky').load_extension('{name}'))\"",
        "skyvec probe fit sky --target Z --out photoz",
        "skyvec search sky --like ID",
    ]


_REAL_TEXT = (
    "Legacy Survey DR10 objects from the wheel piczl 0.1.4: X-ray selected, so more active "
    "nuclei than in the field. Cutouts of 23 x 23 pixels, padded to the codec's 96 with a mask."
)
_MOCK_TEXT = (
    "Synthetic galaxies by skyvec's own mock survey: templates of real SDSS galaxies, DECam griz "
    "images of 96 x 96 pixels with PSF, noise, neighbours and bad pixels; the truth is known."
)
