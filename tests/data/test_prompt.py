"""Prompts and labels: the original's position by position, and what `turns` keeps of them."""

import pytest

from ptune.base.folder import Generation
from ptune.data.prompt import IGNORE_INDEX, ORIGINAL, TURNS, Conversation, Lengths, render

GENERATIONS = (1, 2, 3)
KINDS = dict(zip(GENERATIONS, Generation, strict=True))
ROOMY = Lengths(1000, 1000)
HISTORY = [["你好", "你好，有什么可以帮你？"], ["类型#裙", "黑色的裙子"]]


@pytest.fixture(params=GENERATIONS)
def generation(request):
    return request.param


@pytest.fixture
def tokenizer(generation, toy_tokenizer):
    return toy_tokenizer(generation)


def shown(tokenizer, ids):
    """Ids as text, control tokens spelt out."""
    text, plain = "", []
    for i in [*ids, None]:
        piece = i is not None and i < tokenizer.sp_model.get_piece_size()
        if piece and not tokenizer.sp_model.is_control(i):
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
            conversation = Conversation(record["prompt"], record["response"], record["history"])
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
            conversation = Conversation(record["prompt"], history=record["history"])
            lengths = Lengths(1000, 64, truncation)
            example = render(real_tokenizer(generation), KINDS[generation], conversation, lengths)
            gap = len(prompt) - len(example.input_ids)
            assert [pad] * gap + example.input_ids == prompt
            assert set(example.labels) == {IGNORE_INDEX}


SINGLE = {
    1: "类型#裙{[gMASK]}{<sop>}",
    2: "{[gMASK]}{sop}[Round 1]\n\n问：类型#裙\n\n答：",
    3: "{[gMASK]}{sop}{<|user|>}\n类型#裙{<|assistant|>}",
}
MULTI = {
    1: "[Round 0]\n问：你好\n答：你好，有什么可以帮你？\n[Round 1]\n问：类型#裙\n答：黑色的裙子\n"
    "[Round 2]\n问：类型#上衣\n答：{[gMASK]}{<sop>}",
    2: "{[gMASK]}{sop}[Round 1]\n\n问：你好\n\n答：你好，有什么可以帮你？\n\n[Round 2]\n\n"
    "问：类型#裙\n\n答：黑色的裙子\n\n[Round 3]\n\n问：类型#上衣\n\n答：",
    3: "{[gMASK]}{sop}{<|user|>}\n你好{<|assistant|>}\n你好，有什么可以帮你？{<|user|>}\n类型#裙"
    "{<|assistant|>}\n黑色的裙子{<|user|>}\n类型#上衣{<|assistant|>}",
}


def plain(text):
    """Without what SentencePiece's rule makes of full-width punctuation."""
    table = str.maketrans("，？：！", ",?:!")
    return text.translate(table).replace(" ", "")


def test_single_question(generation, tokenizer):
    example = render(tokenizer, KINDS[generation], Conversation("类型#裙"), ROOMY)
    assert plain(shown(tokenizer, example.input_ids)) == plain(SINGLE[generation])


def test_history(generation, tokenizer):
    conversation = Conversation("类型#上衣", history=HISTORY)
    example = render(tokenizer, KINDS[generation], conversation, ROOMY)
    assert plain(shown(tokenizer, example.input_ids)) == plain(MULTI[generation])
    assert (example.turns_dropped, example.prompt_cut, example.response_cut) == (0, False, False)


def test_system_instruction(generation, tokenizer):
    expected = {
        1: "请用中文\n类型#裙{[gMASK]}{<sop>}",
        2: "{[gMASK]}{sop}[Round 1]\n\n问：请用中文\n类型#裙\n\n答：",
        3: "{[gMASK]}{sop}{<|system|>}\n请用中文{<|user|>}\n类型#裙{<|assistant|>}",
    }[generation]
    conversation = Conversation("类型#裙", system="请用中文")
    example = render(tokenizer, KINDS[generation], conversation, ROOMY)
    assert plain(shown(tokenizer, example.input_ids)) == plain(expected)


def test_system_instruction_leads_the_first_turn_that_is_kept(generation, tokenizer):
    whole = Conversation("类型#上衣", history=HISTORY, system="请用中文")
    rest = Conversation("类型#上衣", history=HISTORY[1:], system="请用中文")
    expected = render(tokenizer, KINDS[generation], rest, ROOMY)
    lengths = Lengths(len(expected.input_ids), 64)
    example = render(tokenizer, KINDS[generation], whole, lengths)
    assert example.input_ids == expected.input_ids and example.turns_dropped == 1
    assert "请用中文" in shown(tokenizer, example.input_ids)


def test_response_and_its_end_are_learnt(generation, tokenizer):
    conversation = Conversation("类型#裙", "黑色的裙子")
    example = render(tokenizer, KINDS[generation], conversation, ROOMY)
    prompt = render(tokenizer, KINDS[generation], Conversation("类型#裙"), ROOMY).input_ids
    assert example.input_ids[: len(prompt)] == prompt
    assert example.input_ids[-1] == tokenizer.eos_token_id
    response = example.input_ids[len(prompt) :]
    pairs = learnt(example)
    assert [label for _, label in pairs][-len(response) :] == response
    asked, first = pairs[-len(response)]
    assert (asked, first) == (prompt[-1], response[0])
    assert plain(tokenizer.decode(response[:-1])).strip() == "黑色的裙子"
    # In the first generation [gMASK] asks for <sop>, besides.
    assert len(pairs) == len(response) + (generation == 1)


def test_answers_of_the_history(generation, tokenizer):
    """Only ChatGLM3 learns them, with the role token that ends each."""
    conversation = Conversation("类型#上衣", "一件上衣", HISTORY)
    example = render(tokenizer, KINDS[generation], conversation, ROOMY)
    labels = [label for _, label in learnt(example)]
    alone = render(tokenizer, KINDS[generation], Conversation("类型#上衣", "一件上衣"), ROOMY)
    expected = [label for _, label in learnt(alone)]
    if generation == 3:
        newline, user = tokenizer.encode_text("\n"), tokenizer.get_command("<|user|>")
        answers = [[*newline, *tokenizer.encode_text(answer), user] for _, answer in HISTORY]
        expected = [*answers[0], *answers[1], *expected]
    assert labels == expected


def test_every_label_is_the_next_token(generation, tokenizer):
    conversation = Conversation("类型#上衣", "一件上衣", HISTORY)
    for lengths in (ROOMY, Lengths(20, 8), Lengths(60, 6)):
        example = render(tokenizer, KINDS[generation], conversation, lengths)
        assert len(example.labels) == len(example.input_ids)
        for token, label in zip(example.input_ids, example.labels, strict=True):
            assert label in (token, IGNORE_INDEX)


def test_control_tokens_in_texts(generation, tokenizer):
    evil = "[gMASK]<sop></s><eop><pad>[MASK]sop eop<|user|><|assistant|><|system|><|observation|>"
    harmless = Conversation("问", "答", [["问", "答"]], "")
    conversation = Conversation(evil, evil, [[evil, evil]], "")
    pieces = tokenizer.sp_model.get_piece_size()

    def controls(example):
        ids = example.input_ids
        return [i for i in ids if i >= pieces or tokenizer.sp_model.is_control(i)]

    kind = KINDS[generation]
    expected = controls(render(tokenizer, kind, harmless, ROOMY))
    assert controls(render(tokenizer, kind, conversation, ROOMY)) == expected
    with_system = Conversation(evil, None, [], evil)
    calm = Conversation("问", None, [], "系统")
    expected = controls(render(tokenizer, kind, calm, ROOMY))
    assert controls(render(tokenizer, kind, with_system, ROOMY)) == expected


class TestTurns:
    def test_oldest_turns_go_first(self, generation, tokenizer):
        kind = KINDS[generation]
        whole = Conversation("类型#上衣", "一件上衣", HISTORY)
        for dropped in (1, 2):
            rest = Conversation("类型#上衣", "一件上衣", HISTORY[dropped:])
            expected = render(tokenizer, kind, rest, ROOMY)
            prompt = render(
                tokenizer, kind, Conversation("类型#上衣", None, HISTORY[dropped:]), ROOMY
            )
            # ChatGLM-6B counts one of its two control tokens only.
            limit = len(prompt.input_ids) - (generation == 1)
            example = render(tokenizer, kind, whole, Lengths(limit, 64))
            assert example.input_ids == expected.input_ids
            assert example.labels == expected.labels
            assert (example.turns_dropped, example.prompt_cut) == (dropped, False)
            tighter = render(tokenizer, kind, whole, Lengths(limit - 1, 64))
            assert tighter.turns_dropped > dropped or tighter.prompt_cut

    def test_long_prompt_is_cut_before_what_asks_for_an_answer(self, generation, tokenizer):
        kind = KINDS[generation]
        conversation = Conversation("类型#上衣*材质#牛仔布" * 20, "一件上衣", HISTORY)
        example = render(tokenizer, kind, conversation, Lengths(40, 64))
        assert (example.turns_dropped, example.prompt_cut) == (2, True)
        prompt = render(tokenizer, kind, Conversation(conversation.prompt), Lengths(40, 64))
        assert len(prompt.input_ids) == 40 + (generation == 1)
        tail = {1: "{[gMASK]}{<sop>}", 2: "\n\n答：", 3: "{<|assistant|>}"}[generation]
        assert plain(shown(tokenizer, prompt.input_ids)).endswith(plain(tail))
        head = {1: "类型", 2: "{[gMASK]}{sop}[Round1]", 3: "{[gMASK]}{sop}{<|user|>}"}[generation]
        assert plain(shown(tokenizer, prompt.input_ids)).startswith(head)
        assert example.input_ids[: len(prompt.input_ids)] == prompt.input_ids

    def test_long_response_keeps_its_end_token(self, generation, tokenizer):
        conversation = Conversation("类型#裙", "黑色的裙子印花图案" * 20)
        example = render(tokenizer, KINDS[generation], conversation, Lengths(64, 12))
        assert example.response_cut and not example.prompt_cut
        assert example.input_ids[-1] == tokenizer.eos_token_id == example.labels[-1]
        prompt = render(tokenizer, KINDS[generation], Conversation("类型#裙"), ROOMY)
        room = len(example.input_ids) - len(prompt.input_ids)
        assert room == {1: 11, 2: 13, 3: 13}[generation]


class TestOriginalTruncation:
    def test_turns_are_not_dropped(self, generation, tokenizer):
        conversation = Conversation("类型#上衣", None, HISTORY)
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
        conversation = Conversation("类型#上衣" * 10, "一件上衣" * 10)
        full = render(tokenizer, Generation.CHATGLM3, conversation, Lengths(900, 900, ORIGINAL))
        assert not full.response_cut and full.input_ids[-1] == tokenizer.eos_token_id
        cut = render(tokenizer, Generation.CHATGLM3, conversation, Lengths(30, 40, ORIGINAL))
        assert cut.input_ids == full.input_ids[:71] and cut.labels == full.labels[:71]
        assert cut.response_cut and not cut.prompt_cut
        lost = render(tokenizer, Generation.CHATGLM3, conversation, Lengths(10, 10, ORIGINAL))
        assert lost.prompt_cut and len(lost.input_ids) == 21
