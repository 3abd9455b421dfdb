"""The tables of docs/scale.md: figures from the pages that measured them, and arithmetic.

    python tools/scale.py            # writes the tables anew
    python tools/scale.py --check    # ends with 1 if the page says anything else

A figure that its page no longer has is an error: nothing here is typed in twice.
"""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "scale.md"
NUMBER = r"([\d,]+\.?\d*)"


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """A figure, and the line of the page that has it."""

    means: str
    unit: str
    page: str
    line: str
    """Regular expression with one group: the number."""
    times: float = 1.0
    """From the page's unit to ours."""

    def value(self) -> float:
        """Read it."""
        found = re.search(self.line, (DOCS / self.page).read_text())
        if found is None:
            sys.exit(
                f"docs/{self.page} has no line like {self.line!r} any more: mend tools/scale.py"
            )
        return float(found[1].replace(",", "")) * self.times


@dataclass(frozen=True, kw_only=True, slots=True)
class Assumed:
    """A number that nobody measured here."""

    means: str
    unit: str
    number: float
    why: str


MEASURED = {
    "encode32": Measured(
        means="encoder, base size, float32, one thread", unit="s an object", page="speed.md",
        line=rf"encode fp32, over official fp32 .*\| {NUMBER} ms an object", times=1e-3),
    "encode16": Measured(
        means="the same in bfloat16", unit="s an object", page="speed.md",
        line=rf"encode bf16, over official fp32 .*\| {NUMBER} ms;", times=1e-3),
    "share": Measured(
        means="share of the linear peak that float32 reaches", unit="", page="speed.md",
        line=rf"encode fp32, share of the linear peak \| {NUMBER}"),
    "peak": Measured(
        means="that peak", unit="FLOP/s", page="speed.md",
        line=rf"share of the linear peak .*peak {NUMBER} GFLOP/s; official", times=1e9),
    "image32": Measured(
        means="image codec, official size, float32, one thread", unit="s an image", page="speed.md",
        line=rf"image tokens fp32, over official fp32 .*\| {NUMBER} ms an image", times=1e-3),
    "image_gain": Measured(
        means="the official image codec's time over that", unit="", page="speed.md",
        line=rf"image tokens fp32, over official fp32 \| {NUMBER}"),
    "image16_gain": Measured(
        means="... and over ours in bfloat16", unit="", page="speed.md",
        line=rf"image tokens bf16, over official fp32 \| {NUMBER}"),
    "conv_share": Measured(
        means="of the official codec's time, share at the processor's peak", unit="%",
        page="speed.md",
        line=rf"official codec spends {NUMBER}% in convolutions"),
    "brick": Measured(
        means="stamps cut from compressed survey images, one core", unit="stamps/s",
        page="releases-speed.md",
        line=rf"stamps from an fpack brick, 550 objects \| {NUMBER}/s"),
    "copy": Measured(
        means="stamps read from a working copy, one core, from disk", unit="stamps/s",
        page="releases-speed.md",
        line=rf"working copy float16, file order, cold \| {NUMBER} stamps/s"),
    "copy_bytes": Measured(
        means="bytes of a stamp in it, with its mask", unit="B", page="releases-speed.md",
        line=rf"float16\s+working copy with its mask \({NUMBER} kB each\)", times=1e3),
    "scheduler": Measured(
        means="HATS pixels that one Dask scheduler carries", unit="pixels/s", page="dask.md",
        line=rf"pixels per second that one scheduler carries \| \d+ \| {NUMBER} \|"),
    "search": Measured(
        means="exact search, 768 values in float16, two threads", unit="rows/s", page="search.md",
        line=rf"exact top-100, one query \|.*\| {NUMBER}M rows/s", times=1e6),
    "train_b": Measured(
        means="training AION-1's B, rehearsed, at 0.4 of the peak", unit="H100-hours",
        page="training/rehearsal.md", line=rf"\*\*GPU hours\*\* \| {NUMBER} \|"),
    "train_xl": Measured(
        means="the same of XL", unit="H100-hours", page="training/rehearsal.md",
        line=rf"\*\*GPU hours\*\* \| [\d,]+ \| [\d,]+ \| {NUMBER} \|"),
}  # fmt: skip

ASSUMED = {
    "gpu": Assumed(means="peak of an H100, bfloat16, dense", unit="FLOP/s", number=989e12,
                   why="its data sheet"),
    "mfu": Assumed(means="share of it that is reached", unit="", number=0.25,
                   why="no GPU was at hand; training is planned with 0.4"),
    "gpu_price": Assumed(means="price of an H100", unit="USD an hour", number=3.0,
                         why="of the order of 2026's rents; put in yours"),
    "core_price": Assumed(means="price of a core", unit="USD an hour", number=0.04,
                          why="of the order of 2026's rents; put in yours"),
    "dim": Assumed(means="values of a vector", unit="", number=768, why="AION-1's base size"),
    "keys": Assumed(means="id, position, status, flags beside a vector", unit="B", number=64,
                    why="numbers, and a short word that compresses"),
    "tokens": Assumed(means="tokens of an object: an image and 12 scalars", unit="", number=588,
                      why="576 and 12; 2 bytes each"),
    "per_pixel": Assumed(means="objects in a HATS pixel", unit="", number=5000,
                         why="a billion objects in 200,000 pixels"),
    "link": Assumed(means="network of 10 Gbit/s", unit="B/s", number=1.25e9, why="one link, full"),
    "disk": Assumed(means="bytes of pixels of a night of Rubin", unit="B", number=20e12,
                    why="the survey's own figure"),
}  # fmt: skip

SURVEYS = {
    "Rubin, one night": (10e6, "alerts of a night, each a stamp in four bands"),
    "Euclid": (1e9, "galaxies, each a stamp in four bands"),
    "AION-1": (200e6, "objects, each counted as one image"),
}
"""Objects, and what is counted as one: of the surveys' own words, not measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line of the table of surveys: a formula in words and the same in code."""

    name: str
    formula: str
    unit: str
    compute: Callable[[float, dict[str, float]], float]
    scale: float = 1.0


def work(x: dict[str, float]) -> float:
    """FLOP of an object: encoder by time and rate, codec by the official's time at the peak."""
    encoder = x["encode32"] * x["share"] * x["peak"]
    codec = x["image32"] * x["image_gain"] * x["conv_share"] / 100 * x["peak"]
    return encoder + codec


def core_seconds(x: dict[str, float]) -> float:
    """Of an object in bfloat16 on one thread."""
    return x["encode16"] + x["image32"] * x["image_gain"] / x["image16_gain"]


def gpu_hours(n: float, x: dict[str, float]) -> float:
    """H100-hours of embedding n objects."""
    return n * work(x) / (x["gpu"] * x["mfu"]) / 3600


ROWS = (
    Row(name="core-hours, bfloat16", unit="h",
        formula="N (encode16 + image32 image_gain / image16_gain) / 3600",
        compute=lambda n, x: n * core_seconds(x) / 3600),
    Row(name="... cost", formula="core-hours × core_price", unit="USD",
        compute=lambda n, x: n * core_seconds(x) / 3600 * x["core_price"]),
    Row(name="H100-hours (nobody ran it)", unit="h",
        formula="N work / (gpu mfu) / 3600", compute=gpu_hours),
    Row(name="... cost", formula="H100-hours × gpu_price", unit="USD",
        compute=lambda n, x: gpu_hours(n, x) * x["gpu_price"]),
    Row(name="core-hours to cut stamps from compressed images", unit="h",
        formula="N / brick / 3600",
        compute=lambda n, x: n / x["brick"] / 3600),
    Row(name="core-hours to read a working copy", formula="N / copy / 3600", unit="h",
        compute=lambda n, x: n / x["copy"] / 3600),
    Row(name="working copy", formula="N copy_bytes", unit="TB", scale=1e-12,
        compute=lambda n, x: n * x["copy_bytes"]),
    Row(name="... over the network", formula="N copy_bytes / link / 3600", unit="h",
        compute=lambda n, x: n * x["copy_bytes"] / x["link"] / 3600),
    Row(name="tokens", formula="N 2 tokens", unit="TB", scale=1e-12,
        compute=lambda n, x: n * 2 * x["tokens"]),
    Row(name="vectors with keys", formula="N (2 dim + keys)", unit="TB", scale=1e-12,
        compute=lambda n, x: n * (2 * x["dim"] + x["keys"])),
    Row(name="HATS pixels", formula="N / per_pixel", unit="",
        compute=lambda n, x: n / x["per_pixel"]),
    Row(name="hours that a scheduler takes for them at least", unit="h",
        formula="HATS pixels / scheduler / 3600",
        compute=lambda n, x: n / x["per_pixel"] / x["scheduler"] / 3600),
    Row(name="one exact search, on one core", formula="N / search", unit="s",
        compute=lambda n, x: n / x["search"]),
)  # fmt: skip


def known() -> dict[str, float]:
    """All figures by name."""
    read = {name: figure.value() for name, figure in MEASURED.items()}
    return read | {name: figure.number for name, figure in ASSUMED.items()}


def single_figures(x: dict[str, float]) -> tuple[tuple[str, float, str, str], ...]:
    """What belongs to no survey: name, figure, unit, formula."""
    codec32, codec16 = "image32 image_gain conv_share peak", "image32 image_gain / image16_gain"
    whole = gpu_hours(SURVEYS["AION-1"][0], x)
    return (
        ("work of one object", work(x) / 1e9, "GFLOP", f"work = encode32 share peak + {codec32}"),
        ("one core, objects a second", 1 / core_seconds(x), "", f"1 / (encode16 + {codec16})"),
        (
            "one H100, objects a second (nobody ran it)",
            x["gpu"] * x["mfu"] / work(x),
            "",
            "gpu mfu / work",
        ),
        ("stamps that one core reads in a second from a working copy", x["copy"], "", "copy"),
        ("20 TB over the network", x["disk"] / x["link"] / 3600, "h", "disk / link / 3600"),
        (
            "embedding AION-1's objects over training its B",
            whole / x["train_b"],
            "",
            "H100-hours / train_b",
        ),
        ("training AION-1's B", x["train_b"] * x["gpu_price"], "USD", "train_b gpu_price"),
        ("training AION-1's XL", x["train_xl"] * x["gpu_price"], "USD", "train_xl gpu_price"),
    )


def told(number: float) -> str:
    """Two digits that count; more of large numbers would be more than anybody knows."""
    if number == 0:
        return "0"
    exponent = len(f"{abs(number):.0f}") if abs(number) >= 1 else 0
    if exponent > 2:
        return f"{round(number, 2 - exponent):,.0f}"
    return f"{number:#.2g}".rstrip(".")


def plain(number: float) -> str:
    """A figure as it was read."""
    return f"{number:,.10g}" if 1e-3 <= abs(number) < 1e9 else f"{number:.4g}"


def tables() -> dict[str, str]:
    """Markdown of each table, by its mark in the page."""
    x = known()
    measured = ["| name | figure | unit | what it is | page |", "|---|---|---|---|---|"]
    measured += [
        f"| `{name}` | {plain(x[name])} | {f.unit} | {f.means} | [{f.page}]({f.page}) |"
        for name, f in MEASURED.items()
    ]
    assumed = ["| name | figure | unit | what it is | why |", "|---|---|---|---|---|"]
    assumed += [
        f"| `{n}` | {plain(f.number)} | {f.unit} | {f.means} | {f.why} |"
        for n, f in ASSUMED.items()
    ]
    surveys = [
        "|  | " + " | ".join(SURVEYS) + " | formula |",
        "|---|" + "---|" * (len(SURVEYS) + 1),
    ]
    surveys.append("| N | " + " | ".join(f"{n:,.0f}" for n, _ in SURVEYS.values()) + " | |")
    for row in ROWS:
        cells = " | ".join(
            f"{told(row.compute(n, x) * row.scale)} {row.unit}".strip() for n, _ in SURVEYS.values()
        )
        surveys.append(f"| {row.name} | {cells} | `{row.formula}` |")
    singles = ["| | figure | formula |", "|---|---|---|"]
    singles += [
        f"| {name} | {f'{told(value)} {unit}'.strip()} | `{formula}` |"
        for name, value, unit, formula in single_figures(x)
    ]
    parts = {"measured": measured, "assumed": assumed, "surveys": surveys, "singles": singles}
    return {mark: "\n".join(lines) for mark, lines in parts.items()}


def page() -> str:
    """The page with its tables made anew; the words between them are people's."""
    text = PAGE.read_text()
    for mark, table in tables().items():
        begin, end = f"<!-- table: {mark} -->", "<!-- end -->"
        head, rest = text.split(begin)
        text = f"{head}{begin}\n{table}\n{end}{rest.split(end, 1)[1]}"
    return text


if __name__ == "__main__":
    new = page()
    if "--check" in sys.argv:
        sys.exit(new != PAGE.read_text() and "docs/scale.md: run python tools/scale.py")
    PAGE.write_text(new)
