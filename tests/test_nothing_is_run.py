"""Nothing of a model, checkpoint or output folder is run or unpickled, by whatever name."""

import json
import os
import pickle
import shutil

import pytest
import torch
from fixtures.runs import Recorder, interrupt, run_settings, write_toy_model

from ptune import load_model, load_tokenizer
from ptune.base.folder import find_base_model
from ptune.commands.doctor.examine import examine
from ptune.commands.merge import merge
from ptune.config.settings import DoctorSettings
from ptune.errors import PTuneError
from ptune.training.train import train

CODE = ["modeling_chatglm.py", "tokenization_chatglm.py", "configuration_chatglm.py"]
CODE += ["quantization.py", "__init__.py", "custom_generate/generate.py"]
MODEL = ["pytorch_model.bin", "model.safetensors", "config.json", "tokenizer_config.json"]
MODEL += ["ice_text.model", "tokenizer.model", "generation_config.json", "tokenizer.json"]
MODEL += ["pytorch_model.bin.index.json", "model.safetensors.index.json", "adapter_config.json"]
MODEL += [
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "ptune_config.json",
]
CHECKPOINT = ["prefix_encoder.safetensors", "ptune_config.json", "optimizer.safetensors"]
CHECKPOINT += ["trainer_state.json", "ptune_manifest.json", "pytorch_model.bin"]
CHECKPOINT += ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "scaler.pt"]
CHECKPOINT += ["training_args.bin", "config.json", "optimizer.bin", "random_states_0.pkl"]


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.fixture(scope="module")
def good(toy_folder, tmp_path_factory):
    """A model whose config.json names code of its own, and a training that was stopped."""
    root = tmp_path_factory.mktemp("good")
    source = toy_folder(1)
    model = write_toy_model(root / source.name, source, 1)
    config = json.loads((model / "config.json").read_text())
    config["auto_map"] = {
        "AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration",
        "AutoConfig": "configuration_chatglm.ChatGLMConfig",
        "AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None],
    }
    (model / "config.json").write_text(json.dumps(config))
    asked = run_settings(root, model, save_steps=2, max_steps=4)
    train(asked, Recorder({3: interrupt}))
    return root, model.name


def plant(folder, name, mark):
    """Put a bomb into a file: code, or a pickle as torch or Python writes it."""
    file = folder / name
    file.parent.mkdir(exist_ok=True)
    if file.suffix == ".py":
        file.write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    elif file.suffix in (".bin", ".pt", ".safetensors"):
        torch.save({"a": torch.zeros(1), "b": Bomb(mark)}, file)
    else:
        file.write_bytes(pickle.dumps(Bomb(mark), protocol=2))


def test_bombs_go_off_elsewhere(tmp_path):
    for name in ("a.bin", "a.json"):
        plant(tmp_path, name, tmp_path / "ran")
        with (tmp_path / name).open("rb") as stream:
            torch.load(stream, weights_only=False) if name == "a.bin" else pickle.load(stream)
        (tmp_path / "ran").rmdir()


def tried(step, mark, name):
    try:
        step()
    except PTuneError as error:
        assert str(error)
    assert not mark.exists(), name


@pytest.mark.parametrize("name", CODE + MODEL)
def test_in_a_model(name, good, tmp_path):
    source, model_name = good
    model, mark = tmp_path / "model", tmp_path / "went-off"
    shutil.copytree(source / model_name, model)
    plant(model, name, mark)
    checkpoint = source / "out" / "checkpoint-3"
    for step in (
        lambda: load_model(model, checkpoint, device="cpu"),
        lambda: load_tokenizer(model),
        lambda: merge(find_base_model(str(model)), checkpoint, tmp_path / "merged"),
    ):
        tried(step, mark, name)
    if name in (CODE[0], MODEL[0], "ice_text.model"):  # the doctor looks at much else, too
        tried(lambda: examine(DoctorSettings(model=str(model))), mark, name)


@pytest.mark.parametrize("place", ["out", "out/checkpoint-3"])
@pytest.mark.parametrize("name", CHECKPOINT + CODE[:1])
def test_in_a_training(name, place, good, tmp_path):
    source, model_name = good
    root, mark = tmp_path / "root", tmp_path / "went-off"
    shutil.copytree(source, root)
    plant(root / place, name, mark)
    model = root / model_name
    asked = run_settings(root, model, save_steps=2, max_steps=4)
    tried(lambda: load_model(model, root / place, device="cpu"), mark, name)
    tried(lambda: train(asked, Recorder()), mark, name)
