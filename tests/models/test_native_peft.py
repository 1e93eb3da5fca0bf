"""The same prefix in the `peft` library: losses, gradients and greedy tokens of five families.

There, the text stands behind the prefix, at `P` and on; here at 0 and on, and the keys are turned.
"""

import pytest
import torch
from fixtures.beside_peft import compare_losses
from fixtures.native_models import FAMILIES, write_native
from transformers import AutoModelForCausalLM, DynamicCache

from ptune import load_model
from ptune.checkpoint.prefix import attach_prefix
from ptune.models.prefix_encoder import PrefixEncoder, embedding_to_states, states_to_embedding

LENGTH = 6
PROMPT = [7, 9, 30, 44, 100]
TEXT = [*range(30, 54)]


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, peft, tmp_path_factory):
    """A model with a prefix here, and the same there."""
    family = request.param
    # Beyond a window, `peft` leaves the prefix behind, and here it is always seen.
    window = {"sliding_window": 64} if family in ("mistral", "gemma2") else {}
    folder = write_native(tmp_path_factory.mktemp("peft") / "base", family, **window)
    ours = load_model(folder)
    encoder = PrefixEncoder(ours.base_model.prefix_shape, LENGTH, dropout=0.0)
    torch.manual_seed(3)
    torch.nn.init.normal_(encoder.embedding.weight, 0, 0.5)
    attach_prefix(ours, encoder)
    library = AutoModelForCausalLM.from_pretrained(folder)
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=LENGTH)
    theirs = peft.get_peft_model(library, config)
    states = embedding_to_states(encoder.embedding.weight.detach(), encoder.shape).clone()
    states[:, 0] = ours.base_model.turn_keys(states[:, 0], LENGTH)
    theirs.prompt_encoder["default"].embedding.weight.data = states_to_embedding(states)
    return ours.eval(), theirs.eval()


def test_greedy_tokens(pair):
    ours, theirs = pair
    ids = torch.tensor([PROMPT])
    with torch.no_grad():
        here = ours.generate(ids, max_new_tokens=8)[0].tolist()
        there = theirs.generate(input_ids=ids, max_new_tokens=8, do_sample=False)[0].tolist()
    assert here[: len(there)] == there[: len(here)]
    assert len(here) > len(PROMPT)


def test_loss_and_gradient(pair):
    ours, theirs = pair
    compare_losses(ours, theirs)
    (weight,) = [p for name, p in theirs.named_parameters() if p.requires_grad]
    encoder = ours.base_model.prefix_encoder
    found, expected = encoder.embedding.weight.grad, weight.grad
    shape = encoder.shape
    # Of the values as it is, of the keys turned: a rotation keeps lengths.
    mine, other = (embedding_to_states(grad, shape) for grad in (found, expected))
    torch.testing.assert_close(mine[:, 1], other[:, 1], atol=1e-6, rtol=1e-3)
    torch.testing.assert_close(
        ours.base_model.turn_keys(mine[:, 0], LENGTH), other[:, 0], atol=1e-6, rtol=1e-3
    )


def test_keys_turn_as_positions_do(pair):
    decoder = pair[0].base_model

    def keys(first):
        cache = DynamicCache()
        positions = torch.arange(first, first + len(PROMPT))[None]
        encoder, decoder.prefix_encoder = decoder.prefix_encoder, None
        decoder(input_ids=torch.tensor([PROMPT]), position_ids=positions, past_key_values=cache)
        decoder.prefix_encoder = encoder
        return [layer.keys for layer in cache.layers]

    if decoder.learned_positions is not None:
        pytest.skip("its keys are not turned")
    with torch.inference_mode():
        for before, after in zip(keys(0), keys(7), strict=True):
            torch.testing.assert_close(decoder.turn_keys(before, 7), after, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(decoder.turn_keys(after, -7), before, atol=1e-5, rtol=1e-4)
