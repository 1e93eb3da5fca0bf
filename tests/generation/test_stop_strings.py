"""Stop strings, in pieces of any size."""

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ptune.generation.stop_strings import StopStrings


@example(text="ab。", strings=["b", "ab。"], cuts=[2])
@given(
    text=st.text("ab。", max_size=12),
    strings=st.lists(st.text("ab。", min_size=1, max_size=3), max_size=3),
    cuts=st.lists(st.integers(0, 12), max_size=4),
)
def test_the_answer_ends_before_the_first_of_them(text, strings, cuts):
    stops = StopStrings(strings)
    places = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    said = ""
    for begin, end in pairwise(places):
        said += stops.push(text[begin:end])
    rest = stops.finish()
    found = [(p + len(string), p) for string in strings if (p := text.find(string)) >= 0]
    if found:  # the one that is complete first
        assert said == text[: min(found)[1]] and rest == "" and stops.found
        assert stops.push("more") == ""
    else:
        assert said + rest == text and not stops.found


@pytest.mark.parametrize(("pushed", "passed"), [("你好\n", "你好"), ("a\n\n", "a"), ("abc", "abc")])
def test_no_more_is_held_back_than_may_begin_one(pushed, passed):
    assert StopStrings(["\n\n", "\nUser"]).push(pushed) == passed
