"""OpenAI's interface, as the official client sends and reads it."""

import asyncio
import json
import threading
from types import SimpleNamespace

import openai
import pytest
from fixtures.servers import Scripted, idle, serving

from ptune import load_model
from ptune.base.folder import find_base_model
from ptune.data.tokenizer import build_tokenizer
from ptune.errors import ModelError

ASK = [{"role": "user", "content": "类型#上衣*版型#显瘦"}]
GREEDY = {"model": "tiny", "messages": ASK, "temperature": 0, "max_tokens": 24}


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as found:
        yield found


def text_of(stream):
    return "".join(c.choices[0].delta.content or "" for c in stream if c.choices)


def test_models(client):
    assert [model.id for model in client.models.list()] == ["tiny", "p3", "p20"]
    assert client.models.retrieve("p3").owned_by == "ptune"
    with pytest.raises(openai.NotFoundError, match="no model is called 'nobody'; use one of tiny"):
        client.models.retrieve("nobody")


def test_an_answer(client):
    found = client.chat.completions.create(**GREEDY)
    message = found.choices[0].message
    assert message.role == "assistant" and "上衣" in message.content
    assert found.choices[0].finish_reason == "stop" and found.model == "tiny"
    usage = found.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert 1 < usage.completion_tokens <= 24 and usage.prompt_tokens > 3


@pytest.mark.parametrize("model", ["tiny", "p3", "p20"])
def test_pieces_add_up_to_the_whole(client, model):
    asked = GREEDY | {"model": model}
    whole = client.chat.completions.create(**asked)
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    assert text_of(chunks) == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage and not chunks[-1].choices
    assert [c.choices[0].finish_reason for c in chunks[:-1]][-1] == whole.choices[0].finish_reason
    assert len({chunk.id for chunk in chunks}) == 1


def test_prefixes_answer_apart_and_at_once_as_alone(client):
    names = ["tiny", "p3", "p20"]
    alone = {n: client.chat.completions.create(**GREEDY | {"model": n}) for n in names}
    found = {}

    def ask(number):
        name = names[number % 3]
        answer = client.chat.completions.create(**GREEDY | {"model": name})
        found[number] = answer.choices[0].message.content

    threads = [threading.Thread(target=ask, args=[i]) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    expected = {n: answer.choices[0].message.content for n, answer in alone.items()}
    assert found == {i: expected[names[i % 3]] for i in range(12)}
    assert len(set(expected.values())) > 1


def test_a_seed_repeats_an_answer(client):
    hot = GREEDY | {"temperature": 2.0, "top_p": 1.0, "n": 3}

    def sample(seed):
        found = client.chat.completions.create(**hot, seed=seed)
        return [choice.message.content for choice in found.choices]

    first = sample(7)
    assert first == sample(7) != sample(8)
    assert len(set(first)) == 3, "each of n draws for itself"
    assert client.chat.completions.create(**hot).usage.prompt_tokens < 20, "counted once"


def test_stop_strings(client):
    whole = client.chat.completions.create(**GREEDY).choices[0].message.content
    stop = whole[3:5]
    found = client.chat.completions.create(**GREEDY, stop=[stop, "never"]).choices[0]
    assert found.message.content == whole[: whole.index(stop)] and found.finish_reason == "stop"
    assert (
        text_of(client.chat.completions.create(**GREEDY, stop=stop, stream=True))
        == (whole[: whole.index(stop)])
    )


def test_length(client):
    found = client.chat.completions.create(**GREEDY | {"max_tokens": 2})
    assert found.choices[0].finish_reason == "length" and found.usage.completion_tokens == 2


def test_log_probabilities(client):
    found = client.chat.completions.create(**GREEDY, logprobs=True, top_logprobs=2)
    content = found.choices[0].logprobs.content
    assert len(content) == found.usage.completion_tokens
    assert all(t.top_logprobs[0].token == t.token and len(t.top_logprobs) == 2 for t in content)
    assert all(t.logprob == t.top_logprobs[0].logprob <= 0 for t in content)
    old = client.completions.create(model="tiny", prompt="你好", logprobs=1, temperature=0)
    given = old.choices[0].logprobs
    assert len(given.tokens) == old.usage.completion_tokens
    assert "".join(given.tokens).strip() == old.choices[0].text
    begins = zip(given.text_offset, given.tokens, strict=True)
    assert all("".join(given.tokens)[at:].startswith(token) for at, token in begins)


def test_tokens_are_spelt_with_their_blanks_and_bytes(tiny):
    text = "a cat, 裙 𠮷"
    with serving(tiny, engine=Scripted(tiny.tokenizer, text)) as server:
        body = {"messages": ASK, "logprobs": True}
        content = server.http.post("/v1/chat/completions", json=body).json()
    found = content["choices"][0]["logprobs"]["content"]
    spelt = [byte for token in found for byte in token["bytes"]]
    assert bytes(spelt).decode().strip() == text
    assert any(token["token"].startswith("bytes:\\x") for token in found)


def test_penalties_and_top_k(client):
    plain = client.chat.completions.create(**GREEDY)
    other = client.chat.completions.create(
        **GREEDY, presence_penalty=2, frequency_penalty=2, extra_body={"repetition_penalty": 3.0}
    )
    assert plain.choices[0].message.content != other.choices[0].message.content
    one = GREEDY | {"temperature": 1.5}
    found = client.chat.completions.create(**one, extra_body={"top_k": 1})
    assert found.choices[0].message.content == plain.choices[0].message.content


def test_completions(client):
    asked = {"model": "tiny", "prompt": ["你好", "类型#上衣"], "temperature": 0, "max_tokens": 9}
    whole = client.completions.create(**asked)
    texts = ["", ""]
    for chunk in client.completions.create(**asked, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [choice.text for choice in whole.choices] and all(texts)


def test_system_history_and_parts(client):
    messages = [
        {"role": "developer", "content": "回答要短"},
        {"role": "user", "content": [{"type": "text", "text": "你好"}]},
        {"role": "assistant", "content": "你好!"},
        *ASK,
    ]
    found = client.chat.completions.create(**GREEDY | {"messages": messages})
    assert found.usage.prompt_tokens > 20


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"messages": []}, "messages: List should have at least 1 item"),
        ({"messages": "hello"}, "messages: Input should be a valid list"),
        ({"messages": [{"role": "user"}]}, "message 1"),
        ({"messages": [{"role": "king", "content": "x"}]}, "role"),
        ({"messages": [*ASK, {"role": "assistant", "content": "x"}]}, "asks nothing"),
        ({"messages": [{"role": "user", "content": "x" * 5000}]}, "tokens of the prompt and 24 of"),
        ({"messages": [{**ASK[0], "mood": 1}]}, "'mood' of messages, which nothing here uses"),
        ({"messages": [{"role": "user", "content": " "}]}, "the last message is blank, which asks"),
        ({"temperature": 3}, "temperature: Input should be less than or equal to 2"),
        ({"top_p": 0}, "top_p: Input should be greater than 0"),
        ({"temperature": 1e-38}, "is too small; use 0, or 0.01 on"),
        ({"extra_body": {"repetition_penalty": 1e-30}}, "repetition_penalty: Input should be gre"),
        ({"messages": ASK * 1001}, "messages: List should have at most 1000 items"),
        ({"n": 17}, "n: Input should be less than or equal to 16"),
        ({"max_tokens": 10**6}, "more than the 2,048 that the model can see"),
        ({"stop": [""]}, "stop.0: String should have at least 1 character"),
        ({"stop": list("abcde")}, "stop: List should have at most 4 items"),
        ({"top_logprobs": 2}, "top_logprobs has no effect without logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options has no effect without"),
        ({"extra_body": {"logit_bias": {"5": 1}}}, "logit_bias is not supported; leave it out"),
        ({"extra_body": {"response_format": {"type": "json_object"}}}, "response_format is not s"),
        ({"extra_body": {"beam": 2}}, "beam is not known here; leave it out"),
        ({"extra_body": {"max_completion_tokens": 2}}, "are the same; leave one out"),
        (
            {"tools": [{"type": "function", "function": {"name": "f"}}]},
            "use ChatGLM3-6B or GLM-4-9B, which have",
        ),
    ],
)
def test_refused_by_name(client, change, said):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**GREEDY | change)
    assert said in caught.value.body["message"]
    assert caught.value.body["type"] == "invalid_request_error"
    if said.startswith(("top_logprobs", "stream_options", "logit_bias", "response_format")):
        assert caught.value.body["param"] == said.split()[0]


def test_what_changes_no_answer_is_taken(client):
    found = client.chat.completions.create(
        **GREEDY,
        user="me",
        store=False,
        logit_bias={},
        response_format={"type": "text"},
        parallel_tool_calls=False,
    )
    assert found.choices[0].message.content


def test_an_unknown_model(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(**GREEDY | {"model": "gpt-4"})
    assert caught.value.body["code"] == "model_not_found"


def test_a_client_that_goes_frees_its_slot(client, server):
    endless = {"max_tokens": 1900, "extra_body": {"repetition_penalty": 0.3}}
    stream = client.chat.completions.create(**GREEDY | endless, stream=True)
    next(iter(stream))
    stream.close()
    idle(server)
    assert 'ptune_answers_total{end="client gone"' in server.http.get("/metrics").text


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[1]", b'{"messages": NaN}', b'{"a": "\\ud800"}', b"\xff\xfe", b"null"]
)
def test_bodies_that_are_none(server, body):
    answer = server.http.post("/v1/chat/completions", content=body)
    assert answer.status_code == 400 and answer.json()["error"]["message"]


def test_no_such_path(server):
    assert server.http.get("/v2").json()["error"]["type"] == "not_found_error"
    assert server.http.get("/v1/completions").status_code == 405


def test_too_much_for_the_cache_and_a_full_queue(tiny):
    with serving(tiny, slots=1, queue=0, cache_tokens=256) as server:
        asked = GREEDY | {"max_tokens": 1000}
        answer = server.http.post("/v1/chat/completions", json=asked)
        assert answer.status_code == 400
        assert "do not fit the KV cache of 256" in answer.json()["error"]["message"]
        codes = []

        def ask():
            found = server.http.post("/v1/chat/completions", json=GREEDY | {"max_tokens": 100})
            codes.append((found.status_code, found.headers.get("retry-after")))

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(codes) == 8 and set(codes) == {(200, None), (429, "1")}


def test_a_timeout(tiny):
    with serving(tiny, timeout=0.0001) as server:
        answer = server.http.post("/v1/chat/completions", json=GREEDY)
        assert (
            answer.status_code == 504 and "--request-timeout" in answer.json()["error"]["message"]
        )
        idle(server)


TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {}}}]
CALLS = {
    3: "get_weather\n```python\ntool_call(city='北京', days=2)\n```",
    4: 'get_weather\n{"city": "北京", "days": 2}',
}


@pytest.fixture(scope="module", params=CALLS)
def with_roles(request, toy_model):
    base = find_base_model(toy_model(request.param))
    model = load_model(base.path, dtype="float32", device="cpu")
    found = SimpleNamespace(base=base, model=model, tokenizer=build_tokenizer(base))
    found.call = CALLS[request.param]
    return found


class TestTools:
    @pytest.fixture
    def engine(self, with_roles):
        return Scripted(with_roles.tokenizer, with_roles.call)

    @pytest.fixture
    def server(self, with_roles, engine):
        with serving(with_roles, engine=engine) as found:
            yield found

    def check(self, choice):
        (call,) = choice.message.tool_calls
        assert choice.finish_reason == "tool_calls" and call.function.name == "get_weather"
        assert json.loads(call.function.arguments) == {"city": "北京", "days": 2}
        return call.id

    def test_a_call_and_its_reply(self, client, engine, with_roles):
        choice = client.chat.completions.create(model="tiny", messages=ASK, tools=TOOLS).choices[0]
        reply = {"role": "tool", "tool_call_id": self.check(choice), "content": "晴"}
        messages = [*ASK, choice.message, reply]
        client.chat.completions.create(model="tiny", messages=messages, tools=TOOLS)
        prompt = with_roles.tokenizer.decode(engine.asked[-1].ids)
        # A message's text begins with a blank in SentencePiece.
        call = prompt.replace("\n ```", "\n```").index(with_roles.call)
        assert call < prompt.index("<|observation|>")

    def test_a_streamed_call_can_be_sent_back(self, client, server):
        asked = {"model": "tiny", "messages": ASK, "tools": TOOLS}
        with client.chat.completions.stream(**asked) as stream:
            choice = stream.get_final_completion().choices[0]
        call = self.check(choice)
        said = choice.message.model_dump(exclude_none=True)
        assert said["role"] == "assistant" and said["tool_calls"][0]["index"] == 0
        reply = {"role": "tool", "tool_call_id": call, "content": "晴"}
        body = {"messages": [*ASK, said, reply], "tools": TOOLS}
        answer = server.http.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text

    @pytest.mark.parametrize("role", ["assistant", "system"])
    def test_what_asks_nothing_is_refused(self, server, role):
        body = {"messages": [{"role": role, "content": "好"}]}
        answer = server.http.post("/v1/chat/completions", json=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["message"] == (
            f"the last message, of role {role!r}, asks nothing; "
            "end with a question, or with a tool's reply"
        )

    @pytest.fixture
    def client(self, server):
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as found:
            yield found


def test_one_failed_answer_ends_those_beside_it(with_roles):
    engine = Scripted(
        with_roles.tokenizer, "好" * 500, fails=ModelError("it is broken; take another")
    )
    with serving(with_roles, engine=engine) as server:

        @server.app.get("/tasks")
        async def tasks() -> int:
            running = [task.get_coro().__qualname__ for task in asyncio.all_tasks()]
            return sum("_Whole._collect" in name for name in running)

        body = {"messages": ASK, "n": 4}
        assert server.http.post("/v1/chat/completions", json=body).status_code == 500
        idle(server)
        assert server.http.get("/tasks").json() == 0
