"""Dynamic loss scaling: its rule, and its state in a checkpoint."""

from types import SimpleNamespace

from ptune.training.loss_scale import LossScale


def test_is_halved_at_an_overflow_and_doubled_after_many_good_steps():
    scale = LossScale()
    assert scale.factor == 65536
    scale.update(overflow=True)
    scale.update(overflow=True)
    assert scale.factor == 16384
    for _ in range(1999):
        scale.update(overflow=False)
    assert (scale.factor, scale.good_steps) == (16384, 1999)
    scale.update(overflow=False)
    assert (scale.factor, scale.good_steps) == (32768, 0)


def test_an_overflow_starts_the_count_again():
    scale = LossScale()
    for _ in range(1999):
        scale.update(overflow=False)
    scale.update(overflow=True)
    scale.update(overflow=False)
    assert (scale.factor, scale.good_steps) == (32768, 1)


def test_state_goes_into_a_resumed_run():
    before, after = LossScale(), LossScale()
    before.update(overflow=True)
    before.update(overflow=False)
    assert before.state() == {"args": {}, "attributes": {"factor": 32768.0, "good_steps": 1}}
    state = SimpleNamespace(stateful_callbacks={"LossScale": before.state()})
    after.on_train_begin(None, state, None)
    assert (after.factor, after.good_steps) == (32768, 1)


def test_checkpoint_of_another_precision_has_none():
    scale, state = LossScale(), SimpleNamespace(stateful_callbacks={})
    scale.on_train_begin(None, state, None)
    assert scale.factor == 65536
    assert "LossScale" in state.stateful_callbacks  # where the library will look for it
