"""A few questions of the training data, kept for whoever tries what was trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ptune.data.messages import USER

if TYPE_CHECKING:  # `datasets` takes seconds to import
    import datasets

MAX_QUESTIONS = 5
# Longer ones would be a page of text, or much of the data, in a checkpoint's metadata.
_QUESTION_LENGTH, _CONTEXT_LENGTH = 200, 2000  # characters
_LOOKED_AT = 50  # records for one question, so that a large data set takes no longer


@dataclass(frozen=True)
class ExampleQuestion:
    """A question that somebody may begin with.

    Attributes:
        question: as the data has it.
        context: the text that it is about; empty for none.
    """

    question: str
    context: str = ""


def pick_questions(records: datasets.Dataset) -> tuple[ExampleQuestion, ...]:
    """Pick short questions without earlier turns or an instruction, spread over the data.

    Args:
        records: from `read_records`.

    Returns:
        At most `MAX_QUESTIONS`, all different; the same for the same records.
    """
    picked: dict[ExampleQuestion, None] = {}
    for part in range(MAX_QUESTIONS):
        begin = part * len(records) // MAX_QUESTIONS
        end = min((part + 1) * len(records) // MAX_QUESTIONS, begin + _LOOKED_AT)
        found = (_question(said) for said in records[begin:end]["messages"])
        fitting = (question for question in found if question and question not in picked)
        if (question := next(fitting, None)) is not None:
            picked[question] = None
    return tuple(picked)


def _question(messages: Sequence[dict[str, Any]]) -> ExampleQuestion | None:
    if len(messages) != 2 or messages[0]["role"] != USER or messages[0]["metadata"]:
        return None
    text, context = messages[0]["content"].strip(), messages[0]["context"].strip()
    short = len(text) <= _QUESTION_LENGTH and len(context) <= _CONTEXT_LENGTH
    return ExampleQuestion(text, context) if text and short else None
