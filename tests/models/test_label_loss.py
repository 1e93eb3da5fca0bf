"""The loss in parts against the loss of all logits, for every kind of head."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ptune.errors import ModelError
from ptune.models import label_loss
from ptune.models.label_loss import logits_and_loss, summed_divergence, summed_loss
from ptune.quantization.backends.fallback import choose_backend
from ptune.quantization.frozen_linear import QuantizedLinear

HIDDEN, VOCABULARY, TOKENS = 16, 50, 11


@pytest.fixture(autouse=True)
def few_at_once(monkeypatch):
    monkeypatch.setattr(label_loss, "LABELS_AT_ONCE", 4)


def make_head(kind):
    torch.manual_seed(0)
    if kind == "quantized":
        backend = choose_backend("torch", torch.device("cpu"))
        head = QuantizedLinear(HIDDEN, VOCABULARY, 8, False, backend)
        head.pack(torch.randn(VOCABULARY, HIDDEN))
        return head
    head = nn.Linear(HIDDEN, VOCABULARY, bias=kind == "with bias")
    return head.requires_grad_(kind == "trained")


def whole(head, rows, targets):
    return F.cross_entropy(head(rows).float(), targets, reduction="sum")


def data(dtype=torch.float32):
    torch.manual_seed(1)
    rows = torch.randn(TOKENS, HIDDEN).to(dtype).requires_grad_()
    return rows, torch.randint(0, VOCABULARY, (TOKENS,))


@pytest.mark.parametrize("kind", ["plain", "with bias", "quantized", "trained"])
def test_is_that_of_all_logits(kind):
    head, (rows, targets) = make_head(kind), data()
    expected = whole(head, rows, targets)
    (gradient,) = torch.autograd.grad(3 * expected, rows)
    loss = summed_loss(head, rows, targets)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(3 * loss, rows)[0], gradient)


@pytest.mark.parametrize("kind", ["plain", "with bias", "quantized"])
def test_divergence_is_that_of_all_logits(kind):
    head, (rows, _) = make_head(kind), data()
    taught = torch.randn(TOKENS, HIDDEN)
    with torch.no_grad():
        expected = head(taught).log_softmax(-1)
    student = head(rows).log_softmax(-1)
    whole = F.kl_div(student, expected, reduction="sum", log_target=True)
    (gradient,) = torch.autograd.grad(3 * whole, rows)
    found = summed_divergence(head, rows, taught)
    torch.testing.assert_close(found, whole)
    torch.testing.assert_close(torch.autograd.grad(3 * found, rows)[0], gradient)
    assert summed_divergence(head, taught, taught).abs() < 1e-5


def test_of_a_head_that_is_trained_reaches_it():
    head, (rows, targets) = make_head("trained"), data()
    summed_loss(head, rows, targets).backward()
    assert head.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision(dtype):
    head, (rows, targets) = make_head("plain"), data(dtype)
    head = head.to(dtype)
    expected = whole(head, rows, targets)
    (gradient,) = torch.autograd.grad(expected, rows)
    loss = summed_loss(head, rows, targets)
    assert loss.dtype is torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.autograd.grad(loss, rows)[0], gradient, rtol=0.02, atol=0.02)


def test_factor_beyond_float16():
    """A loss scale comes as the gradient of the loss and may be larger than the rows' precision."""
    head, (rows, targets) = make_head("plain").half(), data(torch.float16)
    loss = summed_loss(head, rows * 1e-2, targets)
    scaled = torch.autograd.grad(1e5 * loss, rows)[0]
    assert scaled.isfinite().all() and scaled.abs().max() > 1


def test_without_gradient_and_without_labels():
    head, (rows, targets) = make_head("plain"), data()
    with torch.no_grad():
        loss = summed_loss(head, rows, targets)
    torch.testing.assert_close(loss, whole(head, rows, targets).detach())
    assert not loss.requires_grad
    none = summed_loss(head, rows[:0], targets[:0])
    none.backward()
    assert none == 0 and not rows.grad.any()


def test_only_positions_with_a_label_count():
    head = make_head("plain")
    hidden = torch.randn(2, 6, HIDDEN)
    labels = torch.randint(0, VOCABULARY, (2, 6))
    labels[:, :3] = -100
    logits, expected = logits_and_loss(head, hidden, labels)
    none, loss = logits_and_loss(head, hidden, labels, label_logits_only=True)
    torch.testing.assert_close(loss, expected)
    assert logits.shape == (2, 6, VOCABULARY) and none is None


@pytest.mark.parametrize("label_logits_only", [True, False])
def test_shifted_labels_take_the_place_of_labels(label_logits_only):
    """As context parallelism passes them: label `i` belongs to position `i`."""
    head, hidden = make_head("plain"), torch.randn(2, 6, HIDDEN)
    labels = torch.randint(0, VOCABULARY, (2, 6))
    shifted = F.pad(labels[:, 1:], (0, 1), value=-100)
    _, expected = logits_and_loss(head, hidden, labels)
    options = {"shift_labels": shifted, "label_logits_only": label_logits_only}
    for other in (None, labels.flip(0)):
        torch.testing.assert_close(logits_and_loss(head, hidden, other, **options)[1], expected)


@pytest.mark.parametrize(
    "more", [{}, {"label_logits_only": True}, {"labels": torch.zeros(1, 3).long()}]
)
def test_a_teacher_that_would_not_be_heard(more):
    states = torch.randn(1, 3, HIDDEN)
    settings = {"labels": None} | more
    with pytest.raises(ModelError, match="teacher_states has no effect without labels and label_l"):
        logits_and_loss(make_head("plain"), states, teacher_states=states, **settings)
