"""`apply_chat_template`: the ids of `render`, for all that transformers hands it."""

import json
import random
import re

import pytest
import torch
from fixtures.conversations import draw_conversation

from ptune.base.folder import Generation
from ptune.data.messages import Message, read_tools
from ptune.data.prompt import Conversation, Lengths, render
from ptune.errors import ConfigError, DataError

KINDS = dict(zip((1, 2, 3, 4), Generation, strict=False))
ROOMY = Lengths(10**6, 10**6)
ASKED = {"role": "user", "content": "类型#裙"}
ANSWERED = {"role": "assistant", "content": "黑色的裙子"}


@pytest.fixture(params=KINDS)
def generation(request):
    return request.param


@pytest.fixture
def tokenizer(generation, toy_tokenizer):
    return toy_tokenizer(generation)


def rendered(tokenizer, conversation):
    return render(tokenizer, tokenizer.generation, conversation, ROOMY).input_ids


def applied(tokenizer, messages, **options):
    return tokenizer.apply_chat_template(messages, return_dict=False, **options)


def test_roles_of_the_original(real_tokenizer, real_roles):
    for case in real_roles:
        messages = [*case["history"], {"role": case["role"], "content": case["query"]}]
        ids = applied(real_tokenizer(3), messages, add_generation_prompt=True)
        assert ids == case["input_ids"]


def as_dicts(messages):
    names = ("role", "content", "metadata", "tools")
    found = [{name: getattr(message, name) for name in names} for message in messages]
    for message in found:
        message["tools"] = json.loads(message["tools"] or "[]")
    return found


@pytest.mark.parametrize("seed", range(20))
def test_any_conversation(generation, tokenizer, seed):
    conversation = draw_conversation(random.Random(seed), generation)
    said = [
        Message(
            m.role, m.content, m.metadata, read_tools(json.loads(m.tools), "") if m.tools else ""
        )
        for m in conversation.messages
    ]
    asked = as_dicts(said)
    prompt = rendered(tokenizer, Conversation(tuple(said)))
    assert applied(tokenizer, asked, add_generation_prompt=True) == prompt
    full = rendered(tokenizer, Conversation(tuple(said), conversation.response))
    answered = [*asked, *as_dicts([conversation.response])]
    assert applied(tokenizer, answered) == full
    assert applied(tokenizer, answered, continue_final_message=True) == full[:-1]
    shown = tokenizer.apply_chat_template(answered, tokenize=False)
    assert shown == read_aloud(tokenizer, full)


def read_aloud(tokenizer, ids):
    pieces = re.split("(X)", "".join("X" if i in tokenizer.all_special_ids else "." for i in ids))
    text, at = "", 0
    for piece in pieces:
        tokens = tokenizer.convert_ids_to_tokens(ids[at : at + len(piece)])
        text += tokens[0] if piece == "X" else tokenizer.convert_tokens_to_string(tokens)
        at += len(piece)
    return text


def test_what_asks_for_an_answer(generation, tokenizer):
    asking = applied(tokenizer, [ASKED], add_generation_prompt=True)
    assert asking == rendered(tokenizer, Conversation.from_turns("类型#裙"))
    # The question of a round asks always; ChatGLM3 and GLM-4 have a token for it.
    assert applied(tokenizer, [ASKED]) == (asking[:-1] if generation >= 3 else asking)
    if generation >= 3:
        after_thought = applied(tokenizer, [ASKED, ANSWERED], add_generation_prompt=True)
        open_end = applied(tokenizer, [ASKED, ANSWERED], continue_final_message=True)
        assert after_thought == [*open_end, tokenizer.get_command("<|assistant|>")]
    else:
        with pytest.raises(DataError, match="the last message, of role 'assistant', asks nothing"):
            applied(tokenizer, [ASKED, ANSWERED], add_generation_prompt=True)


def test_blank_texts(generation, tokenizer):
    blank = [{**ASKED, "content": ""}, {**ANSWERED, "content": " "}, ASKED]
    expected = Conversation.from_turns("类型#裙", None, [["", " "]])
    assert applied(tokenizer, blank, add_generation_prompt=True) == rendered(tokenizer, expected)


def test_batches_and_tensors(tokenizer):
    conversations = [[ASKED], [ASKED, ANSWERED, {"role": "user", "content": "类型#上衣*颜色#白色"}]]
    options = {"add_generation_prompt": True}
    rows = [applied(tokenizer, messages, **options) for messages in conversations]
    assert applied(tokenizer, conversations, **options) == rows
    batch = tokenizer.apply_chat_template(
        conversations, padding=True, return_tensors="pt", **options
    )
    width = len(rows[1])
    assert batch["input_ids"].shape == (2, width)
    gap = width - len(rows[0])
    assert batch["input_ids"][0].tolist() == [tokenizer.pad_token_id] * gap + rows[0]
    assert batch["attention_mask"].sum(1).tolist() == [len(row) for row in rows]
    single = tokenizer.apply_chat_template([ASKED], return_tensors="pt", **options)
    assert torch.equal(single["input_ids"], torch.tensor([rows[0]]))
    padded = applied(
        tokenizer, [ASKED], tokenizer_kwargs={"padding": "max_length", "max_length": 99}, **options
    )
    assert padded == [tokenizer.pad_token_id] * (99 - len(rows[0])) + rows[0]
    cut = applied(tokenizer, [ASKED], truncation=True, max_length=4, **options)
    assert cut == rows[0][:4]
    texts = tokenizer.apply_chat_template(conversations, tokenize=False, **options)
    assert texts == [read_aloud(tokenizer, row) for row in rows]


def weather(city: str) -> str:
    """
    Looks up the weather.

    Args:
        city: where
    """
    return city


def test_tools(toy_tokenizer):
    tokenizer = toy_tokenizer(3)
    tools = [{"name": "f"}, weather]
    schemas = [{"name": "f"}, {"type": "function"}]
    ids = applied(tokenizer, [ASKED], tools=tools)
    shown = tokenizer.apply_chat_template([ASKED], tools=tools, tokenize=False)
    assert shown.startswith("[gMASK]sop<|system|>\n Answer the following questions as best as you")
    found = json.loads(re.search(r"following tools:\n(\[.*\])<\|user\|>", shown, re.DOTALL)[1])
    assert found[0] == schemas[0] and found[1]["function"]["name"] == "weather"
    system = {"role": "system", "content": "系统"}
    with_own = applied(tokenizer, [{**system, "tools": found}, ASKED])
    assert applied(tokenizer, [system, ASKED], tools=found) == with_own != ids
    with pytest.raises(
        DataError, match=r"^the system message has other tools than stand beside it"
    ):
        applied(tokenizer, [{**system, "tools": found}, ASKED], tools=["g"])
    with pytest.raises(DataError, match=r"^tools: a value cannot be written as JSON"):
        applied(tokenizer, [ASKED], tools=[{"x": float("nan")}])
    for generation in (1, 2):
        with pytest.raises(DataError, match=r"^a description of tools has no place in the prompt"):
            applied(toy_tokenizer(generation), [ASKED], tools=tools)


@pytest.mark.parametrize(
    ("messages", "options", "error", "message"),
    [
        ([], {}, DataError, "the conversation: expected a list of messages, found an empty list"),
        ("hi", {}, DataError, "the conversation: expected a list of messages, found 'hi'"),
        (["hi"], {}, DataError, "the conversation: expected a list of messages, found 'hi'"),
        ([{"role": "x"}], {}, DataError, "the conversation, message 1: expected 'role' to be sys"),
        ([ASKED], {"continue_final_message": True}, DataError,
         "continue_final_message finds a message of role 'user' at the end, no answer; use add_g"),
        ([ASKED], {"continue_final_message": True, "add_generation_prompt": True}, ConfigError,
         "add_generation_prompt and continue_final_message exclude each other; use one of them"),
        ([ASKED], {"chat_template": "{{ x }}"}, ConfigError,
         "a chat_template of your own cannot write control tokens, which no text becomes; leave"),
        ([ASKED], {"documents": [{}]}, ConfigError,
         "apply_chat_template of ptune has no documents; leave it out"),
        ([ASKED], {"return_assistant_tokens_mask": True}, ConfigError,
         "apply_chat_template of ptune has no return_assistant_tokens_mask; leave it out"),
    ],
)  # fmt: skip
def test_refused(tokenizer, messages, options, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        applied(tokenizer, messages, **options)


def test_template_that_was_set_is_not_passed_over(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", "{{ messages }}")
    with pytest.raises(ConfigError, match=r"^a chat_template of your own cannot write control"):
        applied(tokenizer, [ASKED])


def test_what_is_not_used_is_said(tokenizer):
    with pytest.warns(UserWarning, match="^not used: 'name' of messages$"):
        ids = applied(tokenizer, [{**ASKED, "name": "Li"}])
    assert ids == applied(tokenizer, [{**ASKED, "name": None}])
