"""One prefix in transformers' continuous batching: the same greedy tokens.

It has no place for a prefix, and its cache of pages is no public interface.  So the prompt begins
with as many tokens that stand for nothing, and on their way into the pages their keys and values
are replaced by the prefix's, turned to where they stand.
"""

import pytest
import torch
from fixtures.native_models import write_native
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

from ptune import load_model
from ptune.checkpoint.prefix import attach_prefix
from ptune.models.prefix_encoder import PrefixEncoder, stack_prefix

library = pytest.importorskip("transformers.generation.continuous_batching.cache")
LENGTH, NEW = 6, 10
# Its pages would take most of the memory that is free.
SMALL = ContinuousBatchingConfig(num_blocks=8, max_batch_tokens=64)
PROMPTS = [[7, 9, 30, 44, 100], [*range(60, 83)]]


@pytest.mark.parametrize("family", ["qwen3", "llama", "gpt2"])
def test_same_tokens(family, tmp_path, monkeypatch):
    folder = write_native(tmp_path, family)
    ours = load_model(folder)
    encoder = PrefixEncoder(ours.base_model.prefix_shape, LENGTH, dropout=0.0)
    torch.manual_seed(3)
    torch.nn.init.normal_(encoder.embedding.weight, 0, 0.5)
    attach_prefix(ours, encoder.eval())
    states = stack_prefix(encoder, torch.float32).clone()
    states[:, 0] = ours.base_model.turn_keys(states[:, 0], LENGTH)
    update = library.PagedAttentionCache.update

    def with_prefix(self, key_states, value_states, layer_idx, kwargs):
        if key_states.shape[2] > 1:  # a prompt, alone
            key_states, value_states = key_states.clone(), value_states.clone()
            key_states[0, :, :LENGTH], value_states[0, :, :LENGTH] = states[layer_idx]
        return update(self, key_states, value_states, layer_idx, kwargs)

    monkeypatch.setattr(library.PagedAttentionCache, "update", with_prefix)
    theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
    options = GenerationConfig(max_new_tokens=NEW, do_sample=False, eos_token_id=-1, pad_token_id=0)
    for prompt in PROMPTS:
        asked = [[1] * LENGTH + prompt]
        (found,) = theirs.generate_batch(asked, options, SMALL).values()
        ids = torch.tensor([prompt])
        expected = ours.generate(ids, max_new_tokens=NEW, eos_token_id=None, pad_token_id=0)[0]
        assert found.generated_tokens == expected[len(prompt) :].tolist()
