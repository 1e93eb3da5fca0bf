"""`ptune.chat`: called as the original's `model.chat`, with its defaults."""

import inspect

import pytest
import torch

import ptune
from ptune.data.prompt import Conversation, Lengths, render
from ptune.errors import ConfigError, DataError
from ptune.generation.generate import generate_one
from ptune.generation.sampling import Sampling

CONTEXT = "这条裙子是黑色的。"


@pytest.fixture(params=[1, 2, 3], scope="module")
def generation(request):
    return request.param


@pytest.fixture(scope="module")
def loaded(generation, toy_model):
    folder = toy_model(generation)
    return ptune.load_model(folder, device="cpu"), ptune.load_tokenizer(folder)


@pytest.fixture
def asked(monkeypatch):
    """The prompt and the sampling of every answer, which is cut short."""
    seen = []

    def record(model, prompt, sampling, *rest):
        seen.append((prompt, sampling))
        short = Sampling(
            6, sampling.do_sample, sampling.top_p, sampling.temperature, seed=sampling.seed
        )
        return generate_one(model, prompt, short, *rest)

    monkeypatch.setattr("ptune.generation.streaming.generate_one", record)
    return seen


def prompt_ids(tokenizer, *turns, context=""):
    *history, query = turns
    said = Conversation.from_turns(query, None, history, context=context)
    return render(tokenizer, tokenizer.generation, said, Lengths(10**6, 10**6)).input_ids


def test_answers_and_history(loaded, asked):
    model, tokenizer = loaded
    response, history = ptune.chat(model, tokenizer, "类型#裙", do_sample=False)
    assert history == [("类型#裙", response)]
    before = [["类型#裙", response]]
    second, longer = ptune.chat(model, tokenizer, "颜色", before, do_sample=False)
    assert longer == [("类型#裙", response), ("颜色", second)]
    assert before == [["类型#裙", response]] and history == [("类型#裙", response)]
    assert all(type(turn) is tuple for turn in longer)
    prompts = [prompt for prompt, _ in asked]
    assert prompts[0] == prompt_ids(tokenizer, "类型#裙")
    assert prompts[1] == prompt_ids(tokenizer, ("类型#裙", response), "颜色")
    ids = [*generate_one(model, prompts[1], Sampling(6))]
    assert second == tokenizer.decode(ids, skip_special_tokens=True).strip().rstrip("\ufffd")


def test_defaults_are_the_originals(loaded, asked, generation):
    model, tokenizer = loaded
    ptune.chat(model, tokenizer, "你好")
    ((prompt, sampling),) = asked
    numbers = (0.7, 0.95) if generation == 1 else (0.8, 0.8)
    assert (sampling.do_sample, sampling.top_p, sampling.temperature) == (True, *numbers)
    positions = model.config.max_position_embeddings
    length = min(2048 if generation == 1 else 8192, positions)
    assert len(prompt) + sampling.max_new_tokens == length
    names = [*inspect.signature(ptune.chat).parameters]
    assert names[:4] == ["model", "tokenizer", "query", "history"]


def test_numbers_are_used(loaded, asked):
    model, tokenizer = loaded
    drawn = []
    for seed in (0, 0, 1, 2):
        torch.manual_seed(seed)
        options = {"max_length": 100, "top_p": 1.0, "temperature": 5}
        drawn.append(ptune.chat(model, tokenizer, "你好", None, **options)[0])
    prompt, sampling = asked[0]
    assert sampling == Sampling(100 - len(prompt), True, 1.0, 5, seed=sampling.seed)
    assert drawn[0] == drawn[1] and len({*drawn}) > 1


def test_context_is_not_in_the_history(loaded, asked):
    model, tokenizer = loaded
    _, history = ptune.chat(model, tokenizer, "颜色", context=CONTEXT, do_sample=False)
    assert history[0][0] == "颜色"
    assert asked[0][0] == prompt_ids(tokenizer, "颜色", context=CONTEXT)
    ptune.chat(model, tokenizer, "材质", history, context=" ", do_sample=False)
    assert asked[1][0] == prompt_ids(tokenizer, history[0], "材质")


def test_an_empty_answer_is_a_turn(loaded, monkeypatch):
    monkeypatch.setattr("ptune.generation.streaming.generate_one", lambda *rest: iter(()))
    assert ptune.chat(*loaded, "你好") == ("", [("你好", "")])


def test_what_leaves_no_room(loaded, asked):
    model, tokenizer = loaded
    length = len(prompt_ids(tokenizer, "你好"))
    assert ptune.chat(model, tokenizer, "你好", max_length=length + 1, do_sample=False)
    assert asked[0][1].max_new_tokens == 1
    message = (
        f"^the prompt of {length} tokens leaves no room for an answer in max_length {length}; "
        "pass a shorter question$"
    )
    with pytest.raises(DataError, match=message):
        ptune.chat(model, tokenizer, "你好", max_length=length)
    with pytest.raises(DataError, match=r"in max_length 40; pass a shorter history$"):
        ptune.chat(model, tokenizer, "你好", [("a" * 100, "b")], max_length=40)
    message = (
        r"^the context is too long for max_length 200: of its [\d,]+ tokens the first (\d+) fit, "
        rf"(\d+) of {len(CONTEXT) * 100} characters; pass less of it$"
    )
    with pytest.raises(DataError, match=message) as caught:
        ptune.chat(model, tokenizer, "你好", context=CONTEXT * 100, max_length=200)
    kept = int(str(caught.value).split(" of 900 characters")[0].split()[-1])
    assert kept > 9
    ptune.chat(model, tokenizer, "你好", context=(CONTEXT * 100)[:kept], max_length=200)
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 10**6}, r"^max_length 1000000 is out of range; use 2 to [\d,]+$"),
        ({"max_length": 1}, "^max_length 1 is out of range; use 2 to "),
        ({"max_length": 64.0}, "^max_length 64.0 is out of range; use 2 to "),
        ({"top_p": 0}, "^top_p 0 is out of range; use more than 0 and at most 1$"),
        ({"top_p": "0.7"}, "^top_p '0.7' is out of range; use more than 0 and at most 1$"),
        ({"temperature": 0.0}, r"^temperature 0.0 is out of range; use 0.01 to 100$"),
        ({"temperature": float("nan")}, r"^temperature nan is out of range; use 0.01 to 100$"),
        (
            {"temperature": 0.5, "do_sample": False},
            "^temperature 0.5 has no effect with do_sample=False; leave one of them out$",
        ),
        (
            {"top_p": 0.5, "do_sample": False},
            "^top_p 0.5 has no effect with do_sample=False; leave one of them out$",
        ),
    ],
)
def test_numbers_that_are_none(loaded, options, message):
    with pytest.raises(ConfigError, match=message):
        ptune.chat(*loaded, "你好", **options)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((" ",), {}, "^the question ' ' is blank; ask something$"),
        ((5,), {}, "^the question: expected text, found the number 5; pass text$"),
        (("\ud83d",), {}, "^the question: expected text, found half a surrogate .*; pass text$"),
        (("a",), {"context": b"a"}, "^the context: expected text, found .*; pass text$"),
        (
            ("a", [("b", "c"), {"role": "user"}]),
            {},
            r"^turn 2 of the history is an object; pass \(question, answer\) pairs$",
        ),
        (("a", [("b",)]), {}, r"^turn 1 of the history is a list of 1; pass \(question, answer"),
        (("a", ["bc"]), {}, r"^turn 1 of the history is 'bc'; pass \(question, answer\) pairs$"),
        (("a", [("b", None)]), {}, "^turn 1 of the history: expected text, found nothing; pass"),
    ],
)  # fmt: skip
def test_texts_that_are_none(loaded, arguments, options, message):
    with pytest.raises(DataError, match=message):
        ptune.chat(*loaded, *arguments, **options)


def test_tokenizer_of_another(loaded):
    message = r"^the tokenizer is a object, whose prompt ptune does not know; use ptune.load_tok"
    with pytest.raises(ConfigError, match=message):
        ptune.chat(loaded[0], object(), "你好")
