"""Which questions of the training data a checkpoint keeps."""

import json

import pytest

from ptune.data.example_questions import MAX_QUESTIONS, ExampleQuestion, pick_questions
from ptune.data.records import read_records


@pytest.fixture
def picked(tmp_path):
    def run(*rows):
        file = tmp_path / "data.jsonl"
        file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        return pick_questions(read_records([file]).records)

    return run


def row(prompt, **more):
    return {"prompt": prompt, "response": "好"} | more


def test_spread_over_the_data(picked):
    questions = picked(*(row(f"问题{i}") for i in range(1000)))
    assert [said.question for said in questions] == [f"问题{i}" for i in range(0, 1000, 200)]


def test_few_records_give_few_questions(picked):
    assert picked(row(" 裙\n")) == (ExampleQuestion("裙"),)
    assert len(picked(*(row(f"问题{i}") for i in range(MAX_QUESTIONS - 1)))) == MAX_QUESTIONS - 1


def test_no_question_comes_twice(picked):
    assert picked(*[row("裙")] * 100) == (ExampleQuestion("裙"),)


def test_with_the_text_that_it_is_about(picked):
    assert picked(row("什么颜色？", context="一条黑裙子。")) == (
        ExampleQuestion("什么颜色？", "一条黑裙子。"),
    )


@pytest.mark.parametrize(
    "unfit",
    [
        row("很" * 201),
        row("什么颜色？", context="很" * 2001),
        row("后来呢？", history=[["你好", "你好"]]),
        row("裙", system="你是店员。"),
    ],
)
def test_passed_over(picked, unfit):
    assert picked(*[unfit] * 10) == ()
    assert picked(*[unfit] * 10, row("裤")) == (ExampleQuestion("裤"),)


def test_no_more_of_a_large_data_set_is_looked_at(picked):
    unfit = row("很" * 201)
    assert picked(*[unfit] * 60, row("裤"), *[unfit] * 500) == ()
