"""The language-model loss, and logits for no more positions than somebody asked for."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ptune.data.prompt_source import IGNORE_INDEX
from ptune.device.linear import Linear
from ptune.device.memory import LABELS_AT_ONCE
from ptune.errors import ModelError


def logits_and_loss(
    lm_head: nn.Module,
    hidden_states: Tensor,
    labels: Tensor | None,
    shift_labels: Tensor | None = None,
    logits_to_keep: int | Tensor = 0,
    label_logits_only: bool = False,
    num_items_in_batch: Tensor | int | None = None,
    teacher_states: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """Apply the head and, with labels, the loss; the last step of every model's forward.

    Args:
        lm_head: `[hidden] -> [vocabulary]`.
        hidden_states: `[B, S, hidden]`.
        labels: `[B, S]`; position `i` of the logits is held against label `i + 1`, and
            `IGNORE_INDEX` counts for nothing.
        shift_labels: `[B, S]`, in the place of `labels`: label `i` belongs to position `i`.
        logits_to_keep: without labels, the last positions (or the given ones) to compute; 0 is all.
        label_logits_only: compute logits only where a label asks for them, a few at a time, and
            give back none.  A vocabulary of 130,528 makes them most of the memory of a step.
        num_items_in_batch: divide the summed loss by this count of labels (of all micro-batches of
            a step) in place of this batch's own.
        teacher_states: `[B, S, hidden]`, with `label_logits_only`: the loss is the divergence from
            the distributions that the head makes of these, not from the labels.

    Returns:
        The logits in the model's precision, and the loss in float32.

    Raises:
        ModelError: a teacher without the labels that say where it is listened to.
    """
    if teacher_states is not None and not (label_logits_only and labels is not None):
        raise ModelError("teacher_states has no effect without labels and label_logits_only")
    if labels is None and shift_labels is None:
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        # Contiguous: on the CPU, a product in bfloat16 would copy the head for each row otherwise.
        return lm_head(hidden_states[:, keep].contiguous()), None

    if shift_labels is not None:
        targets, scored = shift_labels.flatten(), slice(None)
    elif labels is not None:
        targets, scored = labels[:, 1:].flatten(), slice(-1)
    if label_logits_only:
        logits, wanted = None, (targets != IGNORE_INDEX).nonzero().squeeze(1)
        targets = targets[wanted]
        rows = hidden_states[:, scored].flatten(0, 1)[wanted]
        if teacher_states is not None:
            taught = teacher_states[:, scored].flatten(0, 1)[wanted]
            loss = summed_divergence(lm_head, rows, taught)
        else:
            loss = summed_loss(lm_head, rows, targets)
    else:
        logits = lm_head(hidden_states)
        scores = logits[:, scored].flatten(0, 1).float()
        loss = F.cross_entropy(scores, targets, ignore_index=IGNORE_INDEX, reduction="sum")
    if num_items_in_batch is None:
        num_items_in_batch = (targets != IGNORE_INDEX).sum()
    return logits, loss / torch.as_tensor(num_items_in_batch, device=loss.device)


def summed_loss(lm_head: nn.Module, hidden_states: Tensor, targets: Tensor) -> Tensor:
    """Sum the cross entropy over tokens without ever holding the logits of all.

    The idea of Liger Kernel's fused linear cross entropy (https://arxiv.org/abs/2410.10989): as
    soon as a few tokens have their logits, the gradient of their hidden states is made of them.

    Args:
        lm_head: `[hidden] -> [vocabulary]`.
        hidden_states: `[N, hidden]`.
        targets: `[N]`, the tokens to be predicted.

    Returns:
        The loss in float32, a scalar.
    """
    if any(weight.requires_grad for weight in lm_head.parameters()):
        return F.cross_entropy(lm_head(hidden_states).float(), targets, reduction="sum")
    return _SummedLoss.apply(hidden_states, lm_head, targets)  # type: ignore[no-any-return, no-untyped-call]


def summed_divergence(lm_head: nn.Module, hidden_states: Tensor, teacher_states: Tensor) -> Tensor:
    """Sum KL(teacher, student) over tokens, a few at a time as in `summed_loss`.

    Args:
        lm_head: `[hidden] -> [vocabulary]`, which is not trained.
        hidden_states: `[N, hidden]`, the student's.
        teacher_states: `[N, hidden]`, without a gradient.

    Returns:
        The divergence in float32, a scalar.
    """
    return _SummedLoss.apply(hidden_states, lm_head, teacher_states)  # type: ignore[no-any-return, no-untyped-call]


class _SummedLoss(torch.autograd.Function):
    """For a head that is not trained: the gradient of the hidden states is all there is."""

    @staticmethod
    def forward(ctx: Any, hidden_states: Tensor, lm_head: nn.Module, targets: Tensor) -> Tensor:
        """Against targets `[N]`, or a teacher's hidden states `[N, hidden]`."""
        total = torch.zeros((), device=hidden_states.device)
        gradient = torch.empty_like(hidden_states) if ctx.needs_input_grad[0] else None
        head, teacher = _head(lm_head, len(targets)), None
        if targets.is_floating_point():
            teacher = _head(lm_head, len(targets))
        for start in range(0, len(targets), LABELS_AT_ONCE):
            part = slice(start, start + LABELS_AT_ONCE)
            # Before the student's, whose logits the gradient is of.
            taught = teacher.log_softmax(targets[part]) if teacher is not None else None
            scores = head.log_softmax(hidden_states[part])
            if taught is not None:
                expected = taught.exp()
                total += (expected * (taught - scores)).sum()
            else:
                total -= scores.gather(1, targets[part, None]).sum()
            if gradient is not None:
                change = scores.exp_()
                if taught is not None:
                    change -= expected
                else:
                    target = targets[part, None]
                    change.scatter_add_(1, target, change.new_full(target.shape, -1))
                head.backward(change, gradient[part])
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        # In float32: with a loss scale, the factor alone may be beyond float16.
        return (gradient.float() * grad_output).to(gradient.dtype), None, None


def _head(lm_head: nn.Module, rows: int) -> _PlainHead | _AnyHead:
    if type(lm_head) in (nn.Linear, Linear) and lm_head.bias is None:
        return _PlainHead(lm_head.weight, min(rows, LABELS_AT_ONCE))
    return _AnyHead(lm_head)


class _PlainHead:
    """A linear head, `rows` tokens at a time, always in the same memory.

    The CPU gets fresh memory page by page, which takes longer than the product.
    """

    def __init__(self, weight: Tensor, rows: int) -> None:
        self.weight = weight
        self.logits = weight.new_empty(rows, len(weight))
        self.scores = self.logits
        if weight.dtype is not torch.float32:
            self.scores = torch.empty_like(self.logits, dtype=torch.float32)

    def log_softmax(self, rows: Tensor) -> Tensor:
        """`[n, hidden]` to `[n, vocabulary]` in float32, which may be written to."""
        logits, scores = self.logits[: len(rows)], self.scores[: len(rows)]
        torch.mm(rows, self.weight.t(), out=logits)
        return torch.log_softmax(logits, -1, dtype=torch.float32, out=scores)

    def backward(self, change: Tensor, out: Tensor) -> None:
        """From the gradient of the newest logits `[n, vocabulary]` to that of the rows, `out`."""
        if change.dtype is not self.logits.dtype:
            change = self.logits[: len(change)].copy_(change)
        torch.mm(change, self.weight, out=out)


class _AnyHead:
    """As `_PlainHead`, for a head that only knows how to multiply (its weight is quantized)."""

    def __init__(self, lm_head: nn.Module) -> None:
        self.lm_head = lm_head
        self.rows, self.logits = torch.empty(0), torch.empty(0)

    def log_softmax(self, rows: Tensor) -> Tensor:
        """As of `_PlainHead`."""
        with torch.enable_grad():
            self.rows = rows.detach().requires_grad_()
            self.logits = self.lm_head(self.rows)
        return self.logits.detach().log_softmax(-1, dtype=torch.float32)

    def backward(self, change: Tensor, out: Tensor) -> None:
        """As of `_PlainHead`."""
        (gradient,) = torch.autograd.grad(self.logits, self.rows, change.to(self.logits.dtype))
        out.copy_(gradient)
