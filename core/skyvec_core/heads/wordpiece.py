"""Words to word pieces, as BERT's uncased models have it (arXiv 1810.04805).

Control characters go, accents and case are dropped, punctuation and Chinese characters stand
alone, and each word is cut greedily into the longest pieces that the vocabulary knows.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from pathlib import Path

START, END, UNKNOWN = "[CLS]", "[SEP]", "[UNK]"
LONGEST_WORD = 100
"""Characters; a longer word is unknown."""
_CHINESE = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F), (0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip


class WordPiece:
    """Text to ids of a vocabulary whose line number is the id."""

    def __init__(self, words: Sequence[str]) -> None:
        self.ids = {word: place for place, word in enumerate(words)}
        missing = sorted({START, END, UNKNOWN} - self.ids.keys())
        if missing:
            raise ValueError(f"the vocabulary lacks {', '.join(missing)}")
        self.digest = hashlib.sha256("\n".join(words).encode()).hexdigest()

    @classmethod
    def load(cls, path: Path) -> WordPiece:
        """Read ``vocab.txt``, one word a line."""
        return cls(path.read_text(encoding="utf-8").rstrip("\n").split("\n"))

    def __call__(self, text: str, *, longest: int) -> list[int]:
        """Ids with start and end, at most ``longest`` of them; what is beyond is cut off."""
        pieces = [piece for word in words_of(text) for piece in self._pieces(word)]
        return [self.ids[START], *pieces[: longest - 2], self.ids[END]]

    def _pieces(self, word: str) -> list[int]:
        if len(word) > LONGEST_WORD:
            return [self.ids[UNKNOWN]]
        pieces, start = [], 0
        while start < len(word):
            prefix = "##" if start else ""
            for stop in range(len(word), start, -1):
                if (found := self.ids.get(prefix + word[start:stop])) is not None:
                    break
            else:
                return [self.ids[UNKNOWN]]
            pieces.append(found)
            start = stop
        return pieces


def words_of(text: str) -> list[str]:
    """Lower-case words and single punctuation marks of a text."""
    clean = "".join(_cleaned(character) for character in text)
    plain = "".join(
        character
        for character in unicodedata.normalize("NFD", clean)
        if unicodedata.category(character) != "Mn"
    ).lower()
    apart = "".join(f" {c} " if _is_punctuation(c) else c for c in plain)
    return apart.split()


def _cleaned(character: str) -> str:
    if character in "\t\n\r" or unicodedata.category(character) == "Zs":
        return " "
    if character == "\ufffd" or unicodedata.category(character) in {"Cc", "Cf", "Co"}:
        return ""
    chinese = any(first <= ord(character) <= last for first, last in _CHINESE)
    return f" {character} " if chinese else character


def _is_punctuation(character: str) -> bool:
    # BERT counts $, + and the like, which Unicode calls symbols, as punctuation.
    ascii_mark = character.isascii() and character.isprintable() and not character.isalnum()
    return (ascii_mark and character != " ") or unicodedata.category(character).startswith("P")
