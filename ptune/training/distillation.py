"""A text distilled into a prefix: the base with the text in its context is the teacher.

Context distillation, as cartridges are trained (https://arxiv.org/abs/2506.06266): the prefix, the
student, learns the teacher's distribution of each token of the answers.  The teacher is the same
frozen model behind the keys and values of the text (`models/text_prefix.py`), so that it takes a
forward and no second model.

Shapes: `B` records, `S` tokens, `L` layers, `G` key/value heads, `D` head dimension, `T` tokens of
the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ptune.base.context import context_length
from ptune.base.folder import BaseModel
from ptune.data.files import read_whole_text
from ptune.data.prompt import render_text
from ptune.errors import ConfigError
from ptune.models.text_prefix import text_states

_OPTION = "--distill-text"
_SEEN = ("input_ids", "attention_mask", "position_ids")


def read_teacher_text(
    path: Path, tokenizer: Any, base: BaseModel, longest: int, notices: list[str]
) -> list[int]:
    """Read the text that the teacher has in its context, as ids.

    Args:
        path: of the file.
        tokenizer: from `build_tokenizer`.
        base: whose prompt to use.
        longest: tokens of prompt and answer that stand behind it.
        notices: is told how the file was read.

    Raises:
        ConfigError: the base cannot see text and records together.
        DataError: the file cannot be read.
    """
    ids = render_text(tokenizer, base.generation, read_whole_text(path, notices, _OPTION))
    context = context_length(base.config)
    if context is not None and len(ids) + longest > context:
        raise ConfigError(
            f"{_OPTION} {path} has {len(ids):,} tokens, and with records of {longest:,} the model "
            f"would have to see more than its context of {context:,}; take "
            f"{max(context - longest, 0):,} tokens of it at most"
        )
    return ids


class Teacher:
    """What the base says with a text in its context.

    Args:
        model: from `build_model`, frozen.
        ids: of the text.
    """

    def __init__(self, model: Any, ids: Sequence[int]) -> None:
        self._model = model
        self._text = _FixedPrefix(text_states(model, ids).clone())

    def hidden_states(self, inputs: dict[str, Any]) -> Tensor:
        """The last layer's states behind the text, `[B, S, hidden]`, without a gradient."""
        decoder = self._model.base_model
        own, decoder.prefix_encoder = decoder.prefix_encoder, self._text
        try:
            with torch.no_grad():
                given = {name: inputs[name] for name in _SEEN if name in inputs}
                states: Tensor = decoder(**given, use_cache=False).last_hidden_state
        finally:
            decoder.prefix_encoder = own
        return states


class _FixedPrefix(nn.Module):
    """Keys and values `[L, 2, G, T, D]` in the place of a prefix encoder."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states
        self.pre_seq_len = states.shape[3]

    def forward(self, batch_size: int, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
        """As of `PrefixEncoder`."""
        states = self.states.to(dtype)[:, :, None].expand(-1, -1, batch_size, -1, -1, -1)
        return [(key, value) for key, value in states]
