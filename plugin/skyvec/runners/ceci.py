"""The stage as classes of ceci, the pipeline engine of LSST DESC, on which RAIL is built."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from skyvec_schemas.errors import ConfigurationError, OutputExistsError

try:
    from ceci import PipelineStage
    from ceci.file_types import DataFile

    from skyvec.runners.ceci_options import CHOICE, INPUT, MODEL, VECTORS, WORK
except ImportError as problem:
    raise ConfigurationError(
        f"cannot be imported ({problem})", where="ceci", remedy="pip install 'skyvec[rail]'"
    ) from problem

if TYPE_CHECKING:
    import lsdb

    from skyvec.stage.plan import Plan, Product
    from skyvec.stage.selection import Selection

__all__ = (
    "HatsCatalog",
    "HatsExtension",
    "PipelineStage",
    "SkyvecEmbed",
    "SkyvecEmbedTokens",
    "SkyvecTokenize",
)


class HatsCatalog(DataFile):
    """Folder of a HATS collection or catalog; ``open_input`` gives an LSDB catalog."""

    suffix = ""

    @classmethod
    def open(cls, path: str, mode: str) -> lsdb.Catalog:
        """The catalog, lazily."""
        import lsdb

        _only_reading(path, mode)
        return lsdb.open_catalog(path)

    def close(self) -> None:
        """Nothing is held open."""


class HatsExtension(DataFile):
    """A ``<name>.properties`` file; ``open_input`` gives the catalog with the vectors joined.

    skyvec writes this file last: where it is, the data beside it are complete.
    """

    suffix = "properties"

    @classmethod
    def open(cls, path: str, mode: str) -> lsdb.Catalog:
        """The catalog that was embedded with the extension's columns, lazily."""
        import lsdb

        from skyvec.extensions.vector_catalog import VectorCatalog

        _only_reading(path, mode)
        primary = VectorCatalog.open(Path(path).parent, path).primary
        return lsdb.open_catalog(primary).load_extension(path)

    def close(self) -> None:
        """Nothing is held open."""


class _SkyvecStage(PipelineStage):
    """What the stages share: options, the output under its own name, the rule for skipping."""

    parallel = False  # no MPI: Dask workers do the work
    product: ClassVar[Product]
    outputs: ClassVar[list[tuple[str, type[DataFile]]]]
    """One: its file name is the name of the extension and of its vector column."""

    def run(self) -> None:
        """Do the pixels that are not done yet, and publish.

        Raises
        ------
        SkyvecError
            Unless the product is complete; its exit code is that of the process.
        """
        from skyvec.commands.monitors import console_monitor
        from skyvec.runners.outcome import raise_unless_complete
        from skyvec.stage.cluster import connected
        from skyvec.stage.run import run_plan

        prepared = self._plan(self.get_output(self._tag, final_name=True))
        scheduler = self.config["scheduler"]
        cluster = connected(scheduler) if scheduler else nullcontext()
        with cluster as client, console_monitor() as monitor:
            record = run_plan(
                prepared, client=client, monitor=monitor, **self._options_of(run_plan)
            )
        raise_unless_complete(record)

    def find_outputs(self, outdir: str) -> Mapping[str, str]:
        """Where outputs go; kept for `already_finished`, which ceci tells no folder."""
        self._places = super().find_outputs(outdir)
        return self._places

    def already_finished(self) -> None:
        """Let ceci skip the stage, if these options on this input would make what is there.

        Raises
        ------
        OutputExistsError
            If they would not: ceci itself only looks whether the file exists.
        BadObjectsError
            If ``strict`` is asked for and objects are in quarantine.
        """
        from skyvec.runners.outcome import quarantined

        place = self._places[self.get_aliased_tag(self._tag)]
        prepared = self._plan(place)
        if left := len(prepared.todo):
            raise OutputExistsError(
                f"is there, but {left} HEALPix pixels of it are still to be made",
                where=place,
                remedy="Delete this one file and run the pipeline again: finished pixels are kept",
            )
        objects = sum(record.quarantined for record in prepared.done)
        if objects and self.config["strict"]:
            raise quarantined(objects, where=place)
        super().already_finished()

    @classmethod
    def generate_command(
        cls,
        inputs: Mapping[str, str],
        config: str,
        outputs: Mapping[str, str],
        aliases: Mapping[str, str] | None = None,
        instance_name: str | None = None,
    ) -> str:
        """The shell command of ceci, by the module that ends with skyvec's exit codes."""
        command = super().generate_command(inputs, config, outputs, aliases, instance_name)
        return str(command).replace(" -m skyvec ", " -m skyvec.runners ", 1)

    @property
    def _tag(self) -> str:
        return self.outputs[0][0]

    def _finalize_tag(self, tag: str) -> str:
        """Nothing to rename: `skyvec.run` writes aside and publishes under the final name."""
        return str(self.get_output(tag, final_name=True))

    def _plan(self, output: str) -> Plan:
        from skyvec.stage.plan import plan

        folder, _, file = output.rpartition("/")
        if not file.endswith(".properties"):
            raise ConfigurationError(
                "an extension is named by its properties file",
                where=output,
                remedy="Let it end with .properties, or leave the name to ceci",
            )
        options = self._options_of(plan) | {
            "name": file.removesuffix(".properties"),
            "out": folder or ".",
            "product": self.product,
            "selection": self._selection(),
        }
        return plan(self.get_input("catalog"), **(options | self._inputs_of_plan()))

    def _inputs_of_plan(self) -> dict[str, Any]:
        """What the rows are made from."""
        from skyvec.sources import declared_sources
        from skyvec.surveys import chosen_survey

        config = self.config
        return {
            "survey": chosen_survey(
                config["survey"],
                id_column=config["id_column"],
                image_column=config["image_column"],
                without=",".join(config["without"]),
            ),
            "sources": declared_sources(
                config["source"], config["sources"], radius=config["radius"]
            ),
        }

    def _selection(self) -> Selection:
        from skyvec.stage.selection import Selection

        return Selection.parse(**{key: self.config[key] for key in CHOICE})

    def _options_of(self, function: Callable[..., object]) -> dict[str, Any]:
        """The options that are keywords of a function, by the same name."""
        keywords = inspect.signature(function).parameters
        own = {key: self.config[key] for key in self.config_options if key in keywords}
        return {key: value for key, value in own.items() if value is not None}


class SkyvecEmbed(_SkyvecStage):
    """Embed a HATS catalog and publish the vectors as an extension of it."""

    name = "SkyvecEmbed"
    product = "embedding"
    inputs: ClassVar = [("catalog", HatsCatalog)]
    outputs: ClassVar = [("embedding", HatsExtension)]
    config_options: ClassVar = {**MODEL, **VECTORS, **INPUT, **CHOICE, **WORK}


class SkyvecEmbedTokens(_SkyvecStage):
    """Embed a HATS catalog from its token extension; neither pixels nor spectra are read."""

    name = "SkyvecEmbedTokens"
    product = "embedding"
    inputs: ClassVar = [("catalog", HatsCatalog), ("tokens", HatsExtension)]
    outputs: ClassVar = [("embedding", HatsExtension)]
    config_options: ClassVar = {**MODEL, **VECTORS, **CHOICE, **WORK}

    def _inputs_of_plan(self) -> dict[str, Any]:
        return {"tokens": self.get_input("tokens")}


class SkyvecTokenize(_SkyvecStage):
    """Store the tokens of a HATS catalog as an extension of it: what training reads."""

    name = "SkyvecTokenize"
    product = "tokens"
    inputs: ClassVar = [("catalog", HatsCatalog)]
    outputs: ClassVar = [("tokens", HatsExtension)]
    config_options: ClassVar = {**MODEL, **INPUT, **CHOICE, **WORK}


def _only_reading(path: str, mode: str) -> None:
    if mode != "r":
        raise ConfigurationError(
            "is only read through ceci", where=path, remedy="Let skyvec.run write it"
        )
