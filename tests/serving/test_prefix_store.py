"""Prefixes by name."""

import pytest
import torch
from fixtures.checkpoints import small_case

from ptune import load_model
from ptune.base.folder import find_base_model
from ptune.errors import CheckpointError
from ptune.models.prefix_encoder import shown_prefix
from ptune.serving.prefix_store import BadName, PrefixStore, UnknownPrefix


@pytest.fixture(params=[1, 3])
def folder(request, model_folder):
    return model_folder(small_case(request.param))


@pytest.fixture
def store(folder):
    model = load_model(folder, dtype="bfloat16", device="cpu")
    return PrefixStore(model, find_base_model(str(folder)), "base", device_bytes=1)


def test_a_prefix_is_that_of_its_checkpoint(store, folder):
    assert store.names == ["base"] and store.get("base") is None
    assert store.add("own", folder / "prefix") is None
    loaded = load_model(folder, folder / "prefix", dtype="bfloat16", device="cpu")
    assert torch.equal(store.get("own"), shown_prefix(loaded))
    assert store.get("own") is store.get("own"), "held once"
    held = store.get("own")
    store.drop("own")
    assert held.isfinite().all() and store.names == ["base"]


def test_a_merged_model_answers_with_its_own(folder):
    loaded = load_model(folder, folder / "prefix", dtype="float32", device="cpu")
    store = PrefixStore(loaded, find_base_model(str(folder)), "merged")
    assert torch.equal(store.get("merged"), shown_prefix(loaded))


def test_refused(store, folder, tmp_path):
    store.add("own", folder / "prefix")
    with pytest.raises(BadName, match="the name own is taken by another prefix; use another one"):
        store.add("own", folder / "prefix")
    with pytest.raises(BadName, match="taken"):
        store.add("base", folder / "prefix")
    for name in ("a/b", "", "a b", "x" * 97, "a\n", ".", "..", "..."):
        with pytest.raises(BadName, match="is no name of a prefix; use letters, digits"):
            store.add(name, folder / "prefix")
    with pytest.raises(CheckpointError):
        store.add("other", tmp_path)
    with pytest.raises(UnknownPrefix, match="no model is called 'other'; use one of base, own"):
        store.get("other")
    with pytest.raises(UnknownPrefix):
        store.drop("other")
    with pytest.raises(BadName, match="base is the model itself, which cannot be dropped"):
        store.drop("base")


def test_those_used_lately_stay_on_the_device(store, folder):
    """Within its bytes; the host of a card is another device, here one without memory."""
    for name in "abc":
        store.add(name, folder / "prefix")
    size = store.get("a").nbytes
    store._device, store._device_bytes = torch.device("meta"), 2 * size
    for name in "abac":
        assert store.get(name).device.type == "meta"
    assert list(store._on_device) == ["a", "c"] and store.device_bytes == 2 * size
    store._device_bytes = 1
    store.get("b")
    assert list(store._on_device) == ["b"]
