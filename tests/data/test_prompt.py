"""Prompts and labels: the original's position by position, and what `turns` keeps of them."""

import random
import re

import pytest
from fixtures.conversations import draw_conversation

from ptune.base.folder import Generation
from ptune.data.context import ContextCut, with_context
from ptune.data.messages import Message, read_messages
from ptune.data.prompt import (
    _RENDERERS,
    IGNORE_INDEX,
    Conversation,
    Lengths,
    default_target_length,
    learns,
    measure_context,
    refusal,
    render,
)
from ptune.data.truncation import ORIGINAL, TURNS
from ptune.errors import DataError

GENERATIONS = (1, 2, 3, 4)
KINDS = dict(zip(GENERATIONS, Generation, strict=False))
ROOMY = Lengths(1000, 1000)
turns = Conversation.from_turns
HISTORY = [["你好", "你好，有什么可以帮你？"], ["类型#裙", "黑色的裙子"]]


@pytest.fixture(params=GENERATIONS)
def generation(request):
    return request.param


@pytest.fixture
def tokenizer(generation, toy_tokenizer):
    return toy_tokenizer(generation)


def is_control(tokenizer, token_id):
    """Whether an id stands for no text."""
    if tokenizer.generation is Generation.GLM4:
        return token_id >= tokenizer.get_command("<|endoftext|>")
    pieces = tokenizer.sp_model
    return token_id >= pieces.get_piece_size() or pieces.is_control(token_id)


def shown(tokenizer, ids):
    """Ids as text, control tokens spelt out."""
    text, plain = "", []
    for i in [*ids, None]:
        if i is not None and not is_control(tokenizer, i):
            plain.append(i)
            continue
        if plain:
            text += tokenizer.decode(plain)
        if i is not None:
            text += f"{{{tokenizer.convert_ids_to_tokens(i)}}}"
        plain = []
    return text


def learnt(example):
    """(token that asks, token that is learnt) of every label, as the loss shifts them."""
    pairs = zip(example.input_ids, [*example.labels[1:], IGNORE_INDEX], strict=True)
    return [(asked, label) for asked, label in pairs if label != IGNORE_INDEX]


class TestOriginal:
    """Features of the golden records, with the original's tokenizer files."""

    @pytest.mark.parametrize("name", ["v1", "v2", "v3"])
    def test_training(self, name, real_tokenizer, real_cases):
        case, generation = real_cases(name), int(name[1])
        lengths = Lengths(case["max_source_length"], case["max_target_length"], ORIGINAL)
        pad = case["config"]["pad_token_id"]
        train = case["expected"]["train"]
        rows = zip(case["records"], train["input_ids"], train["labels"], strict=True)
        for record, input_ids, labels in rows:
            conversation = turns(record["prompt"], record["response"], record["history"])
            example = render(real_tokenizer(generation), KINDS[generation], conversation, lengths)
            gap = len(input_ids) - len(example.input_ids)
            assert example.input_ids + [pad] * gap == input_ids
            assert example.labels + [IGNORE_INDEX] * gap == labels

    @pytest.mark.parametrize("name", ["v1", "v2", "v3"])
    @pytest.mark.parametrize("truncation", [TURNS, ORIGINAL])
    def test_generation(self, name, truncation, real_tokenizer, real_cases):
        case, generation = real_cases(name), int(name[1])
        pad = case["config"]["pad_token_id"]
        prompts = case["expected"]["generate_base"]["prompt_ids"]
        for record, prompt in zip(case["records"], prompts, strict=True):
            conversation = turns(record["prompt"], history=record["history"])
            lengths = Lengths(1000, 64, truncation)
            example = render(real_tokenizer(generation), KINDS[generation], conversation, lengths)
            gap = len(prompt) - len(example.input_ids)
            assert [pad] * gap + example.input_ids == prompt
            assert set(example.labels) == {IGNORE_INDEX}

    def test_roles_of_chatglm3(self, real_tokenizer, real_roles):
        for case in real_roles:
            query = {"role": case["role"], "content": case["query"]}
            messages = read_messages([*case["history"], query], "here", set(), strict=False)
            conversation = Conversation(tuple(messages))
            example = render(real_tokenizer(3), Generation.CHATGLM3, conversation, ROOMY)
            assert example.input_ids == case["input_ids"]


SINGLE = {
    1: "类型#裙{[gMASK]}{<sop>}",
    2: "{[gMASK]}{sop}[Round 1]\n\n问：类型#裙\n\n答：",
    3: "{[gMASK]}{sop}{<|user|>}\n类型#裙{<|assistant|>}",
    4: "{[gMASK]}{<sop>}{<|user|>}\n类型#裙{<|assistant|>}",
}
MULTI = {
    1: "[Round 0]\n问：你好\n答：你好，有什么可以帮你？\n[Round 1]\n问：类型#裙\n答：黑色的裙子\n"
    "[Round 2]\n问：类型#上衣\n答：{[gMASK]}{<sop>}",
    2: "{[gMASK]}{sop}[Round 1]\n\n问：你好\n\n答：你好，有什么可以帮你？\n\n[Round 2]\n\n"
    "问：类型#裙\n\n答：黑色的裙子\n\n[Round 3]\n\n问：类型#上衣\n\n答：",
    3: "{[gMASK]}{sop}{<|user|>}\n你好{<|assistant|>}\n你好，有什么可以帮你？{<|user|>}\n类型#裙"
    "{<|assistant|>}\n黑色的裙子{<|user|>}\n类型#上衣{<|assistant|>}",
}
MULTI[4] = MULTI[3].replace("{sop}", "{<sop>}")


def plain(text):
    """Without what SentencePiece's rule makes of full-width punctuation."""
    table = str.maketrans("，？：！", ",?:!")
    return text.translate(table).replace(" ", "")


def test_single_question(generation, tokenizer):
    example = render(tokenizer, KINDS[generation], turns("类型#裙"), ROOMY)
    assert plain(shown(tokenizer, example.input_ids)) == plain(SINGLE[generation])


def test_history(generation, tokenizer):
    conversation = turns("类型#上衣", history=HISTORY)
    example = render(tokenizer, KINDS[generation], conversation, ROOMY)
    assert plain(shown(tokenizer, example.input_ids)) == plain(MULTI[generation])
    assert (example.turns_dropped, example.prompt_cut, example.response_cut) == (0, False, False)


def test_system_instruction(generation, tokenizer):
    expected = {
        1: "请用中文\n类型#裙{[gMASK]}{<sop>}",
        2: "{[gMASK]}{sop}[Round 1]\n\n问：请用中文\n类型#裙\n\n答：",
        3: "{[gMASK]}{sop}{<|system|>}\n请用中文{<|user|>}\n类型#裙{<|assistant|>}",
        4: "{[gMASK]}{<sop>}{<|system|>}\n请用中文{<|user|>}\n类型#裙{<|assistant|>}",
    }[generation]
    conversation = turns("类型#裙", system="请用中文")
    example = render(tokenizer, KINDS[generation], conversation, ROOMY)
    assert plain(shown(tokenizer, example.input_ids)) == plain(expected)


def test_system_instruction_leads_the_first_turn(generation, tokenizer):
    conversation = turns("类型#上衣", history=HISTORY, system="请用中文")
    example = render(tokenizer, KINDS[generation], conversation, ROOMY)
    whole = plain(MULTI[generation])
    roles = KINDS[generation].has_roles
    first = "{<|user|>}\n" if roles else "问:"
    said = "{<|system|>}\n请用中文{<|user|>}\n" if roles else "问:请用中文\n"
    expected = whole.replace(first, said, 1)
    assert plain(shown(tokenizer, example.input_ids)) == expected != whole


@pytest.mark.parametrize("blank", ["", " ", "\n\t "])
def test_blank_system_instruction_is_none(generation, tokenizer, blank):
    for history in ([], HISTORY):
        ids = [
            render(tokenizer, KINDS[generation], turns("类型#裙", "裙", history, system), ROOMY)
            for system in ("", blank)
        ]
        assert ids[0] == ids[1]
    # Where there are roles, a system message of blanks has a place, as in the original.
    asked = (Message("system", blank), Message("user", "类型#裙"))
    example = render(tokenizer, KINDS[generation], Conversation(asked), ROOMY)
    without = render(tokenizer, KINDS[generation], Conversation(asked[1:]), ROOMY)
    assert (example == without) == (not KINDS[generation].has_roles)


def test_system_instruction_leads_the_first_turn_that_is_kept(generation, tokenizer):
    whole = turns("类型#上衣", history=HISTORY, system="请用中文")
    rest = turns("类型#上衣", history=HISTORY[1:], system="请用中文")
    expected = render(tokenizer, KINDS[generation], rest, ROOMY)
    lengths = Lengths(len(expected.input_ids), 64)
    example = render(tokenizer, KINDS[generation], whole, lengths)
    assert example.input_ids == expected.input_ids and example.turns_dropped == 1
    assert "请用中文" in shown(tokenizer, example.input_ids)


def test_response_and_its_end_are_learnt(generation, tokenizer):
    conversation = turns("类型#裙", "黑色的裙子")
    example = render(tokenizer, KINDS[generation], conversation, ROOMY)
    prompt = render(tokenizer, KINDS[generation], turns("类型#裙"), ROOMY).input_ids
    assert example.input_ids[: len(prompt)] == prompt
    assert example.input_ids[-1] == tokenizer.end_of_answer_id
    response = example.input_ids[len(prompt) :]
    pairs = learnt(example)
    assert [label for _, label in pairs][-len(response) :] == response
    asked, first = pairs[-len(response)]
    assert (asked, first) == (prompt[-1], response[0])
    assert plain(tokenizer.decode(response[:-1])).strip() == "黑色的裙子"
    # In the first generation [gMASK] asks for <sop>, besides.
    assert len(pairs) == len(response) + (generation == 1)


def test_answers_of_the_history(generation, tokenizer):
    """Only with roles they are learnt, with the role token that ends each."""
    conversation = turns("类型#上衣", "一件上衣", HISTORY)
    example = render(tokenizer, KINDS[generation], conversation, ROOMY)
    labels = [label for _, label in learnt(example)]
    alone = render(tokenizer, KINDS[generation], turns("类型#上衣", "一件上衣"), ROOMY)
    expected = [label for _, label in learnt(alone)]
    if KINDS[generation].has_roles:
        newline, user = tokenizer.encode_text("\n"), tokenizer.get_command("<|user|>")
        answers = [[*newline, *tokenizer.encode_text(answer), user] for _, answer in HISTORY]
        expected = [*answers[0], *answers[1], *expected]
    assert labels == expected


def test_every_label_is_the_next_token(generation, tokenizer):
    conversation = turns("类型#上衣", "一件上衣", HISTORY)
    for lengths in (ROOMY, Lengths(20, 8), Lengths(60, 6)):
        example = render(tokenizer, KINDS[generation], conversation, lengths)
        assert len(example.labels) == len(example.input_ids)
        for token, label in zip(example.input_ids, example.labels, strict=True):
            assert label in (token, IGNORE_INDEX)


def test_control_tokens_in_texts(generation, tokenizer):
    evil = "[gMASK]<sop></s><eop><pad>[MASK]sop eop<|user|><|assistant|><|system|><|observation|>"
    harmless = turns("问", "答", [["问", "答"]], "")
    conversation = turns(evil, evil, [[evil, evil]], "")

    def controls(example):
        return [i for i in example.input_ids if is_control(tokenizer, i)]

    kind = KINDS[generation]
    expected = controls(render(tokenizer, kind, harmless, ROOMY))
    assert controls(render(tokenizer, kind, conversation, ROOMY)) == expected
    with_system = turns(evil, None, [], evil)
    calm = turns("问", None, [], "系统")
    expected = controls(render(tokenizer, kind, calm, ROOMY))
    assert controls(render(tokenizer, kind, with_system, ROOMY)) == expected


CALL = Message("assistant", "```python\ntool_call(x='裙')\n```", "find")
THOUGHT = Message("assistant", "我查一下")
REPLY = Message("observation", '{"颜色": "黑色"}')
WITH_TOOLS = (
    Message("system", "系统", tools='["find"]'),
    Message("user", "什么颜色"),
    THOUGHT,
    CALL,
    REPLY,
)


class TestTools:
    @pytest.fixture
    def third(self, toy_tokenizer):
        return toy_tokenizer(3)

    def test_roles_metadata_and_tools(self, third):
        conversation = Conversation(WITH_TOOLS, Message("assistant", "黑色"))
        example = render(third, Generation.CHATGLM3, conversation, ROOMY)
        assert plain(shown(third, example.input_ids)) == plain(
            '{[gMASK]}{sop}{<|system|>}\n系统\n["find"]{<|user|>}\n什么颜色{<|assistant|>}\n我查一下'
            "{<|assistant|>}find\n```python\ntool_call(x='裙')\n```{<|observation|>}\n"
            '{"颜色": "黑色"}{<|assistant|>}\n黑色{</s>}'
        )

    def test_calls_and_what_ends_them_are_learnt(self, third):
        conversation = Conversation(WITH_TOOLS, Message("assistant", "黑色"))
        example = render(third, Generation.CHATGLM3, conversation, ROOMY)
        assert plain(shown(third, [label for _, label in learnt(example)])) == plain(
            "\n我查一下{<|assistant|>}find\n```python\ntool_call(x='裙')\n```{<|observation|>}"
            "\n黑色{</s>}"
        )

    def test_a_call_can_be_the_answer(self, third):
        asked = Conversation(WITH_TOOLS[:3])
        example = render(third, Generation.CHATGLM3, Conversation(WITH_TOOLS[:3], CALL), ROOMY)
        prompt = render(third, Generation.CHATGLM3, asked, ROOMY).input_ids
        assert example.input_ids[: len(prompt)] == prompt
        assert plain(shown(third, example.input_ids[len(prompt) :])) == plain(
            "find\n```python\ntool_call(x='裙')\n```{</s>}"
        )
        # Behind a thought, that somebody else speaks next is learnt, too.
        labels = [label for _, label in learnt(example)]
        assert third.get_command("<|assistant|>") in labels

    def test_turns_are_dropped_with_their_tools(self, third):
        said = (*WITH_TOOLS, Message("assistant", "黑色"), Message("user", "谢谢"))
        last = (WITH_TOOLS[0], said[-1])
        expected = render(third, Generation.CHATGLM3, Conversation(last), ROOMY).input_ids
        lengths = Lengths(len(expected) + 5, 64)
        example = render(third, Generation.CHATGLM3, Conversation(said), lengths)
        assert (example.input_ids, example.turns_dropped) == (expected, 1)

    @pytest.mark.parametrize("generation", [1, 2])
    @pytest.mark.parametrize(
        ("messages", "reason"),
        [
            (WITH_TOOLS[:2], "a description of tools has no place"),
            (WITH_TOOLS[1:3], "the last message, of role 'assistant', asks nothing"),
            ((WITH_TOOLS[1], THOUGHT, THOUGHT), "message 3, of role 'assistant' at this place"),
            ((WITH_TOOLS[1], CALL), "metadata 'find', a tool that is called, has no place"),
            ((WITH_TOOLS[1], THOUGHT, REPLY), "a tool's reply has no place"),
            ((THOUGHT, WITH_TOOLS[1]), "message 1, of role 'assistant' at this place, has"),
            ((WITH_TOOLS[1], Message("system", "x")), "message 2, of role 'system' at this place"),
        ],
    )
    def test_others_have_no_place_for_them(self, generation, messages, reason, toy_tokenizer):
        kind, conversation = KINDS[generation], Conversation(messages)
        with pytest.raises(DataError) as caught:
            render(toy_tokenizer(generation), kind, conversation, ROOMY)
        assert str(caught.value) == refusal(kind, conversation)
        assert str(caught.value).startswith(reason)
        if "place" in reason:
            assert str(caught.value).endswith(
                f"the prompt of {kind.value}-6b; use ChatGLM3-6B or GLM-4-9B, which have roles for "
                "it, or leave it out"
            )
        assert refusal(Generation.CHATGLM3, conversation) == ""

    @pytest.mark.parametrize("generation", [1, 2])
    @pytest.mark.parametrize(
        ("messages", "response", "reason"),
        [
            (WITH_TOOLS[1:2], CALL, "metadata 'find', a tool that is called, has no place"),
            (WITH_TOOLS[1:2], WITH_TOOLS[1], "message 2, of role 'user' at this place, has no"),
            ((Message("system", "x"),), None, "the last message, of role 'system', asks nothing; "),
        ],
    )
    def test_nor_for_such_answers(self, generation, messages, response, reason):
        said = refusal(KINDS[generation], Conversation(messages, response))
        assert said.startswith(reason)

    def test_nothing_said(self, generation, tokenizer):
        with pytest.raises(DataError, match=r"^a conversation without a message asks nothing; put"):
            render(tokenizer, KINDS[generation], Conversation((), THOUGHT), ROOMY)


def test_default_length_of_answers():
    """As in the original's train.sh of each."""
    assert [default_target_length(kind) for kind in Generation] == [64, 128, 128, 128, 128]


class TestLearning:
    def test_answer_that_is_not_to_be_learnt(self, generation, tokenizer):
        kind = KINDS[generation]
        question, mute = Message("user", "类型#裙"), Message("assistant", "裙", learn=False)
        full = render(tokenizer, kind, turns("类型#裙", "裙"), ROOMY)
        example = render(tokenizer, kind, Conversation((question,), mute), ROOMY)
        assert example.input_ids == full.input_ids
        assert set(example.labels) == {IGNORE_INDEX}
        original = render(tokenizer, kind, Conversation((question,), mute), ORIGINALLY)
        assert set(original.labels) == {IGNORE_INDEX}
        assert not learns(kind, Conversation((question,), mute))

    def test_each_answer_of_chatglm3_has_a_say(self, toy_tokenizer):
        tokenizer, kind = toy_tokenizer(3), Generation.CHATGLM3
        said = turns("类型#上衣", "一件上衣", HISTORY)
        for mute in (1, 3, None):
            messages = [
                Message(m.role, m.content, learn=False if i == mute else None)
                for i, m in enumerate(said.messages)
            ]
            response = Message("assistant", "一件上衣", learn=mute is not None)
            example = render(tokenizer, kind, Conversation(tuple(messages), response), ROOMY)
            expected = ["\n" + plain(a) + "{<|user|>}" for _, a in HISTORY] + ["\n一件上衣{</s>}"]
            del expected[{1: 0, 3: 1, None: 2}[mute]]
            labels = [label for _, label in learnt(example)]
            assert plain(shown(tokenizer, labels)) == "".join(expected)
            assert learns(kind, Conversation(tuple(messages), response))

    def test_history_alone_is_nothing_to_learn_before_chatglm3(self):
        said = turns("类型#上衣", None, HISTORY).messages
        conversation = Conversation(said, Message("assistant", "x", learn=False))
        found = [learns(kind, conversation) for kind in KINDS.values()]
        assert found == [False, False, True, True]


ORIGINALLY = Lengths(1000, 1000, ORIGINAL)


class TestOwners:
    def test_every_token_has_its_message(self, generation, tokenizer):
        kind = KINDS[generation]
        conversation = turns("类型#上衣", "一件上衣", HISTORY, "请用中文")
        for lengths in (ROOMY, ORIGINALLY):
            example = render(tokenizer, kind, conversation, lengths, trace=True)
            assert len(example.owners) == len(example.input_ids)
            said = [*conversation.messages, conversation.response]
            for number, message in enumerate(said):
                owned = zip(example.input_ids, example.owners, strict=True)
                ids = [i for i, owner in owned if owner == number]
                # With its frame; the token that crosses into the next is the next one's.
                assert plain(message.content)[:-1] in plain(shown(tokenizer, ids))
            frame = [i for i, o in zip(example.input_ids, example.owners, strict=True) if o is None]
            assert len(frame) == 2
        assert render(tokenizer, kind, conversation, ROOMY).owners == []

    def test_where_turns_and_tokens_are_gone(self, generation, tokenizer):
        kind = KINDS[generation]
        conversation = turns("类型#上衣" * 15, "一件上衣" * 9, HISTORY, "请用中文")
        example = render(tokenizer, kind, conversation, Lengths(34, 12), trace=True)
        assert example.turns_dropped == 2 and example.prompt_cut and example.response_cut
        assert len(example.owners) == len(example.input_ids)
        assert {*example.owners} == {None, 0, 5, 6}
        plainly = render(tokenizer, kind, conversation, Lengths(34, 12))
        assert (plainly.input_ids, plainly.labels) == (example.input_ids, example.labels)


@pytest.mark.parametrize("seed", range(40))
def test_any_conversation(generation, tokenizer, seed):
    kind = KINDS[generation]
    conversation = draw_conversation(random.Random(seed), generation)
    asked = Conversation(conversation.messages)
    example = render(tokenizer, kind, conversation, ROOMY, trace=True)
    prompt = render(tokenizer, kind, asked, ROOMY)
    assert example.input_ids[: len(prompt.input_ids)] == prompt.input_ids
    # What a text says is no control token.
    controls = [i for i in example.input_ids if is_control(tokenizer, i)]
    said = [*conversation.messages, conversation.response]
    # GLM-4 tells of tools in a system message of their own.
    apart = generation == 4 and any(m.tools and m.content.strip() for m in conversation.messages)
    assert len(controls) == 3 + kind.has_roles * len(said) + apart
    # What is learnt is of the assistant, or ends what it said: a token of whoever speaks next.
    for at, (label, owner) in enumerate(zip(example.labels, example.owners, strict=True)):
        if label == IGNORE_INDEX:
            continue
        assert label == example.input_ids[at]
        if owner is None:
            assert label == tokenizer.bos_token_id  # which [gMASK] of ChatGLM-6B asks for
        elif said[owner].role != "assistant":
            assert re.fullmatch(r"<\|\w+\|>", tokenizer.convert_ids_to_tokens(label))
            assert said[owner - 1].role == "assistant"
    assert example.labels[-1] == tokenizer.end_of_answer_id


class TestTurns:
    def test_oldest_turns_go_first(self, generation, tokenizer):
        kind = KINDS[generation]
        whole = turns("类型#上衣", "一件上衣", HISTORY)
        for dropped in (1, 2):
            rest = turns("类型#上衣", "一件上衣", HISTORY[dropped:])
            expected = render(tokenizer, kind, rest, ROOMY)
            prompt = render(
                tokenizer,
                kind,
                turns("类型#上衣", None, HISTORY[dropped:]),
                ROOMY,
            )
            # ChatGLM-6B counts one of its two control tokens only.
            limit = len(prompt.input_ids) - (generation == 1)
            example = render(tokenizer, kind, whole, Lengths(limit, 64))
            assert example.input_ids == expected.input_ids
            assert example.labels == expected.labels
            assert (example.turns_dropped, example.prompt_cut) == (dropped, False)
            tighter = render(tokenizer, kind, whole, Lengths(limit - 1, 64))
            assert tighter.turns_dropped > dropped or tighter.prompt_cut

    @pytest.mark.parametrize("seed", range(3))
    def test_as_few_turns_as_must_go(self, generation, tokenizer, seed):
        kind, drawn = KINDS[generation], random.Random(seed)
        said = [["问" * drawn.randint(1, 6), "答" * drawn.randint(1, 6)] for _ in range(13)]
        whole = [render(tokenizer, kind, turns("裤子", None, said[n:]), ROOMY) for n in range(14)]
        for limit in range(40, len(whole[0].input_ids) + 2, 7):
            room = limit + (generation == 1)
            least = next(n for n in range(14) if n == 13 or len(whole[n].input_ids) <= room)
            found = render(tokenizer, kind, turns("裤子", None, said), Lengths(limit, 64))
            assert found.turns_dropped == least
            assert found.input_ids == whole[least].input_ids or found.prompt_cut

    def test_few_of_very_many_turns_are_looked_at(self, generation, tokenizer, monkeypatch):
        rendered, render_one = [], _RENDERERS[KINDS[generation]]

        def counting(tokenizer, messages, trace):
            rendered.append(len(messages))
            return render_one(tokenizer, messages, trace)

        monkeypatch.setitem(_RENDERERS, KINDS[generation], counting)
        whole = turns("裤子", None, [["问", "答"]] * 2000)
        found = render(tokenizer, KINDS[generation], whole, Lengths(300, 64))
        assert found.turns_dropped > 1900
        assert max(rendered[1:]) < 200 and len(rendered) < 20

    def test_long_prompt_is_cut_before_what_asks_for_an_answer(self, generation, tokenizer):
        kind = KINDS[generation]
        conversation = turns("类型#上衣*材质#牛仔布" * 20, "一件上衣", HISTORY)
        example = render(tokenizer, kind, conversation, Lengths(40, 64))
        assert (example.turns_dropped, example.prompt_cut) == (2, True)
        prompt = render(
            tokenizer,
            kind,
            turns(conversation.messages[-1].content),
            Lengths(40, 64),
        )
        assert len(prompt.input_ids) == 40 + (generation == 1)
        tail = {1: "{[gMASK]}{<sop>}", 2: "\n\n答："}.get(generation, "{<|assistant|>}")
        assert plain(shown(tokenizer, prompt.input_ids)).endswith(plain(tail))
        head = {1: "类型", 2: "{[gMASK]}{sop}[Round1]", 3: "{[gMASK]}{sop}{<|user|>}"}
        head = head.get(generation, "{[gMASK]}{<sop>}{<|user|>}")
        assert plain(shown(tokenizer, prompt.input_ids)).startswith(head)
        assert example.input_ids[: len(prompt.input_ids)] == prompt.input_ids

    def test_long_response_keeps_its_end_token(self, generation, tokenizer):
        conversation = turns("类型#裙", "黑色的裙子印花图案" * 20)
        example = render(tokenizer, KINDS[generation], conversation, Lengths(64, 12))
        assert example.response_cut and not example.prompt_cut
        assert example.input_ids[-1] == tokenizer.end_of_answer_id == example.labels[-1]
        prompt = render(tokenizer, KINDS[generation], turns("类型#裙"), ROOMY)
        room = len(example.input_ids) - len(prompt.input_ids)
        assert room == (11 if generation == 1 else 13)


class TestOriginalTruncation:
    def test_turns_are_not_dropped(self, generation, tokenizer):
        conversation = turns("类型#上衣", None, HISTORY)
        full = render(tokenizer, KINDS[generation], conversation, ROOMY)
        example = render(tokenizer, KINDS[generation], conversation, Lengths(20, 8, ORIGINAL))
        assert example.turns_dropped == 0 and example.prompt_cut
        kept = 19 if generation == 1 else 20
        assert example.input_ids[:kept] == full.input_ids[:kept]
        if generation == 1:
            assert example.input_ids[kept:] == full.input_ids[-2:]
        else:
            assert len(example.input_ids) == 20

    def test_chatglm3_cuts_prompt_and_response_together(self, toy_tokenizer):
        tokenizer = toy_tokenizer(3)
        conversation = turns("类型#上衣" * 10, "一件上衣" * 10)
        full = render(tokenizer, Generation.CHATGLM3, conversation, Lengths(900, 900, ORIGINAL))
        assert not full.response_cut and full.input_ids[-1] == tokenizer.eos_token_id
        cut = render(tokenizer, Generation.CHATGLM3, conversation, Lengths(30, 40, ORIGINAL))
        assert cut.input_ids == full.input_ids[:71] and cut.labels == full.labels[:71]
        assert cut.response_cut and not cut.prompt_cut
        lost = render(tokenizer, Generation.CHATGLM3, conversation, Lengths(10, 10, ORIGINAL))
        assert lost.prompt_cut and len(lost.input_ids) == 21


CONTEXT = "这条裙子是黑色的😀，版型宽松，材质是羊毛。" * 5


class TestContext:
    """A text that the last question is about."""

    def render(self, tokenizer, generation, length=1000, history=HISTORY, **options):
        asked = turns("什么颜色", "黑色", history, "简短", options.pop("context", CONTEXT))
        lengths = Lengths(length, 1000, options.pop("truncation", TURNS))
        return render(tokenizer, KINDS[generation], asked, lengths, **options)

    def test_is_what_people_paste(self, tokenizer, generation):
        pasted = turns(with_context(CONTEXT, "什么颜色"), "黑色", HISTORY, "简短")
        assert self.render(tokenizer, generation) == render(
            tokenizer, KINDS[generation], pasted, ROOMY
        )

    def test_of_blanks_is_none(self, tokenizer, generation):
        plain = self.render(tokenizer, generation, context="")
        assert self.render(tokenizer, generation, context=" \n") == plain
        short = self.render(tokenizer, generation, 8, context="")
        assert self.render(tokenizer, generation, 8, context="\n") == short
        assert short.context_cut is None

    def test_is_cut_after_the_turns_and_before_the_question(self, tokenizer, generation):
        """At every length: as much as fits, and never a turn or a question less than needed."""
        whole = self.render(tokenizer, generation)
        ends = []
        for length in range(12, len(whole.input_ids)):
            found = self.render(tokenizer, generation, length)
            limit = length + 1 if generation == 1 else length
            cut = found.context_cut
            prompt = render(
                tokenizer, KINDS[generation], turns("什么颜色", None, HISTORY, "简短", CONTEXT),
                Lengths(length, 1000),
            )  # fmt: skip
            assert len(prompt.input_ids) <= limit
            assert prompt.context_cut == cut
            ends.append((found.turns_dropped, cut.kept_characters if cut else len(CONTEXT)))
            if not cut:
                assert not found.prompt_cut
                continue
            assert found.turns_dropped == 2
            assert cut.tokens == len(tokenizer.encode_text(CONTEXT))
            assert cut.characters == len(CONTEXT)
            kept = CONTEXT[: cut.kept_characters]
            assert cut.kept_tokens == len(tokenizer.encode_text(kept))
            expected = self.render(tokenizer, generation, length, [], context=kept)
            assert (found.input_ids, found.labels) == (expected.input_ids, expected.labels)
            assert found.prompt_cut == expected.prompt_cut
            if found.prompt_cut:
                assert kept == ""
            else:
                more = CONTEXT[: cut.kept_characters + 1]
                longer = turns("什么颜色", None, [], "简短", more)
                longer = render(tokenizer, KINDS[generation], longer, ROOMY)
                # Whole characters: one more might be of several tokens.
                assert len(longer.input_ids) > limit
        assert {dropped for dropped, _ in ends} == {0, 1, 2}
        kept = [characters for _, characters in ends]
        assert kept == sorted(kept) and len(set(kept)) > 20 and kept[0] == 0

    def test_traced(self, tokenizer, generation):
        length = len(self.render(tokenizer, generation, history=[]).input_ids) - 30
        found = self.render(tokenizer, generation, length, trace=True)
        assert found.context_cut and found.turns_dropped == 2
        assert len(found.owners) == len(found.input_ids)
        assert {5, 6} <= {*found.owners} <= {0, 5, 6, None}
        plain = self.render(tokenizer, generation, length)
        assert plain.input_ids == found.input_ids

    def test_the_original_cuts_the_end_whatever_it_is(self, tokenizer, generation):
        found = self.render(tokenizer, generation, 40, [], truncation=ORIGINAL)
        pasted = turns(with_context(CONTEXT, "什么颜色"), "黑色", [], "简短")
        lengths = Lengths(40, 1000, ORIGINAL)
        assert found == render(tokenizer, KINDS[generation], pasted, lengths)
        assert found.context_cut is None

    def test_measured(self, tokenizer, generation):
        asked = turns("什么颜色", "黑色", HISTORY, "简短", CONTEXT)
        measure = [
            measure_context(tokenizer, KINDS[generation], asked, length) for length in (150, 1000)
        ]
        assert measure == [self.render(tokenizer, generation, 150).context_cut, None]
        assert isinstance(measure[0], ContextCut) and 0 < measure[0].kept_tokens < 150

    def test_of_a_call_is_that_of_the_question_before(self, toy_tokenizer):
        tokenizer = toy_tokenizer(3)
        said = [
            Message("user", "颜色", context=CONTEXT),
            Message("assistant", "f()", metadata="f"),
            Message("observation", "黑色"),
        ]
        whole = render(tokenizer, Generation.CHATGLM3, Conversation(tuple(said)), ROOMY)
        length = len(whole.input_ids) - 20
        found = render(
            tokenizer, Generation.CHATGLM3, Conversation(tuple(said)), Lengths(length, 10)
        )
        assert found.context_cut and not found.prompt_cut and not found.turns_dropped
        assert found.input_ids[-15:] == whole.input_ids[-15:]
