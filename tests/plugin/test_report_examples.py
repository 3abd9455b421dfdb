"""Examples of the help texts name commands, arguments and options that exist."""

import shlex

import pytest
import typer

from skyvec import cli
from skyvec.commands.examples import EXAMPLES

ROOT = typer.main.get_command(cli.app)
NEIGHBOURS = {"train", "evaluate", "promote"}


def commands(group, path=()):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        elif name not in NEIGHBOURS:
            yield " ".join((*path, name)), command


COMMANDS = dict(commands(ROOT))
LINES = [
    (name, line)
    for name, command in {"": ROOT, **COMMANDS}.items()
    for line in (command.epilog or "").split("\n\n")
    if line.startswith("skyvec ")
]


def parsed(line):
    """Command and arguments of a line; the parser of the command itself judges them."""
    words = shlex.split(line)[1:]
    command, path = ROOT, []
    while words and hasattr(command, "commands"):
        assert words[0] in command.commands, f"no command {words[0]!r}"
        path.append(words[0])
        command = command.commands[words.pop(0)]
    context = command.make_context(" ".join(path), words, resilient_parsing="--help" in words)
    return " ".join(path), context.params


@pytest.mark.parametrize(
    ("name", "line"), LINES, ids=[f"{n or 'skyvec'}: {line}" for n, line in LINES]
)
def test_every_example_is_understood(name, line):
    path, _ = parsed(line)
    assert not name or path == name or {path, name} == {"embed", "tokenize"}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_teaches_by_example(name):
    assert any(name == of for of, _ in LINES), f"{name} shows no example"


def test_no_example_is_of_a_command_that_is_gone():
    assert EXAMPLES.keys() <= COMMANDS.keys()


def test_an_example_with_an_unknown_option_would_be_seen():
    with pytest.raises(Exception, match="No such option"):
        parsed("skyvec status sky --extnsion x")


def test_skyvec_alone_shows_the_first_steps_and_completion():
    assert "skyvec embed sky" in ROOT.epilog
    assert "skyvec --install-completion" in ROOT.epilog
    assert {"--install-completion", "--show-completion"} <= {
        option for parameter in ROOT.params for option in parameter.opts
    }
