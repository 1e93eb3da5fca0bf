"""`ptune estimate`: cards, what fits, what is chosen, and the terminal output."""

import dataclasses
import json
import shlex
from types import SimpleNamespace

import pytest
import torch
from fixtures.checkpoints import small_case, write_json
from typer.testing import CliRunner

from ptune.base.architecture import RELEASED, Architecture, Storage, weight_bytes
from ptune.base.context import context_length
from ptune.cli import app
from ptune.commands.estimate import (
    CARDS,
    CONTEXT_BYTES,
    Card,
    card_at_hand,
    estimate,
    find_card,
    needed_bytes,
)
from ptune.config.declaration import declared
from ptune.config.settings import EstimateSettings, TrainSettings
from ptune.device.memory import Memory
from ptune.errors import ConfigError, ModelError
from ptune.serving import cache_memory
from ptune.serving.cache_memory import cache_tokens

GIB = 2**30


@pytest.fixture(autouse=True)
def _no_card(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def estimated(**changes):
    return estimate(EstimateSettings(**changes))


def shown(*arguments):
    result = CliRunner().invoke(app, ["estimate", *arguments], env={"COLUMNS": "100"})
    assert result.exit_code == 0, result.output
    return result.stdout


class TestCard:
    @pytest.mark.parametrize("name", ["P100-16GB", "p100-16gb", "Tesla P100 16GB", "P100_16GB"])
    def test_by_name(self, name):
        assert find_card(name) == Card("P100-16GB", CARDS["P100-16GB"], False)

    @pytest.mark.parametrize(
        "name", ["MyCard-20GB", "XYZ 20 GB", "20GB", "MI-20G", "20.0 gib", "A5.5 20GB"]
    )
    def test_by_gigabytes(self, name):
        assert find_card(name) == Card(name, round(20 * 0.97 * GIB))

    @pytest.mark.parametrize(
        "name",
        [
            *("P1000", "MyCard", "Card-0GB", "", "0GB", "-5GB", "- 5 GB", "+5GB", "--5GB", "GB"),
            *("nan", "nanGB", "inf GB", "1e3GB", "1e400GB", "5.5.5GB", "9" * 400 + "GB", "-0GB"),
        ],
    )
    def test_unknown(self, name):
        with pytest.raises(ConfigError, match=r"is unknown; use one of .*P100-16GB, .*H200-141GB"):
            find_card(name)

    def test_never_holds_more_than_its_name_says(self):
        for name, size in CARDS.items():
            named = int(name.rpartition("-")[2].removesuffix("GB"))
            assert 0.9 * named <= size / GIB <= named, name

    def test_at_hand(self, monkeypatch):
        class Properties:
            total_memory = 7 * GIB

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Own Card")
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (8, 6))
        assert estimated().card == Card("Own Card", 7 * GIB)
        assert estimated(card="T4-16GB").card.name == "T4-16GB"


class TestModel:
    @pytest.mark.parametrize("owner", ["THUDM", "zai-org"])
    @pytest.mark.parametrize("name", RELEASED)
    def test_released_ones_need_no_download(self, owner, name, monkeypatch):
        def refuse(*arguments, **named):
            raise AssertionError("downloads")

        monkeypatch.setattr("ptune.base.folder._download", refuse)
        found = estimated(model=f"{owner}/{name}")
        assert found.source == "built-in config"
        low, high = (9.3e9, 9.5e9) if name.startswith("glm-4") else (6.1e9, 6.3e9)
        assert low < found.parameters < high

    def test_a_folder_is_read(self, tiny_folder):
        found = estimated(model="tiny")
        assert found.source == str(tiny_folder / "config.json")
        config = json.loads((tiny_folder / "config.json").read_text(encoding="utf-8"))
        assert found.trainable_parameters == 128 * 2 * config["num_layers"] * config["hidden_size"]

    def test_a_config_that_lacks_a_field(self, tiny_folder, tmp_path):
        config = json.loads((tiny_folder / "config.json").read_text(encoding="utf-8"))
        del config["num_layers"]
        write_json(tmp_path / "config.json", config)
        with pytest.raises(ModelError, match=r"num_layers is missing in .*config.json; download"):
            estimated(model=str(tmp_path))

    @pytest.mark.parametrize("value", [-256, 0, "256", 1e9, 10**30, None, [256]])
    def test_a_folder_with_wrong_fields(self, tiny_folder, tmp_path, value):
        config = json.loads((tiny_folder / "config.json").read_text(encoding="utf-8"))
        write_json(tmp_path / "config.json", config | {"hidden_size": value})
        with pytest.raises(ModelError, match=r"^hidden_size .* is not a whole number from 1 to"):
            estimated(model=str(tmp_path))

    def test_quantized_ones_are_taken_as_they_are(self):
        rows = estimated(model="THUDM/chatglm-6b-int4").rows
        assert {row.weights for row in rows} == {"4 bit"}
        assert all("--quantization-bit" not in row.options for row in rows)
        assert estimated(model="THUDM/chatglm-6b-int4", quantization_bit="4").rows == rows
        with pytest.raises(ConfigError, match=r"8 does not go with .*int4, whose weights have 4"):
            estimated(model="THUDM/chatglm-6b-int4", quantization_bit="8")


class TestRows:
    def test_all_rows(self):
        found = estimated(card="V100-32GB")
        assert [(row.weights, row.use, "checkpointing" in row.options) for row in found.rows] == [
            (weights, use, again)
            for weights in ("16 bit", "8 bit", "4 bit")
            for use, again in (("train", False), ("train", True), ("chat", False))
        ]
        assert all(row.fits for row in found.rows)

    def test_less_is_asked_for(self):
        found = estimated(quantization_bit="nf4", gradient_checkpointing=True)
        assert [(row.weights, row.use) for row in found.rows] == [("nf4", "train"), ("nf4", "chat")]
        assert "--quantization-bit nf4 --gradient-checkpointing" in found.command
        full = estimated(quantization_bit="none", dtype="float32")
        assert {row.storage for row in full.rows} == {Storage(4)}
        assert "--dtype float32 --quantization-bit none" in full.command

    def test_needs_more_than_torch_counts(self):
        assert needed_bytes(Memory(weights=10**9)) == 10**9 + CONTEXT_BYTES
        assert needed_bytes(Memory(activations=10**9)) == 1.1 * 10**9 + CONTEXT_BYTES

    def test_smallest_card(self):
        row = estimated().rows[0]
        assert row.needed <= row.card_size * GIB * 0.97
        assert row.card_size == 16
        huge = dataclasses.replace(row, memory=Memory(weights=10**12))
        assert huge.card_size is None

    def test_auto_takes_what_fits(self):
        counts = [row.micro_batch for row in estimated(card="P100-16GB").rows if row.use == "train"]
        assert counts == sorted(counts) and counts[0] < 16
        assert {row.micro_batch for row in estimated().rows if row.use == "train"} == {1}
        given = estimated(card="P100-16GB", micro_batch_size=8)
        assert {row.micro_batch for row in given.rows if row.use == "train"} == {8}
        assert "--micro-batch-size 8" in given.command
        assert not given.rows[0].fits

    def test_longer_takes_more(self):
        short, long = (
            estimated(micro_batch_size=4, max_source_length=s, max_target_length=t, chat_length=c)
            for s, t, c in ((32, 32, 512), (256, 256, 2048))
        )
        for less, more in zip(short.rows, long.rows, strict=True):
            assert less.memory.total < more.memory.total
            assert less.memory.weights == more.memory.weights

    def test_response_length_is_the_generations(self):
        assert estimated().target_length == 64
        assert estimated(model="THUDM/chatglm2-6b").target_length == 128


class TestChoice:
    @pytest.mark.parametrize(
        "card, options",
        [
            ("P100-16GB", ""),
            ("12GB", "--quantization-bit 8"),
            ("7GB", "--quantization-bit 4"),
        ],
    )
    def test_first_that_fits(self, card, options):
        found = estimated(card=card)
        assert found.train.fits
        assert found.train.options == options
        assert found.chat.storage == found.train.storage
        assert (
            found.command
            == f"ptune train --data train.json --model THUDM/chatglm-6b {options}".strip()
        )

    def test_nothing_fits(self):
        found = estimated(card="4GB")
        assert not found.train.fits
        assert found.train.needed == min(r.needed for r in found.rows if r.use == "train")
        assert found.savings

    def test_command_is_one_of_train(self):
        found = estimated(
            card="V100-32GB",
            pre_seq_len=64,
            prefix_projection=True,
            max_target_length=96,
            batch_size=8,
            quantization_bit="8",
        )
        result = CliRunner().invoke(app, [*shlex.split(found.command)[1:], "--help"])
        assert result.exit_code == 0
        for flag in ("--pre-seq-len 64", "--prefix-projection", "--max-target-length 96"):
            assert flag in found.command
        assert "--batch-size 8" in found.command

    def test_cpu_memory(self):
        found = estimated()
        assert found.loading < 3 * 10**9
        full = weight_bytes(Architecture.from_config(RELEASED["chatglm-6b"]), Storage(4))
        assert full < found.on_cpu < full + 3 * 10**9


class TestSettings:
    def test_defaults_are_those_of_train(self):
        own = {field.name: field.default for field in declared(EstimateSettings)}
        theirs = {field.name: field.default for field in declared(TrainSettings)}
        both = own.keys() & theirs.keys()
        assert {"pre_seq_len", "batch_size", "micro_batch_size", "max_source_length"} <= both
        assert {name: own[name] for name in both} == {name: theirs[name] for name in both}

    @pytest.mark.parametrize(
        "changes, message",
        [
            ({"chat_length": 4}, "chat_length 4 is out of range; use 8 to 1,000,000"),
            ({"pre_seq_len": 0}, "pre_seq_len 0 is out of range; use 1 to 10,000"),
            ({"micro_batch_size": 3}, "batch_size 16 is not a multiple of micro_batch_size 3"),
            ({"micro_batch_size": "all"}, "'all' is neither auto nor a number"),
            ({"quantization_bit": "3"}, "quantization_bit '3' is unknown"),
            ({"max_source_length": 1}, "max_source_length 1 is out of range; use 4 to"),
            ({"dtype": "half"}, "dtype 'half' is unknown"),
        ],
    )
    def test_wrong_ones(self, changes, message):
        with pytest.raises(ConfigError, match=message):
            EstimateSettings(**changes)

    @pytest.mark.parametrize(
        ("model", "context"),
        [("chatglm-6b", 2048), ("chatglm2-6b-int4", 32768), ("glm-4-9b-chat", 131072)],
    )
    def test_lengths_beyond_the_context(self, model, context):
        model = f"THUDM/{model}"
        fits = EstimateSettings(model=model, max_source_length=context - 64, max_target_length=64)
        estimate(fits)
        message = (
            rf"^max_source_length {context - 64:,} and max_target_length 65 are more than the "
            rf"context of {context:,} tokens of {model}; use e.g. --max-source-length "
            rf"{context - 65} --max-target-length 65$"
        )
        with pytest.raises(ConfigError, match=message):
            estimate(dataclasses.replace(fits, max_target_length=65))
        estimate(EstimateSettings(model=model, chat_length=context))
        message = rf"^chat_length {context + 1:,} is more than the context of {context:,} tokens of"
        with pytest.raises(ConfigError, match=message):
            estimate(EstimateSettings(model=model, chat_length=context + 1))

    def test_a_chat_that_nobody_asked_for_fits_every_context(self, tmp_path):
        config = small_case(1)["config"] | {"max_sequence_length": 512}
        write_json(tmp_path / "config.json", config)
        (tmp_path / "ice_text.model").touch()
        found = estimate(EstimateSettings(model=str(tmp_path)))
        assert found.chat.memory.cache < estimate(EstimateSettings()).chat.memory.cache


@pytest.mark.parametrize("name", ["9" * 400 + "GB", "Card-0GB", "Card-10001GB", "Card"])
def test_card_of_no_size(name):
    with pytest.raises(ConfigError, match=r"^card '.*' is unknown; use one of") as caught:
        find_card(name)
    assert len(str(caught.value)) < 700


class TestScreen:
    @pytest.mark.parametrize("card", [["--card", "P100-16GB"], [], ["--card", "4GB"]])
    @pytest.mark.parametrize("model", ["THUDM/chatglm-6b", "THUDM/chatglm3-6b", "tiny"])
    def test_fits_a_hundred_columns(self, model, card):
        lines = shown("--model", model, *card).splitlines()
        head = [line for line in lines if not line.startswith("model")]  # a path may be long
        assert max(map(len, head)) <= 100

    def test_of_a_card(self):
        text = shown("--card", "P100-16GB")
        assert "P100-16GB, 17.1 GB" in text
        assert "6,173 million parameters (built-in config)" in text
        assert text.rstrip().endswith("ptune train --data train.json --model THUDM/chatglm-6b")

    def test_without_a_card(self):
        text = shown()
        assert "Name a card, e.g. --card T4-16GB" in text
        assert "fits" not in text.split("Name a card")[0]

    def test_when_nothing_fits(self):
        text = shown("--card", "4GB")
        assert "No way to train fits this card. The smallest needs a card of 6 GB." in text
        assert "a smaller --pre-seq-len" in text
        assert " yes " not in text

    def test_json(self):
        found = json.loads(shown("--card", "T4-16GB", "--json"))
        size = CARDS["T4-16GB"]
        assert found["card"] == {"name": "T4-16GB", "size": size, "native_bfloat16": False}
        for row in found["rows"]:
            assert row["total"] == sum(row["memory"].values())
            assert row["fits"] == (row["needed"] <= CARDS["T4-16GB"])
        assert found["rows"][found["chosen"]]["use"] == "train"
        assert found["command"].startswith("ptune train")

    def test_errors_are_one_line(self):
        result = CliRunner().invoke(app, ["estimate", "--card", "Abacus"])
        assert result.exit_code == 1
        assert result.stderr.startswith("error: card 'Abacus' is unknown; use one of")
        assert len(result.stderr.splitlines()) == 1


class TestBfloat16:
    @pytest.mark.parametrize(
        "card",
        [
            *("GTX1080Ti-11GB", "P100-12GB", "P40-24GB", "T4-16GB", "V100-32GB", "RTX2080Ti-11GB"),
            *("Tesla V100-16GB", "NVIDIA GeForce GTX 1070-8GB", "TITAN V-12GB"),
            "Quadro RTX 5000-16GB",
        ],
    )
    def test_card_that_training_refuses_it_on(self, card):
        name = find_card(card).name
        message = rf"^dtype bfloat16 is not native on {name}, where training refuses it; use --dtyp"
        with pytest.raises(ConfigError, match=message):
            estimate(EstimateSettings(dtype="bfloat16", card=card))
        assert estimate(EstimateSettings(dtype="float16", card=card)).card == find_card(card)

    @pytest.mark.parametrize("card", [*[*CARDS][-13:], "RTX6000Ada-48GB", "MyCard-20GB"])
    def test_card_that_has_it(self, card):
        assert card.startswith(("RTX", "A1", "L4", "H", "B2", "My"))
        assert find_card(card).native_bfloat16

    def test_card_at_hand(self, monkeypatch):
        cuda = {"is_available": True, "get_device_name": "Tesla T4"}
        cuda["get_device_properties"] = SimpleNamespace(total_memory=15 * GIB)
        for name, value in cuda.items():
            monkeypatch.setattr(f"torch.cuda.{name}", lambda *_, value=value: value)
        for capability, native in (((7, 5), False), ((8, 0), True)):
            monkeypatch.setattr("torch.cuda.get_device_capability", lambda _, c=capability: c)
            assert card_at_hand() == Card("Tesla T4", 15 * GIB, native)


class TestServing:
    def test_what_a_card_holds(self):
        found = estimated(model="THUDM/chatglm-6b", card="P100-16GB")
        full, _, four = found.services
        assert (full.position, full.prefix) == (458_752, 128 * 458_752)
        assert (full.tokens, full.requests, full.prefixes) == (6784, 2, 36)
        assert four.requests > full.requests and four.weights == "4 bit"

    @pytest.mark.parametrize("model", ["chatglm-6b", "chatglm2-6b", "chatglm3-6b"])
    @pytest.mark.parametrize("card", ["P100-16GB", "T4-16GB", "RTX4090-24GB"])
    def test_the_server_has_room_for_as_much(self, model, card, monkeypatch):
        found = estimated(model=f"THUDM/{model}", card=card)
        config, request = RELEASED[model], 2048 + 128
        a = Architecture.from_config(config)
        for service in found.services:
            free = found.card.size - CONTEXT_BYTES - weight_bytes(a, service.storage)
            monkeypatch.setattr(cache_memory, "_free_bytes", lambda _, free=free: free)
            bits = service.storage.quantization
            monkeypatch.setattr(cache_memory, "bits_of", lambda _, bits=bits: bits)
            half = SimpleNamespace(weight=torch.empty(1, dtype=torch.float16))
            context = SimpleNamespace(max_position_embeddings=context_length(config))
            served = SimpleNamespace(
                get_input_embeddings=lambda half=half: half,
                device=torch.device("cuda"),
                config=context,
            )

            def holds(prefixes, served=served, size=service.prefix):
                try:
                    return cache_tokens(served, config, 32, None, 128, prefixes * size)
                except ConfigError:
                    return 0

            count = service.requests
            assert holds(0) == service.tokens
            assert holds(count) // request >= count > 0
            assert count == 32 or holds(count + 1) // request <= count
            assert holds(service.prefixes) >= request > holds(service.prefixes + 1)

    def test_no_more_requests_than_slots(self):
        found = estimated(model="THUDM/chatglm3-6b", card="H100-80GB", max_slots=5)
        assert [service.requests for service in found.services] == [5, 5, 5]
        assert found.services[0].tokens == 5 * (8192 + 128)

    def test_a_card_that_is_too_small(self):
        (full, *_) = estimated(card="MyCard-4GB").services
        assert (full.tokens, full.requests, full.prefixes) == (0, 0, 0)

    def test_in_the_terminal_and_as_json(self):
        text = shown("--card", "T4-16GB", "--model", "THUDM/chatglm2-6b")
        assert "A token takes 28.7 kB of the KV cache, a prefix of 128 tokens 3.7 MB" in text
        assert "requests of 2,048" in text
        assert "requests of" not in shown("--model", "THUDM/chatglm2-6b")
        found = json.loads(shown("--card", "T4-16GB", "--json"))["serving"]
        assert [service["weights"] for service in found] == ["16 bit", "8 bit", "4 bit"]
        assert found[2]["requests"] > 0
