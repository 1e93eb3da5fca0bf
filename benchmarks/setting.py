"""Settings that the benchmarks share: data, lengths, model sizes, and the machine's name."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
# The first that is there: the real one, and what the repository has.
DATA = [SHARED / "data/AdvertiseGen/dev.json", ROOT / "examples/AdvertiseGen/train.json"]
TOKENIZERS = [SHARED / "golden/tokenizers/chatglm-6b", ROOT / "ptune/tiny"]
LENGTH, PREFIX = 64, 128
SIZES = {
    "tiny-cpu": {
        "hidden_size": 64,
        "inner_hidden_size": 256,
        "num_layers": 3,
        "num_attention_heads": 4,
    },
    "small-cpu": {
        "hidden_size": 512,
        "inner_hidden_size": 2048,
        "num_layers": 8,
        "num_attention_heads": 8,
    },
}


def first_there(paths: list[Path]) -> Path:
    return next(path for path in paths if path.exists())


def render_records(
    data: Path, tokenizer_folder: Path, length: int = LENGTH
) -> tuple[list[dict[str, Any]], Any]:
    """Read ADGEN and render it, `length` tokens a side; also returns the tokenizer."""
    from ptune.base.folder import Generation
    from ptune.data.prompt import Conversation, Lengths, render
    from ptune.data.tokenizer import ChatGLMTokenizer

    tokenizer = ChatGLMTokenizer(str(tokenizer_folder / "ice_text.model"))
    records = []
    for line in data.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        conversation = Conversation.from_turns(row["content"], row["summary"])
        example = render(tokenizer, Generation.CHATGLM, conversation, Lengths(length, length))
        records.append({"input_ids": example.input_ids, "labels": example.labels})
    return records, tokenizer


def cpu_name() -> str:
    """The processor as the system names it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
