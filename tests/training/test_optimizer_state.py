"""The optimizer's state in a checkpoint: the same after reading, and what does not fit."""

import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ptune.errors import CheckpointError
from ptune.training.checkpoints import evaluations_since_best
from ptune.training.optimizer_state import OPTIMIZER_FILE, load_optimizer, save_optimizer

INSTEAD = "begin anew with --fresh"


def stepped():
    """A layer, and an optimizer that has taken two steps."""
    layer = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    for _ in range(2):
        layer(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    return layer, optimizer


def test_comes_back_as_it_was(tmp_path):
    layer, optimizer = stepped()
    save_optimizer(optimizer, layer.named_parameters(), tmp_path)
    again = torch.optim.AdamW(layer.parameters())
    load_optimizer(again, layer.named_parameters(), tmp_path, INSTEAD)
    for parameter in layer.parameters():
        before, now = optimizer.state[parameter], again.state[parameter]
        assert before.keys() == now.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(before[name], now[name]) for name in before)


def test_of_an_optimizer_that_took_no_step(tmp_path):
    layer = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    save_optimizer(optimizer, layer.named_parameters(), tmp_path)
    load_optimizer(optimizer, layer.named_parameters(), tmp_path, INSTEAD)
    assert not optimizer.state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"weight/exp_avg": torch.ones(2, 4)},
            "weight/exp_avg [2, 4] in {file} does not fit what is trained, which has [2, 3]; ",
        ),
        (
            {"other/exp_avg": torch.ones(2)},
            "{file} holds other/exp_avg, which is of nothing that is trained; ",
        ),
    ],
)
def test_what_does_not_fit(change, message, tmp_path):
    layer, optimizer = stepped()
    save_optimizer(optimizer, layer.named_parameters(), tmp_path)
    file = tmp_path / OPTIMIZER_FILE
    save_file(load_file(file) | change, file)
    text = message.format(file=file) + INSTEAD
    with pytest.raises(CheckpointError, match=f"^{re.escape(text)}$"):
        load_optimizer(optimizer, layer.named_parameters(), tmp_path, INSTEAD)


@pytest.mark.parametrize("content", [None, b"", b"x" * 100])
def test_that_cannot_be_read(content, tmp_path):
    layer, optimizer = stepped()
    if content is not None:
        (tmp_path / OPTIMIZER_FILE).write_bytes(content)
    message = rf"^{tmp_path / OPTIMIZER_FILE} cannot be read \(.+\); begin anew"
    with pytest.raises(CheckpointError, match=message):
        load_optimizer(optimizer, layer.named_parameters(), tmp_path, INSTEAD)


def test_evaluations_since_the_best():
    history = [{"step": 1, "loss": 2.0}, *({"step": n, "eval_loss": 1.0} for n in (2, 4, 6))]
    assert [evaluations_since_best(history, best) for best in (None, 2, 4, 6)] == [0, 2, 1, 0]
