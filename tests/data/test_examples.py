"""From records to batches: order, padding, and the report of what was cut."""

import json

import pytest
import torch

from ptune.base.folder import Generation
from ptune.data.examples import (
    StepCollator,
    TrainCollator,
    Truncation,
    asked_last,
    conversation,
    has_labels,
    pad_left,
    render_examples,
)
from ptune.data.prompt import Conversation, Lengths, render
from ptune.data.prompt_source import IGNORE_INDEX
from ptune.data.records import read_records
from ptune.data.truncation import ORIGINAL

KINDS = dict(zip((1, 2, 3, 4), Generation, strict=False))
RECORDS = [
    {"prompt": "类型#裙", "response": "黑色的裙子", "history": []},
    {"prompt": "类型#上衣*颜色#白色" * 9, "response": "白色的上衣", "history": []},
    {"prompt": "颜色", "response": "白色", "history": [["类型#裙" * 9, "黑色的裙子" * 9]]},
    {"prompt": "风格", "response": "简约而不简单" * 99, "history": []},
    {"prompt": "颜色" * 60, "response": "清新" * 99, "history": [["你好", "你好"]]},
]


@pytest.fixture
def records(tmp_path):
    file = tmp_path / "data.json"
    file.write_text(json.dumps(RECORDS, ensure_ascii=False), encoding="utf-8")
    return read_records([file]).records


@pytest.mark.parametrize("generation", KINDS)
def test_examples_are_the_rendered_records_in_their_order(generation, toy_tokenizer, records):
    tokenizer, kind, lengths = toy_tokenizer(generation), KINDS[generation], Lengths(32, 32)
    examples, _ = render_examples(records, tokenizer, kind, lengths)
    assert sorted(examples.column_names) == ["input_ids", "labels", "length"]
    assert len(examples) == len(RECORDS)
    for record, row in zip(RECORDS, examples, strict=True):
        said = Conversation.from_turns(record["prompt"], record["response"], record["history"])
        example = render(tokenizer, kind, said, lengths)
        assert row["input_ids"] == example.input_ids
        assert row["labels"] == example.labels
        assert row["length"] == len(example.input_ids)


@pytest.mark.parametrize("generation", KINDS)
def test_truncation_is_counted(generation, toy_tokenizer, records):
    tokenizer, kind = toy_tokenizer(generation), KINDS[generation]
    _, truncation = render_examples(
        records, tokenizer, kind, Lengths(44 if generation < 4 else 30, 40)
    )
    assert truncation == Truncation(5, turns_dropped=2, prompts_cut=2, responses_cut=2)
    _, truncation = render_examples(records, tokenizer, kind, Lengths(2000, 2000))
    assert truncation == Truncation(5, 0, 0, 0)


def test_records_without_labels_are_counted_and_left_out(toy_tokenizer, records):
    tokenizer = toy_tokenizer(3)
    whole, _ = render_examples(records, tokenizer, Generation.CHATGLM3, Lengths(2000, 2000))
    tight = Lengths(24, 8, ORIGINAL)
    examples, truncation = render_examples(records, tokenizer, Generation.CHATGLM3, tight)
    kept = []
    for row in records:
        cut = render(tokenizer, Generation.CHATGLM3, conversation(row), tight)
        if any(label >= 0 for label in cut.labels[1:]):
            kept.append(cut.input_ids)
    assert 0 < len(kept) < len(records) == len(whole) == truncation.records
    assert truncation.without_labels == len(records) - len(kept)
    assert examples["input_ids"][:] == kept
    assert sorted(examples.column_names) == ["input_ids", "labels", "length"]


def test_the_first_label_is_nobodys():
    assert not has_labels([7, -100, -100])
    assert not has_labels([])
    assert has_labels([-100, 7])


def test_truncation_in_words():
    assert str(Truncation(4, 0, 0, 0, 1)) == (
        "1 of 4 records (25.0%) have no label left and do not count: "
        "use --truncation turns or a larger --max-source-length"
    )
    assert str(Truncation(8, 0, 0, 0)) == ""
    assert str(Truncation(8, 0, 0, 3)) == "3 of 8 records (37.5%) have their response cut"
    assert str(Truncation(1000, 2, 1, 0)) == (
        "2 of 1000 records (0.2%) lost earlier turns, "
        "1 of 1000 records (0.1%) have their prompt cut"
    )


def test_conversation_with_and_without_its_response(records):
    row = records[2]
    history = [["类型#裙" * 9, "黑色的裙子" * 9]]
    assert conversation(row) == Conversation.from_turns("颜色", "白色", history)
    assert conversation(row, False) == Conversation.from_turns("颜色", None, history)
    assert asked_last(row) == "颜色"


TOOLS = {
    "tools": ["f"],
    "messages": [
        {"role": "user", "content": "颜色"},
        {"role": "assistant", "content": "我查一下", "loss": False},
        {"role": "tool", "name": "f", "parameters": {"x": 1}, "observation": "黑色"},
        {"role": "assistant", "content": "黑色"},
    ],
}


def test_all_of_a_message_reaches_its_example(toy_tokenizer, tmp_path):
    tokenizer, lengths = toy_tokenizer(3), Lengths(500, 500)
    file = tmp_path / "data.json"
    file.write_text(json.dumps([RECORDS[0], TOOLS, RECORDS[2], TOOLS]), encoding="utf-8")
    records = read_records([file]).records.select([3, 1, 0])
    examples, _ = render_examples(records, tokenizer, Generation.CHATGLM3, lengths)
    for row, example in zip(records, examples, strict=True):
        expected = render(tokenizer, Generation.CHATGLM3, conversation(row), lengths)
        assert (example["input_ids"], example["labels"]) == (expected.input_ids, expected.labels)
    said = conversation(records[0])
    assert [message.learn for message in said.messages] == [None, None, False, None, None]
    assert said.messages[0].tools == '[\n    "f"\n]' and said.messages[3].metadata == "f"
    assert examples[0] == examples[1] != examples[2]


def test_asked_last_is_what_the_answer_is_an_answer_to(tmp_path):
    file = tmp_path / "data.json"
    step = {"role": "tool", "name": "f", "parameters": {}}
    calls = [*TOOLS["messages"][:2], step]
    file.write_text(json.dumps([TOOLS, {"messages": calls}]), encoding="utf-8")
    assert [asked_last(row) for row in read_records([file]).records] == ["黑色", "颜色"]


def test_training_batch_is_padded_at_its_end():
    rows = [
        {"input_ids": [11, 12, 13], "labels": [-100, 12, 13]},
        {"input_ids": [14], "labels": [14]},
    ]
    batch = TrainCollator(pad_token_id=3)(rows)
    assert batch.keys() == {"input_ids", "labels"}
    assert batch["input_ids"].tolist() == [[11, 12, 13], [14, 3, 3]]
    assert batch["labels"].tolist() == [[-100, 12, 13], [14, IGNORE_INDEX, IGNORE_INDEX]]
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())


def test_batch_of_a_step_has_its_longest_row_first():
    rows = [{"input_ids": [n] * n, "labels": [n] * n} for n in (1, 3, 2)]
    batch = StepCollator(pad_token_id=0)(rows)
    assert batch["lengths"] == [3, 2, 1]
    assert batch["input_ids"].tolist() == [[3, 3, 3], [2, 2, 0], [1, 0, 0]]
    assert batch["labels"].tolist() == [[3, 3, 3], [2, 2, -100], [1, -100, -100]]
    assert batch["places"] == [0, 1, 2]
    assert batch["num_items"] == 2 + 1  # no token predicts a row's first


def test_batch_of_a_step_is_shared_among_processes():
    rows = [{"input_ids": [n] * n, "labels": [-100] + [n] * (n - 1)} for n in (2, 5, 3, 4)]
    first, second = (StepCollator(0, process, 3)(rows) for process in (0, 1))
    assert (first["lengths"], first["places"]) == ([5, 2], [0, 3])
    assert (second["lengths"], second["places"]) == ([4], [1])
    assert first["num_items"] == second["num_items"] == 4 + 3 + 2 + 1
    # More processes than records: there is something to compute, and nothing to learn from it.
    idle = StepCollator(0, 4, 5)(rows)
    assert idle["input_ids"].tolist() == [[2, 2]] and idle["labels"].tolist() == [[-100, -100]]
    assert idle["num_items"] == first["num_items"]


def test_prompts_are_padded_in_front():
    ids, mask = pad_left([[11, 12, 13], [14], [15, 16]], pad_token_id=3)
    assert ids.tolist() == [[11, 12, 13], [3, 3, 14], [3, 15, 16]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1], [0, 1, 1]]
    assert ids.dtype == mask.dtype == torch.int64


@pytest.mark.parametrize("generation", KINDS)
def test_contexts_cut_are_counted(generation, toy_tokenizer, tmp_path):
    rows = [
        {"prompt": "颜色", "response": "黑色", "context": "黑色的裙子，" * n} for n in (0, 5, 80)
    ]
    path = tmp_path / "data.json"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    records = read_records([path]).records
    tokenizer, kind = toy_tokenizer(generation), KINDS[generation]
    examples, truncation = render_examples(records, tokenizer, kind, Lengths(140, 40))
    assert truncation == Truncation(3, 0, 0, 0, contexts_cut=1)
    assert str(truncation) == "1 of 3 records (33.3%) have their context cut"
    for row, example in zip(rows, examples, strict=True):
        said = Conversation.from_turns(row["prompt"], row["response"], context=row["context"])
        assert example["input_ids"] == render(tokenizer, kind, said, Lengths(140, 40)).input_ids
