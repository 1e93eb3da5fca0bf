"""eval_loss: the mean loss per label token over a development set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import datasets
import torch

from ptune.data.examples import TrainCollator
from ptune.data.prompt_source import IGNORE_INDEX


@torch.no_grad()
def total_loss(
    model: Any,
    examples: datasets.Dataset,
    pad_token_id: int,
    batch_size: int,
    progress: Callable[[int], None] | None = None,
) -> tuple[float, int]:
    """Sum the loss over all label tokens, longest examples first so that memory runs out early.

    Args:
        model: from `load_model`.
        examples: from `render_examples`.
        pad_token_id: of the tokenizer.
        batch_size: examples at once.
        progress: told how many examples are done.

    Returns:
        The summed loss and the count of label tokens.
    """
    training = model.training
    model.eval()
    try:
        return _sum_over(model, examples, pad_token_id, batch_size, progress)
    finally:
        model.train(training)


def _sum_over(
    model: Any,
    examples: datasets.Dataset,
    pad_token_id: int,
    batch_size: int,
    progress: Callable[[int], None] | None,
) -> tuple[float, int]:
    collate = TrainCollator(pad_token_id)
    lengths = examples["length"][:]
    order = sorted(range(len(examples)), key=lambda i: -lengths[i])
    loss, tokens = 0.0, 0
    for start in range(0, len(order), batch_size):
        rows = [examples[i] for i in order[start : start + batch_size]]
        batch = {name: t.to(model.device) for name, t in collate(rows).items()}
        output = model(**batch, use_cache=False, label_logits_only=True, num_items_in_batch=1)
        loss += output.loss.item()
        tokens += int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())
        if progress:
            progress(start + len(rows))
    return loss, tokens
