"""Examples under the help of each command, in the folder that the first steps make."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typer import Typer

EXAMPLES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "demo": ("skyvec demo", "skyvec demo --rows 300 --out galaxies --workers 2"),
        "mock-survey": (
            "skyvec mock-survey --rows 200 --out sky",
            "skyvec mock-survey --rows 200 --out all-surveys --surveys hsc,desi",
        ),
        "plan": ("skyvec plan sky", "skyvec plan sky --limit 50 --json"),
        "embed": (
            "skyvec embed sky",
            "skyvec embed sky --name first_look --limit 50 --workers 0",
            "skyvec embed sky --name no_dust --without EBV --log-json run.jsonl",
        ),
        "tokenize": (
            "skyvec tokenize sky --workers 0",
            "skyvec embed sky --tokens skyvec_tiny_tokens --name from_tokens",
        ),
        "status": ("skyvec status sky", "skyvec status sky --extension skyvec_tiny_v1"),
        "report": (
            "skyvec report sky",
            "skyvec report sky --extension skyvec_tiny_v1 --out run.html",
            "skyvec report sky --extension no_dust --events run.jsonl --json",
        ),
        "explore": (
            "skyvec explore sky --extension skyvec_tiny_v1",
            "skyvec explore sky --extension skyvec_tiny_v1 --colour Z --export sky.html",
        ),
        "doctor": (
            "skyvec doctor",
            "skyvec doctor --scheduler tcp://127.0.0.1:8786 --json",
        ),
        "verify": (
            "skyvec verify sky --extension skyvec_tiny_v1",
            "skyvec verify sky --extension skyvec_tiny_v1 --sample 32 --json",
        ),
        "drop": (
            "skyvec drop sky --extension first_look",
            "skyvec drop sky --extension first_look --keep-files --yes",
        ),
        "repack": ("skyvec repack all-surveys/mmu/hsc --out hsc-packed --survey hsc",),
        "models list": ("skyvec models list",),
        "models show": ("skyvec models show skyvec-tiny",),
        "models verify": ("skyvec models verify skyvec-tiny",),
        "release make": (
            "skyvec release make all-surveys/mmu/desi --store store --name dr1 --survey desi",
            "skyvec release make new/desi --store store --name dr2 --survey desi --parent dr1",
        ),
        "release show": ("skyvec release show store/dr1",),
        "release verify": ("skyvec release verify store/dr1",),
        "release diff": ("skyvec release diff store/dr1 store/dr2",),
        "release withdraw": (
            'skyvec release withdraw store/dr1 --name dr1b --id 42 --reason "asked to"',
        ),
        "release publish": ("skyvec release publish store/dr1",),
        "bridge": ("skyvec bridge sky --from new_v2 --to skyvec_tiny_v1 --out bridge",),
        "search": (
            "skyvec search sky --extension skyvec_tiny_v1 --like ID",
            "skyvec search sky --extension skyvec_tiny_v1 --like ID -k 50 --save found.parquet",
        ),
        "index": (
            "skyvec index sky --extension skyvec_tiny_v1",
            "skyvec index sky --extension skyvec_tiny_v1 --expansion 256 -k 100",
        ),
        "ask": (
            'skyvec ask sky "edge-on galaxy" --head text --extension skyvec_tiny_v1 --gallery g.html',
        ),
        "show": ("skyvec show found.parquet --gallery found.html",),
        "probe fit": (
            "skyvec probe fit sky --target Z --extension skyvec_tiny_v1 --out photoz",
            "skyvec probe fit sky --target Z --kind attentive --extension skyvec_tiny_tokens",
        ),
        "probe apply": ("skyvec probe apply sky --probe photoz --save redshifts.parquet",),
        "probe report": ("skyvec probe report photoz",),
    }
)
"""Command -> lines to type, the plainest first."""


def epilog(command: str) -> str:
    """Examples as typer shows them below the options; each line is a paragraph there."""
    return "\n\n".join(["Examples:", *EXAMPLES[command]])


def with_examples(app: Typer, group: str) -> Typer:
    """A group of commands, each with its examples where it brings none itself."""
    for each in app.registered_commands:
        name = f"{group} {each.name}"
        if not each.epilog and name in EXAMPLES:
            each.epilog = epilog(name)
    return app


def first_steps() -> str:
    """What `skyvec` alone says at its end."""
    lines = (
        "skyvec doctor",
        *(EXAMPLES[name][0] for name in ("mock-survey", "plan", "embed", "status", "report")),
        "skyvec search sky --help",
    )
    return "\n\n".join(
        [
            "First steps, in an empty folder (a few minutes on two cores):",
            *lines,
            "Tab completion in this shell: skyvec --install-completion",
        ]
    )
