"""A prefix that begins as a text: the model with it against the bare model that has the text."""

import pytest
import torch
from fixtures.checkpoints import small_case
from transformers import DynamicCache

from ptune import load_model
from ptune.checkpoint.prefix import attach_prefix
from ptune.models.prefix_encoder import PrefixEncoder, prefix_disabled, shown_prefix
from ptune.models.text_prefix import start_from, text_states

TEXT = list(range(20, 45))
QUESTION = [61, 17, 201, 44, 99, 150]


@pytest.fixture
def model(request, model_folder):
    generation, settings = request.param
    return load_model(model_folder(small_case(generation, **settings)), device="cpu")


def with_text(model, ids):
    encoder = PrefixEncoder(model.base_model.prefix_shape, len(ids))
    start_from(encoder, text_states(model, ids))
    attach_prefix(model.eval(), encoder)
    return model


def logits(model, ids, **more):
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids]), **more).logits[0]


LATER = [(2, {}), (3, {}), (2, {"rope_ratio": 16}), (2, {"multi_query_group_num": 4})]


@pytest.mark.parametrize("model", LATER, ids=str, indirect=True)
class TestLater:
    def test_exact(self, model):
        bare = logits(model, TEXT + QUESTION)[len(TEXT) :]
        alone = logits(model, QUESTION)
        found = logits(with_text(model, TEXT), QUESTION)
        torch.testing.assert_close(found, bare, atol=1e-4, rtol=0)
        assert (found - alone).abs().max() > 0.01

    def test_while_another_prefix_is_shown(self, model):
        states = text_states(model, TEXT)
        attach_prefix(model, PrefixEncoder(model.base_model.prefix_shape, 3))
        torch.testing.assert_close(text_states(model, TEXT), states)

    def test_keys_turn_as_positions_do(self, model):
        decoder = model.base_model

        def keys(first):
            cache = DynamicCache()
            positions = torch.arange(first, first + len(TEXT))[None]
            decoder(input_ids=torch.tensor([TEXT]), position_ids=positions, past_key_values=cache)
            return [layer.keys for layer in cache.layers]

        with torch.inference_mode():
            here, moved = keys(0), keys(7)
            for before, after in zip(here, moved, strict=True):
                torch.testing.assert_close(decoder.turn_keys(before, 7), after)
                torch.testing.assert_close(decoder.turn_keys(after, -7), before)
                torch.testing.assert_close(decoder.turn_keys(before, 0), before)


MARKS = [301, 304]


@pytest.mark.parametrize("model", [(1, {"num_layers": 1})], ids=str, indirect=True)
def test_a_layer_of_the_first_generation_is_exact(model):
    bare = logits(model, TEXT + QUESTION + MARKS)[len(TEXT) :]
    found = logits(with_text(model, TEXT), QUESTION + MARKS)
    torch.testing.assert_close(found, bare, atol=1e-4, rtol=0)


@pytest.mark.parametrize("model", [(1, {})], ids=str, indirect=True)
class TestFirst:
    def test_near_what_the_text_does(self, model):
        bare = logits(model, TEXT + QUESTION + MARKS)[-1].softmax(-1)
        alone = logits(model, QUESTION + MARKS)[-1].log_softmax(-1)
        found = logits(with_text(model, TEXT), QUESTION + MARKS)[-1].log_softmax(-1)

        def far(log_probabilities):
            return torch.nn.functional.kl_div(log_probabilities, bare, reduction="sum")

        assert far(found) < far(alone) / 3


@pytest.mark.parametrize("model", [(1, {}), (3, {})], ids=str, indirect=True)
def test_what_the_encoder_shows_is_what_was_computed(model):
    states = text_states(model, TEXT)
    assert torch.equal(shown_prefix(with_text(model, TEXT)), states)
    with prefix_disabled(model):
        assert model.base_model.prefix_enabled is False
    assert model.base_model.prefix_enabled
