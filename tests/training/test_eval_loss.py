"""eval_loss: a mean over label tokens, whatever the batches are."""

import datasets
import pytest
import torch
from fixtures.checkpoints import small_case, small_ids
from torch.nn.functional import cross_entropy

from ptune import load_model
from ptune.data.prompt_source import IGNORE_INDEX
from ptune.training.eval_loss import total_loss

LENGTHS = (14, 9, 20, 12, 11)


@pytest.fixture(params=[1, 2, 3])
def case(request):
    return small_case(request.param)


@pytest.fixture
def model(case, model_folder):
    folder = model_folder(case)
    return load_model(folder, folder / "prefix", dtype="float32", device="cpu")


@pytest.fixture
def examples(case):
    rows = [small_ids(case, length, seed).tolist() for seed, length in enumerate(LENGTHS)]
    # As many labels as the row is short of 22, so that the mean of means is another number.
    labels = [[IGNORE_INDEX] * (2 * len(row) - 22) + row[2 * len(row) - 22 :] for row in rows]
    labels[1] = [IGNORE_INDEX] * 8 + rows[1][8:]
    columns = {"input_ids": rows, "labels": labels, "length": list(map(len, rows))}
    return datasets.Dataset.from_dict(columns)


def by_hand(model, examples):
    """Row by row from all logits."""
    losses = []
    for row in examples:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
        labels = torch.tensor(row["labels"][1:])
        losses.append(cross_entropy(logits.float(), labels, reduction="none")[labels >= 0])
    return torch.cat(losses)


def test_sum_over_label_tokens(model, examples):
    expected = by_hand(model, examples)
    for batch_size in (1, 2, 16):
        loss, tokens = total_loss(model, examples, 3, batch_size)
        assert tokens == len(expected)
        assert loss == pytest.approx(expected.sum().item(), rel=1e-5)


def test_dropout_is_off_and_the_mode_is_restored(model, examples):
    expected, _ = total_loss(model, examples, 3, 2)
    model.base_model.prefix_encoder.dropout.p = 0.9
    model.train()
    loss, _ = total_loss(model, examples, 3, 2)
    assert loss == expected
    assert model.training and model.base_model.prefix_encoder.training
    model.eval()
    total_loss(model, examples, 3, 2)
    assert not model.training


def test_no_gradients_and_progress(model, examples):
    done = []
    total_loss(model, examples, 3, 2, done.append)
    assert done == [2, 4, 5]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_mode_is_restored_after_an_error(model, examples):
    def stop(done):
        raise RuntimeError("full")

    model.train()
    with pytest.raises(RuntimeError, match="full"):
        total_loss(model, examples, 3, 2, stop)
    assert model.training
