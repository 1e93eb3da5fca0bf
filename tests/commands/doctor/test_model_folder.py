"""Model folders, whole and broken."""

import json
import shutil

import pytest
import torch
from fixtures.checkpoints import (
    base_state,
    prefix_state,
    small_case,
    write_json,
    write_weights,
)
from huggingface_hub.errors import LocalEntryNotFoundError

from ptune.base.folder import find_base_model
from ptune.commands.doctor import model_folder
from ptune.commands.doctor.check import Status
from ptune.commands.doctor.model_folder import examine_model
from ptune.models.build import build_model

WEIGHT = "transformer.layers.1.mlp.dense_4h_to_h.weight"
NAMES = {1: "ChatGLM-6B", 2: "ChatGLM2-6B", 3: "ChatGLM3-6B", 4: "GLM-4-9B"}


@pytest.fixture
def copy(toy_model, tmp_path):
    """A whole folder that a test may break."""

    def make(generation=1):
        return shutil.copytree(toy_model(generation), tmp_path / toy_model(generation).name)

    return make


def examine(folder):
    report = examine_model(str(folder))
    for check in report.checks:
        assert bool(check.mend) == (check.status is not Status.OK)
        assert check.group == "model"
    return {check.name: check for check in report.checks}


def the_failure(checks):
    (found,) = [check for check in checks.values() if check.status is not Status.OK]
    assert found.status is Status.FAILURE
    return found


def rewrite(folder, format="bin", shards=1, **config):
    """Replace the weights by those of another config.json, which is left as it was."""
    (folder / "pytorch_model.bin").unlink()
    found = find_base_model(folder)
    generation = list(type(found.generation)).index(found.generation) + 1
    case = small_case(generation, **found.config | config)
    write_weights(folder, base_state(case), format, shards)


class TestWhole:
    @pytest.mark.parametrize("generation", [1, 2, 3, 4])
    def test_every_generation(self, generation, toy_model):
        folder = toy_model(generation)
        report = examine_model(str(folder))
        assert [check.name for check in report.checks] == [
            *("folder", "tokenizer", "weights", "shapes")
        ]
        assert {check.status for check in report.checks} == {Status.OK}
        assert report.checks[0].message == f"{NAMES[generation]} in {folder}"
        model = build_model(find_base_model(folder), torch.float32, torch.device("cpu"))
        assert report.parameters == sum(p.numel() for p in model.parameters())
        assert not report.to_download

    def test_built_in(self, tiny_folder):
        checks = examine("tiny")
        assert [check.status for check in checks.values()] == [Status.OK] * 4
        assert "1 file, 51 tensors, 8 MB" in checks["weights"].message

    @pytest.mark.parametrize("format", ["bin", "safetensors"])
    def test_shards(self, format, copy):
        folder = copy()
        rewrite(folder, format, shards=3)
        assert examine(folder)["weights"].message.startswith("3 files, ")

    @pytest.mark.parametrize(("generation", "bits"), [(1, 4), (1, 8), (2, 4), (3, 8), (4, 4)])
    @pytest.mark.parametrize("format", ["bin", "safetensors"])
    def test_quantized(self, generation, bits, format, copy):
        folder = copy(generation)
        plain = examine(folder)["shapes"].message
        rewrite(folder, format, quantization_bit=bits)
        config = json.loads((folder / "config.json").read_text())
        write_json(folder / "config.json", config | {"quantization_bit": bits})
        said = plain.replace("parameters", f"parameters, in {bits} bits")
        assert examine(folder)["shapes"].message == said

    def test_what_was_looked_at_is_said(self, toy_model):
        found = examine(toy_model())["shapes"].message
        assert found.endswith(" parameters; names and shapes were compared, not values")

    def test_folder_that_does_not_say_what_it_is(self, copy, tmp_path):
        folder = copy(3).rename(tmp_path / "model")
        config = json.loads((folder / "config.json").read_text())
        del config["_name_or_path"]
        write_json(folder / "config.json", config)
        found = the_failure(examine(folder))
        assert found.mend == "say it with --prompt-format"
        report = examine_model(str(folder), "chatglm3")
        assert [check.status for check in report.checks] == [Status.OK] * 4
        assert "ChatGLM3-6B" in report.checks[0].message

    def test_its_code_is_not_run(self, copy):
        folder = copy()
        (folder / "modeling_chatglm.py").write_text("raise SystemExit('run')")
        assert "trust_remote_code is not needed" in examine(folder)["folder"].message

    def test_weights_are_not_read(self, copy, monkeypatch):
        folder = copy()
        rewrite(folder, "safetensors")
        file = folder / "model.safetensors"
        head = 8 + int.from_bytes(file.read_bytes()[:8], "little")
        file.write_bytes(file.read_bytes()[:head].ljust(file.stat().st_size, b"\xff"))
        assert examine(folder)["shapes"].status is Status.OK


class TestBroken:
    def test_no_such_folder(self, tmp_path):
        found = the_failure(examine(tmp_path / "no" / "such"))
        assert "is neither a folder nor a hub id" in found.message
        assert found.mend.startswith("pass the folder that holds config.json")

    def test_no_config(self, copy):
        folder = copy()
        (folder / "config.json").unlink()
        assert f"no config.json in {folder}" in the_failure(examine(folder)).message

    @pytest.mark.parametrize(
        ("generation", "settings", "words"),
        [
            (1, {"num_layers": "two"}, 'num_layers "two" in {} is not a whole number from 1 to'),
            (1, {"num_attention_heads": 0}, "num_attention_heads 0 in {} is not a whole number"),
            (1, {"mask_token_id": 150000}, "mask_token_id 150000 in {} is beyond its vocab_size"),
            (2, {"rmsnorm": False}, "rmsnorm false in {} is not true, as in all released models"),
        ],
    )
    def test_settings_of_no_model(self, generation, settings, words, copy):
        folder = copy(generation)
        config = json.loads((folder / "config.json").read_text())
        write_json(folder / "config.json", config | settings)
        found = the_failure(examine(folder))
        assert found.name == "folder"
        assert words.format(folder / "config.json") in found.message

    def test_ids_of_another_vocabulary(self, copy):
        folder = copy()
        config = json.loads((folder / "config.json").read_text())
        write_json(folder / "config.json", config | {"gmask_token_id": 550})
        found = the_failure(examine(folder))
        assert found.name == "tokenizer"
        assert "gmask_token_id 550 in" in found.message
        assert found.mend.endswith("download all files of one")

    def test_no_tokenizer(self, copy):
        folder = copy()
        (folder / "ice_text.model").unlink()
        found = the_failure(examine(folder))
        assert found.name == "tokenizer"
        assert "no ice_text.model" in found.message
        assert found.mend == "download it from the base model"

    def test_tokenizer_of_something_else(self, copy, monkeypatch):
        monkeypatch.setattr(model_folder, "_SAMPLE", "①")  # normalized away
        found = the_failure(examine(copy()))
        assert (
            f"{found.message.rpartition('/')[2]}; {found.mend}"
        ) == "ice_text.model turns '①' into '1'; download it again"

    def test_no_weights(self, copy):
        folder = copy()
        (folder / "pytorch_model.bin").unlink()
        found = the_failure(examine(folder))
        assert (found.name, found.mend) == ("weights", "download the model again")

    def test_missing_shard(self, copy):
        folder = copy()
        rewrite(folder, shards=3)
        (folder / "pytorch_model-00002-of-00003.bin").unlink()
        found = the_failure(examine(folder))
        assert "1 of 3 weight files" in found.message
        assert "pytorch_model-00002-of-00003.bin" in found.message

    def test_lfs_pointer(self, copy):
        folder = copy()
        (folder / "pytorch_model.bin").write_text("version https://git-lfs.github.com/spec/v1\n")
        found = the_failure(examine(folder))
        assert "is a Git LFS pointer" in found.message
        assert "git lfs pull" in found.mend

    @pytest.mark.parametrize("format", ["bin", "safetensors"])
    def test_truncated(self, format, copy):
        folder = copy()
        rewrite(folder, format)
        (file,) = (f for f in folder.iterdir() if f.suffix == f".{format}")
        file.write_bytes(file.read_bytes()[:-100])
        found = the_failure(examine(folder))
        assert "is truncated or damaged" in found.message
        assert found.mend == "download it again"

    def test_weights_of_another_generation(self, copy, toy_model):
        folder = copy(1)
        shutil.copy(toy_model(2) / "pytorch_model.bin", folder)
        assert "mixes generations" in the_failure(examine(folder)).message

    def test_tensors_left_out(self, copy):
        folder = copy()
        state = torch.load(folder / "pytorch_model.bin")
        gone = [name for name in state if ".layers.1.mlp." in name]
        write_weights(folder, {name: t for name, t in state.items() if name not in gone})
        found = the_failure(examine(folder))
        assert found.name == "shapes"
        assert (
            f"{len(gone)} weights are not in {folder} (transformer.layers.1.mlp." in found.message
        )
        assert found.message.endswith(" ...)")

    @pytest.mark.parametrize("generation", [1, 2])
    def test_other_number_of_layers(self, generation, copy):
        folder = copy(generation)
        rewrite(folder, num_layers=3)
        found = the_failure(examine(folder))
        assert "num_layers 2 in" in found.message and "have 3 layers" in found.message

    def test_weights_without_a_place(self, copy):
        folder = copy(2)
        config = json.loads((folder / "config.json").read_text())
        write_json(folder / "config.json", config | {"add_qkv_bias": False})
        found = the_failure(examine(folder))
        assert "2 weights in" in found.message and "add_qkv_bias is false" in found.message

    @pytest.mark.parametrize("generation", [1, 2])
    def test_other_shapes(self, generation, copy):
        folder = copy(generation)
        rewrite(folder, hidden_size=64)
        found = the_failure(examine(folder))
        assert ".weight has shape [" in found.message
        assert "64] in" in found.message and "but config.json asks for" in found.message
        assert found.mend == "the two belong to different models, download both again"

    def test_fused_rows_that_cannot_be_split(self, copy):
        folder = copy(2)
        rewrite(folder, kv_channels=16)
        assert "query_key_value" in the_failure(examine(folder)).message

    @pytest.mark.parametrize(
        ("scale", "words"),
        [
            (None, f"has no {WEIGHT}_scale"),
            (torch.ones(3), f"{WEIGHT}_scale has shape [3] in"),
        ],
    )
    def test_scale_of_a_quantized_weight(self, scale, words, copy):
        folder = copy()
        config = find_base_model(folder).config | {"quantization_bit": 4}
        write_json(folder / "config.json", config)
        state = base_state(small_case(1, **config))
        state[f"{WEIGHT}_scale"] = scale
        write_weights(folder, {name: t for name, t in state.items() if t is not None})
        found = the_failure(examine(folder))
        assert str(folder) in found.message
        assert words in found.message

    def test_quantized_weight_among_plain_ones(self, copy):
        folder = copy()
        state = torch.load(folder / "pytorch_model.bin")
        write_weights(folder, state | {WEIGHT: state[WEIGHT].to(torch.int8)})
        assert f"has no {WEIGHT}_scale for its int8" in the_failure(examine(folder)).message

    def test_bits_that_config_does_not_name(self, copy):
        folder = copy()
        rewrite(folder, quantization_bit=4)
        assert "quantization_bit" in the_failure(examine(folder)).message

    def test_unreadable(self, copy, monkeypatch):
        def refuse(base):
            raise PermissionError(13, "Permission denied", "ice_text.model")

        monkeypatch.setattr(model_folder, "build_tokenizer", refuse)
        found = the_failure(examine(copy()))
        assert found.message == "Permission denied: ice_text.model"
        assert found.mend == "check path and permissions"


class TestHub:
    @pytest.fixture
    def cached(self, monkeypatch):
        """Let the cache hold a folder for every hub id, or nothing."""

        def put(folder):
            def answer(name, local_files_only):
                assert local_files_only, "nothing may be downloaded"
                if folder is None:
                    raise LocalEntryNotFoundError(name)
                return str(folder)

            monkeypatch.setattr(model_folder, "snapshot_download", answer)

        return put

    def test_not_in_the_cache(self, cached):
        cached(None)
        report = examine_model("THUDM/chatglm-6b")
        (check,) = report.checks
        assert (check.status, check.mend) == (Status.WARNING, "hf download THUDM/chatglm-6b")
        assert report.to_download

    def test_in_the_cache(self, cached, toy_model):
        cached(toy_model(3))
        assert {c.status for c in examine("THUDM/chatglm3-6b").values()} == {Status.OK}

    def test_weights_are_not_in_the_cache(self, cached, copy):
        folder = copy()
        (folder / "pytorch_model.bin").unlink()
        cached(folder)
        report = examine_model("THUDM/chatglm-6b")
        found = report.checks[-1]
        assert (found.name, found.status) == ("weights", Status.WARNING)
        assert found.mend == "hf download THUDM/chatglm-6b"
        assert report.to_download

    def test_download_that_was_broken_off(self, cached, copy):
        folder = copy()
        rewrite(folder, shards=3)
        (folder / "pytorch_model-00002-of-00003.bin").unlink()
        cached(folder)
        assert "1 of 3 weight files" in the_failure(examine("THUDM/chatglm-6b")).message


class TestPrefix:
    @pytest.fixture
    def merged(self, copy):
        """A folder with a prefix among its weights."""

        def make(generation, prefix_projection=False, change=None, **claims):
            folder = copy(generation)
            config = json.loads((folder / "config.json").read_text())
            case = small_case(generation, prefix_projection, **config)
            state = prefix_state(case)
            if change:
                change(state)
            (folder / "pytorch_model.bin").unlink()
            write_weights(folder, base_state(case) | state)
            write_json(folder / "config.json", config | case["prefix"] | claims)
            return folder

        return make

    @pytest.mark.parametrize("generation", [1, 2, 3, 4])
    def test_whole(self, generation, merged):
        checks = examine(merged(generation))
        assert {check.status for check in checks.values()} == {Status.OK}
        assert checks["prefix"].message == "5 tokens; no value is NaN"

    def test_with_projection(self, merged):
        assert "5 tokens, with projection" in examine(merged(1, True))["prefix"].message

    @pytest.mark.parametrize("generation", [1, 2])
    def test_that_is_not_there(self, generation, merged):
        found = the_failure(examine(merged(generation, change=dict.clear, pre_seq_len=8)))
        assert found.name == "prefix"
        assert "config.json tells of a prefix, but the weights beside it hold no" in found.message
        assert found.message.startswith("pre_seq_len 8 in ") and found.mend.startswith("take all f")

    def test_of_another_length(self, merged):
        found = the_failure(examine(merged(1, pre_seq_len=6)))
        assert "does not go with the prefix beside it, which has 5" in found.message

    def test_with_nan(self, merged):
        def spoil(state):
            next(iter(state.values()))[1, 2] = float("nan")

        found = the_failure(examine(merged(1, change=spoil)))
        assert found.name == "prefix" and "holds NaN or infinity" in found.message
