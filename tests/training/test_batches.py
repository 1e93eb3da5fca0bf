"""The order of records: a function of seed and epoch."""

import torch

from ptune.data.examples import StepCollator
from ptune.training.batches import EffectiveBatches

LENGTHS = torch.randint(5, 120, (523,), generator=torch.Generator().manual_seed(0)).tolist()


def batches(epoch=0, seed=42, lengths=LENGTHS, size=4):
    found = EffectiveBatches(lengths, size, seed)
    found.set_epoch(epoch)
    return found


def flat(found):
    return [index for batch in found for index in batch]


def padding(found):
    """Tokens of padding in all batches."""
    widths = [[LENGTHS[i] for i in batch] for batch in found]
    return sum(max(batch) * len(batch) - sum(batch) for batch in widths)


def test_every_index_once():
    assert sorted(flat(batches())) == list(range(523))
    assert len(batches()) == len(list(batches())) == 131


def test_order_follows_from_seed_and_epoch():
    first = list(batches(epoch=3))
    assert list(batches(epoch=3)) == first
    assert list(batches(epoch=4)) != first
    assert list(batches(epoch=3, seed=43)) != first
    # An epoch of one seed is none of the next seed.
    assert list(batches(epoch=1, seed=42)) != list(batches(epoch=0, seed=43))
    again = batches()
    list(again)  # an epoch that was drawn before leaves nothing behind
    again.set_epoch(3)
    assert list(again) == first


def test_batches_are_alike_in_length_and_random_in_order():
    order = list(batches())
    shuffled = torch.randperm(523, generator=torch.Generator().manual_seed(1)).tolist()
    plain = [shuffled[i : i + 4] for i in range(0, 523, 4)]
    assert padding(order) < padding(plain) / 10
    longest = [max(LENGTHS[i] for i in batch) for batch in order[:-1]]
    assert longest != sorted(longest) and longest != sorted(longest, reverse=True)


def test_short_batch_comes_last():
    assert [len(batch) for batch in batches()] == [4] * 130 + [3]


def test_fewer_records_than_a_batch():
    assert [sorted(batch) for batch in batches(lengths=[5, 9])] == [[0, 1]]


def test_without_a_seed_in_the_order_of_the_data():
    found = EffectiveBatches([5] * 7, 3, None)
    assert list(found) == [[0, 1, 2], [3, 4, 5], [6]]
    assert len(found) == 3


def test_every_process_computes_its_share_of_every_batch():
    rows = [{"input_ids": [n] * n, "labels": [n] * n} for n in range(1, 8)]
    found = batches(epoch=2, seed=1, lengths=LENGTHS[:7], size=3)

    def collated(process, processes):
        collate = StepCollator(0, process, processes)
        return [collate([rows[index] for index in batch]) for batch in found]

    alone = collated(0, 1)
    assert [batch["places"] for batch in alone] == [[0, 1, 2], [0, 1, 2], [0]]
    shares = [collated(process, 2) for process in range(2)]
    assert [batch["places"] for batch in shares[1]] == [[1], [1], [0]]
    for whole, *parts in zip(alone, *shares, strict=True):
        assert {batch["num_items"] for batch in parts} == {whole["num_items"]}
        learnt = [row for batch in parts for row in rows_of(batch)]
        assert sorted(learnt) == sorted(rows_of(whole))


def rows_of(batch):
    """The rows of a batch that have labels."""
    rows = ([label for label in row if label != -100] for row in batch["labels"].tolist())
    return [row for row in rows if row]
