"""Extracts the golden data of these tests from the full golden folder.

Run ``python tests/golden/make.py GOLDEN_FOLDER``.  That folder holds what the original code
computed on small models with random weights: its README.md tells how.  Here stay the ids and the
values, a sample of them where there are many; the texts and the tokenizers do not.

For a case: NAME.json (settings, ids, losses, greedy continuations, norms of the gradients) and
NAME.safetensors (`positions` `[N, 2]` of row and column, `columns` `[C]` of the vocabulary,
`logits_*` `[N, C]`, `logsumexp_*` `[B, S]`, `grad.*` the first 64 values).  For a training:
training-NAME.json.  For the checkpoint that the original's own training left: official-run.json and
official-run/.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ptune.base.folder import Generation
from ptune.data.prompt import Conversation, Example, Lengths, render
from ptune.data.tokenizer import ChatGLM2Tokenizer, ChatGLMTokenizer
from ptune.data.truncation import ORIGINAL

HERE = Path(__file__).parent
CASES = ("v1", "v1-projection", "v1-int4", "v1-int8")
CASES += ("v2", "v2-projection", "v2-int4", "v2-32k", "v3")
TRAININGS = ("v1", "v1-projection", "v2")
KINDS = ("base", "prefix")
COLUMNS = 16
POSITION_STEP = 5
GRAD_VALUES = 64


def main(source: Path) -> None:
    """Write everything beside this file."""
    tokenizers = {
        "v1": ChatGLMTokenizer(str(source / "tokenizers/chatglm-6b/ice_text.model")),
        "v2": ChatGLM2Tokenizer(str(source / "tokenizers/chatglm3-6b/tokenizer.model")),
    }
    generations = {"v1": Generation.CHATGLM, "v2": Generation.CHATGLM2}

    def rendered(family: str, prompt: str, response: str | None, lengths: Lengths) -> Example:
        conversation = Conversation.from_turns(prompt, response)
        return render(tokenizers[family], generations[family], conversation, lengths)

    for name in CASES:
        write_case(source, name)
    for name in TRAININGS:
        case = read(source / "cases" / f"{name}.json")
        lengths = Lengths(case["max_source_length"], case["max_target_length"], ORIGINAL)
        training = read(source / "training" / f"{name}.json")
        examples = [
            rendered(case["family"], r["content"], r["summary"], lengths)
            for r in training.pop("records")
        ]
        training["case"] = name
        training["records"] = [{"input_ids": e.input_ids, "labels": e.labels} for e in examples]
        write(HERE / f"training-{name}.json", training)
    write_official_run(source / "official-run", rendered)


def write_case(source: Path, name: str) -> None:
    """Write NAME.json and NAME.safetensors."""
    case = read(source / "cases" / f"{name}.json")
    values = load_file(source / "cases" / f"{name}.safetensors")
    expected = case["expected"]
    kept = ("name", "family", "architecture", "seed", "config", "prefix")
    out = {key: case[key] for key in (*kept, "max_source_length", "max_target_length")}
    out |= {f"train_{key}": expected["train"][key] for key in ("input_ids", "labels")}
    out |= {f"loss_{kind}": expected[f"loss_{kind}"] for kind in KINDS}
    prompts = [expected[f"generate_{kind}"]["prompt_ids"] for kind in KINDS]
    assert prompts[0] == prompts[1]
    out["prompt_ids"] = prompts[0]
    out |= {f"new_ids_{kind}": expected[f"generate_{kind}"]["new_ids"] for kind in KINDS}
    grads = {key: value for key, value in values.items() if key.startswith("grad.")}
    out["grad_norms"] = {key.removeprefix("grad."): g.norm().item() for key, g in grads.items()}

    pad = case["config"]["pad_token_id"]
    real = (torch.tensor(out["train_input_ids"]) != pad).nonzero()
    positions = real[::POSITION_STEP]
    step = len(values["logit_columns"]) // COLUMNS
    tensors = {"positions": positions, "columns": values["logit_columns"][::step]}
    for kind in KINDS:
        logits = values[f"logits_{kind}"][positions[:, 0], positions[:, 1]]
        tensors[f"logits_{kind}"] = logits[:, ::step]
        tensors[f"logsumexp_{kind}"] = values[f"logsumexp_{kind}"]
    tensors |= {key: g.flatten()[:GRAD_VALUES] for key, g in grads.items()}
    tensors = {key: value.contiguous() for key, value in tensors.items()}
    save_file(tensors, HERE / f"{name}.safetensors")
    write(HERE / f"{name}.json", out)


def write_official_run(source: Path, rendered: Any) -> None:
    """Write the original's checkpoint, and the ids of what it was asked and answered."""
    run = read(source / "checkpoint-3.json")
    lengths = Lengths(max_source_length=64, max_target_length=64)
    out = {
        "case": "v1",
        "prompt_ids": [
            rendered("v1", r["content"], None, lengths).input_ids for r in run["records"]
        ],
        "new_ids": run["new_ids"],
    }
    write(HERE / "official-run.json", out)
    (HERE / "official-run").mkdir(exist_ok=True)
    for name in ("config.json", "pytorch_model.bin"):
        shutil.copyfile(source / "checkpoint-3" / name, HERE / "official-run" / name)


def read(file: Path) -> dict[str, Any]:
    """Read a JSON object."""
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def write(file: Path, content: dict[str, Any]) -> None:
    """Write a JSON object, one line a key, and one line an element of a list of lists."""
    lines = []
    for key, value in content.items():
        text = json.dumps(value, separators=(",", ":"))
        if isinstance(value, list) and value and not isinstance(value[0], int | float):
            rows = ",\n".join(json.dumps(row, separators=(",", ":")) for row in value)
            text = f"[\n{rows}\n]"
        lines.append(f"{json.dumps(key)}: {text}")
    file.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
