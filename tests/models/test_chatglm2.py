"""ChatGLM2 and 3 on the library's decoder: positions."""

import torch
from fixtures.checkpoints import changed, small_case, small_ids, write_model

from ptune import load_model

CASE = small_case(2)


def test_sequence_length_of_the_config_is_no_limit_of_the_rotation(tmp_path):
    """Angles are computed as they are needed."""
    ids = small_ids(CASE, 40)[None]
    logits = []
    for length in (16, 2048):
        folder = write_model(tmp_path / str(length), changed(CASE, seq_length=length))
        logits.append(load_model(folder)(input_ids=ids).logits)
    assert torch.equal(*logits)


def test_given_positions_take_the_place_of_counted_ones(model_folder):
    model = load_model(model_folder(CASE))
    ids = small_ids(CASE, 12)[None]
    counted = model(input_ids=ids).logits
    given = model(input_ids=ids, position_ids=torch.arange(12)[None]).logits
    stretched = model(input_ids=ids, position_ids=2 * torch.arange(12)[None]).logits
    assert torch.equal(counted, given)
    assert not torch.allclose(counted, stretched, atol=1e-3)


def test_several_ends_of_an_answer(tmp_path):
    case = changed(CASE, eos_token_id=[2, 300, 301])
    folder = write_model(tmp_path / "chatglm2-6b", case)
    assert load_model(folder).generation_config.eos_token_id == [2, 300, 301]
