"""The page on scale says what its script computes, and the script what its formulas say."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def scale():
    spec = importlib.util.spec_from_file_location("scale", ROOT / "tools/scale.py")
    tool = importlib.util.module_from_spec(spec)
    sys.modules["scale"] = tool
    spec.loader.exec_module(tool)
    return tool


def test_the_page_is_what_the_script_makes_of_the_measured_figures(scale):
    assert (ROOT / "docs/scale.md").read_text() == scale.page(), "run python tools/scale.py"


def test_formulas_in_words_are_those_in_code(scale):
    """Each formula of the table is parsed as it stands, and gives the number beside it."""
    known = scale.known()
    for row in scale.ROWS:
        value = evaluated(row.formula, names(scale, 1e9))
        assert value == pytest.approx(row.compute(1e9, known)), row.formula
    for name, told, unit, formula in scale.single_figures(known):
        value = evaluated(formula.split("=")[-1], names(scale, scale.SURVEYS["AION-1"][0]))
        assert value == pytest.approx(told * (1e9 if unit == "GFLOP" else 1)), name


def names(scale, count):
    known = scale.known()
    return {
        "N": count,
        "work": scale.work(known),
        "core-hours": count * scale.core_seconds(known) / 3600,
        "H100-hours": scale.gpu_hours(count, known),
        "HATS pixels": count / known["per_pixel"],
        **known,
        "conv_share": known["conv_share"] / 100,
    }


def evaluated(formula, named):
    """A product without signs of multiplication, as people write it."""
    names = {f"v{i}": value for i, value in enumerate(named.values())}
    for place, name in sorted(enumerate(named), key=lambda pair: -len(pair[1])):
        formula = formula.replace(name, f"\0{place}\0")
    words = formula.replace("×", " ").replace("/", " / ").replace("+", " + ")
    words = words.replace("(", " ( ").replace(")", " ) ").split()
    parts = []
    for word in words:
        starts = word not in {"/", "+", ")"}
        if parts and starts and parts[-1] not in {"/", "+", "("}:
            parts.append("*")
        parts.append(f"v{word.strip(chr(0))}" if "\0" in word else word)
    return eval("".join(parts), {}, names)  # noqa: S307


@pytest.mark.parametrize(
    ("number", "words"),
    [(0.0051, "0.0051"), (1.04, "1.0"), (17.3, "17"), (109.6, "110"), (266_400, "270,000")],
)
def test_two_digits_are_told(scale, number, words):
    assert scale.told(number) == words


def test_a_figure_that_its_page_has_no_more_is_an_error(scale):
    gone = scale.Measured(means="", unit="", page="speed.md", line="no such line ([0-9]+)")
    with pytest.raises(SystemExit, match=r"speed\.md"):
        gone.value()
