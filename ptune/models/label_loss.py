"""The language-model loss, and logits for no more positions than somebody asked for."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from ptune.prompt import IGNORE_INDEX


def logits_and_loss(
    lm_head: nn.Module,
    hidden_states: Tensor,
    past_key_values: Any,
    labels: Tensor | None,
    logits_to_keep: int | Tensor,
    label_logits_only: bool,
    num_items_in_batch: Tensor | int | None,
) -> CausalLMOutputWithPast:
    """Apply the head and, with labels, the loss; the last step of every model's forward.

    Args:
        lm_head: `[hidden] -> [vocabulary]`.
        hidden_states: `[B, S, hidden]`.
        past_key_values: passed through.
        labels: `[B, S]`; position `i` of the logits is held against label `i + 1`, and
            `IGNORE_INDEX` counts for nothing.
        logits_to_keep: without labels, the last positions (or the given ones) to compute; 0 is all.
        label_logits_only: compute logits only where a label asks for them; they come back as
            `[N, vocabulary]`.  A vocabulary of 130,528 makes this most of the memory of a step.
        num_items_in_batch: divide the summed loss by this count of labels (of all micro-batches of
            a step) in place of this batch's own.

    Returns:
        The loss in float32, and the logits in the model's precision.
    """
    if labels is None:
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        # Contiguous: on the CPU, a product in bfloat16 would copy the head for each row otherwise.
        logits = lm_head(hidden_states[:, keep].contiguous())
        return CausalLMOutputWithPast(logits=logits, past_key_values=past_key_values)

    targets = labels[:, 1:]
    if label_logits_only:
        wanted = targets != IGNORE_INDEX
        logits = lm_head(hidden_states[:, :-1][wanted])
        scores, targets = logits, targets[wanted]
    else:
        logits = lm_head(hidden_states)
        scores, targets = logits[:, :-1].flatten(0, 1), targets.flatten()
    loss = F.cross_entropy(scores.float(), targets, ignore_index=IGNORE_INDEX, reduction="sum")
    if num_items_in_batch is None:
        num_items_in_batch = (targets != IGNORE_INDEX).sum()
    loss = loss / torch.as_tensor(num_items_in_batch, device=loss.device)
    return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)
