"""A training step of the original ChatGLM-6B code, as its `ptuning/main.py` has it.

`python original_training.py TASK.json`, in an environment with transformers 4.27.1.  The task's
`peer` is a folder with `modeling_chatglm.py` and `configuration_chatglm.py`; `half` and
`micro_batch` are its settings.  Everything is padded to the maximal length and gradient
checkpointing is on, as there.
"""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path
from typing import Any

import torch
import transformers
from protocol import read_task, serve
from training_loop import Records, TrainingLoop


def load_original(folder: Path) -> Any:
    """Import the original's module, whose files import each other as parts of a package."""
    package = types.ModuleType("original")
    package.__path__ = [str(folder)]
    sys.modules["original"] = package
    return importlib.import_module("original.modeling_chatglm")


def make_model(task: dict[str, Any], device: str = "cpu") -> Any:
    """Make a model with random weights, tied as the official ones are."""
    module = load_original(Path(task["peer"]))
    known = {k: v for k, v in task["config"].items() if k not in ("architectures", "auto_map")}
    config = module.ChatGLMConfig(**known, pre_seq_len=task["pre_seq_len"], prefix_projection=False)
    model = module.ChatGLMForConditionalGeneration(config)
    model = (model.half() if task["half"] else model.float()).to(device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.02)
            else:
                parameter.fill_(1.0 if "layernorm" in name and name.endswith("weight") else 0.0)
    model.lm_head.weight = model.transformer.word_embeddings.weight
    model.transformer.prefix_encoder.float()
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    return model.train()


def make_loop(model: Any, task: dict[str, Any], device: str = "cpu") -> TrainingLoop:
    """Training of `micro_batch` records at a time, all padded to `max_length`."""
    micro, width, pad = task["micro_batch"], task["max_length"], task["config"]["pad_token_id"]

    def padded(rows: list[list[int]], value: int) -> torch.Tensor:
        return torch.tensor([row + [value] * (width - len(row)) for row in rows], device=device)

    def backward(records: Records) -> None:
        for at in range(0, len(records), micro):
            part = records[at : at + micro]
            loss = model(
                input_ids=padded([r["input_ids"] for r in part], pad),
                labels=padded([r["labels"] for r in part], -100),
            ).loss
            (loss / (len(records) // micro)).backward()

    return TrainingLoop(model, task["records"], task["batch_size"], backward)


def main() -> None:
    task = read_task()
    torch.set_num_threads(task["threads"])
    torch.manual_seed(0)
    loop = make_loop(make_model(task), task)
    serve(loop.step, torch=torch.__version__, transformers=transformers.__version__)


if __name__ == "__main__":
    main()
