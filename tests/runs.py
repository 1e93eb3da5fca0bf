"""Small models and short runs of `ptune train`, for the tests that need a whole one."""

import json
import shutil
import signal

from checkpoints import small_case, write_model
from safetensors.torch import load_file

from ptune import load_tokenizer
from ptune.config import TrainSettings


def write_toy_model(folder, source, generation):
    """Write a model of two layers around a small tokenizer; `source` is of `toy_folder`."""
    shutil.copytree(source, folder)
    tokenizer = load_tokenizer(folder)
    if generation == 1:
        names = ("mask_token_id", "gmask_token_id", "bos_token_id", "eos_token_id")
        config = {name: getattr(tokenizer, name) for name in names}
        config["vocab_size"] = tokenizer.vocab_size
    else:
        config = {"padded_vocab_size": tokenizer.vocab_size}
    return write_model(folder, small_case(generation, **config))


def write_records(file, count):
    """Write records of many lengths, no two alike."""
    records = [
        {"content": f"类型#裙{'*颜色#黑色' * (i % 7)}", "summary": f"{i}，" + "清新" * (1 + i % 5)}
        for i in range(count)
    ]
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


class Recorder:
    """Remembers what a run reports; calls `at_step[n]` after step n."""

    def __init__(self, at_step=None):
        self.at_step = at_step or {}
        self.summary = None
        self.steps = []
        self.entries = []
        self.notices = []

    def started(self, summary):
        self.summary = summary

    def step(self, step, max_steps):
        self.steps.append((step, max_steps))
        self.at_step.get(step, lambda: None)()

    def logged(self, entry):
        self.entries.append(entry)

    def noticed(self, text):
        self.notices.append(text)


def run_settings(folder, model_folder, **changes):
    """Settings of a short run over 10 records: three steps an epoch, the third one short."""
    data = folder / "data.json"
    if not data.exists():
        write_records(data, 10)
    values = {
        "data": (data,),
        "model": str(model_folder),
        "output": folder / "out",
        "device": "cpu",
    }
    values |= {"pre_seq_len": 4, "batch_size": 4, "micro_batch_size": 2, "max_steps": 6}
    values |= {"save_steps": 3, "logging_steps": 1}
    return TrainSettings(**values | changes)


def interrupt():
    """What Ctrl-C does."""
    signal.raise_signal(signal.SIGINT)


def log_lines(output):
    return [json.loads(line) for line in (output / "train_log.jsonl").read_text().splitlines()]


def prefix_of(folder):
    return load_file(folder / "prefix_encoder.safetensors")


def folders_in(output):
    return sorted(path.name for path in output.iterdir() if path.is_dir())
