"""What reads files and texts of others, as functions of bytes: an error of ptune's, or nothing.

Hypothesis draws some of them in `make test`, atheris follows the branches in `make fuzz`.
"""

import json
import struct
from pathlib import Path

from ptune import load_tokenizer
from ptune.base.folder import Generation, find_base_model
from ptune.base.weights import WeightFiles
from ptune.checkpoint.metadata import CheckpointConfig
from ptune.checkpoint.prefix import read_prefix
from ptune.config.resolve import resolve
from ptune.config.settings import TrainSettings
from ptune.data.messages import Message
from ptune.data.prompt import Conversation, Lengths, render
from ptune.data.records import read_records
from ptune.errors import PTuneError
from ptune.evaluation.metrics import mean_scores
from ptune.evaluation.predictions import read_predictions
from ptune.files.manifest import find_damage

TINY = Path(__file__).parents[2] / "ptune" / "tiny"
_SETTINGS = {"model": "tiny", "seed": 42, "eval_data": [], "learning_rate": 0.02}
_METADATA = {"base_model": "tiny", "fingerprint": "ab", "prompt_format": "chatglm"}
_METADATA |= {"pre_seq_len": 4, "prefix_projection": False, "ptune_version": "0.1.0"}
_METADATA |= {"settings": _SETTINGS, "inputs": {"examples": {"records": 3}}, "environment": {}}
_HEADER = {"transformer.prefix_encoder.embedding.weight": {"dtype": "F32", "shape": [1, 2]}}
_HEADER["transformer.prefix_encoder.embedding.weight"]["data_offsets"] = [0, 8]
_ROW = {"content": "类型#裙*颜色#黑 色", "summary": "好看😀", "history": [["问", "答"]]}
_TURN = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
_PREDICTION = {"index": 0, "prompt": "a", "labels": "好 看", "predict": "好"}


def text_of(value):
    return json.dumps(value, ensure_ascii=False).encode()


def safetensors_of(header, data):
    return struct.pack("<Q", len(header)) + header + data


class Targets:
    """The targets; each writes its bytes below `folder` and reads them.

    Attributes:
        seeds: good inputs of each, to begin with.
    """

    def __init__(self, folder):
        self.folder = folder
        self.tokenizer = load_tokenizer("tiny")
        self.specials = set(self.tokenizer.all_special_ids)
        rows = b"\n".join([text_of(_ROW), text_of(_ROW)])
        table = b'content,summary\r\n"a, b",c\r\n'
        self.seeds = {
            "records": [
                rows,
                text_of([_ROW, _TURN]),
                table,
                "content\tsummary\na\tb\n".encode("utf-16"),
            ],
            "model_config": [(TINY / "config.json").read_bytes()],
            "checkpoint_config": [text_of(_METADATA)],
            "manifest": [text_of({"step": 3, "files": {"a": {"bytes": 1, "sha256": "0" * 64}}})],
            "yaml": [b"data: a.json\nmax_steps: 5\nlearning-rate: 2e-2\nepochs: null\n"],
            "prefix": [safetensors_of(text_of(_HEADER), b"\0" * 8)],
            "index": [text_of({"weight_map": {"a": "model.safetensors"}, "metadata": {}})],
            "prompt": ["[gMASK]<sop></s>黑<|user|>\n\0\u202e [MASK]".encode()],
            "predictions": [text_of(_PREDICTION) + b"\n" + text_of(_PREDICTION)],
        }

    def run(self, name, data):
        """Run a target: an error of ptune's is an answer, any other one is a fault."""
        try:
            getattr(self, name)(data)
        except PTuneError as error:
            assert str(error).strip() and len(str(error)) < 10**6

    def write(self, name, data):
        file = self.folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(data)
        return file

    def records(self, data):
        loaded = read_records([self.write("a.json", data)])
        for row in loaded.records:
            assert row["messages"]

    def model_config(self, data):
        file = self.write("model/config.json", data)
        find_base_model(str(file.parent), weights=False)

    def checkpoint_config(self, data):
        config = CheckpointConfig.read(self.write("c/ptune_config.json", data).parent)
        assert config is not None and config.pre_seq_len >= 1

    def manifest(self, data):
        folder = self.write("m/ptune_manifest.json", data).parent
        damage = find_damage(folder)
        assert damage is None or damage

    def yaml(self, data):
        settings = resolve(TrainSettings, {}, self.write("a.yaml", data))
        assert settings.data and settings.max_steps >= 1

    def prefix(self, data):
        for tensor in read_prefix(self.write("p/prefix_encoder.safetensors", data).parent).values():
            assert tensor.numel() >= 0

    def index(self, data):
        folder = self.write("i/model.safetensors.index.json", data).parent
        if not (folder / "model.safetensors").exists():
            self.write("i/model.safetensors", safetensors_of(b"{}", b""))
        for file in WeightFiles(folder).files:
            assert file.parent == folder

    def prompt(self, data):
        text = data.decode("utf-8", "surrogateescape" if len(data) % 2 else "replace")
        ids = self.tokenizer.encode_text(text)
        assert not self.specials & set(ids)
        said = Conversation((Message("user", text),), Message("assistant", text))
        example = render(self.tokenizer, Generation.CHATGLM, said, Lengths(16, 16))
        assert len(example.input_ids) == len(example.labels) <= 40

    def predictions(self, data):
        scores = mean_scores(read_predictions(self.write("a.jsonl", data)))
        assert all(0 <= value <= 100 for value in scores.means.values() if value is not None)
