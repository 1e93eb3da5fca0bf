"""Odd values in config.json: an error of one line, or the very model of the untouched file.

Every field with every odd value, and some combinations; `PTUNE_FUZZ=N` draws N of these.
"""

import json
import os
import random

import pytest
import torch
from fixtures.checkpoints import (
    base_state,
    changed,
    small_case,
    small_ids,
    write_json,
    write_weights,
)
from fixtures.odd_values import MISSING, VALUES, odd_values, put

from ptune import load_model, load_tokenizer
from ptune.base import schema
from ptune.errors import PTuneError

COMBINATIONS = int(os.environ.get("PTUNE_FUZZ", "100"))
LONG = {"rope_ratio": 16, "_name_or_path": "THUDM/chatglm2-6b-32k"}
CASES = {
    "chatglm": (1, {}),
    "chatglm2": (2, {}),
    "chatglm3": (3, {}),
    "chatglm2-32k": (2, LONG),
    "chatglm-int8": (1, {"quantization_bit": 8, "quantization_embeddings": False}),
}


def read_fields(generation):
    """Those that ptune looks at, and one of no model."""
    known = schema._FIRST if generation == 1 else schema._LATER
    return sorted({*known, "model_type", "something"})


class Folder:
    """A model whose config.json is replaced again and again."""

    def __init__(self, path, toy, name):
        self.path = path
        self.generation, settings = CASES[name]
        pieces = load_tokenizer(toy)
        config = json.loads((toy / "config.json").read_text())
        names = ("bos", "eos", "pad", "mask", "gmask") if self.generation == 1 else ()
        ids = {f"{name}_token_id": config[f"{name}_token_id"] for name in names}
        size = "vocab_size" if self.generation == 1 else "padded_vocab_size"
        self.case = changed(small_case(self.generation), **ids, **settings, num_layers=1)
        self.case["config"][size] = pieces.vocab_size
        self.config = self.case["config"]
        path.mkdir()
        (file,) = toy.glob("*.model")
        (path / file.name).write_bytes(file.read_bytes())
        write_weights(path, base_state(self.case), "safetensors")
        self.ids = small_ids(self.case, 16)[None]
        if self.generation == 1:
            self.ids[0, 8:10] = torch.tensor([ids["gmask_token_id"], ids["bos_token_id"]])
        self.expected = self.answer(self.config)
        assert self.expected is not None

    def answer(self, config):
        """What a model computes and where it stops; None where the folder is refused."""
        write_json(self.path / "config.json", config)
        try:
            tokenizer = load_tokenizer(self.path)
            model = load_model(self.path, device="cpu")
        except PTuneError as error:
            assert "\n" not in str(error) and "; " in str(error), str(error)
            return None
        with torch.no_grad():
            logits = model(input_ids=self.ids).logits
        stops = model.generation_config
        shown = (type(tokenizer), tokenizer.vocab_size, stops.eos_token_id, stops.pad_token_id)
        return logits, shown

    def holds(self, config):
        """Whether a config.json gives the untouched model or is refused; which of the two."""
        found = self.answer(config)
        if found is None:
            return "refused"
        assert found[1] == self.expected[1], config
        assert torch.equal(found[0], self.expected[0]), config
        return "same"


@pytest.fixture(scope="module", params=CASES)
def folder(request, toy_folder, tmp_path_factory):
    generation, _ = CASES[request.param]
    path = tmp_path_factory.mktemp("odd") / "model"
    return Folder(path, toy_folder(generation), request.param)


def test_every_field_with_every_value(folder):
    outcomes = [
        folder.holds(put(folder.config, name, value))
        for name in read_fields(folder.generation)
        for value in odd_values(folder.config.get(name, 1))
    ]
    assert outcomes.count("refused") > 200 and outcomes.count("same") > 20


def test_fields_that_nobody_reads_may_hold_anything(folder):
    """All at once."""
    unread = folder.config.keys() - set(read_fields(folder.generation))
    assert {"architectures", "auto_map", "torch_dtype", "transformers_version"} <= unread
    for value in VALUES.values():
        if value is not MISSING and value == value and value != float("inf"):
            config = folder.config | dict.fromkeys([*unread, "something", "id2label"], value)
            assert folder.holds(config) == "same"


def test_combinations(folder):
    draw = random.Random(f"{folder.config}")
    names = sorted({*folder.config, *read_fields(folder.generation)})
    for _ in range(COMBINATIONS):
        config = folder.config
        for name in draw.sample(names, draw.randint(2, 4)):
            value = draw.choice([*odd_values(config.get(name, 1))])
            config = put(config, name, value)
        folder.holds(config)
