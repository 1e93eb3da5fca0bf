"""The wording of a question about a text, and the longest beginning of the text that fits."""

import random

import pytest

from ptune.data.context import ContextCut, holds_context, longest_beginning, with_context


def test_wording():
    said = "已知信息：裤子是羊毛的。\n根据已知信息回答问题：什么材质？"
    assert with_context("裤子是羊毛的。", "什么材质？") == said
    assert with_context("\n 裤子是羊毛的。\n\n", "什么材质？") == said
    assert with_context(" \n", "什么材质？") == "什么材质？" == with_context("", "什么材质？")


def test_a_question_that_holds_a_context():
    assert holds_context(with_context("a", "b")) and holds_context(
        "\n已知信息：\n根据已知信息回答问题："
    )
    assert not holds_context("已知信息：什么意思？")
    assert not holds_context("“已知信息：a\n根据已知信息回答问题：b”")


@pytest.mark.parametrize("length", [0, 1, 2, 63, 64, 65, 128, 129, 1000])
@pytest.mark.parametrize("most", [-1, 0, 1, 2, 63, 64, 65, 127, 128, 500, 999, 1000, 5000])
def test_longest_beginning(length, most):
    text = "".join(random.Random(0).choice("文😀a\n") for _ in range(length))
    assert longest_beginning(text, lambda part: len(part) <= most) == text[: max(most, 0)]


def test_a_text_that_is_much_too_long_is_not_tried_as_a_whole():
    tried = []
    longest_beginning("文" * 10**6, lambda part: tried.append(len(part)) or len(part) <= 500)
    assert max(tried) <= 1024 and len(tried) < 20


def test_cut_in_words():
    said = "of its 5,000 tokens the first 1,200 fit, 1,700 of 7,001 characters"
    assert str(ContextCut(5000, 1200, 7001, 1700)) == said
