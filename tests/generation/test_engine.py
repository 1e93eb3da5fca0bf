"""The engine: any mixture of requests, in any order of arrival, is answered as each one alone."""

import dataclasses
from unittest import mock

import pytest
import torch
from fixtures.checkpoints import small_case, small_ids
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ptune import load_model
from ptune.errors import ModelError, RequestTooLong
from ptune.generation.decoding import Decoder
from ptune.generation.engine import INTERACTIVE, THROUGHPUT, Engine, Request
from ptune.generation.sampling import Sampling
from ptune.models.prefix_encoder import PrefixEncoder, stack_prefix

NEW = 7


@pytest.fixture(params=[1, 2, 3])
def case(request):
    return small_case(request.param)


@pytest.fixture
def model(case, model_folder):
    model = load_model(model_folder(case), dtype="float32", device="cpu")
    model.generation_config.eos_token_id = []
    return model


def prefixes(model):
    """Of 0 (none), 1, 5, 40 and 90 tokens."""
    torch.manual_seed(0)
    shape = model.base_model.prefix_shape
    encoders = [PrefixEncoder(shape, length).eval() for length in (1, 5, 40, 90)]
    return [None, *(stack_prefix(encoder, torch.float32) for encoder in encoders)]


def answers(engine, requests, arrivals=None):
    """The ids of each request, those of `arrivals[i]` coming before step i."""
    found = {request: [] for request in requests}
    arrivals = [list(requests)] if arrivals is None else arrivals
    step = 0
    while engine.busy or step < len(arrivals):
        for request in arrivals[step] if step < len(arrivals) else ():
            engine.add(request)
        for progress in engine.step():
            assert progress.error is None
            found[progress.request] += [token.id for token in progress.tokens]
        step += 1
    assert engine.running == engine.waiting == 0
    return [found[request] for request in requests]


def alone(model, request):
    again = Request(request.ids, request.sampling, request.prefix)
    return answers(Engine(model, 1, THROUGHPUT), [again])[0]


WAYS = [
    Sampling(NEW),
    Sampling(NEW, do_sample=True, temperature=1.5, top_p=0.9, seed=3),
    Sampling(NEW, do_sample=True, temperature=0.7, top_k=0, top_p=1.0, seed=4),
    Sampling(NEW, do_sample=True, top_k=0, top_p=0.5, seed=5),
    Sampling(NEW, repetition_penalty=1.5, presence_penalty=0.5, frequency_penalty=0.5),
]
REQUEST = st.tuples(
    st.integers(4, 30),  # tokens of the prompt
    st.integers(0, 99),  # its seed
    st.sampled_from(range(5)),  # its prefix
    st.sampled_from(range(len(WAYS))),
    st.integers(1, NEW),
    st.integers(0, 12),  # before which step it comes
)


@settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    drawn=st.lists(REQUEST, min_size=1, max_size=8),
    slots=st.integers(1, 5),
    budget=st.sampled_from([None, 1, 16, 512]),
    room=st.sampled_from([None, 128, 192, 400]),
    lag=st.integers(0, 1),
)
def test_answers_are_those_of_a_lone_request(case, model, drawn, slots, budget, room, lag):
    """For any prompts, prefixes, parameters, arrivals, memory, and with ids read a step late."""
    known = prefixes(model)
    requests, arrivals = [], [[] for _ in range(13)]
    for length, seed, prefix, way, most, comes in drawn:
        sampling = dataclasses.replace(WAYS[way], max_new_tokens=most)
        ids = small_ids(case, length, seed).tolist()
        requests.append(Request(ids, sampling, known[prefix]))
        arrivals[comes].append(requests[-1])
    admission = INTERACTIVE._replace(prefill_tokens=budget)
    engine = Engine(model, slots, admission, cache_tokens=room)
    engine._lag = lag
    used = []
    reserve = Decoder._reserve

    def watched(self, *arguments):
        cache = reserve(self, *arguments)
        used.append(self.slots * cache.length)
        return cache

    with mock.patch.object(Decoder, "_reserve", watched):
        found = answers(engine, requests, arrivals)
    assert found == [alone(model, request) for request in requests]
    assert room is None or max(used) <= room


def test_a_long_prompt_comes_in_parts_between_the_steps_of_others(case, model):
    """So many layers at a time as its tokens are within `prefill_tokens` of all layers."""
    layers = model.config.num_hidden_layers
    assert layers == 2
    engine = Engine(model, 2, INTERACTIVE._replace(prefill_tokens=30))
    short = Request(small_ids(case, 9).tolist(), Sampling(12))
    long = Request(small_ids(case, 60).tolist(), Sampling(3))
    engine.add(short)
    engine.step()
    engine.add(long)
    given = [[p.request for p in engine.step() if p.tokens] for _ in range(3)]
    assert given == [[short], [long, short, long], [short, long]]


def test_short_prompts_come_together_within_the_budget(case, model):
    engine = Engine(model, 8, INTERACTIVE._replace(prefill_tokens=30))
    for seed in range(4):
        engine.add(Request(small_ids(case, 10, seed).tolist(), Sampling(9)))
    engine.step()
    assert (engine.running, engine.waiting) == (3, 1)
    engine.step()
    assert (engine.running, engine.waiting) == (4, 0)


@pytest.mark.parametrize("when", ["waiting", "prefill", "running"])
@pytest.mark.parametrize("lag", [0, 1])
def test_cancelled(case, model, when, lag):
    """Nothing more is said of it, its slot is free, the others do not notice."""
    engine = Engine(model, 2 if when != "waiting" else 1, INTERACTIVE._replace(prefill_tokens=20))
    engine._lag = lag
    kept = Request(small_ids(case, 9, 1).tolist(), Sampling(20))
    gone = Request(small_ids(case, 40, 2).tolist(), Sampling(20))
    engine.add(kept)
    found = [t.id for _ in range(2) for p in engine.step() for t in p.tokens]
    engine.add(gone)
    for _ in range({"waiting": 1, "prefill": 1, "running": 5}[when]):
        found += [t.id for p in engine.step() if p.request is kept for t in p.tokens]
    assert (gone.slot is None) == (when == "waiting")
    assert (gone.count > 0) == (when == "running")
    engine.cancel(gone)
    engine.cancel(gone)
    while engine.busy:
        for progress in engine.step():
            assert progress.request is kept
            found += [token.id for token in progress.tokens]
    assert found == alone(model, kept) and engine.running == 0
    assert answers(engine, [again := Request(gone.ids, Sampling(5))]) == [alone(model, again)]


def test_memory_is_bounded(case, model):
    """What never fits is refused, with what would; what does not fit now waits."""
    prompt = small_ids(case, 20).tolist()
    prefix = prefixes(model)[3]
    engine = Engine(model, 4, cache_tokens=300)
    with pytest.raises(RequestTooLong, match="do not fit the KV cache of 256 tokens; ask for 196"):
        engine.add(Request(prompt, Sampling(500), prefix))
    with pytest.raises(RequestTooLong, match=r"40 tokens of the prefix, 300 of .* shorten the que"):
        engine.add(Request(small_ids(case, 300).tolist(), Sampling(5), prefix))
    engine.add(Request(prompt, Sampling(196), prefix))
    short = [Request(prompt, Sampling(5)) for _ in range(2)]
    for request in short:
        engine.add(request)
    engine.step()
    assert (engine.running, engine.waiting) == (1, 2)
    while engine.running:
        engine.step()
    engine.step()
    assert (engine.running, engine.waiting) == (2, 0)


def test_a_prefix_survives_a_cache_that_became_shorter(case, model):
    """Where a long request has taken memory from the slots, and gave it back."""
    torch.manual_seed(0)
    encoder = PrefixEncoder(model.base_model.prefix_shape, 90).eval()
    prefix = stack_prefix(encoder, torch.float32)
    engine = Engine(model, 3, cache_tokens=600)
    asked = [Request(small_ids(case, 9, seed).tolist(), Sampling(5), prefix) for seed in range(3)]
    expected = [alone(model, request) for request in asked]
    for _ in range(2):
        again = [Request(request.ids, request.sampling, prefix) for request in asked]
        assert answers(engine, again) == expected
        answers(engine, [Request(asked[0].ids, Sampling(300), prefix)])


def test_log_probabilities_of_the_tokens(case, model):
    prompt = small_ids(case, 9).tolist()
    engine = Engine(model, 2)
    asking = Request(prompt, Sampling(4, logprobs=2))
    engine.add(Request(small_ids(case, 12, 1).tolist(), Sampling(4)))
    engine.add(asking)
    tokens = []
    while engine.busy:
        for progress in engine.step():
            if progress.request is asking:
                tokens += progress.tokens
            else:
                assert all(t.logprob is None and t.alternatives == () for t in progress.tokens)
    text = prompt + [token.id for token in tokens]
    with torch.no_grad():
        expected = model(torch.tensor([text])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    assert len(tokens) == 4
    for token, row in zip(tokens, expected, strict=True):
        assert token.logprob == pytest.approx(row[token.id].item(), abs=1e-4)
        assert [i for i, _ in token.alternatives] == row.topk(2).indices.tolist()


def test_an_answer_that_is_not_finite_ends_alone(case, model):
    """And whoever gets its slot afterwards does not see its numbers."""
    bad = torch.full_like(prefixes(model)[2], float("inf"))
    prompt = small_ids(case, 9).tolist()
    engine = Engine(model, 2)
    failing, other = Request(prompt, Sampling(NEW), bad), Request(prompt, Sampling(NEW))
    engine.add(failing)
    engine.add(other)
    errors, found = [], []
    while engine.busy:
        for progress in engine.step():
            if progress.request is failing:
                errors.append(progress.error)
            else:
                found += [token.id for token in progress.tokens]
    assert len(errors) == 1 and isinstance(errors[0], ModelError)
    assert "not finite" in str(errors[0])
    assert found == alone(model, other)
    for _ in range(2):
        again = [Request(prompt, Sampling(NEW)) for _ in range(2)]
        assert answers(engine, again) == [found, found]


@pytest.mark.parametrize("where", ["begin", "advance", "step"])
def test_out_of_memory_drops_what_is_at_work(case, model, where, monkeypatch):
    engine = Engine(model, 2)
    requests = [Request(small_ids(case, 9, seed).tolist(), Sampling(9)) for seed in range(3)]
    for request in requests:
        engine.add(request)
    real = getattr(Decoder, where)

    def full(self, *arguments):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Decoder, where, full)
    with pytest.raises(torch.OutOfMemoryError):
        engine.step()
    assert engine.abort() == requests[:2] and engine.waiting == 1 and engine.running == 0
    monkeypatch.setattr(Decoder, where, real)
    found = []
    while engine.busy:
        found += [token.id for progress in engine.step() for token in progress.tokens]
    assert found == alone(model, requests[2])
