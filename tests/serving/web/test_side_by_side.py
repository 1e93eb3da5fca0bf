"""Answers of several prefixes to one question, without a page."""

import asyncio

import pytest
from fixtures.servers import Scripted, make_store

from ptune.data.prompt import WHOLE, Conversation, render
from ptune.errors import DataError
from ptune.generation.engine import Engine
from ptune.generation.sampling import Sampling
from ptune.serving.answers import Answers, deliver_to
from ptune.serving.prefix_store import UnknownPrefix
from ptune.serving.web.side_by_side import Side, answer_sides
from ptune.serving.worker import Worker

GREEDY = Sampling(24, do_sample=False)


@pytest.fixture
def run(tiny):
    """Answer with an engine; returns the sides, and how often they were shown."""
    workers = []

    def run_one(names, question="裙", context="", sampling=GREEDY, engine=None, look=None, **more):
        worker = Worker(engine or Engine(tiny.model, 4), 4)
        workers.append(worker)
        length = tiny.model.config.max_position_embeddings
        answers = Answers(
            worker, tiny.tokenizer, tiny.base.generation, make_store(tiny), length, 60.0
        )
        sides = [Side(name, more.get("history", ())) for name in names]

        async def ask():
            worker.deliver = deliver_to(asyncio.get_running_loop())
            worker.start()
            shown = 0
            async for _ in answer_sides(answers, sides, question, context, sampling):
                shown += 1
                if look and look(sides):
                    break
            return shown

        return sides, asyncio.run(ask())

    yield run_one
    for worker in workers:
        worker.close(0)
        assert worker.join(10)
        assert worker.running == worker.waiting == 0


def test_each_side_is_what_it_says_alone(run):
    both, shown = run(["p3", "tiny", "p20"])
    assert shown >= 2
    for side in both:
        (alone,), _ = run([side.name])
        assert side.said == alone.said and side.said.strip()
    assert len({side.said for side in both}) > 1


def test_sides_draw_with_one_seed(run):
    drawn = Sampling(24, do_sample=True, temperature=1.5, top_p=1.0)
    (first, second), _ = run(["p3", "p3"], sampling=drawn)
    assert first.said == second.said
    (other,), _ = run(["p3"], sampling=drawn)
    assert other.said != first.said, "asked again, it is answered anew"


def test_each_goes_on_with_its_own_history(run, tiny):
    (side,), _ = run(["p3"], history=[("裤", "一条裤子")])
    whole = Conversation.from_turns("裙", None, [("裤", "一条裤子")])
    rendered = render(tiny.tokenizer, tiny.base.generation, whole, WHOLE).input_ids
    assert side.example.input_ids == rendered
    assert len(side.example.input_ids) > 10 and whole.messages[0].content == "裤"
    assert "裤子" in tiny.tokenizer.decode(side.example.input_ids)


def test_what_does_not_fit_is_cut_and_told(run):
    (side,), _ = run(["p3"], context="裤子是羊毛的。" * 5000)
    assert side.example.context_cut.kept_characters < 35_000


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"question": "\udc80"}, "the question"),
        ({"context": "a\ud800"}, "the background text: .*; write it anew"),
    ],
)
def test_texts_that_cannot_be_asked(run, asked, said):
    with pytest.raises(DataError, match=said):
        run(["p3"], **asked)


def test_when_one_cannot_answer_the_others_end(run):
    with pytest.raises(UnknownPrefix, match="no model is called 'gone'"):
        run(["p3", "gone"])


def test_when_one_fails_the_others_end(run, tiny):
    engine = Scripted(tiny.tokenizer, "裤子" * 5000, fails=DataError("the second fails"))
    with pytest.raises(DataError, match="the second fails"):
        run(["p3", "tiny"], engine=engine)


def test_who_looks_no_longer_frees_the_slots(run, tiny):
    engine = Scripted(tiny.tokenizer, "裤子" * 5000)
    sides, _ = run(["p3", "tiny"], engine=engine, look=lambda sides: all(s.said for s in sides))
    assert all(len(side.said) < 10_000 for side in sides)
