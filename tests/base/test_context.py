"""What a model can see at once, and lengths beyond it."""

import pytest
from fixtures.checkpoints import golden_case

from ptune.base.context import Answer, check_context, context_length
from ptune.errors import ConfigError

CHATGLM = {"model_type": "chatglm"}
CONFIG = CHATGLM | {"max_sequence_length": 2048}


def test_context_length():
    assert context_length(golden_case("v1")["config"]) == 2048
    assert context_length(golden_case("v3")["config"]) == 2048
    assert context_length(CHATGLM | {"padded_vocab_size": 65024, "seq_length": 32768}) == 32768
    assert context_length(CHATGLM) == 2048
    for nothing in ({}, {"seq_length": None}, {"seq_length": "many"}):
        assert context_length(CHATGLM | {"padded_vocab_size": 65024} | nothing) is None


@pytest.mark.parametrize(
    ("source", "answer", "fits"),
    [
        (3000, 500, "--max-source-length 1548 --max-new-tokens 500"),
        (500, 3000, "--max-source-length 500 --max-new-tokens 1548"),
        (3000, 3000, "--max-source-length 1024 --max-new-tokens 1024"),
        (2048, 1, "--max-source-length 2047 --max-new-tokens 1"),
    ],
)
def test_lengths_beyond_it(source, answer, fits):
    message = (
        rf"^max_source_length {source:,} and max_new_tokens {answer:,} are more than the context "
        rf"of 2,048 tokens of glm; use e.g. {fits}$"
    )
    with pytest.raises(ConfigError, match=message):
        check_context(CONFIG, "glm", source, Answer("max_new_tokens", answer))


def test_an_answer_that_the_command_cannot_change():
    answer = Answer("max_target_length", 512, "of the training")
    message = (
        "max_source_length 1,600 and max_target_length 512 of the training are more than the "
        "context of 2,048 tokens of glm; use e.g. --max-source-length 1536$"
    )
    with pytest.raises(ConfigError, match=message):
        check_context(CONFIG, "glm", 1600, answer)


def test_what_fits_or_is_not_known_passes():
    check_context(CONFIG, "glm", 1548, Answer("max_new_tokens", 500))
    check_context(CHATGLM | {"padded_vocab_size": 1}, "glm", 10**6, Answer("max_new_tokens", 10**6))
