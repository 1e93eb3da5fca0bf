"""Continuous batching: the ids of the library's `generate`, whichever slot a request is in."""

from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from fixtures.checkpoints import small_case, small_ids

from ptune import load_model
from ptune.data.examples import pad_left
from ptune.errors import ModelError
from ptune.generation.decoding import Decoder
from ptune.generation.engine import Engine
from ptune.generation.generate import generate_all, generate_one
from ptune.generation.sampling import Choice, Sampling

LENGTHS = (9, 16, 5, 12, 7, 11, 3, 8)
GREEDY = Sampling(max_new_tokens=6)
HOT = Sampling(max_new_tokens=8, do_sample=True, top_p=0.9, temperature=2.0)


@pytest.fixture(params=[1, 2, 3])
def case(request):
    return small_case(request.param)


@pytest.fixture
def model(case, model_folder):
    folder = model_folder(case)
    return load_model(folder, folder / "prefix", dtype="float32", device="cpu")


@pytest.fixture
def prompts(case):
    return [small_ids(case, max(length, 4), seed).tolist() for seed, length in enumerate(LENGTHS)]


@pytest.fixture
def calls(monkeypatch):
    """The calls of decoders: prefill into how many slots, decode steps of how many."""
    seen = []
    begin, step = Decoder.begin, Decoder.step

    def record_begin(self, slots, prompts):
        seen.append(("prefill", len(slots)))
        return begin(self, slots, prompts)

    def record_step(self, rows):
        seen.append(("step", rows))
        return step(self, rows)

    monkeypatch.setattr(Decoder, "begin", record_begin)
    monkeypatch.setattr(Decoder, "step", record_step)
    return seen


def generated(model, prompts, batch_size=2, sampling=GREEDY):
    found = {}
    for finished in generate_all(model, prompts, batch_size, sampling):
        found |= dict(finished)
    return [found[i] for i in range(len(prompts))]


def of_the_library(model, prompts, sampling):
    """New ids of one batch by `model.generate`, cut at the stop."""
    ids, mask = pad_left(prompts, model.generation_config.pad_token_id)
    rows = model.generate(ids, attention_mask=mask, **sampling.arguments())[:, ids.shape[1] :]
    stops = model.generation_config.eos_token_id
    ends = [next((i for i, t in enumerate(row) if t in stops), len(row)) for row in rows.tolist()]
    return [row[:end] for row, end in zip(rows.tolist(), ends, strict=True)]


def with_early_stops(model, prompts):
    """Make some tokens of the greedy results the stops; returns the results without stops."""
    full = generated(model, prompts)
    model.generation_config.eos_token_id = [full[0][2], full[3][0], full[5][4]]
    return full


def test_ids_are_those_of_the_library(model, prompts):
    full = with_early_stops(model, prompts)
    expected = of_the_library(model, prompts, GREEDY)
    assert expected != full
    assert len({len(ids) for ids in expected}) > 2
    for batch_size in (1, 2, 3, 5, 8, 20):
        assert generated(model, prompts, batch_size) == expected


@pytest.mark.parametrize("prefix", [True, False])
@torch.no_grad()
def test_answers_in_bfloat16(case, model_folder, prompts, prefix):
    """The default on cards.  What float32 thinks best is better by 0.4 deviations at most.

    Of the logits; a token taken at random is worse by three.
    """
    folder = model_folder(case)
    checkpoint = folder / "prefix" if prefix else None
    half = load_model(folder, checkpoint, dtype="bfloat16", device="cpu")
    full = load_model(folder, checkpoint, dtype="float32", device="cpu")
    half.generation_config.eos_token_id = []
    found = generated(half, prompts, 3, Sampling(max_new_tokens=12))
    for prompt, answer in zip(prompts, found, strict=True):
        logits = full(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        chosen = logits.gather(1, torch.tensor(answer)[:, None]).squeeze(1)
        assert (logits.amax(dim=-1) - chosen).max() < 0.4 * logits.std()


def test_without_a_prefix(model, prompts):
    model.base_model.prefix_enabled = False
    assert generated(model, prompts, 3) == of_the_library(model, prompts, GREEDY)


def test_one_request_token_by_token(model, prompts):
    with_early_stops(model, prompts)
    for prompt in prompts:
        assert (
            list(generate_one(model, prompt, GREEDY)) == of_the_library(model, [prompt], GREEDY)[0]
        )


def test_longest_prompts_come_first(model, prompts, calls):
    stops, model.generation_config.eos_token_id = model.generation_config.eos_token_id, []
    first = next(iter(generate_all(model, prompts, 2, GREEDY)))
    model.generation_config.eos_token_id = stops
    assert sorted(index for index, _ in first)[0] == 1


def test_prompts_are_admitted_into_free_slots_which_are_dropped_at_the_end(model, prompts, calls):
    """24 requests of 1 to 6 tokens in eight slots."""
    with_early_stops(model, prompts)
    calls.clear()
    found = generated(model, prompts * 3, 8)
    admitted = [n for what, n in calls if what == "prefill"]
    steps = [n for what, n in calls if what == "step"]
    assert admitted[0] == 8 and sum(admitted) == 24 and min(admitted[:-1]) >= 2
    tokens = sum(min(len(ids) + 1, GREEDY.max_new_tokens) for ids in found)
    assert sum(admitted) + sum(steps) >= tokens
    assert len(set(steps)) > 1
    assert steps[0] == 8 and steps[-1] < 6
    assert len(steps) < 3 * (GREEDY.max_new_tokens - 1)  # what three batches of eight take


class Scripted:
    """A decoder whose requests are as long as `lengths` says for the only id of a prompt."""

    captures = False
    num_layers = 1
    lengths: ClassVar[list[int]] = []
    log: ClassVar[list[tuple[str, int]]] = []

    def __init__(self, model, slots, longest, graphs):
        assert graphs, "steps are captured where that is possible"
        self.left = [0] * slots

    def begin(self, slots, prompts):
        self.log.append(("prefill", len(slots)))
        for slot, prompt in zip(slots, prompts, strict=True):
            self.left[slot] = self.lengths[prompt.ids[0]]
        return slots

    def advance(self, slots, layers):
        return self.ids(slots)

    def step(self, rows):
        self.log.append(("step", rows))
        return self.ids(range(rows))

    def ids(self, slots):
        for slot in slots:
            self.left[slot] -= 1
        ids = torch.tensor([2 if self.left[slot] == 0 else 5 for slot in slots])
        return Choice(ids, torch.ones(len(ids)))

    def release(self, slot, wipe):
        pass

    def move(self, source, target):
        self.left[target] = self.left[source]


@pytest.mark.parametrize(
    ("lengths", "most", "admissions"),
    [
        # One free slot of eight is too little; the second makes a quarter.
        ([3, 5] + [40] * 6 + [9] * 2, 40, [(0, 8), (4, 2)]),
        # All others end at the latest four tokens on, so the free ones wait for them.
        ([8, 8] + [40] * 6 + [9] * 2, 10, [(0, 8), (9, 2)]),
        ([9, 9] + [40] * 6 + [9] * 2, 12, [(0, 8), (11, 2)]),
        # No more prompts than slots.
        ([3, 4], 8, [(0, 2)]),
    ],
)
def test_when_prompts_are_admitted(lengths, most, admissions, monkeypatch):
    monkeypatch.setattr("ptune.generation.engine.Decoder", Scripted)
    monkeypatch.setattr("ptune.generation.generate.shown_prefix", lambda model: None)
    monkeypatch.setattr(Scripted, "lengths", lengths)
    monkeypatch.setattr(Scripted, "log", [])
    config = SimpleNamespace(eos_token_id=[2])
    model = SimpleNamespace(device=torch.device("cpu"), generation_config=config)
    prompts = [[i] for i in range(len(lengths))]
    assert len(list(generate_one(model, prompts[0], Sampling(most)))) == lengths[0] - 1
    Scripted.log.clear()
    found = generated(model, prompts, 8, Sampling(most))
    assert [len(ids) for ids in found] == [min(length - 1, most) for length in lengths]
    steps, admitted = 0, []
    for what, count in Scripted.log:
        if what == "prefill":
            admitted.append((steps, count))
        else:
            steps += 1
    assert admitted == admissions


def read_a_step_later(monkeypatch):
    start = Engine.__init__

    def lagging(self, *arguments, **options):
        start(self, *arguments, **options)
        self._lag = 1

    monkeypatch.setattr(Engine, "__init__", lagging)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_ids_read_one_step_later(model, prompts, batch_size, monkeypatch):
    """As on a card, which computes the next token meanwhile."""
    with_early_stops(model, prompts)
    expected = generated(model, prompts, batch_size)
    read_a_step_later(monkeypatch)
    assert generated(model, prompts, batch_size) == expected
    assert [list(generate_one(model, prompt, GREEDY)) for prompt in prompts] == expected


def test_no_step_is_computed_for_nothing(model, prompts, calls, monkeypatch):
    read_a_step_later(monkeypatch)
    model.generation_config.eos_token_id = []
    generated(model, prompts[:3], 3)
    assert calls == [("prefill", 3)] + [("step", 3)] * (GREEDY.max_new_tokens - 1)


@pytest.mark.parametrize("sampling", [GREEDY, HOT], ids=["greedy", "sampling"])
@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("said", [0, 3])
def test_logits_that_are_not_finite(model, prompts, monkeypatch, sampling, later, said):
    """Of one slot, from some token on; also where the next step is on its way."""
    if later:
        read_a_step_later(monkeypatch)
    model.generation_config.eos_token_id = []
    runs = []

    def spoil(head, arguments, logits):
        runs.append(1)
        if len(runs) > said:
            logits[-1, 7] = float("nan")

    with model.get_output_embeddings().register_forward_hook(spoil):
        message = f"after {said} tokens of an answer are not finite .* in float32; pass another"
        with pytest.raises(ModelError, match=message):
            generated(model, prompts[:3], 3, sampling)
    assert said < len(runs) <= said + 2  # the other two went on meanwhile


@pytest.mark.parametrize(
    ("dtype", "advice"),
    [
        ("float16", "--dtype bfloat16 or float32, or another --checkpoint or --model$"),
        ("bfloat16", "--dtype float32, or another --checkpoint or --model$"),
    ],
)
def test_numbers_beyond_a_precision(case, model_folder, dtype, advice):
    folder = model_folder(case)
    model = load_model(folder, folder / "prefix", dtype=dtype, device="cpu")
    with torch.no_grad():
        model.base_model.prefix_encoder.embedding.weight.mul_(1e38)
    with pytest.raises(ModelError, match=f"after 0 tokens .* in {dtype}; pass {advice}"):
        list(generate_one(model, small_ids(case, 9).tolist(), GREEDY))


def test_requests_come_when_they_are_finished(model, prompts):
    with_early_stops(model, prompts)
    groups = list(generate_all(model, prompts, 4, GREEDY))
    assert len(groups) > 2
    assert sorted(i for group in groups for i, _ in group) == list(range(len(prompts)))


def test_done_prompts_are_left_out(model, prompts, calls):
    found = [
        pair for group in generate_all(model, prompts, 4, GREEDY, done={0, 3}) for pair in group
    ]
    assert sorted(i for i, _ in found) == [1, 2, 4, 5, 6, 7]
    assert sum(n for what, n in calls if what == "prefill") == 6
    everything = range(len(prompts))
    assert list(generate_all(model, prompts, 4, GREEDY, done=everything)) == []


@pytest.mark.parametrize("new", [1, 200])
def test_requests_of_one_token_and_of_many(model, prompts, new):
    """The KV cache grows several times on the way to 200 tokens."""
    model.generation_config.eos_token_id = []
    sampling = Sampling(max_new_tokens=new)
    ids, mask = pad_left(prompts[:3], model.generation_config.pad_token_id)
    expected = model.generate(
        ids, attention_mask=mask, max_new_tokens=new, do_sample=False, eos_token_id=None
    )
    assert generated(model, prompts[:3], 2, sampling) == expected[:, ids.shape[1] :].tolist()


def test_sampling_is_repeatable_by_seed(model, prompts):
    """Whatever the number of slots, and whether or not others are done already."""

    def sample(*seed, slots=2, **done):
        groups = generate_all(model, prompts, slots, HOT, *seed, **done)
        return dict(pair for group in groups for pair in group)

    whole = sample(1)
    assert whole == sample(1) == sample(1, slots=1) == sample(1, slots=8)
    assert whole != sample(2)
    assert sample(0) == sample()
    rest = sample(1, done=[0, 3])
    assert rest == {i: ids for i, ids in whole.items() if i not in (0, 3)}


def test_stopping_from_outside(model, prompts):
    model.generation_config.eos_token_id = []
    expected = of_the_library(model, prompts[:1], GREEDY)[0]
    given = []
    for token in generate_one(model, prompts[0], GREEDY, lambda: len(given) >= 3):
        given.append(token)
    assert given == expected[:3]


def test_no_prompts_no_ids(model):
    assert list(generate_all(model, [], 2, GREEDY)) == []
    assert list(generate_all(model, [], 2, HOT)) == []


def test_steps_may_be_used_outside_of_inference_mode(model, prompts):
    for _ in generate_all(model, prompts[:2], 1, GREEDY):
        assert not torch.is_inference_mode_enabled()
