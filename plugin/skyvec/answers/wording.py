"""What an answer says of itself: facts in the order in which they are shown everywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from skyvec.answers.formats import model_of

if TYPE_CHECKING:
    from skyvec.answers.answer import Answer

NO_PROBABILITY = "A score orders objects. It is no probability of being what was asked for"


def facts_for_people(answer: Answer) -> dict[str, str]:
    """Question, what the scores are worth, and which vectors they come from."""
    lines = dict(answer.question)
    lines |= worth(answer)
    model = model_of(answer)
    lines["vectors"] = (
        f"{answer.extension}{f' by {model}' if model else ''} "
        f"(fingerprint {answer.fingerprint[:12]})"
    )
    return lines


def worth(answer: Answer) -> dict[str, str]:
    """Precision beside prevalence where labels say so; otherwise where the scores stand."""
    if answer.precision:
        return answer.precision.lines
    column = answer.score_column
    if column is None or not len(answer):
        return {}
    return {"scores": f"{NO_PROBABILITY}. {scores_in_words(answer)}".strip()}


def scores_in_words(answer: Answer) -> str:
    """Range of the answer's scores, and of those of everything that was searched."""
    column = answer.score_column
    if column is None or not len(answer):
        return ""
    own = answer.table.column(column).to_numpy().astype(np.float64)
    own = own[np.isfinite(own)]
    if not len(own):
        return ""
    text = f"Here {column} runs from {own.min():.3f} to {own.max():.3f}"
    sample = answer.scores
    if sample is None or not len(sample.values):
        return f"{text}; what other objects score was not looked at."
    low, middle, high = np.quantile(sample.values, (0.01, 0.5, 0.99))
    return (
        f"{text}; of the {sample.searched:,} objects searched, half lie below {middle:.3f} and "
        f"98% from {low:.3f} to {high:.3f}."
    )
