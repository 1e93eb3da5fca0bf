"""What a preview says of a data set: the ids of training, and lengths that are true."""

import json
import random

import pytest

from ptune.base.folder import Generation
from ptune.commands.preview import Preview
from ptune.config.settings import PreviewSettings
from ptune.data.examples import conversation
from ptune.data.prompt import render
from ptune.data.records import read_records
from ptune.data.truncation import ORIGINAL

KINDS = dict(zip((1, 2, 3, 4), Generation, strict=False))
COUNT = 200


@pytest.fixture(params=KINDS)
def generation(request):
    return request.param


@pytest.fixture
def data(tmp_path):
    """Records of 5 to 80 characters; one in a hundred has a long prompt, and one a long answer."""
    draw = random.Random(0)
    records = []
    for i in range(COUNT):
        lengths = [draw.randint(5, 80), draw.randint(5, 80)]
        if i % 100 < 2:
            lengths[i % 100] = 400 + i
        texts = ["".join(draw.choice("黑白裙子上衣简约") for _ in range(n)) for n in lengths]
        records.append({"prompt": texts[0], "response": texts[1], "history": []})
    records[101]["context"] = "黑白裙子" * 100
    records[5]["history"] = [["类型#裙", "黑色的裙子"]]
    file = tmp_path / "data.json"
    file.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    return file


@pytest.fixture
def preview(generation, data, toy_folder):
    def make(**changes):
        values = {"data": (data,), "model": str(toy_folder(generation))}
        return Preview(PreviewSettings(**values | changes))

    return make


def is_whole(example):
    return not (
        example.turns_dropped or example.context_cut or example.prompt_cut or example.response_cut
    )


def test_examples_are_those_of_training(preview, generation, data, toy_tokenizer):
    shown = preview(max_source_length=48)
    assert shown.lengths.max_target_length == (64 if generation == 1 else 128)
    records = read_records([data]).records
    pairs = list(shown.examples())
    assert len(pairs) == COUNT
    for (row, example), record in zip(pairs, records, strict=True):
        said = conversation(record)
        expected = render(toy_tokenizer(generation), KINDS[generation], said, shown.lengths, True)
        assert example == expected
        assert row["source"] == record["source"]
    assert [row for row, _ in shown.examples(2)] == [records[0], records[1]]


def test_tokens_tell_what_is_learnt(preview, toy_tokenizer, generation):
    shown = preview()
    row, example = next(shown.examples())
    tokens = shown.tokens(row, example)
    assert [token.id for token in tokens] == example.input_ids
    assert [token.learnt for token in tokens] == [label >= 0 for label in example.labels]
    spelled = list(map(toy_tokenizer(generation).show_token, example.input_ids))
    assert [token.text for token in tokens] == spelled
    assert {token.message for token in tokens} == {"", "1 user", "2 assistant"}
    assert {token.message for token in tokens if token.learnt} - {""} == {"2 assistant"}


def test_truncated_records_are_those_that_lose_something(preview):
    for limits in ((20, 30), (64, 64), (2000, 2000)):
        shown = preview(max_source_length=limits[0], max_target_length=limits[1])
        cut = sum(not is_whole(example) for _, example in shown.examples())
        report = shown.lengths_of_all()
        assert (report.truncated, report.records) == (cut, COUNT)
        assert report.contexts_cut == (limits != (2000, 2000))
        assert (cut == 0) == (limits == (2000, 2000))


def test_percentiles_are_lengths_of_records(preview):
    report = preview().lengths_of_all()
    for side, name in ((report.source, "max_source_length"), (report.target, "max_target_length")):
        assert list(side) == [50, 90, 95, 99, 100]
        assert list(side.values()) == sorted(side.values())
        other = "max_target_length" if name == "max_source_length" else "max_source_length"
        for percent, length in side.items():
            # With room on the other side, just so many records stay whole, and fewer below.
            for limit, enough in ((length, True), (length - 1, False)):
                shown = preview(**{name: limit, other: 2000})
                kept = sum(is_whole(example) for _, example in shown.examples())
                assert (kept >= COUNT * percent / 100) == enough


def test_suggested_lengths_leave_99_percent_whole(preview):
    report = preview().lengths_of_all()
    suggested = {
        "max_source_length": report.suggested_source,
        "max_target_length": report.suggested_target,
    }
    assert all(length % 16 == 0 for length in suggested.values())
    for truncation in ("turns", ORIGINAL):
        shown = preview(**suggested, truncation=truncation)
        whole = sum(is_whole(example) for _, example in shown.examples())
        assert whole >= 0.99 * COUNT
    assert shown.lengths_of_all().truncated <= 0.01 * COUNT


def test_rare_long_records_do_not_stretch_the_suggestion(preview, data):
    records = json.loads(data.read_text(encoding="utf-8"))
    records = [record for i, record in enumerate(records) if i % 100 > 1] * 3
    records[0] = records[0] | {"prompt": "黑色的裙子" * 200}
    data.write_text(json.dumps(records), encoding="utf-8")
    report = preview().lengths_of_all()
    assert report.suggested_source < report.source[100] / 2


def test_skipped_records(preview, data):
    records = json.loads(data.read_text(encoding="utf-8"))
    records[3]["prompt"] = 5
    data.write_text(json.dumps(records), encoding="utf-8")
    shown = preview(skip_bad_records=True)
    assert len(shown.loaded.skipped) == 1
    assert shown.lengths_of_all().records == COUNT - 1


def test_tools_are_shown_where_there_is_a_prompt_for_them(preview, data, generation):
    step = {"role": "tool", "name": "f", "parameters": {}, "observation": "x"}
    asked, answer = {"role": "user", "content": "颜色"}, {"role": "assistant", "content": "黑色"}
    rows = [{"messages": [asked, step, answer], "tools": ["f"]}, {"messages": [asked, answer]}]
    data.write_text(json.dumps(rows), encoding="utf-8")
    shown = preview(skip_bad_records=True, max_source_length=500)
    assert len(shown.loaded.skipped) == (generation != 3)
    if generation == 3:
        tokens = shown.tokens(*next(shown.examples()))
        roles = ["", "1 system", "2 user", "3 assistant", "4 observation", "5 assistant"]
        assert list(dict.fromkeys(token.message for token in tokens)) == roles
