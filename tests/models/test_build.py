"""From folder to model: what is refused, what is never run, and how much memory it takes."""

import json
import subprocess
import sys
import textwrap

import pytest
import torch
from fixtures.checkpoints import (
    base_state,
    changed,
    golden_case,
    small_case,
    small_ids,
    write_json,
    write_model,
    write_weights,
)

from ptune import load_model
from ptune.base.folder import find_base_model
from ptune.base.weights import WeightFiles
from ptune.errors import ModelError
from ptune.models.build import build_model
from ptune.models.prefix_encoder import prefix_length

CPU = torch.device("cpu")
GENERATIONS = (1, 2, 3, 4)
POISON = "raise RuntimeError('remote code ran')\n"


@pytest.mark.parametrize("generation", GENERATIONS)
def test_every_layout_gives_the_same_model(model_folder, generation):
    case = small_case(generation)
    ids = small_ids(case, 20)[None]
    layouts = [("bin", 1), ("bin", 3), ("safetensors", 1), ("safetensors", 2)]
    found = [load_model(model_folder(case, *layout))(input_ids=ids).logits for layout in layouts]
    assert all(torch.equal(logits, found[0]) for logits in found)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_weights_are_frozen_and_in_evaluation_mode(model_folder, generation):
    base = find_base_model(model_folder(small_case(generation)))
    model = build_model(base, torch.float16, CPU)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert {p.dtype for p in model.parameters()} == {torch.float16} == {model.dtype}
    assert not any(t.is_meta for t in (*model.parameters(), *model.buffers()))


@pytest.mark.parametrize("generation", GENERATIONS)
def test_python_files_of_the_folder_are_not_run(tmp_path, generation):
    case = small_case(generation)
    assert "auto_map" in case["config"]
    folder = write_model(tmp_path / "model", case)
    for name in ("configuration", "modeling", "tokenization"):
        (folder / f"{name}_chatglm.py").write_text(POISON)
    (folder / "quantization.py").write_text(POISON)
    model = load_model(folder, checkpoint=folder / "prefix")
    assert type(model).__module__.startswith("ptune.")
    assert not getattr(model.config, "auto_map", None)


def refused(folder, message):
    with pytest.raises(ModelError, match=message):
        load_model(folder)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_missing_weights_are_counted_and_named(tmp_path, generation):
    case = small_case(generation)
    state = base_state(case)
    gone = [name for name in state if ".layers.1.mlp." in name and name.endswith("weight")]
    for name in gone:
        del state[name]
    write_json(tmp_path / "config.json", case["config"])
    write_weights(tmp_path, state)
    refused(tmp_path, r"2 weights are not in .*layers\.1\.mlp.* incomplete or of another model")


@pytest.mark.parametrize("generation", GENERATIONS)
def test_more_layers_than_the_files_have(tmp_path, generation):
    folder = write_model(tmp_path / "model", small_case(generation))
    write_json(folder / "config.json", small_case(generation, num_layers=4)["config"])
    refused(folder, r"num_layers 4 in .*config.json does not go .* beside it, which have 2 layers")


@pytest.mark.parametrize("generation", GENERATIONS)
def test_shape_of_another_size(tmp_path, generation):
    folder = write_model(tmp_path / "model", small_case(generation))
    write_json(folder / "config.json", small_case(generation, hidden_size=64)["config"])
    refused(folder, r"weight has shape \[320, 32\] in .* config.json asks for \[320, 64\]; the two")


def test_one_dimensional_positions_are_refused(tmp_path):
    folder = write_model(tmp_path / "model", changed(small_case(1), position_encoding_2d=False))
    refused(folder, "position_encoding_2d false in .*config.json is not true, as in all released")


MEASURE = """
    import json, resource, sys, torch
    from pathlib import Path
    from ptune import load_model

    def peak():
        status = Path("/proc/self/status").read_text().split("VmHWM:")[1]
        return int(status.split()[0]) * 1024

    small, *folders = sys.argv[1:]
    load_model(small, dtype="float16")
    out = {}
    for folder in folders:
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        before = peak()
        model = load_model(folder, dtype="float16")
        out[folder] = peak() - before
        out[folder + " model"] = sum(p.nbytes for p in model.parameters())
        del model
    print(json.dumps(out))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc")
def test_loading_takes_the_model_and_little_more(tmp_path, model_folder):
    """A sharded float32 checkpoint, loaded in half precision, is never in memory as a whole."""
    case = small_case(1, hidden_size=512, inner_hidden_size=2048, num_layers=10)
    shapes = base_state(small_case(1, num_layers=10))
    del shapes["lm_head.weight"]
    state = {}
    for name, tensor in shapes.items():
        # Of the small case's shapes, those of the large one: 32 -> 512 and so on, but not 320.
        shape = [size if size == 320 else size * 16 for size in tensor.shape]
        state[name] = torch.ones(shape)
    shards = 5
    folders = []
    for format in ("bin", "safetensors"):
        folders.append(tmp_path / format)
        folders[-1].mkdir()
        write_json(folders[-1] / "config.json", case["config"])
        write_weights(folders[-1], state, format, shards)
    small = model_folder(small_case(1))
    command = [sys.executable, "-c", textwrap.dedent(MEASURE), str(small), *map(str, folders)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if "clear_refs" in run.stderr:
        pytest.skip("the peak cannot be reset here")
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    for folder in folders:
        shard = max(file.stat().st_size for file in folder.glob("*-of-*"))
        model = found[f"{folder} model"]
        assert model > 60e6 and shard > 20e6
        assert found[str(folder)] < model + 1.5 * shard, (folder.name, found)


def test_stop_ids(model_folder):
    stops = {g: load_model(model_folder(small_case(g))).generation_config for g in GENERATIONS}
    assert stops[1].eos_token_id == [305]
    assert stops[2].eos_token_id == [2]
    assert stops[3].eos_token_id == [2, 64795, 64797]  # <|user|>, <|observation|>
    assert stops[4].eos_token_id == [300, 307, 309]  # <|endoftext|>, and the same two
    assert [stops[g].pad_token_id for g in GENERATIONS] == [3, 0, 0, 300]
    assert [stops[g].bos_token_id for g in GENERATIONS] == [304, 1, 1, None]
    alone = load_model(model_folder(small_case(4, eos_token_id=300)))
    assert alone.generation_config.eos_token_id == [300, 307, 309]


NAMES = {"v1": "chatglm", "v2": "chatglm2", "v3": "chatglm3", "v4": "glm4"}


def test_golden_cases_name_their_generation(tmp_path):
    for name, kind in NAMES.items():
        write_json(tmp_path / "config.json", golden_case(name)["config"])
        assert find_base_model(tmp_path).generation.value == kind


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("with_prefix", (False, True))
def test_save_pretrained_writes_the_official_layout(
    model_folder, tmp_path, generation, with_prefix
):
    case = small_case(generation)
    folder = model_folder(case)
    model = load_model(folder, checkpoint=folder / "prefix" if with_prefix else None)
    model.save_pretrained(tmp_path / "saved")
    official = {name for name in base_state(case) if name != "lm_head.weight"}
    assert official <= WeightFiles(tmp_path / "saved").names.keys()
    again, ids = load_model(tmp_path / "saved"), small_ids(case, 20)[None]
    assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)
    assert (prefix_length(again.base_model) > 0) is with_prefix
    assert again.generation_config.eos_token_id == model.generation_config.eos_token_id
