import json
import shutil
from pathlib import Path

import pytest
import torch
from fixtures.checkpoints import (
    PREFIX,
    base_state,
    changed,
    prefix_state,
    small_case,
    small_ids,
    write_json,
    write_model,
    write_prefix,
    write_weights,
)
from safetensors.torch import load_file, save_file

from ptune.base.folder import find_base_model
from ptune.base.weights import WeightFiles
from ptune.checkpoint.base import fingerprint
from ptune.checkpoint.load import load_model
from ptune.checkpoint.metadata import CheckpointConfig
from ptune.commands import merge as merge_module
from ptune.commands.merge import merge
from ptune.errors import CheckpointError, ConfigError, ModelError

CODE = "modeling_chatglm.py"
RAISES = "raise RuntimeError('the code of a model folder was run')\n"


@pytest.fixture
def write_base(tmp_path):
    """Write a base with code that must not run, and its checkpoint; of a case or a generation."""

    def write(case, name="base", format="bin", shards=1):
        case = small_case(case) if isinstance(case, int) else case
        folder = write_model(tmp_path / name, case, format, shards)
        (folder / CODE).write_text(RAISES)
        write_json(folder / "tokenizer_config.json", {"auto_map": {"AutoTokenizer": [CODE]}})
        return find_base_model(folder)

    return write


def write_record(base, checkpoint, **changes):
    values = {
        "base_model": base.name,
        "fingerprint": fingerprint(base),
        "prompt_format": base.generation.value,
        "pre_seq_len": 5,
        "prefix_projection": False,
        "settings": {"max_source_length": 48},
    }
    record = CheckpointConfig(**values | changes)
    record.write(checkpoint)
    return record


def tensors(folder):
    return {name: tensor.clone() for name, tensor in WeightFiles(folder).items()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def logits(case, model, checkpoint=None):
    rows = torch.stack([small_ids(case, 12, seed) for seed in range(2)])
    loaded = load_model(model, checkpoint, dtype="float32", device="cpu")
    with torch.no_grad():
        return loaded(input_ids=rows).logits


def left_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("prefix_projection", [False, True])
@pytest.mark.parametrize("generation", [1, 2, 3, 4])
def test_merged_is_base_plus_checkpoint(generation, prefix_projection, write_base, tmp_path):
    case = small_case(generation, prefix_projection)
    base = write_base(case, f"chatglm{generation}-6b" if generation > 1 else "chatglm-6b")
    merged = merge(base, base.path / "prefix", tmp_path / "out")
    assert merged == tmp_path / "out"
    assert_same(tensors(merged), base_state(case) | prefix_state(case))
    expected = logits(case, base.path, base.path / "prefix")
    assert torch.equal(logits(case, merged), expected)
    assert not torch.allclose(logits(case, base.path), expected)
    assert find_base_model(merged).generation is base.generation


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("source", ["bin", "safetensors"])
@pytest.mark.parametrize(
    ("format", "size", "first"),
    [
        ("safetensors", "2GB", "model.safetensors"),
        ("bin", "2GB", "pytorch_model.bin"),
        ("safetensors", "60KB", "model-00001-of-{:05d}.safetensors"),
        ("bin", "0.06 mb", "pytorch_model-00001-of-{:05d}.bin"),
    ],
)
def test_formats_and_shards(source, shards, format, size, first, write_base, tmp_path):
    case = small_case(1)
    base = write_base(case, format=source, shards=shards)
    merged = merge(base, base.path / "prefix", tmp_path / "out", format, size)
    written = sorted(merged.glob("*model*.bin" if format == "bin" else "*.safetensors"))
    assert written[0].name == first.format(len(written))
    assert_same(tensors(merged), base_state(case) | prefix_state(case))
    index = merged / (
        ("pytorch_model.bin" if format == "bin" else "model.safetensors") + ".index.json"
    )
    if size == "2GB":
        assert len(written) == 1 and not index.exists()
        return
    assert len(written) > 1
    assert all(file.stat().st_size < 60_000 + 8_000 for file in written)
    content = json.loads(index.read_text())
    expected = base_state(case) | prefix_state(case)
    total = sum(tensor.nbytes for tensor in expected.values())
    assert content["metadata"] == {"total_size": total}
    assert content["weight_map"].keys() == expected.keys()
    assert set(content["weight_map"].values()) == {file.name for file in written}


def test_a_tensor_larger_than_a_shard_gets_its_own(write_base, tmp_path):
    base = write_base(2)
    merged = merge(base, base.path / "prefix", tmp_path / "out", max_shard_size="1KB")
    assert_same(tensors(merged), base_state(small_case(2)) | prefix_state(small_case(2)))


def test_safetensors_say_that_they_are_of_torch(write_base, tmp_path):
    from safetensors import safe_open

    base = write_base(2)
    merged = merge(base, base.path / "prefix", tmp_path / "out")
    with safe_open(merged / "model.safetensors", framework="pt") as stream:
        assert stream.metadata() == {"format": "pt"}  # transformers refuses files without


@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_base_stays_quantized(bits, write_base, tmp_path):
    case = small_case(1, quantization_bit=bits)
    base = write_base(case)
    merged = merge(base, base.path / "prefix", tmp_path / "out")
    found = tensors(merged)
    assert_same(found, base_state(case) | prefix_state(case))
    assert found["transformer.layers.0.attention.dense.weight"].dtype == torch.int8
    assert found["transformer.layers.0.attention.dense.weight_scale"].dtype == torch.float16
    assert torch.equal(logits(case, merged), logits(case, base.path, base.path / "prefix"))


def test_half_precision_stays_and_the_prefix_is_float32(write_base, tmp_path):
    case = small_case(2)
    base = write_base(case)
    half = {name: tensor.half() for name, tensor in base_state(case).items()}
    write_weights(base.path, half)
    prefix = {name: tensor.half() for name, tensor in prefix_state(case).items()}
    write_weights(base.path / "prefix", prefix)
    merged = merge(base, base.path / "prefix", tmp_path / "out")
    assert_same(tensors(merged), half | {name: tensor.float() for name, tensor in prefix.items()})


@pytest.mark.parametrize("format", ["safetensors", "bin"])
def test_names_that_share_their_bytes_are_both_written(format, write_base, tmp_path):
    case = small_case(1)
    base = write_base(case)
    state = base_state(case)
    state["lm_head.weight"] = state["transformer.word_embeddings.weight"]
    wide = torch.randn(4, 64)
    state["transformer.layers.0.attention.rotary_emb.inv_freq"] = wide[1:2, :8]
    write_weights(base.path, state)
    merged = merge(base, base.path / "prefix", tmp_path / "out", format)
    assert_same(tensors(merged), state | prefix_state(case))


def test_config_keeps_everything_else(write_base, tmp_path):
    case = small_case(1, prefix_projection=True, pre_seq_len=None, 说明="中文")
    base = write_base(case)
    merged = merge(base, base.path / "prefix", tmp_path / "out")
    text = (merged / "config.json").read_text(encoding="utf-8")
    assert json.loads(text) == case["config"] | {"pre_seq_len": 5, "prefix_projection": True}
    assert "中文" in text and json.loads(text)["auto_map"]


def test_copies_what_belongs_to_the_model(write_base, toy_folder, tmp_path):
    base = write_base(small_case(2, padded_vocab_size=600))
    copied = {"tokenizer.model", "generation_config.json", "MODEL_LICENSE", "LICENSE.txt", CODE}
    left = {".hidden.json", "training_args.bin", "trainer_state.json", "prefix_encoder.safetensors"}
    left |= {"README.md", "pytorch_model.bin.index.json", "eval_results.json", "optimizer.pt"}
    for name in (copied | left) - {CODE}:
        (base.path / name).write_text("{}")
    shutil.copy(toy_folder(2) / "tokenizer.model", base.path)
    (base.path / "runs.json").mkdir()
    checkpoint = write_prefix(tmp_path / "checkpoint", small_case(2))
    merged = merge(base, checkpoint, tmp_path / "out")
    assert {path.name for path in merged.iterdir()} == copied | {
        "config.json",
        "model.safetensors",
        "tokenizer_config.json",
    }
    assert (merged / CODE).read_text() == RAISES


def test_links_are_followed(write_base, tmp_path):
    base = write_base(2)
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for name in (CODE, "pytorch_model.bin", "config.json"):
        (base.path / name).rename(blobs / name)
        (base.path / name).symlink_to(blobs / name)
    merged = merge(base, base.path / "prefix", tmp_path / "out")
    assert not any(path.is_symlink() for path in merged.iterdir())
    assert (merged / CODE).read_text() == RAISES


def test_code_beside_the_built_in_model_is_not_copied(write_base, tmp_path, monkeypatch):
    base = write_base(1)
    monkeypatch.setattr(merge_module, "TINY_FOLDER", base.path)
    merged = merge(base, base.path / "prefix", tmp_path / "out")
    assert not list(merged.glob("*.py"))


@pytest.mark.parametrize("generation", [2, 3, 4])
def test_generation_does_not_depend_on_the_folder_name(generation, write_base, tmp_path):
    case = changed(small_case(generation), _name_or_path="/data/model")
    kind = "glm4" if generation == 4 else f"chatglm{generation}"
    base = write_base(case, f"{kind}-6b")
    (base.path / CODE).unlink()
    merged = merge(base, base.path / "prefix", tmp_path / f"no-chatglm{5 - generation}")
    assert base.generation is find_base_model(merged).generation
    assert find_base_model(merged).config["prompt_format"] == kind


def test_the_record_of_the_training_goes_along(write_base, tmp_path):
    base = write_base(3, "chatglm3-6b")
    checkpoint = write_prefix(tmp_path / "checkpoint", small_case(3))
    record = write_record(base, checkpoint)
    merged = merge(base, checkpoint, tmp_path / "out")
    assert CheckpointConfig.read(merged) == record
    write_record(base, checkpoint, prompt_format="chatglm2")
    with pytest.raises(CheckpointError, match=r"trained with the prompt of chatglm2, but .*lm3;"):
        merge(base, checkpoint, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("generation", [2, 3, 4])
def test_what_was_said_of_a_silent_folder_goes_along(generation, write_base, tmp_path):
    """With `rope_ratio`, which the second generation reads in its own way."""
    case = changed(small_case(generation), _name_or_path=None, rope_ratio=16)
    folder = write_model(tmp_path / "model", case)
    said = "glm4" if generation == 4 else f"chatglm{generation}"
    base = find_base_model(folder, prompt_format=said)
    merged = merge(base, folder / "prefix", tmp_path / "out")
    assert find_base_model(merged).generation.value == said
    expected = load_model(folder, folder / "prefix", prompt_format=said)
    unlike = "chatglm3" if generation == 2 else "chatglm2"
    other = load_model(folder, folder / "prefix", prompt_format=unlike)
    rows = small_ids(case, 12)[None]
    assert torch.equal(load_model(merged)(input_ids=rows).logits, expected(input_ids=rows).logits)
    assert not torch.allclose(other(input_ids=rows).logits, expected(input_ids=rows).logits)


@pytest.mark.parametrize(("format", "size"), [("safetensors", "2GB"), ("bin", "20KB")])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("generation", [1, 2])
def test_quantized_folder(generation, bits, format, size, write_base, tmp_path):
    """Byte for byte what the original writes, and read back as it was quantized while loading."""
    case = small_case(generation)
    base = write_base(case)
    prefix = base.path / "prefix"
    merged = merge(base, prefix, tmp_path / "out", format, size, str(bits))
    official = changed(case, quantization_bit=bits)
    assert_same(tensors(merged), base_state(official) | prefix_state(case))
    config = find_base_model(merged).config
    assert config["quantization_bit"] == bits
    assert config.get("quantization_embeddings") == (False if generation == 1 else None)
    expected = load_model(base.path, prefix, quantization_bit=bits)
    rows = small_ids(case, 12)[None]
    assert torch.equal(load_model(merged)(input_ids=rows).logits, expected(input_ids=rows).logits)


def test_quantized_as_it_was_trained(write_base, tmp_path):
    base = write_base(2)
    checkpoint = write_prefix(tmp_path / "checkpoint", small_case(2))
    trained = {"quantization_bit": "8"}
    write_record(base, checkpoint, settings=trained)
    merged = merge(base, checkpoint, tmp_path / "out")
    assert find_base_model(merged).config["quantization_bit"] == 8
    assert CheckpointConfig.read(merged).settings == trained
    plain = merge(base, checkpoint, tmp_path / "plain", quantization_bit="none")
    assert "quantization_bit" not in find_base_model(plain).config
    assert CheckpointConfig.read(plain).settings == {"quantization_bit": None}
    assert_same(tensors(plain), base_state(small_case(2)) | prefix_state(small_case(2)))


def test_nf4_stays_with_the_record(write_base, tmp_path):
    """It has no files: the merged base is whole, and is packed again where it is loaded."""
    base = write_base(2)
    checkpoint = write_prefix(tmp_path / "checkpoint", small_case(2))
    write_record(base, checkpoint, settings={"quantization_bit": "nf4"})
    merged = merge(base, checkpoint, tmp_path / "out")
    assert_same(tensors(merged), base_state(small_case(2)) | prefix_state(small_case(2)))
    assert CheckpointConfig.read(merged).settings == {"quantization_bit": "nf4"}
    with pytest.raises(ConfigError, match="--quantization-bit nf4 has no file format of its own"):
        merge(base, checkpoint, tmp_path / "other", quantization_bit="nf4")


def test_other_bits_than_a_quantized_base_has(write_base, tmp_path):
    base = write_base(changed(small_case(1), quantization_bit=8))
    with pytest.raises(ConfigError, match=r"--quantization-bit 4 does not go with .* have 8 bits"):
        merge(base, base.path / "prefix", tmp_path / "out", quantization_bit="4")
    assert not (tmp_path / "out").exists()
    merged = merge(base, base.path / "prefix", tmp_path / "out", quantization_bit="8")
    state = base_state(changed(small_case(1), quantization_bit=8))
    assert_same(tensors(merged), state | prefix_state(small_case(1)))


def test_merging_a_merged_model_replaces_its_prefix(write_base, tmp_path):
    case = small_case(2, prefix_projection=True)
    base = write_base(case)
    write_record(base, base.path / "prefix", prefix_projection=True)
    first = merge(base, base.path / "prefix", tmp_path / "first")
    other = small_case(2) | {"seed": 7}
    checkpoint = write_prefix(tmp_path / "checkpoint", other)
    second = merge(find_base_model(first), checkpoint, tmp_path / "second")
    assert_same(tensors(second), base_state(case) | prefix_state(other))
    assert find_base_model(second).config["prefix_projection"] is False
    assert CheckpointConfig.read(second) is None  # the record was of the first prefix


def test_last_checkpoint_of_a_training_output(write_base, tmp_path):
    base = write_base(1)
    for step, seed in ((2, 5), (10, 6)):
        write_prefix(tmp_path / f"run/checkpoint-{step}", small_case(1) | {"seed": seed})
    merged = merge(base, tmp_path / "run", tmp_path / "run/merged")
    expected = prefix_state(small_case(1) | {"seed": 6})
    assert_same({n: t for n, t in tensors(merged).items() if PREFIX in n}, expected)


def test_own_checkpoint_format(write_base, tmp_path):
    base = write_base(1)
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    save_file(prefix_state(small_case(1)), checkpoint / "prefix_encoder.safetensors")
    write_record(base, checkpoint)
    merged = merge(base, checkpoint, tmp_path / "out")
    assert_same(tensors(merged), base_state(small_case(1)) | prefix_state(small_case(1)))
    assert not (merged / "prefix_encoder.safetensors").exists()


def test_progress_ends_at_the_total(write_base, tmp_path):
    base, calls = write_base(1), []
    merged = merge(
        base,
        base.path / "prefix",
        tmp_path / "out",
        max_shard_size="60KB",
        progress=lambda done, total: calls.append((done, total)),
    )
    total = sum(t.nbytes for t in tensors(merged).values())
    assert [total] * len(calls) == [of for _, of in calls]
    done = [done for done, _ in calls]
    assert done[0] == 0 and done[-1] == total and done == sorted(set(done))


def test_one_shard_of_tensors_at_a_time(write_base, tmp_path, monkeypatch):
    base, sizes = write_base(1), []
    write = merge_module._write_tensors

    def record(state, file):
        sizes.append(sum(tensor.nbytes for tensor in state.values()))
        write(state, file)

    monkeypatch.setattr(merge_module, "_write_tensors", record)
    merge(base, base.path / "prefix", tmp_path / "out", max_shard_size="60KB")
    assert len(sizes) > 3 and max(sizes) <= 60_000


def test_fills_an_empty_folder(write_base, tmp_path):
    base = write_base(1)
    (tmp_path / "out").mkdir()
    merge(base, base.path / "prefix", tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert left_in(tmp_path) == ["base", "out"]


def test_makes_the_folders_above(write_base, tmp_path):
    base = write_base(1)
    merge(base, base.path / "prefix", tmp_path / "a/b/out")
    assert left_in(tmp_path / "a/b") == ["out"]


@pytest.mark.parametrize("kind", ["folder", "file", "link", "loop"])
def test_never_overwrites(kind, write_base, tmp_path):
    base, output = write_base(1), tmp_path / "out"
    if kind == "folder":
        output.mkdir()
        (output / "thesis.txt").write_text("mine")
        message = r"output .*out is not empty \(thesis.txt\); pass a new folder"
    elif kind == "file":
        output.write_text("mine")
        message = "output .*out is a file or a link; pass a new folder"
    else:
        output.symlink_to(tmp_path / "nowhere" if kind == "link" else output)
        message = "output .*out is a file or a link"
    before = left_in(tmp_path)
    with pytest.raises(ConfigError, match=message):
        merge(base, base.path / "prefix", output)
    assert left_in(tmp_path) == before


def test_output_that_appears_meanwhile_stays(write_base, tmp_path):
    base, output = write_base(1), tmp_path / "out"

    def progress(done, total):
        output.mkdir(exist_ok=True)
        (output / "thesis.txt").write_text("mine")

    with pytest.raises(ConfigError, match=r"output .*out cannot be written"):
        merge(base, base.path / "prefix", output, progress=progress)
    assert left_in(output) == ["thesis.txt"] and left_in(tmp_path) == ["base", "out"]


def test_the_folder_one_is_in_is_refused(write_base, tmp_path, monkeypatch):
    base = write_base(1)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for output in (Path("."), Path("../here")):
        with pytest.raises(ConfigError, match=r"^output \S+ is the folder you are in; pass a new"):
            merge(base, base.path / "prefix", output)


def test_output_inside_the_base_is_refused(write_base):
    base = write_base(1)
    with pytest.raises(ConfigError, match=r"out lies inside the base model .*base; pass a folder"):
        merge(base, base.path / "prefix", base.path / "out")


@pytest.mark.parametrize("size", ["", "500", "-1GB", "2 GiB", "many", "0MB", "1e3MB"])
def test_nonsense_sizes(size, write_base, tmp_path):
    base = write_base(1)
    with pytest.raises(
        ConfigError, match=f"max_shard_size '{size}' is not a size; write e.g. 500MB"
    ):
        merge(base, base.path / "prefix", tmp_path / "out", max_shard_size=size)


def test_unknown_format(write_base, tmp_path):
    base = write_base(1)
    with pytest.raises(ConfigError, match="format 'gguf' is unknown; use safetensors or bin"):
        merge(base, base.path / "prefix", tmp_path / "out", "gguf")


def test_too_little_room(write_base, tmp_path, monkeypatch):
    base = write_base(1)
    usage = shutil.disk_usage(tmp_path)._replace(free=100_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ConfigError, match=r"out needs \d+ MB but .* has 0 MB free; make room"):
        merge(base, base.path / "prefix", tmp_path / "a/out")
    assert left_in(tmp_path) == ["base"]


def test_prefix_of_another_shape(write_base, tmp_path):
    base = write_base(1)
    checkpoint = write_prefix(tmp_path / "checkpoint", small_case(1, num_layers=3))
    with pytest.raises(
        CheckpointError,
        match=r"embedding.weight \[5, 192\] of the prefix in .*checkpoint does not fit "
        r".*base, which takes \[5, 128\]; pass the base model",
    ):
        merge(base, checkpoint, tmp_path / "out")
    assert left_in(tmp_path) == ["base", "checkpoint"]


def test_prefix_of_another_model(write_base, tmp_path):
    base, other = write_base(1), write_base(small_case(1) | {"seed": 9}, "other")
    write_record(base, base.path / "prefix")
    with pytest.raises(CheckpointError, match=r"was trained on .*base \(.*not on .*other"):
        merge(other, base.path / "prefix", tmp_path / "out")


def test_no_checkpoint(write_base, tmp_path):
    base = write_base(1)
    with pytest.raises(CheckpointError, match="nowhere is not a folder here"):
        merge(base, tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(CheckpointError, match="is no P-Tuning checkpoint"):
        merge(base, base.path, tmp_path / "out")


def test_base_that_mixes_generations(write_base, tmp_path):
    base = write_base(1)
    write_weights(base.path, base_state(small_case(2)))
    with pytest.raises(ModelError, match="the weights are of ChatGLM2, ChatGLM3 or GLM-4"):
        merge(base, base.path / "prefix", tmp_path / "out")


@pytest.mark.parametrize("raised", [KeyboardInterrupt, MemoryError])
def test_nothing_is_left_of_a_merge_that_stops(raised, write_base, tmp_path, monkeypatch):
    base, write, calls = write_base(1), merge_module._write_tensors, []

    def fail(state, file):
        write(state, file)
        calls.append(file)
        if len(calls) == 2:
            raise raised

    monkeypatch.setattr(merge_module, "_write_tensors", fail)
    with pytest.raises(raised):
        merge(base, base.path / "prefix", tmp_path / "out", max_shard_size="60KB")
    assert len(calls) == 2 and left_in(tmp_path) == ["base"]
    assert all(file.parent.parent == tmp_path and file.parent.name[0] == "." for file in calls)


@pytest.mark.parametrize(
    ("format", "writer"), [("safetensors", "merge.save_tensors"), ("bin", "merge.torch.save")]
)
def test_a_full_disk_is_one_line(format, writer, write_base, tmp_path, monkeypatch):
    base = write_base(1)

    def fail(state, file, **options):
        file.write_bytes(b"half")
        raise RuntimeError("No space left on device\nand a trace")

    monkeypatch.setattr(f"ptune.commands.{writer}", fail)
    (tmp_path / "out").mkdir()
    with pytest.raises(
        ConfigError, match=r"out cannot be written \(No space left on device\); make room there"
    ):
        merge(base, base.path / "prefix", tmp_path / "out", format)
    assert left_in(tmp_path) == ["base", "out"] and not left_in(tmp_path / "out")


def test_the_base_is_not_touched(write_base, tmp_path):
    base = write_base(1, format="safetensors", shards=3)
    before = {p: p.read_bytes() for p in base.path.rglob("*") if p.is_file()}
    merged = merge(base, base.path / "prefix", tmp_path / "out")
    assert {p: p.read_bytes() for p in base.path.rglob("*") if p.is_file()} == before
    assert load_file(merged / "model.safetensors").keys() == WeightFiles(merged).names.keys()
