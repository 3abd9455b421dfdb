"""``skyvec train|evaluate|promote``: the entry points that the command line of skyvec finds.

Light to import: torch comes with the command that is run.
"""

from __future__ import annotations

from collections.abc import Sequence


def train(words: Sequence[str]) -> int:
    """Train, resume or rehearse a model on tokens; every part of a model by its recipe."""
    others = [word for word in words if word != "--rehearse"]
    return _run("train" if len(others) == len(words) else "rehearse", others)


def evaluate(words: Sequence[str]) -> int:
    """Score a model on a release beside its baselines: JSON and a page."""
    return _run("evaluate", words)


def promote(words: Sequence[str]) -> int:
    """Let a model take another's place if its scorecard does not fall."""
    return _run("promote", words)


def _run(command: str, words: Sequence[str]) -> int:
    from skyvec_training.__main__ import main

    return main([command, *words])
