"""Locates a base model and detects its ChatGLM generation; reads config.json only."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from ptune.errors import ModelError

TINY = "tiny"
TINY_FOLDER = Path(__file__).parents[1] / "tiny"

_OLD_VOCABULARY = 150528
_SMALL_FILES = ["*.json", "*.model", "*.py"]
_WEIGHT_FILES = {  # in the order of preference
    "*.safetensors": "model.safetensors.index.json",
    "*.bin": "pytorch_model.bin.index.json",
}
_ROLE_TOKEN = "<|observation|>"


class Generation(str, Enum):
    """The three generations; the value is also the name of the prompt format."""

    CHATGLM = "chatglm"
    CHATGLM2 = "chatglm2"
    CHATGLM3 = "chatglm3"

    @property
    def tokenizer_file(self) -> str:
        """The SentencePiece model that an official folder of this generation holds."""
        return "ice_text.model" if self is Generation.CHATGLM else "tokenizer.model"


@dataclass(frozen=True)
class BaseModel:
    """A folder with an official layout.

    Attributes:
        name: what the user called it: a path, a hub id or `tiny`.
        path: the folder on disk.
        config: the content of config.json.
        generation: which code, tokenizer and prompt it takes.
    """

    name: str
    path: Path
    config: dict[str, Any]
    generation: Generation


def find_base_model(name: str | Path, weights: bool = True) -> BaseModel:
    """Find a model by folder, hub id or `tiny`; a hub id is downloaded to the hub's cache.

    Args:
        name: what the user passed as `--model`.
        weights: download them too; without, configuration and tokenizer come in seconds.

    Raises:
        ModelError: nothing there, or not a ChatGLM that ptune knows.
    """
    path = _locate(str(name), weights)
    config = _read_config(path)
    return BaseModel(str(name), path, config, _generation(path, config))


def _locate(name: str, weights: bool) -> Path:
    if name == TINY:
        return TINY_FOLDER
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ModelError(f"model {name} is a file, not a folder; pass the folder that holds it")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ModelError(
            f"model {name} is neither a folder nor a hub id such as THUDM/chatglm-6b; "
            f"pass the folder that holds config.json, or try `--model {TINY}`"
        )
    try:
        return _download(name, weights)
    except Exception as error:  # among them those of whichever HTTP library the hub's client uses
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"model {name} is no folder here and could not be fetched from the hub ({reason}); "
            f"pass a folder with `--model /path/to/{name.split('/')[1]}`, "
            f"or try the built-in one with `--model {TINY}`"
        ) from error


def _download(name: str, weights: bool) -> Path:
    from huggingface_hub import snapshot_download

    path = Path(snapshot_download(name, allow_patterns=_SMALL_FILES))
    if not weights:
        return path
    # Some repositories hold the weights in both formats; an index tells which are there.
    indexed = [kind for kind, index in _WEIGHT_FILES.items() if (path / index).is_file()]
    return Path(snapshot_download(name, allow_patterns=indexed[:1] or list(_WEIGHT_FILES)))


def _read_config(path: Path) -> dict[str, Any]:
    file = path / "config.json"
    if not file.is_file():
        found = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
        raise ModelError(
            f"no config.json in {path} (found {found}); "
            "pass the folder of a base model, with its config.json, weights and tokenizer"
        )
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{file} is not JSON ({error}); download it again") from error
    if not isinstance(config, dict):
        raise ModelError(f"{file} holds no JSON object; download it again")
    return config


def _generation(path: Path, config: dict[str, Any]) -> Generation:
    file = path / "config.json"
    kind = config.get("model_type")
    if kind != "chatglm":
        raise ModelError(
            f"model_type {kind!r} in {file} is not ChatGLM; "
            "ptune tunes ChatGLM-6B, ChatGLM2-6B and ChatGLM3-6B"
        )
    if config.get("vocab_size") == _OLD_VOCABULARY:
        raise ModelError(
            f"vocab_size {_OLD_VOCABULARY} in {file} is the ChatGLM-6B of before April 2023; "
            "download the current THUDM/chatglm-6b (vocab_size 130528), all its files"
        )
    if "inner_hidden_size" in config:
        found = Generation.CHATGLM
    elif "padded_vocab_size" in config:
        found = Generation.CHATGLM3 if _is_third(path, config) else Generation.CHATGLM2
    else:
        raise ModelError(
            f"{file} has neither inner_hidden_size (ChatGLM-6B) nor padded_vocab_size "
            "(ChatGLM2 and 3); download it again"
        )
    _check_tokenizer_file(path, found)
    return found


def _is_third(path: Path, config: dict[str, Any]) -> bool:
    """ChatGLM2 and 3 have the same architecture and tokenizer file; only names tell them apart."""
    tokenizer_config = path / "tokenizer_config.json"
    hints = [str(config.get("_name_or_path", ""))]
    if tokenizer_config.is_file():
        text = tokenizer_config.read_text(encoding="utf-8", errors="replace")
        if _ROLE_TOKEN in text:
            return True
        hints.append(text)
    code = path / "tokenization_chatglm.py"  # looked at as text, never run
    if code.is_file():
        return _ROLE_TOKEN in code.read_text(encoding="utf-8", errors="replace")
    hints.append(path.resolve().as_posix())
    for hint in hints:
        if match := re.search(r"chatglm-?([23])", hint, re.IGNORECASE):
            return match.group(1) == "3"
    return bool(config.get("seq_length") == 8192)  # ChatGLM2-6B has 32768


def _check_tokenizer_file(path: Path, generation: Generation) -> None:
    other = (
        Generation.CHATGLM2 if generation is Generation.CHATGLM else Generation.CHATGLM
    ).tokenizer_file
    if (path / generation.tokenizer_file).is_file():
        return
    if (path / other).is_file():
        raise ModelError(
            f"{path} mixes generations: config.json is of {generation.value}, "
            f"{other} is not its tokenizer; download all files of one model into one folder"
        )
