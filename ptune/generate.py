"""Answers for many prompts: ids in, ids out, in left-padded batches of like length."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import set_seed

from ptune.data import pad_left


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        max_new_tokens: longest answer.
        do_sample: draw from the distribution; else take the likeliest token.
        top_p: nucleus to draw from.
        temperature: flattens or sharpens the distribution.
    """

    max_new_tokens: int = 512
    do_sample: bool = False
    top_p: float = 0.7
    temperature: float = 0.95

    def arguments(self) -> dict[str, Any]:
        """What `generate` is to be called with."""
        chosen: dict[str, Any] = {"max_new_tokens": self.max_new_tokens}
        chosen["do_sample"] = self.do_sample
        if self.do_sample:
            # The original samples from 50 tokens, by a default of the library of its day.
            chosen |= {"top_p": self.top_p, "temperature": self.temperature, "top_k": 50}
        return chosen


def generate_all(
    model: Any,
    prompts: Sequence[Sequence[int]],
    batch_size: int,
    sampling: Sampling,
    seed: int = 0,
    done: Collection[int] = (),
) -> Iterator[list[tuple[int, list[int]]]]:
    """Answer prompts batch by batch, the longest first so that memory runs out early if it does.

    Args:
        model: from `load_model`.
        prompts: ids without padding.
        batch_size: prompts at once.
        sampling: how to choose tokens.
        seed: with sampling; a batch draws the same whether or not others came before it.
        done: indices of prompts that need no answer; a batch of such alone is left out.

    Yields:
        For each batch, pairs of a prompt's index and its new ids, without the end token.
    """
    stops = model.generation_config.eos_token_id
    pad = model.generation_config.pad_token_id
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        if all(i in done for i in indices):
            continue
        ids, mask = pad_left([prompts[i] for i in indices], pad)
        if sampling.do_sample:
            set_seed(seed + start)
        with torch.inference_mode():
            output = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                **sampling.arguments(),
            )
        answers = output[:, ids.shape[1] :].tolist()
        yield [(i, _until_stop(row, stops)) for i, row in zip(indices, answers, strict=True)]


def _until_stop(ids: list[int], stops: Sequence[int]) -> list[int]:
    """Cut at the first stop id; what `generate` puts behind it is padding."""
    end = next((i for i, token in enumerate(ids) if token in stops), len(ids))
    return ids[:end]
