"""Prompts of models that transformers has itself."""

import pytest
from fixtures.native_models import FAMILIES, write_tokenizer

from ptune.base.folder import BaseModel, Generation
from ptune.data.messages import Message
from ptune.data.prompt import WHOLE, Conversation, Lengths, as_context, render, render_text
from ptune.data.prompt_source import IGNORE_INDEX
from ptune.data.template_tokenizer import build_template_tokenizer
from ptune.errors import DataError

NATIVE = Generation.NATIVE


@pytest.fixture(scope="module", params=FAMILIES)
def tokenizer(request, tmp_path_factory):
    return load(tmp_path_factory.mktemp("tokenizer"), request.param)


def load(folder, family):
    write_tokenizer(folder, family)
    return build_template_tokenizer(BaseModel(family, folder, {}, NATIVE))


TURNS = Conversation.from_turns("你好吗？", "很好。", history=[("hi", "hello")])


def test_as_the_library_writes_it(tokenizer):
    if not tokenizer.chat_template:
        pytest.skip("no template")
    example = render(tokenizer, NATIVE, TURNS, WHOLE)
    said = [{"role": m.role, "content": m.content} for m in TURNS.messages]
    asked = tokenizer.apply_chat_template(said, add_generation_prompt=True)["input_ids"]
    whole = tokenizer.apply_chat_template([*said, {"role": "assistant", "content": "很好。"}])
    assert example.input_ids[: len(asked)] == asked
    # An answer is spelt by itself, as it is when the model writes it.
    text = tokenizer.decode(whole["input_ids"])
    assert text.startswith(tokenizer.decode(example.input_ids))
    learnt = [label for label in example.labels if label != IGNORE_INDEX]
    assert tokenizer.decode(learnt[:-1]) == "很好。"
    assert learnt[-1] == tokenizer.end_of_answer_id
    assert example.labels[: len(asked)] == [IGNORE_INDEX] * len(asked)


def test_without_a_template(tmp_path):
    tokenizer = load(tmp_path, "gpt2")
    with_system = Conversation.from_turns("c", history=[("a", "b")], system="do")
    ids = render(tokenizer, NATIVE, with_system, WHOLE).input_ids
    assert tokenizer.decode(ids) == "do\na\nb\nc\n"


def test_an_instruction(tokenizer):
    conversation = Conversation.from_turns("question", history=[("a", "b")], system="be short")
    text = tokenizer.decode(render(tokenizer, NATIVE, conversation, WHOLE).input_ids)
    assert text.count("be short") == 1
    assert text.index("be short") < text.index("question")
    if tokenizer.chat_template and not tokenizer.has_system_role:
        assert "be short\na" in text


SPELT = ["<|im_end|>", "<|eot|>", "</turn>", "<|endoftext|>", "<eos>"]


@pytest.mark.parametrize("spelt", SPELT)
def test_text_never_becomes_a_control_token(tokenizer, spelt):
    said = f"x{spelt}y {spelt}"
    plain = Conversation.from_turns("q", "r", history=[("a", "b")], system="s")
    forged = Conversation.from_turns(said, said, history=[(said, said)], system=said)
    count = []
    for conversation in (plain, forged):
        ids = render(tokenizer, NATIVE, conversation, WHOLE).input_ids
        count.append([i for i in ids if i in tokenizer.control_ids])
    assert count[0] == count[1]
    assert tokenizer.decode(ids).count(said) == 5


@pytest.mark.parametrize("mark", ["\ufdd0", "\ufdd00\ufdd1", "\ufdd1\ufdd07\ufdd1<|im_end|>"])
def test_marks_of_our_own_in_a_text(tokenizer, mark):
    ids = render(tokenizer, NATIVE, Conversation.from_turns(f"a{mark}b"), WHOLE).input_ids
    assert f"a{mark}b" in tokenizer.decode(ids)


def test_owners(tokenizer):
    conversation = Conversation.from_turns("second", "third", history=[("zero", "first")])
    example = render(tokenizer, NATIVE, conversation, WHOLE, trace=True)
    assert len(example.owners) == len(example.input_ids)
    for number, text in enumerate(["zero", "first", "second"]):
        ids = [i for i, o in zip(example.input_ids, example.owners, strict=True) if o == number]
        assert tokenizer.decode(ids).strip() == text


def test_truncation_keeps_what_asks(tokenizer):
    whole = render(tokenizer, NATIVE, Conversation.from_turns("天气" * 40), WHOLE)
    cut = render(tokenizer, NATIVE, Conversation.from_turns("天气" * 40), Lengths(24, 8))
    assert cut.prompt_cut
    assert len(cut.input_ids) == 24
    tail = 1 if not tokenizer.chat_template else 4
    assert cut.input_ids[-tail:] == whole.input_ids[-tail:]


def test_the_question_is_cut_and_never_what_stands_around_it(tokenizer):
    conversation = Conversation.from_turns("天气" * 40, system="be short")
    frame = render(tokenizer, NATIVE, Conversation.from_turns("天", system="be short"), WHOLE)
    cut = render(tokenizer, NATIVE, conversation, Lengths(len(frame.input_ids) + 5, 8))
    assert cut.prompt_cut
    text = tokenizer.decode(cut.input_ids)
    assert "be short" in text and "天气" in text
    with pytest.raises(DataError, match=r"the chat template and the instruction take \d+ tokens"):
        render(
            tokenizer, NATIVE, Conversation.from_turns("天", system="be short" * 9), Lengths(9, 8)
        )


@pytest.mark.parametrize(
    ("template", "number"),
    [("x{% if add_generation_prompt %}a{% endif %}", 1), ("{{ messages[-1].content }}", 1)],
)
def test_a_template_that_loses_what_was_said(tmp_path, template, number):
    write_tokenizer(tmp_path, "qwen3", template=template)
    tokenizer = build_template_tokenizer(BaseModel("x", tmp_path, {}, NATIVE))
    conversation = Conversation.from_turns("second", history=[("first", "answer")])
    message = f"leaves out or changes what message {number}, of role 'user', says; take a model"
    with pytest.raises(DataError, match=message):
        render(tokenizer, NATIVE, conversation, WHOLE)


def test_oldest_turns_go_first(tokenizer):
    history = [(f"question {i}", f"answer {i}") for i in range(6)]
    conversation = Conversation.from_turns("last", history=history)
    example = render(tokenizer, NATIVE, conversation, Lengths(60, 8))
    text = tokenizer.decode(example.input_ids)
    assert 0 < example.turns_dropped < 6
    assert "question 0" not in text
    assert "answer 5" in text
    assert not example.prompt_cut


def test_tools_are_refused(tokenizer):
    call = Conversation((Message("user", "a"), Message("observation", "b")))
    with pytest.raises(DataError, match="a tool's reply has no place in the prompt of this model"):
        render(tokenizer, NATIVE, call, WHOLE)


def test_a_text_in_front(tokenizer):
    ids = render_text(tokenizer, NATIVE, " be short ")
    assert tokenizer.decode(ids) == "be short\n"
    assert as_context(tokenizer, NATIVE, ids) == ids
