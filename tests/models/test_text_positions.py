"""ChatGLM-6B: positions from the ids, and how later tokens go on from a cache."""

from types import SimpleNamespace

import pytest
import torch
from fixtures.checkpoints import small_case

from ptune.errors import ModelError
from ptune.models.chatglm import ChatGLMConfig
from ptune.models.text_positions import continue_text, read_text, remember_text, text_index

MASK, GMASK, SOP, PAD = 300, 301, 304, 3
CONFIG = ChatGLMConfig(**small_case(1)["config"])


def read(ids):
    ids = torch.tensor(ids)
    is_text = ids != PAD
    index = text_index(ids.shape[1], 0, is_text.long(), ids)
    return read_text(CONFIG, ids, index, is_text)


def cache_of(ids):
    """What is remembered of a text."""
    ids = torch.tensor(ids)
    is_text, cache = ids != PAD, SimpleNamespace()
    index = text_index(ids.shape[1], 0, is_text.long(), ids)
    remember_text(cache, read_text(CONFIG, ids, index, is_text), index, is_text)
    return cache


def test_positions_around_gmask_and_sop():
    position, block = read([[50, 51, 52, GMASK, SOP, 60, 61]])
    assert position.tolist() == [[0, 1, 2, 3, 3, 3, 3]]
    assert block.tolist() == [[0, 0, 0, 0, 1, 2, 3]]


def test_positions_do_not_count_padding():
    position, block = read(
        [
            [PAD, PAD, 50, GMASK, SOP, 60],
            [50, 51, 52, 53, GMASK, SOP],
            [50, GMASK, SOP, 60, 61, PAD],
        ]
    )
    assert position[0, 2:].tolist() == [0, 1, 1, 1]
    assert block[0].tolist() == [0, 0, 0, 0, 1, 2]
    assert position[1].tolist() == [0, 1, 2, 3, 4, 4]
    assert position[2, :5].tolist() == [0, 1, 1, 1, 1]
    assert block[2, :5].tolist() == [0, 0, 1, 2, 3]


def test_mask_token_serves_where_there_is_no_gmask():
    position, _ = read([[50, MASK, 51, SOP, 60], [MASK, 50, GMASK, SOP, 60]])
    assert position.tolist() == [[0, 1, 2, 1, 1], [0, 1, 2, 2, 2]]


def test_text_without_sop_is_all_context():
    position, block = read([[50, 51, 52]])
    assert position.tolist() == [[0, 1, 2]] and not block.any()


def test_positions_go_on_from_a_cache():
    ids = [
        [PAD, 50, 51, GMASK, SOP, 60, 61, 62],
        [50, 51, 52, 53, GMASK, SOP, 60, 61],
        [50, GMASK, SOP, 60, 61, PAD, 62, 63],
    ]
    whole, mask = read(ids), (torch.tensor(ids) != PAD).long()
    cache = cache_of([row[:6] for row in ids])
    for start, end in ((6, 7), (7, 8), (6, 8)):  # the last as after a crop
        index = text_index(end - start, start, mask[:, :end], mask[:, start:end])
        assert continue_text(cache, index, start).tolist() == whole[:, :, start:end].tolist()


def test_rows_of_a_cache_that_were_repeated():
    cache = cache_of([[50, 51, GMASK, SOP], [50, GMASK, SOP, 60]])
    index = text_index(1, 4, None, torch.zeros(4, 1))
    position, block = continue_text(cache, index, 4)
    assert position.flatten().tolist() == [2, 2, 1, 1]
    assert block.flatten().tolist() == [2, 2, 3, 3]


@pytest.mark.parametrize("ids", [[[50, 51, 52]], [[50, GMASK, 52]], [[50, GMASK, SOP, 60]]])
def test_cache_that_ends_before_sop(ids):
    """Also one that was cropped there: what it holds has seen what is gone."""
    with pytest.raises(ModelError, match=r"ends before <sop>, after 2 tokens, .* prefill_chunk"):
        continue_text(cache_of(ids), text_index(1, 2, None, torch.zeros(1, 1)), 2)


def test_cropped_cache_is_looked_at_again():
    cache = cache_of([[50, GMASK, SOP, 60]])
    continue_text(cache, text_index(1, 4, None, torch.zeros(1, 1)), 4)
    continue_text(cache, text_index(1, 3, None, torch.zeros(1, 1)), 3)
    with pytest.raises(ModelError, match="after 1 tokens"):
        continue_text(cache, text_index(1, 1, None, torch.zeros(1, 1)), 1)


def test_cache_of_another_model():
    with pytest.raises(
        ModelError, match="holds 7 tokens that this model did not compute; pass a ca"
    ):
        continue_text(SimpleNamespace(), text_index(1, 7, None, torch.zeros(1, 1)), 7)


def test_mask_of_another_length():
    with pytest.raises(ModelError, match=r"shape \[2, 3\] for 1 tokens a row after 4 .* \[2, 5\]"):
        text_index(1, 4, torch.ones(2, 3), torch.zeros(2, 1))
