"""transformers' own tests of a model, run on ours: tiny ones, with and without a prefix.

`make peer` fetches them; PTUNE_PEER_TESTS names the folder that holds test_modeling_common.py.  The
source distribution has no tests of `generate`: for these, too, name `tests` of a git checkout of
the same version.  What does not apply is in conventions.py.
"""

import importlib
import os
import sys
import types
import unittest
from pathlib import Path

import pytest
import torch
from peer import conventions
from transformers import GlmConfig, GlmForCausalLM, GlmModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)

from ptune.models.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration, ChatGLMModel
from ptune.models.chatglm2 import ChatGLM2ForConditionalGeneration, ChatGLM2Model
from ptune.models.chatglm2_layout import ChatGLM2Config

if "PTUNE_PEER_TESTS" not in os.environ:
    pytest.skip("needs transformers' tests: make peer", allow_module_level=True)

VOCABULARY, GMASK, SOP, PREFIX_LENGTH = 99, 97, 98, 5
SIZES = {"hidden_size": 32, "num_attention_heads": 4, "pad_token_id": 0}


def import_mixins(folder):
    """Import both mixins, under a name of their own: `tests` may be ours."""
    package = sys.modules["transformers_tests"] = types.ModuleType("transformers_tests")
    package.__path__ = [str(folder)]
    for name, mixin in (
        ("exporters.test_export", "ExportTesterMixin"),
        ("generation.test_utils", "GenerationTesterMixin"),
    ):
        if not (folder / f"{name.replace('.', '/')}.py").exists():
            for full in (name.split(".")[0], name):
                sys.modules[f"transformers_tests.{full}"] = types.ModuleType(full)
            setattr(sys.modules[f"transformers_tests.{name}"], mixin, type(mixin, (), {}))
    common = importlib.import_module("transformers_tests.test_modeling_common")
    return common.ModelTesterMixin, common.GenerationTesterMixin


MIXINS = import_mixins(Path(os.environ["PTUNE_PEER_TESTS"]))


class Inputs:
    """What the tests ask for: a configuration and a batch whose first rows are left-padded."""

    batch_size, seq_length, is_training = 13, 7, True
    hidden_size, num_attention_heads, num_hidden_layers = 32, 4, 2
    vocab_size = VOCABULARY

    def __init__(self, config, prefix):
        self.get_config = config
        self.key_length = self.seq_length + prefix  # of attention weights

    def prepare_config_and_inputs_for_common(self):
        ids = torch.randint(1, GMASK, (self.batch_size, self.seq_length))
        mask = torch.ones_like(ids)
        ids[:, 3], ids[:, 4] = GMASK, SOP
        for row in range(3):
            ids[row, :row], mask[row, :row] = 0, 0
        return self.get_config(), {"input_ids": ids, "attention_mask": mask}


def chatglm(prefix):
    return ChatGLMConfig(
        vocab_size=VOCABULARY,
        inner_hidden_size=64,
        num_layers=2,
        mask_token_id=96,
        gmask_token_id=GMASK,
        bos_token_id=SOP,
        eos_token_id=2,
        max_sequence_length=512,
        pre_seq_len=prefix,
        **SIZES,
    )


def chatglm2(prefix):
    return ChatGLM2Config(
        padded_vocab_size=VOCABULARY,
        ffn_hidden_size=48,
        num_layers=2,
        kv_channels=8,
        multi_query_attention=True,
        multi_query_group_num=2,
        add_qkv_bias=True,
        seq_length=512,
        pre_seq_len=prefix,
        **SIZES,
    )


def glm(prefix):
    sizes = {"num_hidden_layers": 2, "num_key_value_heads": 2, "head_dim": 8}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "vocab_size": VOCABULARY}
    return GlmConfig(intermediate_size=48, max_position_embeddings=512, **sizes, **ids, **SIZES)


class Common(*MIXINS):
    """Both mixins; attention weights are checked without their columns for the prefix.

    But for those of assisted generation: there, the library keeps as many columns as there is text.
    """

    prefix = 0

    def setUp(self):
        self.model_tester = Inputs(lambda: self.make_config(self.prefix), self.prefix)
        if reason := conventions.WHOLE.get(self._testMethodName):
            self.all_model_classes = self.all_model_classes[1:]
            if not self.prefix:
                self.skipTest(reason)

    def _check_attentions_for_generate(self, batch_size, attentions, prompt_length, **rest):
        first = attentions[0][0].shape[-1]
        start = self.prefix if first >= self.prefix + prompt_length else 0
        text = tuple(tuple(layer[..., start:] for layer in step) for step in attentions)
        super()._check_attentions_for_generate(batch_size, text, prompt_length, **rest)


def case(classes, make_config, prefix=0, exceptions=None):
    """A test case of these classes; what `exceptions` name is expected to fail."""
    content = {"all_model_classes": classes, "prefix": prefix}
    made = type("Case", (Common, unittest.TestCase), content)
    made.make_config = staticmethod(make_config)
    for name in [name for name in dir(made) if name.startswith("test_")]:
        for begin, reason in (exceptions or {}).items():
            if name.startswith(begin):
                mark = pytest.mark.xfail(reason=reason, strict=True)
                setattr(made, name, mark(getattr(made, name)))
    return made


FIRST = ChatGLMModel, ChatGLMForConditionalGeneration
SECOND = ChatGLM2Model, ChatGLM2ForConditionalGeneration
for decoder, causal_lm in (FIRST, SECOND):  # tells the tests which class is what
    MODEL_MAPPING_NAMES[decoder.__name__] = decoder.__name__
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[decoder.__name__] = causal_lm.__name__

# The library's own model, to tell a fault of ours from one of the tests.
TestGlm = case((GlmModel, GlmForCausalLM), glm)
TestChatGLM = case(FIRST, chatglm, 0, conventions.CHATGLM)
TestChatGLMWithPrefix = case(FIRST, chatglm, PREFIX_LENGTH, conventions.CHATGLM)
TestChatGLM2 = case(SECOND, chatglm2, 0, conventions.CHATGLM2)
TestChatGLM2WithPrefix = case(SECOND, chatglm2, PREFIX_LENGTH, conventions.CHATGLM2)
