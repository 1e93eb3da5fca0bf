"""Texts that no tokenizer can encode."""

from __future__ import annotations

from ptune.data.messages import check_text
from ptune.data.rows import BadRecord
from ptune.errors import DataError


def check_encodable(text: str) -> None:
    """Refuse what has no encoding.

    Raises:
        DataError: the text holds half a surrogate pair.
    """
    try:
        check_text(text, "the text to encode", blank_is_fine=True)
    except BadRecord as error:
        raise DataError(f"{error}; leave it out") from error
